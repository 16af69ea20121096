import { expect, test } from "vitest";
import {
  decimalsFor,
  showAge,
  showBytes,
  showCause,
  showChange,
  showCompact,
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
  [1_234_567.8, "1,234,568"],
  [1e308, "1.000e308"],
  [-2.5e15, "−2.500e15"],
  [3.21e-9, "3.210e-9"],
])("the price %d has as many decimals as its size needs", (price, shown) => {
  expect(showPrice(price, decimalsFor(price))).toBe(shown);
});

test.each([
  [1.234, "+1.23 %"],
  [-0.456, "−0.46 %"],
  [-0.001, "0.00 %"],
  [0, "0.00 %"],
  [1_234.56, "+1,235 %"],
  [-1e308, "−1e308 %"],
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

test("large numbers are short", () => {
  const shown = ["1.23K", "5.68B", "0.00", "1e18", "−1e308", "1e-300"];
  expect([1_234, 5.678e9, 0, 1e18, -1e308, 1e-300].map(showCompact)).toEqual(shown);
  expect(summarize({ total: 1e308 })).toBe("total 1e308");
});

test("a cause leaves out the delay, which is counted down beside it", () => {
  expect(showCause("Server is full; again in 12 s")).toBe("Server is full");
  expect(showCause("no sign of life")).toBe("no sign of life");
});

test("an event without a price is shown by its first plain values", () => {
  const data = { type: "x", tokenId: "BTC", openTime: 1, total: 2_500_000, at: { deep: 1 }, note: "new" };
  expect(summarize(data)).toBe("total 2.50M · note new");
  expect([null, 7, "text", {}].map(summarize)).toEqual(["null", "7", "text", ""]);
});
