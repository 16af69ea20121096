import { expect, test } from "vitest";
import {
  decimalsFor,
  showAge,
  showBytes,
  showChange,
  showPerSecond,
  showPrice,
  summarize,
} from "../../page/format.js";

test.each([
  [64_123.5, "64,123.50"],
  [148.5967, "148.597"],
  [1.96887, "1.9689"],
  [0.0698051, "0.069805"],
  [0.00001234, "0.00001234"],
  [0, "0.000000"],
])("the price %d has as many decimals as its size needs", (price, shown) => {
  expect(showPrice(price, decimalsFor(price))).toBe(shown);
});

test.each([
  [1.234, "+1.23 %"],
  [-0.456, "−0.46 %"],
  [-0.001, "0.00 %"],
  [0, "0.00 %"],
])("the change %d has a sign unless it is none", (percent, shown) => {
  expect(showChange(percent)).toBe(shown);
});

test.each([
  [-5_000, "0 s"],
  [3_999, "3 s"],
  [60_000, "1 min"],
  [3_600_000, "1 h"],
  [200_000_000, "2 d"],
])("an age of %d ms is in the largest unit that fits", (ms, shown) => {
  expect(showAge(ms)).toBe(shown);
});

test("rates have a digit behind the point while they are small", () => {
  expect([0, 0.4, 9.96, 30.2].map(showPerSecond)).toEqual(["0/s", "0.4/s", "10.0/s", "30/s"]);
  expect([0, 999, 1_000, 150_400, 2_500_000].map(showBytes)).toEqual([
    "0 B/s",
    "999 B/s",
    "1.0 kB/s",
    "150 kB/s",
    "2.5 MB/s",
  ]);
});

test("an event without a price is shown by its first plain values", () => {
  const data = { type: "x", tokenId: "BTC", openTime: 1, total: 2_500_000, at: { deep: 1 }, note: "new" };
  expect(summarize(data)).toBe("total 2.50M · note new");
  expect([null, 7, "text", {}].map(summarize)).toEqual(["null", "7", "text", ""]);
});
