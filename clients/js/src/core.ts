// The decisions of a client, without sockets: what to ask for, what to believe, what to hand out.
//
// A shell reports what happened and when, and carries out what the core calls of its `Host`. The same
// core exists in Python, and tests/client/vectors has what both of them have to answer.
//
//    subscribe, setRate, unsubscribe           the user
//            │
//          core       which name has which rate, who gets an event, and whether it is a newer one
//            │ 1 : n
//          link       up to 256 names, over all connections: when to dial, when to leave
//            │ 1 : 1, or 2 in a hand-over
//       connection    commands, positions, signs of life
//            │
//    opened, received, lost, tick              the sockets and the clock

import { fastest, isPattern, namesFor } from "./connection.js";
import { createLink, type Feed, type Link } from "./link.js";
import type { Event, Host, Options, Rate, State, StateName } from "./types.js";

// Time must not pass unnoticed for longer than this: see `Options.freezeMs`.
const TICK_MS = 2_000;
const REFRESH_MS = 30_000;
const AGAIN_MS = 5_000;
// The worst first, but for the end.
const STATES: StateName[] = ["offline", "connecting", "stale", "live", "closed"];

export const DEFAULTS: Options = {
  dialMs: 10_000,
  answerMs: 10_000,
  heartbeatMs: 10_000,
  pongMs: 4_000,
  staleMs: 3_000,
  freezeMs: 5_000,
  hiddenFreezeMs: 75_000,
  hiddenEveryMs: 5_000,
  retryMinMs: 500,
  retryMaxMs: 20_000,
  maxChannels: 256,
  maxPatterns: 16,
  maxNewest: 65_536,
};

interface Subscription {
  readonly id: number;
  readonly names: ReadonlySet<string>;
  everyMs: Rate;
  readonly withSnapshot: boolean;
  /** Channels of which it has not got the newest event, as it is paused. */
  readonly withheld: Set<string>;
}

// What each link hears of, and what it is given besides the time.
type Told = "opened" | "received" | "lost" | "takeToken" | "tokenFailed" | "tick" | "probe" | "thaw" | "pump";
type Rest<Name extends Told> = Parameters<Link[Name]> extends [number, ...infer Args] ? Args : never;

// What is to be called of the host, and with what.
type Output = { [Name in keyof Host]: [Name, ...Parameters<Host[Name]>] }[keyof Host];

type LinkState = ReturnType<Link["state"]>;

export type Core = ReturnType<typeof createCore>;

