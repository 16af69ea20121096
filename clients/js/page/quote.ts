// What the page keeps of a channel.

import type { Event } from "../src/index.js";
import { decimalsFor } from "./format.js";

/** Points of a trend, and the time between two of them; less while the page is new. */
export const POINTS = 90;
export const STEP_MS = 2_000;
export const FIRST_STEP_MS = 1_000;
// A short trend does not fill the width: a line through two points looks like more than it is.
const LEAST_POINTS = 20;

export interface Quote {
  readonly channel: string;
  readonly symbol: string;
  readonly kind: string;
  /** What it is sorted by. */
  readonly name: string;
  event: Event;
  /** Null if the events of the channel have no price. */
  price: number | null;
  /** The price before, to see which way it went. */
  before: number | null;
  decimals: number;
  /** The first price that this page has seen. */
  opening: number | null;
  readonly points: number[];
}

const numberIn = (data: unknown, key: string): number | null => {
  const value = (data as Record<string, unknown> | null)?.[key];
  return Number.isFinite(value) ? (value as number) : null;
};

export function createQuote(event: Event): Quote {
  const [symbol = "", kind = ""] = event.channel.split(".");
  const quote: Quote = {
    channel: event.channel,
    symbol,
    kind,
    name: kind === "trade" ? symbol : event.channel,
    event,
    price: null,
    before: null,
    decimals: 0,
    opening: null,
    points: [],
  };
  take(quote, event);
  return quote;
}

export function take(quote: Quote, event: Event): void {
  const price = numberIn(event.data, "price");
  quote.event = event;
  quote.before = quote.price;
  quote.price = price;
  if (price === null) return;
  quote.opening ??= price;
  if (quote.before === null || price > 10 * quote.opening || price < quote.opening / 10) {
    quote.decimals = decimalsFor(price);
  }
}

export const volume = ({ event }: Quote): number | null => numberIn(event.data, "volume24h");

/** What the publisher says of the last 24 hours. */
export const dayChange = ({ event }: Quote): number | null => numberIn(event.data, "priceChange24h");

/** The change in percent: of 24 hours, or else since the page has been open. */
export function change(quote: Quote): number | null {
  const { price, opening } = quote;
  if (price === null) return null;
  const since = opening ? (price / opening - 1) * 100 : Number.NaN;
  return dayChange(quote) ?? (Number.isFinite(since) ? since : null);
}

/** Add the current price to the trend. */
export function addPoint({ price, points }: Quote): void {
  if (price === null) return;
  points.push(price);
  if (points.length > POINTS) points.shift();
}

/** Keep every other point of a trend, the newest one among them. */
export function thin({ points }: Quote): void {
  const kept = points.filter((_, at) => (points.length - at) % 2);
  points.splice(0, points.length, ...kept);
}

/** The trend as an SVG path in a box of 100 × 20, now at its right. What is below 0.02 % is flat. */
export function trendPath({ points: prices, price }: Quote): string {
  if (prices.length < 2 || price === null) return "";
  // As shares of the greatest: no difference of theirs is beyond all numbers.
  const unit = Math.max(...prices.map(Math.abs)) || 1;
  const points = prices.map((one) => one / unit);
  const low = Math.min(...points);
  const high = Math.max(...points);
  const span = Math.max(high - low, Math.abs(price / unit) * 2e-4) || 1;
  const middle = (low + high) / 2;
  const step = 100 / (Math.max(points.length, LEAST_POINTS) - 1);
  const start = 100 - step * (points.length - 1);
  return points
    .map((point, at) => {
      const x = (start + at * step).toFixed(1);
      const y = (10 - ((point - middle) / span) * 16).toFixed(1);
      return `${at ? "L" : "M"}${x} ${y}`;
    })
    .join("");
}
