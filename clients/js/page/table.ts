// The table: a row for each channel, in an order that only its reader changes.
//
// Events only mark what has changed. Painting happens in a frame of the browser, touches only the
// cells whose text differs, and never moves a row.

import { namesFor } from "../src/connection.js";
import type { Event } from "../src/index.js";
import { showAge, showChange, showCompact, showPrice, summarize } from "./format.js";
import {
  addPoint,
  change,
  createQuote,
  dayChange,
  FIRST_STEP_MS,
  POINTS,
  type Quote,
  STEP_MS,
  take,
  thin,
  trendPath,
  volume,
} from "./quote.js";

/** A page with more rows is slow to lay out and no easier to read. */
export const MAX_ROWS = 250;
const MARK_MS = 500;
// As wide as a digit: a figure that becomes shorter begins where it did.
const FIGURE_SPACE = "\u2007";
const CHANGE_CHARS = "+1.00 %".length;
const AGE_CHARS = "10 s".length;

export type Order = "channel" | "price" | "change";

interface Row {
  readonly quote: Quote;
  readonly element: HTMLTableRowElement;
  readonly button: HTMLButtonElement;
  readonly price: HTMLElement;
  readonly change: HTMLElement;
  readonly volume: HTMLElement;
  readonly trend: Element;
  readonly age: HTMLElement;
  /** When its price stops to be marked as new; 0 if it is not. */
  markedUntil: number;
}

const KEYS: Record<Order, (quote: Quote) => number> = {
  channel: () => 0,
  price: (quote) => quote.price ?? -Infinity,
  change: (quote) => change(quote) ?? -Infinity,
};
// The trades of a symbol, which have its price, come before its other events.
const byName = (one: Quote, other: Quote): number => (one.name < other.name ? -1 : 1);

function setText(element: Element, text: string): void {
  const node = element.firstChild as Text | null;
  if (!node) element.textContent = text;
  else if (node.data !== text) node.data = text;
}

const pad = (text: string, chars: number): string => text.padStart(chars, FIGURE_SPACE);

export type Table = ReturnType<typeof createTable>;

