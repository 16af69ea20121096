// The live page: a feed, a table, and what is around it.

import { namesFor } from "../src/connection.js";
import { connect, type Feed, type Rate, type State, type Subscription } from "../src/index.js";
import { z1 } from "../src/z1.js";
import { showBytes, showCause, showPerSecond, showTime } from "./format.js";
import { EVERY_TRADE, readNames } from "./names.js";
import { createSide } from "./side.js";
import { createTable, MAX_ROWS, type Order } from "./table.js";

// Nobody reads faster, and each frame costs.
const PAINT_EVERY_MS = 200;
const SECONDS_AVERAGED = 5;
const NAMES_SHOWN = 5;
const TITLES = {
  connecting: "Connecting",
  live: "Live",
  paused: "Paused",
  stale: "Stale",
  offline: "Offline",
  closed: "Ended",
};

const part = <T extends HTMLElement>(selector: string): T => document.querySelector(selector) as T;
const body = document.body;
const names = part<HTMLInputElement>("#names");
const hint = part("#hint");
const note = part("#note");
const table = createTable(part("#prices tbody"), part<HTMLTemplateElement>("#row"), plan);
const side = createSide(() => select(null));
const address = new URL("ws", location.href);
address.protocol = address.protocol.replace("http", "ws");

const openedAt = showTime(Date.now()).slice(0, -3);

let feed: Feed;
let subscription: Subscription | null = null;
let wanted: string[] = [];
let rate: Rate = 250;
let selected: string | null = null;

// ---- painting

let isPlanned = false;
let paintedAt = 0;
let unmark: ReturnType<typeof setTimeout> | undefined;

function plan(): void {
  if (isPlanned || document.hidden) return;
  isPlanned = true;
  setTimeout(() => requestAnimationFrame(paint), Math.max(0, paintedAt + PAINT_EVERY_MS - Date.now()));
}

function paint(): void {
  isPlanned = false;
  paintedAt = Date.now();
  const markMs = table.paint(paintedAt);
  showNote();
  if (table.size) setText(part("#change"), table.isDaily ? "24 h" : `Since ${openedAt}`);
  showSelected();
  clearTimeout(unmark);
  if (markMs) unmark = setTimeout(plan, markMs);
}

function setText(element: HTMLElement, text: string): void {
  if (element.textContent !== text) element.textContent = text;
}

function showNote(): void {
  const { size } = table;
  const all = size.toLocaleString("en");
  const missing = wanted.filter((name) => !table.has(name));
  const none = `No event of ${listed(missing)} yet.`;
  // There may be more: a server sends first values up to a limit, and others as they come.
  if (size > MAX_ROWS)
    setText(note, `The first ${MAX_ROWS} of ${all} channels so far. Name fewer above to see others.`);
  else if (!size) setText(note, `${none} Upper and lower case matter.`);
  else setText(note, `${size === 1 ? "1 channel" : `${all} channels`}${missing.length ? `. ${none}` : ""}`);
}

function listed(those: string[]): string {
  const more = those.length - NAMES_SHOWN;
  return more > 0 ? `${those.slice(0, NAMES_SHOWN).join(", ")} and ${more} more` : those.join(", ");
}

// ---- what is subscribed to

function subscribe(): void {
  const { names: chosen, wrong } = readNames(names.value);
  setText(hint, wrong.length ? `Not a channel: ${wrong.join(", ")}. Try BTC, BTC.trade, *.trade or >` : "");
  names.toggleAttribute("aria-invalid", wrong.length > 0);
  if (!chosen.length || chosen.join() === wanted.join()) return;
  wanted = chosen;
  const before = subscription;
  follow();
  before?.close();
  table.keepOnly((channel) => namesFor(channel).some((name) => wanted.includes(name)));
  if (selected !== null && !table.quote(selected)) side.close();
  const isUsual = wanted.join() === EVERY_TRADE;
  history.replaceState(null, "", isUsual ? location.pathname : `#${encodeURIComponent(names.value.trim())}`);
}

// What the address names behind its #.
function readAddress(): void {
  try {
    names.value = decodeURIComponent(location.hash.slice(1)) || EVERY_TRADE;
  } catch {
    names.value = EVERY_TRADE;
  }
  subscribe();
}

function follow(): void {
  subscription = feed.subscribe(wanted, { everyMs: document.hidden ? null : rate });
  subscription.on("event", (event) => {
    events++;
    table.takeEvent(event);
  });
  subscription.on("gap", side.addGap);
  subscription.on("refused", ({ channel, code }) => setText(hint, `The server refuses ${channel}: ${code}`));
}

function setRate(chosen: Rate): void {
  rate = chosen;
  subscription?.setRate(rate);
  showState(feed.state);
}

// ---- the connection

let retryAt: number | null = null;
let offlineSince: number | null = null;

function open(token?: string): void {
  let isGiven = false;
  feed?.close();
  feed = connect(address.href, {
    compression: z1(),
    ...(token && {
      token() {
        if (isGiven) queueMicrotask(() => askToken("The server does not take this token any more"));
        isGiven = true;
        return token;
      },
    }),
  });
  feed.on("state", showState);
  feed.on("bytes", (size) => {
    bytes += size;
  });
  showState(feed.state);
}

