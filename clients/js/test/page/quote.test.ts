import { expect, test } from "vitest";
import { addPoint, change, createQuote, POINTS, take, trendPath } from "../../page/quote.js";
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
