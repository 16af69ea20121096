// One link: a set of names, and the connection that has them now.
//
// A link opens a connection, watches it, and replaces it when it is lost or about to be. What the next
// one has to bring is what the one before had, after its positions.

import {
  type Connection,
  createConnection,
  isPattern,
  namesFor,
  type Position,
  type Recipient,
  type Wanted,
} from "./connection.js";
import type { Message, Rate } from "./types.js";

export { namesFor };

// "At once" for many clients: they are spread over this time.
const SOON_MS = 1_000;
const WAIT_MAX_MS = 60_000;

// A status of HTTP, the same after an upgrade with 4 before it, or a close code.
const NEW_TOKEN = /^(4?401|4001)$/;
const NEVER_AGAIN = /^(4?403|100[2379]|1010|4[5-9]..)$/;
const SAY_WHEN = /^4?(429|503)$/;
const LEFT = 4000;

/** What a link needs of the core that has it. */
export interface Feed extends Recipient {
  random(): number;
  dial(tries: number): number | undefined;
  drop(conn: number, code: number): void;
  hasOtherToken(): boolean;
  readonly hasOthers: boolean;
  refuse(link: Link, name: string, code: string, isFull: boolean): void;
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

  const conns = (): Connection[] => [current, leaving].filter((conn) => !!conn);
  const connOf = (id: number): Connection | undefined => conns().find((conn) => conn.id === id);

  // ---- what is wanted

  // Take the lower of two positions along with a name that changes its rate: an event of the slower
  // rate may wait for its tick. A pattern may leave channels to names at any rate: then all go on
  // from the lowest one. That is always safe: what comes twice is known by its offset.
  function lower(name: string, after: Rate, before = after): void {
    for (const conn of conns()) conn.isSettled = false;
    const moved = new Set([before, after]);
    if ([name, ...rates.keys()].some(isPattern)) {
      for (const rate of positions.keys()) if (rate !== null) moved.add(rate);
    }
    const epoch = current?.epoch;
    // In another epoch it is further behind, whatever its number.
    const place = (at: Position): number => (at.epoch === epoch ? at.offset : at.offset - 2 ** 53);
    const [lowest] = [...moved]
      .flatMap((rate) => positions.get(rate) ?? [])
      .sort((one, other) => place(one) - place(other));
    if (lowest) for (const rate of moved) positions.set(rate, lowest);
  }

  function unwant(name: string): void {
    const rate = rates.get(name) as Rate;
    rates.delete(name);
    owed.delete(name);
    refused.delete(name);
    lower(name, rate);
    forget([name]);
  }

  // Note that the server does not give a name, and how many it does give.
  function refuse(name: string, code: string): void {
    if (!rates.has(name)) return;
    refused.add(name);
    const taken = [...rates.keys()].filter((one) => !refused.has(one));
    // It may have room on another link, unless the server takes none at all.
    let isFull = false;
    if (code === "TOO_MANY_CHANNELS") isFull = (maxChannels = taken.length) > 0;
    if (code === "TOO_MANY_PATTERNS") isFull = (maxPatterns = taken.filter(isPattern).length) > 0;
    // Wherever it goes, it begins anew there.
    if (owed.delete(name)) feed.declare([name], null, "resume");
    feed.refuse(link, name, code, isFull);
  }

  // ---- connections

  function dial(now: number): void {
    retryAt = Infinity;
    const id = feed.dial(tries);
    if (!id) return;
    refused.clear();
    const counts = (): boolean => !current?.isOpen || current.id === id;
    current = createConnection(id, wanted, feed, counts, refuse, now + options.dialMs);
  }

  // A connection has ended, or ends now with a code. The next one owes what it had.
  function end(conn: Connection, code?: number): void {
    if (code) drop(conn.id, code);
    if (conn.jumped.size) feed.declare(conn.jumped, null, "resume");
    if (conn === current) leaveCurrent();
    else leaving = undefined;
    forget([">"]);
  }

  function leaveCurrent(): void {
    for (const [name, its] of current?.held ?? []) {
      const rate = rates.get(name);
      if (rate === undefined) continue;
      owed.add(name);
      if (its !== rate) lower(name, rate, its); // it had not come so far
    }
    current = undefined;
  }

