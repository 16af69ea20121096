// One connection of a link: what it has, the command that waits for its answer, whether it lives.
//
// It brings itself to what is wanted by one command after the other: first it ends what nobody wants,
// then it resumes what an earlier connection had, the fastest rate first, then it asks for what is new
// or has another rate. While anything is left to do it moves no position: see "Resume" and "Rates" in
// docs/protocol.md.

import type { Event, Message, Options, Rate } from "./types.js";

// An error names the `id` of a command of at most 4,096 characters; its other keys take 200.
const COMMAND_CHARS = 3_800;
// The server takes 100 messages at once, then 10 a second.
const BURST = 20;
const COMMAND_EVERY_MS = 200;
const LIMITED_MS = 2_000;
// For a second after its start or a gap a server may keep further losses to itself.
const STEADY_MS = 2_000;
const STAY_MS = 200;

/** Everything up to `offset` of the stream `epoch` came. */
export interface Position {
  readonly epoch: string;
  readonly offset: number;
}

/** What a link wants, over all its connections. */
export interface Wanted {
  /** The names, each with its rate. */
  readonly rates: Map<string, Rate>;
  /** Those that an earlier connection had and this one has not: what came since is missed. */
  readonly owed: Set<string>;
  /** Those that this connection's server does not give. */
  readonly refused: Set<string>;
  /** By rate. */
  readonly positions: Map<Rate, Position>;
}

/** What a connection needs of the core. */
export interface Recipient {
  readonly options: Options;
  send(conn: number, message: object): void;
  deliver(event: Event, isAlone: boolean): void;
  declare(names: Iterable<string>, missed: number | null, reason: string): void;
  follow(before: string | null, epoch: string | null): void;
  forget(names: Iterable<string>): void;
}

export type Connection = ReturnType<typeof createConnection>;

/** How seldom: the order of rates, the fastest first. */
export const speed = (rate: Rate): number => rate ?? Infinity;

export const fastest = (rates: Rate[]): Rate =>
  rates.reduce((one, other) => (speed(other) < speed(one) ? other : one));

export const isPattern = (name: string): boolean => /[*>]/.test(name);

/** All names that `channel` may have been subscribed to by. */
export function namesFor(channel: string): string[] {
  const [symbol, kind] = channel.split(".");
  return [channel, `${symbol}.*`, `${symbol}.>`, `*.${kind}`, "*.*", "*.>", ">"];
}

/** As many of the names as fit into one command. */
function fitting(names: string[]): string[] {
  let chars = 0;
  return names.filter((name) => (chars += name.length + 3) <= COMMAND_CHARS);
}

/**
 * One socket, from its dial on.
 *
 * @param counts Whether it moves positions: of two connections, the new one once it is open.
 * @param refuse Called with a name that the server does not give, and the code of its reason.
 * @param answerBy When it has to be open.
 */
