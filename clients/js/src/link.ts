// One link: a set of names, and the connection that has them now.
//
// A link opens a connection, brings it to what is wanted by one command after the other, watches it,
// and replaces it when it is lost, or about to be. What a new connection has to bring is what follows
// the positions of the one before. Names are channels and patterns; those of one rate have one
// position: everything up to it came. See "Resume" and "Rates" in docs/protocol.md.

import type { Event, Message, Options, Rate, State } from "./types.js";

// The server takes 16 KiB in one message, and 100 messages at once, then 10 a second.
const COMMAND_CHARS = 12_000;
const BURST = 20;
const COMMAND_EVERY_MS = 200;
// "At once" for many clients: they are spread over this time.
const SOON_MS = 1_000;
const LIMITED_MS = 2_000;

const NEW_TOKEN = [401, 4001, 4401];
const NEVER_AGAIN = [403, 1002, 1003, 1007, 1009, 1010, 4403];
const SAY_WHEN = [429, 503, 4429, 4503];

/** Everything up to `offset` of the stream `epoch` came. */
interface Position {
  readonly epoch: string;
  readonly offset: number;
}

interface Command {
  readonly id: number;
  endsWith: string;
  readonly names: string[];
  readonly deadline: number;
  rate: Rate;
  isResume: boolean;
  isAcknowledged: boolean;
}

interface Conn {
  readonly id: number;
  readonly deadline: number;
  isOpen: boolean;
  /** The names that it has, each with the rate that was asked for. */
  readonly held: Map<string, Rate>;
  /** From where the names of each rate go on, and as far as they have got there. */
  resumes: Map<Rate, Position>;
  readonly resumed: Map<Rate, (number | null)[]>;
  command: Command | null;
  /** Whether it has all that is wanted. Only then do events move positions. */
  isSettled: boolean;
  wasSettled: boolean;
  epoch: string | null;
  seq: number;
  skippedTotal: number;
  /** Numbers of events that the server has dropped. */
  readonly holes: [number, number][];
  heardAt: number;
  askedAt: number | null;
  askAt: number;
  natsIsWell: boolean;
  leaveAt: number | null;
  credit: number;
  creditAt: number;
  nextCommandAt: number;
  isNoticed: boolean;
}

/** What a link needs of the core that has it. */
export interface Feed {
  readonly options: Options;
  random(): number;
  nextConn(): number;
  dial(conn: number, tries: number): void;
  send(conn: number, message: object): void;
  drop(conn: number, code: number): void;
  hasToken(): boolean;
  forgetToken(): boolean;
  deliver(event: Event, isAlone: boolean): void;
  declare(names: Iterable<string>, missed: number | null, reason: string): void;
  refuse(link: Link, name: string, code: string): void;
  forget(names: Iterable<string>): void;
  restartOffsets(epoch: string): void;
  fail(cause: string): void;
}

export type Link = ReturnType<typeof createLink>;

/** How seldom: the order of rates, the fastest first. */
export const speed = (rate: Rate): number => rate ?? Infinity;

export const isPattern = (name: string): boolean => /[*>]/.test(name);

/** All names that `channel` may have been subscribed to by. */
export function namesFor(channel: string): string[] {
  const [symbol, kind] = channel.split(".");
  return [channel, `${symbol}.*`, `${symbol}.>`, `*.${kind}`, "*.*", "*.>", ">"];
}

const fastest = (rates: Iterable<Rate>): Rate =>
  [...rates].reduce((one, other) => (speed(other) < speed(one) ? other : one));

/** As many of the names as fit into one command. */
function fitting(names: string[]): string[] {
  let chars = 0;
  const over = names.findIndex((name) => (chars += name.length + 3) > COMMAND_CHARS);
  return over < 0 ? names : names.slice(0, over);
}

