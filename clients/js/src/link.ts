// One link: a set of names, and the connection that has them now.
//
// A link opens a connection, watches it, and replaces it when it is lost or about to be. What the next
// one has to bring is what the one before had, after its positions.

import {
  type Connection,
  createConnection,
  isPattern,
  type Position,
  type Recipient,
  type Wanted,
} from "./connection.js";
import type { Message, Rate, State } from "./types.js";

// "At once" for many clients: they are spread over this time.
const SOON_MS = 1_000;
const DOUBLED_MAX = 16;

const NEW_TOKEN = [401, 4001, 4401];
const NEVER_AGAIN = [403, 1002, 1003, 1007, 1009, 1010, 4403];
const SAY_WHEN = [429, 503, 4429, 4503];
const LEFT = 4000;

/** What a link needs of the core that has it. */
export interface Feed extends Recipient {
  random(): number;
  dial(tries: number): number | null;
  drop(conn: number, code: number): void;
  hasOtherToken(): boolean;
  refuse(link: Link, name: string, code: string): void;
  fail(cause: string): void;
}

export type Link = ReturnType<typeof createLink>;

export function createLink(feed: Feed) {
  const { options, drop, forget } = feed;
  const rates = new Map<string, Rate>();
  const owed = new Set<string>();
  const refused = new Set<string>();
  const positions = new Map<Rate, Position>();
  const wanted: Wanted = { rates, owed, refused, positions };
  let { maxChannels, maxPatterns } = options;
  let current: Connection | undefined;
  let leaving: Connection | undefined;
  let tries = 0;
  let attempts = 0;
  let retryAt = Infinity;
  let cause = "";
  let waitsForToken = false;

  const conns = (): Connection[] => [current, leaving].filter((conn) => conn !== undefined);
  const connOf = (id: number): Connection | undefined => conns().find((conn) => conn.id === id);

  // ---- what is wanted

  const patternCount = (names: Iterable<string>): number => [...names].filter(isPattern).length;

  // Take the lower of two positions along with a name that changes its rate: an event of the slower
  // rate may wait for its tick. A pattern may leave channels to names at any rate: then all go on
  // from the lowest one. That is always safe: what comes twice is known by its offset.
  function lower(name: string, before: Rate, after: Rate): void {
    for (const conn of conns()) conn.isSettled = false;
    const moved = new Set([before, after]);
    if ([name, ...rates.keys()].some(isPattern)) {
      for (const rate of positions.keys()) if (rate !== null) moved.add(rate);
    }
    const epoch = current ? current.epoch : null;
    // In another epoch it is further behind, whatever its number.
    const place = (at: Position): number => (at.epoch === epoch ? at.offset : at.offset - 2 ** 53);
    const [lowest] = [...moved]
      .flatMap((rate) => positions.get(rate) ?? [])
      .sort((one, other) => place(one) - place(other));
    if (lowest) for (const rate of moved) positions.set(rate, lowest);
    const left = [...rates.values()];
    for (const rate of positions.keys()) if (!left.includes(rate)) positions.delete(rate);
  }

  function unwant(name: string): void {
    const rate = rates.get(name) as Rate;
    rates.delete(name);
    owed.delete(name);
    refused.delete(name);
    lower(name, rate, rate);
    if (!current?.held.has(name)) forget([name]);
  }

  // Note that the server does not give a name, and how many it does give.
  function refuse(name: string, code: string): void {
    if (!rates.has(name)) return;
    refused.add(name);
    const taken = [...rates.keys()].filter((one) => !refused.has(one));
    if (code === "TOO_MANY_CHANNELS") maxChannels = taken.length;
    if (code === "TOO_MANY_PATTERNS") maxPatterns = patternCount(taken);
    // Wherever it goes, it begins anew there.
    if (owed.delete(name)) feed.declare([name], null, "resume");
    feed.refuse(link, name, code);
  }

  // ---- connections

  function dial(now: number): void {
    retryAt = Infinity;
    const id = feed.dial(tries);
    waitsForToken = id === null;
    if (id === null) return;
    refused.clear();
    const counts = (): boolean => !current?.isOpen || current.id === id;
    current = createConnection(id, wanted, feed, counts, refuse, now + options.dialMs);
  }

  function lost(now: number, id: number, code: number, why: string): void {
    const conn = connOf(id);
    if (!conn) return;
    if (conn === leaving) {
      leaving = undefined;
      return forget(conn.held.keys());
    }
    leaveCurrent();
    forget(conn.held.keys());
    if (!conn.wasSettled) tries++;
    const needsToken = NEW_TOKEN.includes(code);
    const saysWhen = SAY_WHEN.includes(code);
    const isFinal = NEVER_AGAIN.includes(code) || (code >= 4500 && !saysWhen);
    if (isFinal || (needsToken && !feed.hasOtherToken())) return feed.fail(why);
    const [, seconds = 0] = (saysWhen && /(\d+) ?s/.exec(why)) || [];
    retry(now, why, +seconds * 1000, needsToken || code === 1001);
  }

  // Note that the next connection owes what this one had.
  function leaveCurrent(): void {
    for (const name of current?.held.keys() ?? []) if (rates.has(name)) owed.add(name);
    current = undefined;
  }

  function retry(now: number, why: string, waitMs: number, isSoon: boolean): void {
    const most = Math.min(options.retryMaxMs, options.retryMinMs * 2 ** attempts);
    retryAt = now + waitMs + feed.random() * (isSoon && !attempts ? SOON_MS : most);
    attempts = Math.min(attempts + 1, DOUBLED_MAX);
    cause = why;
  }

  // Drop a connection that does not answer.
  function giveUp(now: number, { id }: Connection, why: string): void {
    drop(id, LEFT);
    lost(now, id, 1006, why);
  }

  // Connect elsewhere first, and leave this connection when the new one has everything.
  function handOver(now: number): void {
    dropLeaving(1000);
    leaving = current;
    leaveCurrent();
    leaving?.leave();
    tries++;
    cause = "draining";
    dial(now);
  }

  // Let the connection before go, once this one has everything.
  function release(): void {
    if (current?.isSettled) dropLeaving(1000);
  }

  function dropLeaving(code: number): void {
    if (!leaving) return;
    drop(leaving.id, code);
    forget(leaving.held.keys());
    leaving = undefined;
  }

  function tick(now: number): void {
    if (retryAt <= now) dial(now);
    if (current && current.leaveAt <= now) handOver(now);
    for (const conn of conns()) {
      const why = conn.tick(now);
      if (why) giveUp(now, conn, why);
    }
    release();
  }

  const link = {
    // ---- what is wanted

    rates,
    /** Whether it takes any name such as this one. */
    takes: (name: string): boolean => (isPattern(name) ? maxPatterns : maxChannels) > 0,
    hasRoomFor(name: string): boolean {
      const isRoom = !isPattern(name) || patternCount(rates.keys()) < maxPatterns;
      return isRoom && rates.size < maxChannels;
    },
    want(name: string, rate: Rate): void {
      const before = rates.has(name) ? (rates.get(name) as Rate) : rate;
      rates.set(name, rate);
      lower(name, before, rate);
    },
    unwant,
    pump(now: number): void {
      current?.pump(now);
      release();
    },

    // ---- connections

    dial,
    lost,
    tick,
    opened(now: number, id: number): void {
      const conn = connOf(id);
      if (!conn || conn.isOpen) return;
      conn.opened(now);
      release();
    },
    received(now: number, id: number, message: Message): void {
      const conn = connOf(id);
      if (!conn?.isOpen) return;
      if (conn === current) attempts = 0;
      const why = conn.received(now, message);
      if (why) giveUp(now, conn, why);
      release();
    },
    takeToken(now: number, token: string): void {
      if (waitsForToken) dial(now);
      else if (current?.isOpen) feed.send(current.id, { type: "token", token });
    },
    tokenFailed(now: number, why: string): void {
      if (!waitsForToken) return;
      waitsForToken = false;
      retry(now, why, 0, false);
    },
    /** Drop what has piled up while the page did not run, and connect anew. */
    thaw(now: number): void {
      dropLeaving(LEFT);
      if (!current?.isOpen) return;
      drop(current.id, LEFT);
      leaveCurrent();
      cause = "frozen";
      dial(now);
    },
    /** Find out at once whether the network is there. */
    probe(now: number): void {
      if (retryAt < Infinity) {
        attempts = 0;
        dial(now);
      }
      for (const conn of conns()) conn.ask(now);
      tick(now);
    },
    close(): void {
      dropLeaving(1000);
      if (current) {
        drop(current.id, 1000);
        forget(current.held.keys());
      }
      current = undefined;
      retryAt = Infinity;
      waitsForToken = false;
    },
    deadline: (): number => Math.min(retryAt, ...conns().map((conn) => conn.deadline())),
    state(): Omit<State, "at"> {
      const conn = leaving && !current?.wasSettled ? leaving : current;
      if (!conn && retryAt < Infinity) return { name: "offline", cause, retryAt };
      if (!conn?.wasSettled) return { name: "connecting", cause, retryAt: null };
      if (!conn.isWell) {
        return { name: "stale", cause: "the server has no connection to NATS", retryAt: null };
      }
      return { name: "live", cause: "", retryAt: null };
    },
  };
  return link;
}