/** Fill `body` with copies of `template`; `changed` is called when something waits to be painted. */
export function createTable(body: HTMLElement, template: HTMLTemplateElement, changed: () => void) {
  const quotes = new Map<string, Quote>();
  const rows = new Map<Quote, Row>();
  const dirty = new Set<Quote>();
  // All names that channels of the table match.
  const matched = new Set<string>();
  let order: Quote[] = [];
  let arrivals: Quote[] = [];
  let by: Order = "channel";
  let isDescending = false;
  let isMoved = false;
  let isDaily = false;
  let sampledAt = Date.now();
  let stepMs = FIRST_STEP_MS;
  // How far the server's clock is ahead, or rather behind: the least that an event seems to take.
  let skew: number | null = null;

  function takeEvent(event: Event): void {
    const quote = quotes.get(event.channel);
    if (quote) take(quote, event);
    else {
      const arrival = createQuote(event);
      quotes.set(event.channel, arrival);
      addPoint(arrival);
      for (const name of namesFor(event.channel)) matched.add(name);
      arrivals.push(arrival);
      isDaily ||= dayChange(arrival) !== null;
    }
    if (!event.isSnapshot) {
      const delay = Date.now() - event.unixMs;
      if (skew === null || delay < skew) skew = delay;
    }
    const changedQuote = quote ?? (quotes.get(event.channel) as Quote);
    if (!quote || rows.has(changedQuote)) {
      dirty.add(changedQuote);
      changed();
    }
  }

  function keepOnly(isWanted: (channel: string) => boolean): void {
    for (const [channel, quote] of quotes) {
      if (isWanted(channel)) continue;
      quotes.delete(channel);
      dirty.delete(quote);
    }
    matched.clear();
    for (const name of [...quotes.keys()].flatMap(namesFor)) matched.add(name);
    order = order.filter(({ channel }) => quotes.has(channel));
    arrivals = arrivals.filter(({ channel }) => quotes.has(channel));
    isMoved = true;
    changed();
  }

  // Order all rows as they are now. Later changes of prices move none.
  function sort(wanted: Order, descending: boolean): void {
    by = wanted;
    isDescending = descending;
    takeArrivals();
    const sign = descending ? -1 : 1;
    const key = KEYS[by];
    order.sort((one, other) => sign * (key(one) - key(other) || byName(one, other)));
    isMoved = true;
    changed();
  }

  function takeArrivals(): void {
    if (!arrivals.length) return;
    order.push(...arrivals.sort(byName));
    arrivals = [];
    isMoved = true;
    const sign = isDescending ? -1 : 1;
    if (by === "channel") order.sort((one, other) => sign * byName(one, other));
  }

  function createRow(quote: Quote): Row {
    const element = template.content.firstElementChild?.cloneNode(true) as HTMLTableRowElement;
    const part = (selector: string): HTMLElement => element.querySelector(selector) as HTMLElement;
    element.dataset.channel = quote.channel;
    setText(part("b"), quote.symbol);
    // Of the usual kind nothing is said.
    setText(part("i"), quote.kind === "trade" ? "" : quote.kind);
    return {
      quote,
      element,
      button: part("button") as HTMLButtonElement,
      price: part(".price"),
      change: part(".change"),
      volume: part(".volume"),
      trend: part("path"),
      age: part(".age"),
      markedUntil: 0,
    };
  }

  function arrange(now: number): void {
    isMoved = false;
    const shown = new Set(order.slice(0, MAX_ROWS));
    for (const [quote, { element }] of rows) {
      if (shown.has(quote)) continue;
      element.remove();
      rows.delete(quote);
    }
    let next = body.firstElementChild;
    for (const quote of shown) {
      let row = rows.get(quote);
      if (!row) {
        rows.set(quote, (row = createRow(quote)));
        paintRow(row, now);
        showMove(row, 0);
        paintAge(row, now);
        row.trend.setAttribute("d", trendPath(quote));
      }
      if (row.element === next) next = next.nextElementSibling;
      else body.insertBefore(row.element, next);
    }
    const buttons = [...rows.values()].map(({ button }) => button);
    if (!buttons.some(({ tabIndex }) => tabIndex === 0)) {
      const first = body.querySelector("button");
      if (first) first.tabIndex = 0;
    }
  }

  function paintRow(row: Row, now: number): void {
    const { quote } = row;
    const { price } = quote;
    row.element.classList.toggle("plain", price === null);
    if (price === null) {
      delete row.price.dataset.decimals;
      setText(row.price, summarize(quote.event.data));
      return;
    }
    const text = showPrice(price, quote.decimals);
    const decimals = String(quote.decimals);
    if (row.price.dataset.decimals !== decimals) row.price.dataset.decimals = decimals;
    if (row.price.textContent !== text) {
      setText(row.price, text);
      if (quote.before !== null && quote.before !== price) {
        showMove(row, Math.sign(price - quote.before));
        row.markedUntil = now + MARK_MS;
      }
    }
    const percent = change(quote);
    setText(row.change, percent === null ? "" : pad(showChange(percent), CHANGE_CHARS));
    const sign = percent === null ? "0" : String(Math.sign(Math.round(percent * 100)));
    if (row.change.dataset.sign !== sign) row.change.dataset.sign = sign;
    const traded = volume(quote);
    setText(row.volume, traded === null ? "" : showCompact(traded));
  }

  function showMove({ price }: Row, sign: number): void {
    const text = String(sign);
    if (price.dataset.move !== text) price.dataset.move = text;
  }

  function paintAge({ quote, age }: Row, now: number): void {
    setText(age, pad(showAge(now - quote.event.unixMs - (skew ?? 0)), AGE_CHARS));
  }

  /** Paint what has changed. Returns how long a mark stays that has to be taken back; 0: none does. */
  function paint(now: number): number {
    takeArrivals();
    if (isMoved) arrange(now);
    for (const quote of dirty) {
      const row = rows.get(quote);
      if (!row) continue;
      paintRow(row, now);
      paintAge(row, now);
    }
    dirty.clear();
    let next = 0;
    for (const row of rows.values()) {
      if (!row.markedUntil) continue;
      if (row.markedUntil > now) next = Math.min(next || Infinity, row.markedUntil - now);
      else {
        showMove(row, 0);
        row.markedUntil = 0;
      }
    }
    return next;
  }

  /** Let a second pass: ages, and now and then a point of each trend. */
  function tick(now: number): void {
    for (const row of rows.values()) paintAge(row, now);
    const steps = Math.min(POINTS, Math.floor((now - sampledAt) / stepMs));
    if (!steps) return;
    sampledAt = steps < POINTS ? sampledAt + steps * stepMs : now;
    for (const { quote } of rows.values()) {
      for (let step = 0; step < steps; step++) addPoint(quote);
    }
    // At first a trend grows quickly; once one is full, all show a longer time.
    if (stepMs < STEP_MS && [...quotes.values()].some(({ points }) => points.length === POINTS)) {
      stepMs = STEP_MS;
      for (const quote of quotes.values()) thin(quote);
    }
    for (const { quote, trend } of rows.values()) trend.setAttribute("d", trendPath(quote));
  }

  return {
    takeEvent,
    keepOnly,
    sort,
    paint,
    tick,
    quote: (channel: string): Quote | undefined => quotes.get(channel),
    /** Whether there is a channel of this name, which may be a pattern. */
    has: (name: string): boolean => matched.has(name),
    buttons: (): HTMLButtonElement[] => [...body.querySelectorAll("button")],
    /** Whether changes are those of 24 hours. */
    get isDaily() {
      return isDaily;
    },
    get size() {
      return quotes.size;
    },
  };
}