export function createLink(feed: Feed) {
  const { options } = feed;
  const wants = new Map<string, Rate>();
  const positions = new Map<Rate, Position>();
  // Those of an earlier acknowledgement: what came since then is owed.
  const known = new Set<string>();
  const refused = new Set<string>();
  let { maxChannels, maxPatterns } = options;
  let current: Conn | null = null;
  let leaving: Conn | null = null;
  let commandIds = 0;
  let tries = 0;
  let attempts = 0;
  let retryAt: number | null = null;
  let cause = "";
  let waitsForToken = false;

  const conns = (): Conn[] => [current, leaving].filter((conn) => conn !== null);
  const connOf = (id: number): Conn | undefined => conns().find((conn) => conn.id === id);

  // ---- what is wanted

  const patternCount = (names: Iterable<string>): number => [...names].filter(isPattern).length;

  function hasRoomFor(name: string): boolean {
    const isRoom = !isPattern(name) || patternCount(wants.keys()) < maxPatterns;
    return isRoom && wants.size < maxChannels;
  }

  function want(name: string, rate: Rate): void {
    const before = wants.has(name) ? (wants.get(name) as Rate) : rate;
    wants.set(name, rate);
    lower(name, before, rate);
    unsettle();
  }

  function unwant(name: string): void {
    const rate = wants.get(name) as Rate;
    wants.delete(name);
    refused.delete(name);
    lower(name, rate, rate);
    if (!current?.held.has(name)) {
      known.delete(name);
      feed.forget([name]);
    }
    unsettle();
  }

  function unsettle(): void {
    for (const conn of conns()) conn.isSettled = false;
  }

  // Take the lower of two positions along with a name that changes its rate: an event of the slower
  // rate may wait for its tick. A pattern may leave channels to names at any rate: then all go on
  // from the lowest one.
  function lower(name: string, before: Rate, after: Rate): void {
    const rates = new Set([before, after]);
    if ([name, ...wants.keys()].some(isPattern)) {
      for (const rate of positions.keys()) if (rate !== null) rates.add(rate);
    }
    const epoch = current ? current.epoch : null;
    // One of another epoch is further behind, whatever its number.
    const rank = (at: Position): number => (at.epoch === epoch ? at.offset : at.offset - 2 ** 53);
    let lowest: Position | undefined;
    for (const rate of rates) {
      const at = positions.get(rate);
      if (at && (!lowest || rank(at) < rank(lowest))) lowest = at;
    }
    if (lowest) for (const rate of rates) positions.set(rate, lowest);
  }

  // ---- connections

  function dial(now: number): void {
    retryAt = null;
    waitsForToken = !feed.hasToken();
    if (waitsForToken) return;
    current = {
      id: feed.nextConn(),
      deadline: now + options.dialMs,
      isOpen: false,
      held: new Map(),
      resumes: new Map(),
      resumed: new Map(),
      command: null,
      isSettled: false,
      wasSettled: false,
      epoch: null,
      seq: 0,
      skippedTotal: 0,
      holes: [],
      heardAt: 0,
      askedAt: null,
      askAt: 0,
      natsIsWell: true,
      leaveAt: null,
      credit: BURST,
      creditAt: 0,
      nextCommandAt: 0,
      isNoticed: false,
    };
    feed.dial(current.id, tries);
  }

  function takeToken(now: number, token: string): void {
    if (waitsForToken) dial(now);
    else if (current?.isOpen) feed.send(current.id, { type: "token", token });
  }

  function tokenFailed(now: number, why: string): void {
    if (!waitsForToken) return;
    waitsForToken = false;
    retry(now, why, 0, false);
  }

  function opened(now: number, id: number): void {
    const conn = connOf(id);
    if (!conn || conn.isOpen) return;
    conn.isOpen = true;
    conn.heardAt = conn.creditAt = now;
    conn.askAt = now + options.heartbeatMs;
    conn.resumes = new Map(positions);
    for (const name of known) if (!wants.has(name)) known.delete(name);
    refused.clear();
    pump(now);
  }

  function lost(now: number, id: number, code: number, why: string): void {
    const conn = connOf(id);
    if (!conn) return;
    if (conn === leaving) {
      leaving = null;
      return;
    }
    if (!conn.isOpen) tries++;
    current = null;
    const needsToken = NEW_TOKEN.includes(code);
    const saysWhen = SAY_WHEN.includes(code);
    const isFinal = NEVER_AGAIN.includes(code) || (code >= 4500 && !saysWhen);
    if (isFinal || (needsToken && !feed.forgetToken())) return feed.fail(why);
    const seconds = saysWhen && /(\d+) ?s/.exec(why);
    retry(now, why, seconds ? +(seconds[1] as string) * 1000 : 0, needsToken || code === 1001);
  }

  function retry(now: number, why: string, waitMs: number, isSoon: boolean): void {
    const most =
      isSoon && !attempts ? SOON_MS : Math.min(options.retryMaxMs, options.retryMinMs * 2 ** attempts);
    attempts = Math.min(attempts + 1, 16);
    retryAt = now + waitMs + feed.random() * most;
    cause = why;
  }

  function giveUp(now: number, conn: Conn, why: string): void {
    feed.drop(conn.id, 4000);
    lost(now, conn.id, 1006, why);
  }

  // Drop what has piled up while the page did not run, and connect anew.
  function thaw(now: number): void {
    const open = conns().filter((conn) => conn.isOpen);
    for (const conn of open) feed.drop(conn.id, 4000);
    if (leaving?.isOpen) leaving = null;
    if (current?.isOpen) {
      current = null;
      cause = "frozen";
      dial(now);
    }
  }

  // Find out at once whether the network is there.
  function probe(now: number): void {
    if (retryAt !== null) {
      attempts = 0;
      dial(now);
    } else if (current?.isOpen) current.askAt = now;
  }

  function close(): void {
    for (const conn of conns()) feed.drop(conn.id, 1000);
    current = leaving = retryAt = null;
    waitsForToken = false;
  }

  // ---- time

  const pongDeadline = (conn: Conn): number | null =>
    conn.askedAt === null ? null : Math.max(conn.askedAt, conn.heardAt) + options.pongMs;

  function deadline(): number {
    const times: (number | null)[] = [retryAt];
    for (const conn of conns()) {
      if (!conn.isOpen) times.push(conn.deadline);
      else {
        times.push(conn.leaveAt);
        if (conn === current) {
          times.push(conn.askAt, pongDeadline(conn));
          if (conn.command) times.push(conn.command.deadline);
          else if (!conn.isSettled) times.push(conn.nextCommandAt);
        }
      }
    }
    return Math.min(...times.map((time) => time ?? Infinity));
  }

  function tick(now: number): void {
    if (retryAt !== null && retryAt <= now) dial(now);
    const conn = current;
    if (!conn) return;
    if (!conn.isOpen) {
      if (conn.deadline <= now) giveUp(now, conn, "no answer");
    } else if (conn.leaveAt !== null && conn.leaveAt <= now) handOver(now, conn);
    else {
      watch(now, conn);
      if (conn === current) pump(now);
    }
  }

  function watch(now: number, conn: Conn): void {
    const { command } = conn;
    if (command && command.deadline <= now) {
      if (!command.isAcknowledged) return giveUp(now, conn, `no answer to ${command.endsWith}`);
      conn.command = null;
    }
    if (speed(pongDeadline(conn)) <= now) return giveUp(now, conn, "no sign of life");
    if (conn.askAt <= now) {
      conn.askAt = now + options.heartbeatMs;
      conn.askedAt ??= now;
      feed.send(conn.id, { type: "heartbeat", data: { nats: true } });
    }
  }

  // Connect elsewhere first, and leave this connection when the new one has everything.
  function handOver(now: number, conn: Conn): void {
    conn.leaveAt = null;
    if (leaving) feed.drop(leaving.id, 1000);
    leaving = conn;
    current = null;
    tries++;
    cause = "draining";
    dial(now);
  }

  // ---- commands

  // Send the next command, if one is due and none waits for its answer.
  function pump(now: number): void {
    const conn = current;
    if (!conn?.isOpen || conn.command || conn.isSettled) return;
    conn.credit = Math.min(BURST, conn.credit + (now - conn.creditAt) / COMMAND_EVERY_MS);
    conn.creditAt = now;
    if (conn.nextCommandAt > now) return;
    if (conn.credit < 1) {
      conn.nextCommandAt = now + COMMAND_EVERY_MS;
      return;
    }
    const message = nextCommand(now, conn);
    if (message) {
      conn.credit--;
      feed.send(conn.id, message);
      return;
    }
    conn.isSettled = conn.wasSettled = true;
    if (leaving) feed.drop(leaving.id, 1000);
    leaving = null;
  }

  function nextCommand(now: number, conn: Conn): Message | undefined {
    const hole = conn.holes.shift();
    if (hole) {
      const { id } = expect(now, conn, "replay_done", []);
      return { type: "replay", data: { from: hole[0], to: hole[1] }, id };
    }
    const gone = [...conn.held.keys()].filter((name) => !wants.has(name));
    if (gone.length) {
      const { id, names } = expect(now, conn, "unsubscription_ack", fitting(gone));
      return { type: "unsubscribe", channels: names, id };
    }
    const todo = [...wants].filter(
      ([name, rate]) => conn.held.get(name) !== rate && !refused.has(name),
    );
    if (!todo.length) return conn.isNoticed ? undefined : subscribe(now, conn, [], 0, undefined);
    // The fastest first: a channel of several names belongs to the fastest one.
    const rate = fastest(todo.map(([, its]) => its));
    const names = todo.filter(([, its]) => its === rate).map(([name]) => name);
    const again = names.filter((name) => !conn.held.has(name));
    const after = again.length ? conn.resumes.get(rate) : undefined;
    return subscribe(now, conn, fitting(after ? again : names), rate, after);
  }

  function subscribe(
    now: number,
    conn: Conn,
    names: string[],
    rate: Rate,
    after: Position | undefined,
  ): Message {
    const command = expect(now, conn, "snapshot_done", names);
    command.rate = rate;
    const message: Message = { type: "subscribe", channels: names, id: command.id };
    if (names.length) message.snapshot = true;
    else command.endsWith = "subscription_ack";
    if (rate !== 0 || names.some((name) => conn.held.has(name))) message.every_ms = rate;
    if (after) {
      command.endsWith = "resumed";
      command.isResume = true;
      message.after = after.offset;
      message.epoch = after.epoch;
    }
    if (!conn.isNoticed) message.notices = conn.isNoticed = true;
    return message;
  }

  function expect(now: number, conn: Conn, endsWith: string, names: string[]): Command {
    conn.command = {
      id: ++commandIds,
      endsWith,
      names,
      deadline: now + options.answerMs,
      rate: 0,
      isResume: false,
      isAcknowledged: false,
    };
    return conn.command;
  }

  // ---- messages

  function received(now: number, id: number, message: Message): void {
    const conn = connOf(id);
    if (!conn?.isOpen) return;
    conn.heardAt = now;
    if (conn === current) attempts = 0;
    const { type } = message;
    if (type === "price:update") {
      const isNew = count(conn, message); // else it is a replay
      takeEvent(conn, message, isNew);
      if (isNew) raise(conn, [message]);
    } else if (type === "price:batch") {
      count(conn, message);
      for (const event of message.events) takeEvent(conn, event, false);
      raise(conn, message.events);
    } else if (type === "pong") takePong(conn, message);
    else if (type === "upstream") conn.natsIsWell = message.nats === "connected";
    else if (type === "server:draining") conn.leaveAt = now + message.reconnect_in_ms;
    else if (type === "gap") takeGap(conn, message);
    else if (type === "token_ack") {
      for (const name of message.unsubscribed ?? []) {
        conn.held.delete(name);
        refuse(name, "FORBIDDEN_CHANNEL");
      }
    } else if (conn.command && message.id === conn.command.id) {
      takeAnswer(now, conn, conn.command, message);
    }
    pump(now);
  }

  // Note the number of a message; whether it is a new one. Report what was dropped before.
  function count(conn: Conn, { seq, skipped_total: total = conn.skippedTotal }: Message): boolean {
    if (seq <= conn.seq) return false;
    const missed = seq - conn.seq - 1 - (total - conn.skippedTotal);
    if (missed > 0 && counts(conn)) {
      conn.holes.push([conn.seq + 1, seq - 1]);
      conn.isSettled = false;
      feed.declare(wants.keys(), missed, "slow");
    }
    conn.seq = seq;
    conn.skippedTotal = total;
    return true;
  }

  // Whether this connection moves positions: the new one, once it can.
  const counts = (conn: Conn): boolean => conn === current || !current?.isOpen;

  function takeEvent(conn: Conn, message: Message, isAlone: boolean): void {
    const { channel, data, ts, offset, prev, skipped = 0, snapshot = false } = message;
    const event = { channel, data, unixMs: ts, offset, prev, skipped, isSnapshot: snapshot };
    feed.deliver({ ...event, epoch: conn.epoch }, isAlone && !snapshot);
  }

  // Move the positions of the rates of these events on.
  function raise(conn: Conn, events: Message[]): void {
    if (conn.epoch === null || !conn.isSettled || !counts(conn)) return;
    for (const { channel, offset } of events) {
      if (offset === undefined) continue;
      const names = namesFor(channel).filter((name) => conn.held.has(name));
      if (names.length) raiseTo(conn.epoch, fastest(names.map((one) => conn.held.get(one) as Rate)), offset);
    }
  }

  function raiseTo(epoch: string, rate: Rate, offset: number): void {
    const at = positions.get(rate);
    if (!at || at.epoch !== epoch || at.offset < offset) positions.set(rate, { epoch, offset });
  }

  function takePong(conn: Conn, { nats, age_ms, offset }: Message): void {
    conn.askedAt = null;
    conn.natsIsWell = nats !== "disconnected" && !(age_ms > options.staleMs);
    if (offset == null || conn.epoch === null || !conn.isSettled || !counts(conn)) return;
    for (const rate of conn.held.values()) if (rate !== null) raiseTo(conn.epoch, rate, offset);
  }

  function takeGap(conn: Conn, { epoch, reason, from, to }: Message): void {
    if (!counts(conn)) return;
    if (epoch != null && epoch !== conn.epoch) {
      conn.epoch = epoch;
      const offset = reason === "start" || reason === "core" ? (to ?? 0) : 0;
      for (const rate of [...positions.keys(), ...conn.held.values()]) {
        positions.set(rate, { epoch, offset });
      }
    } else if (epoch != null && from === 1) feed.restartOffsets(epoch);
    feed.declare(wants.keys(), null, reason);
  }

  function takeAnswer(now: number, conn: Conn, command: Command, message: Message): void {
    const { type } = message;
    if (type === "error") {
      if (message.code === "RATE_LIMIT_EXCEEDED") conn.nextCommandAt = now + LIMITED_MS;
      else if (command.endsWith !== "replay_done") {
        for (const name of command.names) refuse(name, message.code);
      }
      conn.command = null;
      return;
    }
    if (type === "subscription_ack") takeAck(conn, command, message);
    else if (type === "unsubscription_ack") {
      for (const name of command.names) {
        conn.held.delete(name);
        known.delete(name);
      }
      feed.forget(command.names.filter((name) => !wants.has(name)));
    } else if (type === "resume_incomplete") feed.declare(message.channels, null, "resume");
    else if (type === "resumed") endResume(conn, command.rate, message.offset);
    if (type === command.endsWith) conn.command = null;
  }

  function takeAck(conn: Conn, command: Command, message: Message): void {
    command.isAcknowledged = true;
    conn.epoch = message.epoch ?? conn.epoch;
    const names: string[] = message.subscribed;
    if (!command.isResume) {
      const without = names.filter((name) => known.has(name) && !conn.held.has(name));
      if (without.length) feed.declare(without, null, "resume");
      begin(conn, command.rate, message.offset);
    }
    for (const name of names) {
      conn.held.set(name, command.rate);
      if (wants.has(name)) known.add(name);
    }
    for (const { channel, code } of message.refused ?? []) refuse(channel, code);
  }

  // Take the position from which new names of a rate are complete.
  function begin({ epoch }: Conn, rate: Rate, offset: number | null | undefined): void {
    if (offset == null || epoch === null) return;
    const at = positions.get(rate);
    if (!at || at.epoch !== epoch || offset < at.offset) positions.set(rate, { epoch, offset });
  }

  // Take the new position of a rate, once all its names are there.
  function endResume(conn: Conn, rate: Rate, offset: number | null): void {
    const reached = conn.resumed.get(rate) ?? [];
    conn.resumed.set(rate, reached);
    reached.push(offset);
    for (const [name, its] of wants) {
      if (its === rate && !conn.held.has(name) && !refused.has(name)) return;
    }
    conn.resumes.delete(rate);
    const offsets = reached.filter((one) => one !== null);
    if (offsets.length === reached.length && conn.epoch !== null) {
      positions.set(rate, { epoch: conn.epoch, offset: Math.min(...offsets) });
    }
  }

  function refuse(name: string, code: string): void {
    if (!wants.has(name)) return;
    refused.add(name);
    const taken = [...wants.keys()].filter((one) => !refused.has(one));
    if (code === "TOO_MANY_CHANNELS") maxChannels = taken.length;
    if (code === "TOO_MANY_PATTERNS") maxPatterns = patternCount(taken);
    feed.refuse(link, name, code);
  }

  // ---- state

  function state(): Omit<State, "at"> {
    const conn = leaving && !current?.wasSettled ? leaving : current;
    if (!conn && retryAt !== null) return { name: "offline", cause, retryAt };
    if (!conn?.wasSettled) return { name: "connecting", cause, retryAt: null };
    if (!conn.natsIsWell) {
      return { name: "stale", cause: "the server has no connection to NATS", retryAt: null };
    }
    return { name: "live", cause: "", retryAt: null };
  }

  const link = {
    wants,
    /** Whether it takes any name such as this one. */
    takes: (name: string): boolean => (isPattern(name) ? maxPatterns : maxChannels) > 0,
    isConnected: (): boolean => conns().length > 0,
    hasRoomFor,
    want,
    unwant,
    dial,
    takeToken,
    tokenFailed,
    opened,
    lost,
    received,
    thaw,
    probe,
    close,
    deadline,
    tick,
    pump,
    state,
  };
  return link;
}