export function createCore(
  urls: readonly string[],
  host: Host,
  {
    needsToken = false,
    options: given = {},
    random = Math.random,
  }: { needsToken?: boolean; options?: Partial<Options>; random?: () => number } = {},
) {
  const options = { ...given } as Options;
  // What is undefined is not given.
  let name: keyof Options;
  for (name in DEFAULTS) options[name] ??= DEFAULTS[name];
  const subscriptions = new Map<number, Subscription>();
  // By name, the subscriptions that want it.
  const holders = new Map<string, Subscription[]>();
  const newest = new Map<string, Event>();
  // Of newest events with gaps after them: by which name, and why.
  const gaps = new WeakMap<Event, Map<string, string>>();
  const outputs: Output[] = [];
  let isCalling = false;
  let links: Link[] = [];
  let state: State = { name: "connecting", cause: "", at: 0, retryAt: null };
  let token: string | null = null;
  let refreshAt = Infinity;
  // Which stream has followed which, the last time.
  let succession = "";
  let isAsked = false;
  let connIds = 0;
  let isHidden = false;
  let seenAt = Infinity;
  let closed: string | null = null;
  let changed: string[] = []; // names that may need another rate or link

  // ---- what a link needs

  const put = (...output: Output): unknown => outputs.push(output);

  const feed: Feed = {
    options,
    random,
    dial(tries) {
      if (needsToken && token === null) {
        askToken();
        return;
      }
      const id = ++connIds;
      put("dial", id, urls[tries % urls.length] as string, token);
      return id;
    },
    send: (conn, message) => put("send", conn, message),
    drop: (conn, code) => put("drop", conn, code),
    hasOtherToken() {
      token = null;
      return needsToken;
    },
    deliver,
    declare,
    refuse(link, name, code, isFull) {
      if (isFull) {
        link.unwant(name);
        changed.push(name);
        return;
      }
      const ids = holdersOf(name).map(({ id }) => id);
      if (ids.length) put("refused", ids, { channel: name, code });
    },
    hasOthers: urls.length > 1,
    follow(before, epoch) {
      succession = `${before} ${epoch}`;
    },
    forget(names) {
      for (const name of names) {
        for (const channel of isPattern(name) ? newest.keys() : [name]) {
          // The server may send it all the same, by another name that has not ended yet.
          if (receiversOf(channel).length || links.some((link) => link.holds(channel))) continue;
          newest.delete(channel);
        }
      }
    },
    fail(cause) {
      closed = cause;
      for (const link of links) link.close();
      links = [];
    },
  };

  function askToken(): void {
    if (!isAsked) put("askToken");
    isAsked = true;
  }

  // Whether an event is newer than one of the same channel. Without offsets, events are new as they
  // come, but a first value may be one that has come. And a server that lags can bring an event of an
  // older stream, or one without an offset: times tell, unless it is known which stream is newer. The
  // clock of another NATS node may be behind.
  function isNewer({ epoch, offset, isSnapshot, unixMs }: Event, before: Event): unknown {
    if (epoch === before.epoch && offset && before.offset) return offset > before.offset;
    const isNext = offset && succession === `${before.epoch} ${epoch}`;
    return isNext || ((!epoch || !before.epoch) && !isSnapshot) || unixMs > before.unixMs;
  }

  // Hand an event out, unless it is not newer than the last one of its channel. If it is alone, the
  // event before it in its channel must have come. What came between two streams is not known.
  function deliver(event: Event, isAlone: boolean): void {
    const { channel, prev, isSnapshot } = event;
    const before = newest.get(channel);
    const receivers = receiversOf(channel);
    if (before) {
      if (!isNewer(event, before)) return;
      const isHole = isAlone && !event.skipped && (prev as number) > (before.offset as number);
      if (isSnapshot) {
        if (event.epoch !== before.epoch || prev !== before.offset) event = { ...event, skipped: null };
      } else if (event.epoch !== before.epoch || isHole) {
        // One between the two should have come as well: for those who were not told of a gap there.
        const toldBy = [...(gaps.get(before) ?? new Map()).keys()];
        for (const { id, names } of receivers) {
          if (toldBy.some((name) => name === channel || names.has(name))) continue;
          put("gap", [id], { channels: [channel], missed: null, reason: "hole" });
        }
      }
    }
    newest.delete(channel);
    newest.set(channel, event);
    if (newest.size > options.maxNewest) {
      const [[oldest, kept]] = newest as Iterable<[string, Event]> as [[string, Event]];
      newest.delete(oldest);
      if (holders.has(oldest)) newest.set(oldest, kept);
    }
    const ids: number[] = [];
    for (const { id, everyMs, withSnapshot, withheld } of receivers) {
      if (everyMs === null) withheld.add(channel);
      // What follows another event is news to everybody.
      else if (withSnapshot || before || !isSnapshot) ids.push(id);
    }
    if (ids.length) put("event", ids, event);
  }

  // Report a gap to whoever wants one of the names.
  function declare(names: Iterable<string>, missed: number | null, reason: string): void {
    const gone = new Set(names);
    const isFirst = reason === "snapshot"; // then nothing is missing after the newest events
    for (const [channel, event] of newest) {
      for (const name of namesFor(channel)) {
        if (!isFirst && gone.has(name)) gaps.set(event, (gaps.get(event) ?? new Map()).set(name, reason));
      }
    }
    const lacking = new Map<number, string[]>();
    for (const name of gone) {
      for (const { id, withSnapshot } of receiversOf(name)) {
        if (withSnapshot || !isFirst) lacking.set(id, [...(lacking.get(id) ?? []), name]);
      }
    }
    for (const [id, channels] of lacking) {
      // How many of them it lacks is known if it wants all of them.
      put("gap", [id], { channels, missed: channels.length === gone.size ? missed : null, reason });
    }
  }

  // ---- inside

  /** Wrap what happens from outside: first what time brings, then what follows. */
  function at<Args extends unknown[]>(act: (now: number, ...args: Args) => void) {
    return (now: number, ...args: Args): void => {
      const isFrozen = now - seenAt > (isHidden ? options.hiddenFreezeMs : options.freezeMs);
      seenAt = now;
      if (isFrozen) tell("thaw", now);
      act(now, ...args);
      update(now);
      // The state of the worst link.
      const states = links.map((link) => link.state()).sort(([one], [other]) => one - other);
      const [rank, cause, retryAt] = closed === null ? (states[0] as LinkState) : [4, closed, null];
      const its: State = { name: STATES[rank] as StateName, cause, at: state.at, retryAt };
      if (JSON.stringify(its) !== JSON.stringify(state)) {
        state = { ...its, at: now };
        put("state", state);
      }
      flush();
    };
  }

  /** Wrap what each link has to hear of. */
  const each = <Name extends Told>(name: Name) => at<Rest<Name>>((now, ...args) => tell(name, now, ...args));

  function tell<Name extends Told>(name: Name, now: number, ...args: Rest<Name>): void {
    for (const link of links) (link[name] as (now: number, ...args: unknown[]) => void)(now, ...args);
  }

  // Call the host, which may call back: what that brings is appended, and comes after the rest.
  function flush(): void {
    if (isCalling) return;
    isCalling = true;
    try {
      while (outputs[0]) {
        const [name, ...args] = outputs.shift() as Output;
        (host[name] as (...args: unknown[]) => void)(...args);
      }
    } finally {
      isCalling = false;
    }
  }

  // Pass on what is wanted of the names that have changed, and have the links act.
  function update(now: number): void {
    if (closed !== null) return;
    for (const name of changed) {
      const those = holdersOf(name);
      let link = links.find((one) => one.rates.has(name));
      if (those.length) {
        link ??= links.find((one) => one.hasRoomFor(name)) ?? addLink(now);
        let rate = fastest(those.map(({ everyMs }) => everyMs));
        if (isHidden && rate) rate = Math.max(rate, options.hiddenEveryMs);
        if (link.rates.get(name) !== rate) link.want(name, rate);
      } else {
        holders.delete(name);
        link?.unwant(name);
      }
    }
    changed = [];
    // One stays, if only to know whether the server is there.
    links = links.filter((link, index) => !index || link.rates.size || link.close());
    tell("pump", now);
  }

  function addLink(now: number): Link {
    const link = createLink(feed);
    links.push(link);
    link.dial(now);
    return link;
  }

  const holdersOf = (name: string): Subscription[] => holders.get(name) ?? [];

  /** Those that want a pattern, or a channel by any name. */
  const receiversOf = (name: string): Subscription[] => [
    ...new Set((isPattern(name) ? [name] : namesFor(name)).flatMap(holdersOf)),
  ];

  // Hand out the newest events of a subscription that has not got them, unless it is paused.
  function release({ id, everyMs, withheld }: Subscription): void {
    if (everyMs === null) return;
    for (const channel of withheld) {
      const event = newest.get(channel);
      if (event) put("event", [id], { ...event, isSnapshot: true });
    }
    withheld.clear();
  }

  return {
    // ---- for the shell

    /** Begin to connect. */
    start: at((now) => {
      if (!links.length && closed === null) addLink(now);
    }),
    /** A socket is open, and commands can be sent. */
    opened: each("opened"),
    /** A message has arrived. */
    received: each("received"),
    /** A socket was not opened or has ended: close code, status of the HTTP answer, or 1006. */
    lost: each("lost"),
    /** Here is a token, and for how long it is valid, if that is known. */
    takeToken: at((now, text: string, validMs: number | null) => {
      isAsked = false;
      token = text;
      // If it seems to have expired, a clock is wrong: the server will say so.
      refreshAt = validMs && validMs > 0 ? now + Math.max(validMs - REFRESH_MS, validMs / 2) : Infinity;
      tell("takeToken", now, text);
    }),
    /** There is no token now. */
    tokenFailed: at((now, cause: string) => {
      isAsked = false;
      if (token !== null) refreshAt = now + AGAIN_MS; // it is still valid
      tell("tokenFailed", now, cause);
    }),
    /** Do what is due. To be called at `deadline`, or after it. */
    tick: at((now) => {
      if (refreshAt <= now) {
        refreshAt = Infinity; // once; then the server says that it has expired
        askToken();
      }
      tell("tick", now);
    }),
    /** When to call `tick`; Infinity: not before something else has happened. */
    deadline(): number {
      if (closed !== null) return Infinity;
      return Math.min(seenAt + TICK_MS, refreshAt, ...links.map((link) => link.deadline()));
    },

    // ---- for the environment

    /** The network may be back, or somebody looks again: find out at once. */
    probe: each("probe"),
    /** Nobody looks, or somebody does again: see `Options.hiddenEveryMs`. */
    hide: at((_, hidden: boolean) => {
      isHidden = hidden;
      changed = [...holders.keys()];
    }),

    // ---- for the user

    /**
     * Want channels and patterns, as subscription `id`. Of several subscriptions to a name, the
     * fastest rate counts for all of them.
     */
    subscribe: at(
      (_, id: number, names: Iterable<string>, everyMs: Rate = 0, withSnapshot: boolean = true) => {
        const its = new Set(names);
        // Not each of very many channels for each subscription.
        const some = [...its].some(isPattern) ? newest.keys() : its;
        const known = [...some].filter((channel) => {
          return withSnapshot && newest.has(channel) && namesFor(channel).some((name) => its.has(name));
        });
        const one = { id, names: its, everyMs, withSnapshot, withheld: new Set(known) };
        subscriptions.set(id, one);
        for (const name of its) holders.set(name, [...holdersOf(name), one]);
        release(one);
        for (const name of known) {
          const [reason] = gaps.get(newest.get(name) as Event)?.values() ?? [];
          if (reason) put("gap", [id], { channels: [name], missed: null, reason });
        }
        changed = [...its];
      },
    ),
    /** Change the rate of a subscription. When a pause ends, the newest events come. */
    setRate: at((_, id: number, everyMs: Rate) => {
      const one = subscriptions.get(id);
      if (!one) return;
      one.everyMs = everyMs;
      release(one);
      changed = [...one.names];
    }),
    /** End a subscription. */
    unsubscribe: at((_, id: number) => {
      changed = [...(subscriptions.get(id)?.names ?? [])];
      subscriptions.delete(id);
      for (const name of changed) {
        holders.set(
          name,
          holdersOf(name).filter((one) => one.id !== id),
        );
      }
    }),
    /** End everything. */
    close: at(() => feed.fail("")),
    /** The newest event of a channel that is subscribed to, if there was one. */
    newest: (channel: string): Event | undefined => newest.get(channel),
    /** The state of the worst link. */
    state: (): State => state,
  };
}
