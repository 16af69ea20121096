// Clients in Node, and what they have got.

import { afterAll, afterEach, beforeAll } from "vitest";
import { WebSocket as Ws } from "ws";
import { type ConnectOptions, connect, type Feed, type State } from "../../src/index.js";
import { type Entry, judge, matches, type Verdict } from "./judge.js";
import { type Program, type Publisher, Rig, until, whyNoServer } from "./rig.js";

/** Why these tests are skipped; empty if they are not. */
export const skipped = whyNoServer();
if (skipped) console.warn(`Tests against a real server are skipped: ${skipped}`);

export const sockets = Object.entries({
  "Node's WebSocket": globalThis.WebSocket,
  ws: Ws as unknown as typeof WebSocket,
});

export const PER_SECOND = 50;
export const NOTHING_WRONG = { lost: 0, told: 0, doubled: 0, older: 0 };

export let rig: Rig;
export let nats: Program;
export let publisher: Publisher;
let feeds: Feed[] = [];

/** Have a nats-server and a publisher in this file, and feeds end with their test. */
export function withRig(): void {
  beforeAll(async () => {
    if (skipped) return;
    rig = new Rig();
    nats = await rig.nats();
    publisher = await rig.publisher(nats);
  });
  afterEach(() => {
    publisher?.pause();
    for (const feed of feeds) feed.close();
    feeds = [];
  });
  afterAll(() => rig?.stop());
}

export function open(urls: string | string[], options: ConnectOptions = {}): Feed {
  const feed = connect(urls, { retryMinMs: 100, retryMaxMs: 500, ...options });
  feeds.push(feed);
  return feed;
}

export const live = (feed: Feed): Promise<unknown> => until("live", () => feed.state.name === "live");

/** A feed with one subscription to every trade, and all that it has handed out. */
export async function follow(
  urls: string | string[],
  options: ConnectOptions = {},
  { everyMs = 0, from = publisher } = {},
) {
  const feed = open(urls, options);
  const entries: Entry[] = [];
  const states: State[] = [];
  feed.on("state", (state) => states.push(state));
  const subscription = feed.subscribe<{ n: number }>("*.trade", { everyMs });
  subscription.on("event", ({ channel, data, skipped, isSnapshot }) => {
    if (!isSnapshot) entries.push({ kind: "event", at: Date.now(), channel, n: data.n, skipped });
  });
  subscription.on("gap", ({ channels }) => entries.push({ kind: "gap", at: Date.now(), channels }));
  await live(feed);
  const first = from.published.length;
  return {
    feed,
    subscription,
    entries,
    states,
    /** Wait until so many more have come. */
    more(count: number): Promise<unknown> {
      const before = entries.length;
      return until(`${count} more`, () => entries.length >= before + count);
    },
    /** Stop publishing, and judge when everything has come. */
    async verdict(): Promise<Verdict> {
      from.pause();
      const due = from.published.slice(first);
      const one = () => judge(due, entries, matches);
      const isComplete = () => one().received + one().told >= due.length && due.every(({ offset }) => offset);
      await until("everything", isComplete, 3_000).catch(() => {});
      return one();
    },
  };
}
