import { expect, test } from "vitest";
import { readNames } from "../../page/names.js";

test.each([
  ["", ["*.trade"]],
  ["BTC", ["BTC.*"]],
  ["BTC.trade, ETH.*  *.liquidity", ["BTC.trade", "ETH.*", "*.liquidity"]],
  [">", [">"]],
  ["*", ["*.*"]],
  ["BTC.>", ["BTC.>"]],
  ["BTC BTC.*", ["BTC.*"]],
])("%j is read as %j", (text, names) => {
  expect(readNames(text)).toEqual({ names, wrong: [] });
});

test("what is no channel is named, and the rest is taken", () => {
  const long = `${"x".repeat(60)}.trade`;
  expect(readNames(`BTC.trade.x >.trade B*.trade €.trade ${long} ETH`)).toEqual({
    names: ["ETH.*"],
    wrong: ["BTC.trade.x", ">.trade", "B*.trade", "€.trade", long],
  });
});