export function createConnection(
  id: number,
  { rates, owed, refused, positions }: Wanted,
  { options, send, deliver, declare, follow, forget }: Recipient,
  counts: () => boolean,
  refuse: (name: string, code: string) => void,
  answerBy: number,
) {
  /** The names that it has, each with the rate that was asked for. */
  const held = new Map<string, Rate>();
  let isLeft = false;
  let isNoticed = false;
  // The type of the message that ends the answer to the command; empty if there is none.
  let endsWith = "";
  let command: Message = { id: 0 };
  // The names whose end has not been acknowledged.
  let gone: string[] = [];
  let commandRate: Rate = 0;
  let nextAt = -Infinity;
  let lastSeq = 0;
  let lastTotal = 0;
  // The first and the last number of what the server has dropped, if it has.
  let hole: { from: number; to: number } | undefined;
  // Up to this number its messages were of another stream.
  let oldSeq = -1;
  let askAt = Infinity;
  let pongBy = Infinity;
  let steadyAt = Infinity;
  let openedAt = Infinity;

  const isReady = (): boolean => conn.isOpen && !isLeft && !endsWith && !conn.isSettled;

  // ---- commands

  // Send the next command, if one is due and none waits for its answer. Called after each input.
  function pump(now: number): void {
    if (!isReady() || nextAt > now) return;
    const message = nextCommand();
    if (message) {
      nextAt = Math.max(nextAt, now - (BURST - 1) * COMMAND_EVERY_MS) + COMMAND_EVERY_MS;
      answerBy = now + options.answerMs;
      send(id, message);
    } else {
      conn.isSettled = conn.wasSettled = true;
      const its = [...held.values()];
      for (const rate of positions.keys()) if (!its.includes(rate)) positions.delete(rate);
    }
  }

  function nextCommand(): Message | undefined {
    if (hole) {
      const data = hole;
      hole = undefined;
      return expect("replay_done", { type: "replay", data });
    }
    if (!gone.length) gone = fitting([...held.keys()].filter((name) => !rates.has(name)));
    if (gone.length) {
      for (const name of gone) held.delete(name); // if it is wanted again, it begins anew
      return expect("unsubscription_ack", { type: "unsubscribe", channels: gone });
    }
    const todo = [...rates].filter(([name, rate]) => held.get(name) !== rate && !refused.has(name));
    if (!todo.length) return isNoticed ? undefined : subscribe([], 0);
    // What is owed comes first, as a channel cannot be resumed that another name brings. And the
    // fastest first: a channel of several names belongs to the fastest one.
    const again = todo.filter(([name, rate]) => owed.has(name) && positions.has(rate));
    const next = again.length ? again : todo;
    const rate = fastest(next.map(([, its]) => its));
    const names = fitting(next.filter(([, its]) => its === rate).map(([name]) => name));
    return subscribe(names, rate, again.length ? positions.get(rate) : undefined);
  }

  function subscribe(channels: string[], rate: Rate, after?: Position): Message {
    commandRate = rate;
    const some = channels.length > 0;
    const message = {
      type: "subscribe",
      channels,
      snapshot: some || undefined,
      every_ms: rate !== 0 || channels.some((name) => held.has(name)) ? rate : undefined,
      ...(after && { after: after.offset, epoch: after.epoch }),
      notices: !isNoticed || undefined,
    };
    return expect(after ? "resumed" : some ? "snapshot_done" : "subscription_ack", message);
  }

  function expect(last: string, message: object): Message {
    endsWith = last;
    return (command = { ...message, id: command.id + 1 });
  }

  // ---- messages

  // Note the number of a message; whether it is a new one. Report what was dropped before.
  function count({ seq, skipped_total: total = lastTotal }: Message): boolean {
    if (seq <= lastSeq) return false;
    const missed = seq - lastSeq - 1 - (total - lastTotal);
    if (missed > 0) {
      hole = { from: hole?.from ?? lastSeq + 1, to: seq - 1 };
      lose(missed, "slow");
    }
    lastSeq = seq;
    lastTotal = total;
    return true;
  }

  // Report a loss on this connection, unless the next one resumes from before it.
  function lose(missed: number | null, reason: string): void {
    conn.isSettled = false;
    if (counts()) declare(rates.keys(), missed, reason);
  }

  // Take an event, or several in a batch. What is not new is a replay, which may be an older one.
  function takeEvents(now: number, message: Message): void {
    const events: Message[] = message.events ?? [message];
    const isNew = count(message);
    // What is replayed has the offsets of its own stream.
    if (message.seq <= oldSeq) return;
    const isRaising = isNew && isSteady(now);
    for (const { channel, data, ts, offset, prev, skipped = 0, snapshot = false, trace } of events) {
      // Without offsets what comes twice is not known: of two connections the new one counts.
      if (offset === undefined && !(isNew && counts())) continue;
      const { epoch } = conn;
      if (snapshot && endsWith === "resumed") conn.jumped.add(channel);
      deliver(
        { channel, data, unixMs: ts, offset, prev, skipped, isSnapshot: snapshot, epoch, trace },
        !message.events,
      );
      // Move the position of its rate on.
      const its = namesFor(channel).filter((name) => isRaising && held.has(name));
      if (its.length) move(fastest(its.map((name) => held.get(name) as Rate)), offset, Math.max);
    }
  }

  // Whether all that came until now is known to be complete, or reported.
  const isSteady = (now: number): boolean => conn.isSettled && now >= steadyAt && counts();

  // Move a position within this epoch to the one that is picked, or into it.
  function move(
    rate: Rate,
    offset: number | null | undefined,
    pick: (before: number, offset: number) => number,
  ): void {
    const { epoch } = conn;
    if (offset == null || !epoch) return;
    const at = positions.get(rate);
    positions.set(rate, { epoch, offset: at?.epoch === epoch ? pick(at.offset, offset) : offset });
  }

  // Take a pong that reports on NATS, or a notice that does.
  function takeNats(now: number, { nats, age_ms, offset }: Message): void {
    conn.isWell = nats !== "disconnected" && !(age_ms > options.staleMs);
    if (!isSteady(now)) return;
    for (const rate of held.values()) if (rate !== null) move(rate, offset, Math.max);
  }

  function takeGap(now: number, { epoch, reason, to }: Message): void {
    const isNew = epoch !== conn.epoch;
    if (isNew) {
      follow(conn.epoch, epoch);
      oldSeq = lastSeq;
      hole = undefined;
    }
    conn.epoch = epoch;
    steadyAt = now + STEADY_MS;
    if (isNew && counts()) {
      const reached = (/^(start|core)$/.test(reason) && to) || 0;
      const all = [...positions.keys(), ...rates.values()];
      positions.clear();
      for (const rate of all) move(rate, reached, Math.max);
    }
    lose(null, reason);
  }

  function takeAnswer(now: number, message: Message): void {
    const { type } = message;
    if (type === "error") {
      if (message.code === "RATE_LIMIT_EXCEEDED") {
        nextAt = now + LIMITED_MS;
        if (command.data) hole = { ...command.data, to: lastSeq };
      } else {
        gone = [];
        for (const name of command.channels ?? []) {
          held.delete(name);
          refuse(name, message.code);
        }
      }
    } else if (type === "subscription_ack") takeAck(now, message);
    else if (type === "unsubscription_ack") forget(gone.splice(0));
    else if (type === "resume_incomplete") declare(message.channels, null, "resume");
    else if (message.sent < message.total) {
      declare(command.channels, message.total - message.sent, "snapshot");
    } else if (type === "resumed") {
      conn.jumped.clear();
      // The new position of a rate, once nothing of it is owed.
      const isOwed = [...owed].some((name) => rates.get(name) === commandRate);
      if (!isOwed) move(commandRate, message.offset, (_, reached) => reached);
    }
    if (type === "error" || type === endsWith) endsWith = "";
  }

  function takeAck(now: number, { subscribed: names, offset, refused: those }: Message): void {
    // It neither gives nor refuses any of them.
    if (!those && command.channels[0] && !command.channels.some((name: string) => names.includes(name))) {
      nextAt = now + LIMITED_MS;
    }
    if (endsWith !== "resumed") {
      const without = names.filter((name: string) => owed.has(name));
      // There was no position to resume them from.
      if (without.length) declare(without, null, "resume");
      move(commandRate, offset, Math.min);
    }
    for (const name of names) {
      held.set(name, commandRate);
      owed.delete(name);
    }
    for (const { channel, code } of those ?? []) refuse(channel, code);
  }

  const conn = {
    id,
    held,
    isOpen: false,
    /** Whether it has all that is wanted, and whether it ever had. */
    isSettled: false,
    wasSettled: false,
    /** Whether the server has NATS, and that has said so lately. */
    isWell: true,
    /** When to connect elsewhere. */
    leaveAt: Infinity,
    /** The stream that its offsets count in. */
    epoch: null as string | null,
    /** Channels whose newest event has come in a resume, which has not said yet what is missing. */
    jumped: new Set<string>(),
    isSteady,
    pump,

    opened(now: number): void {
      conn.isOpen = true;
      answerBy = Infinity;
      askAt = now + options.heartbeatMs;
      openedAt = now;
      steadyAt = now + STEADY_MS;
    },

    /** Go on with what it has, and send no more commands: the next connection takes over. */
    leave(): void {
      isLeft = true;
      endsWith = "";
      answerBy = conn.leaveAt = Infinity;
    },

    deadline: (): number => Math.min(answerBy, pongBy, askAt, conn.leaveAt, isReady() ? nextAt : Infinity),

    /** Do what is due. Returns why it is to be given up, if it is. */
    tick(now: number): string | undefined {
      if (answerBy <= now) return "no answer";
      if (pongBy <= now) return "no sign of life";
      if (askAt <= now) {
        askAt = now + options.heartbeatMs;
        pongBy = Math.min(pongBy, now + options.pongMs);
        send(id, { type: "heartbeat", data: { nats: true } });
      }
      return;
    },

    /** Have the next tick ask for a sign of life. */
    ask(now: number): void {
      if (conn.isOpen) askAt = now;
    },

    /** Take a message. Returns why the connection is to be given up, if it is. */
    received(now: number, message: Message): string | false {
      const { type } = message;
      pongBy = Infinity;
      if (type === "subscription_ack" && message.epoch !== undefined) {
        conn.epoch = message.epoch; // also on one that is left
        isNoticed = true;
      }
      if (message.seq) takeEvents(now, message);
      else if (message.nats) takeNats(now, message);
      else if (type === "server:draining" && !isLeft) {
        // Not at once, however often servers that leave follow each other.
        conn.leaveAt = Math.max(now + (+message.reconnect_in_ms || 0), openedAt + STAY_MS);
      } else if (type === "gap") takeGap(now, message);
      else if (type === "token_ack") {
        // The token may allow what was refused, and not allow what there is.
        refused.clear();
        conn.isSettled = false;
        for (const name of message.unsubscribed) {
          held.delete(name);
          refuse(name, "FORBIDDEN_CHANNEL");
        }
      } else if (endsWith && message.id === command.id) {
        answerBy = Infinity;
        takeAnswer(now, message);
      }
      // The newest event of a channel may be among those that cannot be replayed. And what of a hole
      // came before the stream changed, and what after, is not known.
      return (type === "replay_incomplete" || hole?.from === oldSeq + 1) && "too slow";
    },
  };
  return conn;
}
