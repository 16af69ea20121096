// How numbers, times and reasons read.

const numbers = new Map<number, Intl.NumberFormat>();

/** Decimals that suit a price: the smaller, the more. They stay while the price is of that size. */
export function decimalsFor(price: number): number {
  const size = Math.abs(price);
  if (size >= 1e6) return 0;
  if (size >= 1000) return 2;
  if (size >= 10) return 3;
  if (size >= 0.1) return 4;
  return size >= 0.001 || size === 0 ? 6 : 8;
}

function fixed(decimals: number): Intl.NumberFormat {
  let format = numbers.get(decimals);
  if (!format) {
    const digits = { minimumFractionDigits: decimals, maximumFractionDigits: decimals };
    numbers.set(decimals, (format = new Intl.NumberFormat("en", digits)));
  }
  return format;
}

/** 1.235e9, with the minus of all other numbers. */
const scientific = (value: number, decimals: number): string =>
  value.toExponential(decimals).replace("e+", "e").replace(/^-/, "−");

export function showPrice(price: number, decimals: number): string {
  const size = Math.abs(price);
  const fits = size === 0 || (size >= 1e-6 && size < 1e9);
  return fits ? fixed(decimals).format(price) : scientific(price, 3);
}

/** A change in percent, always with its sign: colour alone says nothing to many. */
export function showChange(percent: number): string {
  const size = Math.abs(percent);
  const text = size < 1e5 ? fixed(size < 1e3 ? 2 : 0).format(size) : scientific(size, 0);
  if (+text === 0) return `${text} %`;
  return `${percent < 0 ? "−" : "+"}${text} %`;
}

const compact = new Intl.NumberFormat("en", {
  notation: "compact",
  minimumSignificantDigits: 3,
  maximumSignificantDigits: 3,
});

export function showCompact(value: number): string {
  const size = Math.abs(value);
  return size === 0 || (size >= 0.001 && size < 1e15) ? compact.format(value) : scientific(value, 0);
}

/** An age in the largest unit that fits: 3 s, 5 min, 2 h, 4 d. */
export function showAge(ms: number): string {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86_400)} d`;
}

export function showBytes(perSecond: number): string {
  if (perSecond < 1000) return `${Math.round(perSecond)} B/s`;
  const kilo = perSecond / 1000;
  if (kilo < 1000) return `${kilo.toFixed(kilo < 100 ? 1 : 0)} kB/s`;
  return `${(kilo / 1000).toFixed(1)} MB/s`;
}

export const showPerSecond = (perSecond: number): string =>
  `${perSecond > 0 && perSecond < 10 ? perSecond.toFixed(1) : Math.round(perSecond)}/s`;

const clock = new Intl.DateTimeFormat("en", { timeStyle: "medium", hourCycle: "h23" });

export const showTime = (unixMs: number): string => clock.format(unixMs);

/** The cause of a state without the delay, which the page counts down. */
export const showCause = (cause: string): string => cause.replace(/; again in \d+ s$/, "");

const REASONS: Record<string, string> = {
  resume: "after a lost connection",
  slow: "this page read too slowly",
  hole: "found by the numbers of the events",
  snapshot: "first values that the server left out, as there were too many",
  start: "the server had just started",
  window: "the server was without NATS for too long",
  stream: "the stream in NATS was made anew",
  core: "the server was without NATS",
  unreadable: "the server could not read them",
  shed: "the server had more than it could handle",
};

export const showReason = (reason: string): string => REASONS[reason] ?? reason;

// What each event has, and times, are no news.
const DULL = /^(?:type|tokenId|source|nonce)$|time/i;
const VALUES_SHOWN = 5;

/** What an event without a price says, in a line: its first values. */
export function summarize(data: unknown): string {
  if (typeof data !== "object" || data === null) return String(data);
  const parts: string[] = [];
  for (const [key, value] of Object.entries(data)) {
    if (DULL.test(key) || typeof value === "object") continue;
    parts.push(`${key} ${typeof value === "number" ? showNumber(value) : value}`);
    if (parts.length === VALUES_SHOWN) break;
  }
  return parts.join(" · ");
}

function showNumber(value: number): string {
  return Math.abs(value) >= 1e6
    ? showCompact(value)
    : value.toLocaleString("en", { maximumFractionDigits: 6 });
}