function askToken(cause: string): void {
  feed.close();
  showState({ ...feed.state, cause });
}

function showState({ name, cause, at, retryAt: next }: State): void {
  // A try to connect is a part of being offline, until it succeeds.
  const isTrying = name === "connecting" && offlineSince !== null;
  if (name === "offline") offlineSince ??= at;
  else if (!isTrying) offlineSince = null;
  const shown = isTrying ? "offline" : name === "live" && rate === null ? "paused" : name;
  body.dataset.state = shown;
  setText(part("#state strong"), TITLES[shown]);
  if (!isTrying) {
    const since = offlineSince === null ? "" : `, since ${showTime(offlineSince)}`;
    setText(part("#state span"), cause && `${showCause(cause)}${since}`);
  }
  part("#entry").hidden = name !== "closed" || !/token/i.test(cause);
  document.title = `${shown === "live" ? "" : `${TITLES[shown]}: `}Prices · trio-odin`;
  retryAt = next;
  showRetry();
}

function showRetry(): void {
  let text = offlineSince === null ? "" : "trying now";
  if (retryAt !== null) text = `again in ${Math.max(0, Math.ceil((retryAt - Date.now()) / 1000))} s`;
  setText(part("#retry"), text);
}

// ---- figures

let events = 0;
let bytes = 0;
const seconds: [number, number][] = [];

function tick(): void {
  seconds.push([events, bytes]);
  events = bytes = 0;
  if (seconds.length > SECONDS_AVERAGED) seconds.shift();
  const sum = (at: 0 | 1): number => seconds.reduce((all, one) => all + one[at], 0) / seconds.length;
  setText(part("#events"), showPerSecond(sum(0)));
  setText(part("#bytes"), showBytes(sum(1)));
  showRetry();
  requestAnimationFrame(() => table.tick(Date.now()));
}

// ---- what is selected

function select(channel: string | null): void {
  for (const row of document.querySelectorAll("tr[aria-current]")) row.removeAttribute("aria-current");
  selected = channel === selected ? null : channel;
  if (selected === null) return;
  document.querySelector(`tr[data-channel="${CSS.escape(selected)}"]`)?.setAttribute("aria-current", "true");
  showSelected();
}

function showSelected(): void {
  const quote = selected === null ? undefined : table.quote(selected);
  if (quote) side.showEvent(quote);
}

// ---- what the reader does

part("#filter").addEventListener("submit", (event) => {
  event.preventDefault();
  subscribe();
});
names.addEventListener("change", subscribe);
part("#rate").addEventListener("change", ({ target }) => {
  const { value } = target as HTMLInputElement;
  setRate(value === "" ? null : Number(value));
});
part("#entry").addEventListener("submit", (event) => {
  event.preventDefault();
  open(part<HTMLInputElement>("#token").value.trim());
  follow();
});

part("#prices thead").addEventListener("click", ({ target }) => {
  const button = (target as Element).closest("button");
  const header = button?.parentElement;
  if (!header) return;
  const by = button.dataset.by as Order;
  const before = header.getAttribute("aria-sort");
  // Names from A, figures from the largest; the same again turns it around.
  const isDescending = before ? before === "ascending" : by !== "channel";
  for (const other of document.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", isDescending ? "descending" : "ascending");
  table.sort(by, isDescending);
});

part("#prices tbody").addEventListener("click", ({ target, detail }) => {
  const row = (target as Element).closest("tr");
  // Whoever marks text with the mouse wants to copy it.
  if (!row || (detail > 0 && getSelection()?.type === "Range")) return;
  makeReachable(row.querySelector("button") as HTMLButtonElement);
  const channel = row.dataset.channel as string;
  if (channel === selected) side.close();
  else select(channel);
});

// Tab goes to one row of the table, and the arrows from there to the others.
function makeReachable(button: HTMLButtonElement): void {
  for (const other of table.buttons()) other.tabIndex = -1;
  button.tabIndex = 0;
}

part("#prices tbody").addEventListener("keydown", (event) => {
  const buttons = table.buttons();
  const at = buttons.indexOf(document.activeElement as HTMLButtonElement);
  const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
  const button = to === undefined ? undefined : buttons[to];
  if (at < 0 || !button) return;
  event.preventDefault();
  makeReachable(button);
  button.focus();
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") side.close();
  if (event.key === "/" && !(event.target as Element).closest("input")) {
    event.preventDefault();
    names.select();
  }
});

// ---- begin

let timer: ReturnType<typeof setInterval> | undefined;

function wake(): void {
  clearInterval(timer);
  subscription?.setRate(document.hidden ? null : rate);
  if (document.hidden) return;
  seconds.length = events = bytes = 0;
  timer = setInterval(tick, 1000);
  plan();
}

setText(part("#host"), location.host);
(document.querySelector(`#rate input[value="${rate}"]`) as HTMLInputElement).checked = true;
open();
readAddress();
addEventListener("hashchange", readAddress);
document.addEventListener("visibilitychange", wake);
wake();
