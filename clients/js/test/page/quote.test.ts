import { expect, test } from "vitest";
import { addPoint, change, createQuote, POINTS, take, thin, trendPath } from "../../page/quote.js";
import type { Event } from "../../src/index.js";

const event = (data: unknown): Event => ({
  channel: "BTC.trade",
  data,
  unixMs: 0,
  skipped: 0,
  isSnapshot: false,
  epoch: null,
});

test("a change is that of the publisher, or else that since the page was opened", () => {
  const quote = createQuote(event({ price: 100 }));
  expect(change(quote)).toBe(0);
  take(quote, event({ price: 110 }));
  expect(change(quote)).toBeCloseTo(10);
  take(quote, event({ price: 120, priceChange24h: -3 }));
  expect(change(quote)).toBe(-3);
});

test("an event without a price has neither a change nor a trend", () => {
  for (const data of [null, "text", { price: "7" }, { amount: 7 }]) {
    const quote = createQuote(event(data));
    addPoint(quote);
    expect([quote.price, change(quote), trendPath(quote)]).toEqual([null, null, ""]);
  }
});

test("a price keeps its decimals until it is of another size", () => {
  const quote = createQuote(event({ price: 0.99 }));
  take(quote, event({ price: 1.01 }));
  expect(quote.decimals).toBe(4);
  take(quote, event({ price: 2_000 }));
  expect(quote.decimals).toBe(2);
});

test("a trend ends at the right, higher prices are above, and it forgets the oldest", () => {
  const quote = createQuote(event({ price: 100 }));
  addPoint(quote);
  expect(trendPath(quote)).toBe("");
  take(quote, event({ price: 110 }));
  addPoint(quote);
  const [first, last] = trendPath(quote)
    .slice(1)
    .split("L")
    .map((point) => point.split(" ").map(Number)) as [number[], number[]];
  expect(last).toEqual([100, 2]);
  expect(first).toEqual([94.7, 18]);
  for (let point = 0; point < POINTS; point++) addPoint(quote);
  expect(quote.points).toEqual(Array(POINTS).fill(110));
  expect(trendPath(quote)).toMatch(/^M0\.0 10\.0(L[\d.]+ 10\.0)+$/);
});

test("a number that is not finite is no price, and neither is a change that is none", () => {
  for (const price of [Number.NaN, Infinity, -Infinity]) {
    expect(createQuote(event({ price })).price).toBe(null);
  }
  const quote = createQuote(event({ price: 1e-300 }));
  take(quote, event({ price: 1e300 }));
  expect(change(quote)).toBe(null);
  expect(createQuote(event({ price: 1, priceChange24h: Infinity })).price).toBe(1);
});

test.each([[[1e308, -1e308]], [[1e-320, 2e-320]], [[0, 0]], [[1e308, 1e308]], [[1, 1e308, 1]]])(
  "the trend of %j stays in its box",
  (prices) => {
    const quote = createQuote(event({ price: prices[0] }));
    for (const price of prices) {
      take(quote, event({ price }));
      addPoint(quote);
    }
    const points = trendPath(quote).slice(1).split("L");
    expect(points).toHaveLength(prices.length);
    for (const point of points) {
      expect(point).toMatch(/^[\d.]+ [\d.]+$/);
      expect(Number(point.split(" ")[1])).toBeLessThanOrEqual(20);
    }
  },
);

test("half of a trend's points are half as many over the same time", () => {
  const quote = createQuote(event({ price: 0 }));
  for (const price of [1, 2, 3, 4, 5]) {
    take(quote, event({ price }));
    addPoint(quote);
  }
  thin(quote);
  expect(quote.points).toEqual([1, 3, 5]);
});