  function lost(now: number, id: number, code: number, why: string): void {
    const conn = connOf(id);
    if (!conn) return;
    const wasCurrent = conn === current;
    end(conn);
    if (!wasCurrent) return;
    if (!conn.wasSettled) tries++;
    const text = `${code}`;
    const needsToken = NEW_TOKEN.test(text);
    const saysWhen = SAY_WHEN.test(text);
    const isFinal = NEVER_AGAIN.test(text) && !saysWhen;
    if (isFinal || (needsToken && !feed.hasOtherToken())) return feed.fail(why);
    const seconds = (saysWhen && !feed.hasOthers && /again in (\d+) s$/.exec(why)?.[1]) || 0;
    retry(now, why, Math.min(+seconds * 1000, WAIT_MAX_MS), needsToken || code === 1001);
  }

  const waitsForToken = (): boolean => !current && retryAt === Infinity;

  function retry(now: number, why: string, waitMs: number, isSoon: boolean): void {
    // 0, not NaN, when a delay of 0 has doubled without end.
    const most = Math.min(options.retryMaxMs, options.retryMinMs * 2 ** attempts || 0);
    retryAt = now + waitMs + feed.random() * (isSoon && !attempts ? SOON_MS : most);
    attempts++;
    cause = why;
  }

  // Drop a connection that does not answer.
  function giveUp(now: number, { id }: Connection, why: string): void {
    drop(id, LEFT);
    lost(now, id, 1006, why);
  }

  // Connect elsewhere first, and leave this connection when the new one has everything.
  function handOver(now: number): void {
    if (leaving) end(leaving, 1000);
    leaving = current;
    leaveCurrent();
    leaving?.leave();
    tries++;
    cause = "draining";
    dial(now);
  }

  function tick(now: number): void {
    if (retryAt <= now) dial(now);
    if (current && current.leaveAt <= now) handOver(now);
    for (const conn of conns()) {
      const why = conn.tick(now);
      if (why) giveUp(now, conn, why);
    }
  }

  const link = {
    // ---- what is wanted

    rates,
    hasRoomFor(name: string): boolean {
      const isRoom = !isPattern(name) || [...rates.keys()].filter(isPattern).length < maxPatterns;
      return isRoom && rates.size < maxChannels;
    },
    want(name: string, rate: Rate): void {
      const before = rates.get(name);
      rates.set(name, rate);
      lower(name, rate, before);
    },
    unwant,
    /** Whether the server sends a channel, by whatever name. */
    holds: (channel: string): boolean => namesFor(channel).some((name) => current?.held.has(name)),
    /** Go on towards what is wanted, and let the connection before go, once this one has it. */
    pump(now: number): void {
      current?.pump(now);
      if (leaving && current?.isSettled) end(leaving, 1000);
    },

    // ---- connections

    dial,
    lost,
    tick,
    opened(now: number, id: number): void {
      connOf(id)?.opened(now);
    },
    received(now: number, id: number, message: Message): void {
      const conn = connOf(id);
      if (!conn?.isOpen) return;
      // Not before: else a server that fails after its first answer is asked again without end.
      if (conn === current && conn.isSteady(now)) attempts = 0;
      const why = conn.received(now, message);
      if (why) giveUp(now, conn, why);
    },
    takeToken(now: number, token: string): void {
      if (waitsForToken()) dial(now);
      else if (current?.isOpen) feed.send(current.id, { type: "token", token });
    },
    tokenFailed(now: number, why: string): void {
      if (waitsForToken()) retry(now, why, 0, false);
    },
    /** Drop what has piled up while the page did not run, and connect anew. */
    thaw(now: number): void {
      const wasOpen = current?.isOpen;
      for (const conn of conns()) if (conn.isOpen) end(conn, LEFT);
      if (!wasOpen) return;
      // Again: a program that is too busy gets no more work by it.
      if (attempts) return retry(now, "frozen", 0, false);
      attempts = 1;
      cause = "frozen";
      dial(now);
    },
    /** Find out at once whether the network is there. */
    probe(now: number): void {
      if (retryAt < Infinity) {
        attempts = 0;
        retryAt = now;
      }
      for (const conn of conns()) conn.ask(now);
      tick(now);
    },
    close(): void {
      for (const conn of conns()) end(conn, 1000);
    },
    deadline: (): number => Math.min(retryAt, ...conns().map((conn) => conn.deadline())),
    /** Its name in `STATES`, the cause, and when it connects again. */
    state(): [number, string, number | null] {
      const conn = leaving && !current?.wasSettled ? leaving : current;
      if (!conn && retryAt < Infinity) return [0, cause, retryAt];
      if (!conn?.wasSettled) return [1, cause, null];
      if (!conn.isWell) return [2, "NATS is away", null];
      return [3, "", null];
    },
  };
  return link;
}
