// The decisions of a client, without sockets: what to ask for, what to believe, what to hand out.
//
// A shell reports what happened and when, and carries out what the core calls of its `Host`. The same
// core exists in Python, and tests/client/vectors has what both of them have to answer.
//
//    subscribe, setRate, unsubscribe           the user
//            │
//          core      which name has which rate, who gets an event, and whether it is a newer one
//            │ 1 : n
//          link      up to 256 names: connections, positions, commands
//            │
//    opened, received, lost, tick              the sockets and the clock

import { createLink, type Feed, isPattern, type Link, namesFor, speed } from "./link.js";
import type { Event, Gap, Host, Message, Options, Rate, State } from "./types.js";

// An event of an older stream can come from a server that lags, within seconds.
const EPOCHS_MAX = 3;
// While a connection is open, time must not pass unnoticed for longer than this.
const TICK_MS = 2_000;
const REFRESH_MS = 30_000;
const WORST_LAST = ["live", "stale", "connecting", "offline"];

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
};

interface Subscription {
  readonly id: number;
  readonly names: readonly string[];
  everyMs: Rate;
  readonly withSnapshot: boolean;
  /** Channels with an event in a pause. */
  withheld: Set<string>;
}

export type Core = ReturnType<typeof createCore>;

export function createCore(
  urls: readonly string[],
  host: Host,
  {
    needsToken = false,
    options: changed = {},
    random = Math.random,
  }: { needsToken?: boolean; options?: Partial<Options>; random?: () => number } = {},
) {
  const options = { ...DEFAULTS, ...changed };
  const subscriptions = new Map<number, Subscription>();
  const holders = new Map<string, Subscription[]>();
  const linkOf = new Map<string, Link>();
  const newest = new Map<string, Event>();
  // The last offset by epoch and channel.
  const last = new Map<string, Map<string, number>>();
  // A gap of a name after the last event of a channel explains a hole.
  const eventSerials = new Map<string, number>();
  const gapSerials = new Map<string, number>();
  let serial = 0;
  let links: Link[] = [];
  let state: State = { name: "connecting", cause: "", at: 0, retryAt: null };
  let token: string | null = null;
  let tokenUntil = Infinity;
  let isAsked = false;
  let connIds = 0;
  let isHidden = false;
  let seenAt: number | null = null;
  let closed: string | null = null;
  let moved: string[] = []; // names that need another link

  // ---- what a link needs

  const feed: Feed = {
    options,
    random,
    nextConn: () => ++connIds,
    dial: (conn, tries) => host.dial(conn, urls[tries % urls.length] as string, token),
    send: host.send,
    drop: host.drop,
    hasToken() {
      if (!needsToken || token !== null) return true;
      askToken();
      return false;
    },
    forgetToken() {
      token = null;
      return needsToken;
    },
    deliver,
    declare,
    refuse(link, name, code) {
      if (code.startsWith("TOO_MANY_") && link.takes(name)) {
        link.unwant(name);
        linkOf.delete(name);
        moved.push(name);
        return;
      }
      const ids = (holders.get(name) ?? []).map(({ id }) => id);
      if (ids.length) host.refused(ids, { channel: name, code });
    },
    forget,
    restartOffsets: (epoch) => last.delete(epoch),
    fail,
  };

  function askToken(): void {
    if (!isAsked) {
      isAsked = true;
      host.askToken();
    }
  }

  // Hand an event out, unless it is not newer than the last one of its channel. If it is alone, the
  // event before it in its channel must have come.
  function deliver(event: Event, isAlone: boolean): void {
    const { channel, epoch, offset } = event;
    if (offset !== undefined && epoch !== null) {
      const offsets = lastOf(epoch);
      const before = offsets.get(channel);
      if (before !== undefined) {
        if (offset <= before) return;
        if (isAlone && event.skipped === 0 && (event.prev ?? 0) > before) findHole(channel);
      }
      offsets.set(channel, offset);
    }
    eventSerials.set(channel, serial);
    const receivers = receiversOf(channel);
    if (!receivers.size) return;
    newest.set(channel, event);
    const ids: number[] = [];
    for (const { id, everyMs, withSnapshot, withheld } of receivers) {
      if (everyMs === null) withheld.add(channel);
      else if (withSnapshot || !event.isSnapshot) ids.push(id);
    }
    if (ids.length) host.event(ids, event);
  }

  function lastOf(epoch: string): Map<string, number> {
    let offsets = last.get(epoch);
    if (!offsets) {
      for (const oldest of last.keys()) if (last.size >= EPOCHS_MAX) last.delete(oldest);
      last.set(epoch, (offsets = new Map()));
    }
    return offsets;
  }

  function findHole(channel: string): void {
    const since = eventSerials.get(channel) ?? 0;
    if (namesFor(channel).every((name) => (gapSerials.get(name) ?? 0) <= since)) {
      declare([channel], null, "hole");
    }
  }

  // Report a gap to whoever wants one of the names.
  function declare(names: Iterable<string>, missed: number | null, reason: string): void {
    serial++;
    const bySubscription = new Map<Subscription, string[]>();
    for (const name of names) {
      gapSerials.set(name, serial);
      for (const one of isPattern(name) ? (holders.get(name) ?? []) : receiversOf(name)) {
        bySubscription.set(one, [...(bySubscription.get(one) ?? []), name]);
      }
    }
    const together = new Map<string, [number[], Gap]>();
    for (const [{ id }, channels] of bySubscription) {
      const key = channels.join();
      const entry = together.get(key);
      if (entry) entry[0].push(id);
      else together.set(key, [[id], { channels, missed, reason }]);
    }
    for (const [ids, gap] of together.values()) host.gap(ids, gap);
  }

  // Forget the events of names that are no longer subscribed to.
  function forget(names: Iterable<string>): void {
    for (const name of names) {
      for (const channel of isPattern(name) ? [...eventSerials.keys()] : [name]) {
        if (receiversOf(channel).size) continue;
        for (const map of [newest, eventSerials, gapSerials, ...last.values()]) map.delete(channel);
      }
    }
  }

  // End everything for good.
  function fail(cause: string): void {
    for (const link of links) link.close();
    links = [];
    linkOf.clear();
    closed = cause;
  }

  // ---- inside

  /** Wrap what happens from outside: first what time brings, then what follows. */
  function at<Args extends unknown[]>(act: (now: number, ...args: Args) => void) {
    return (now: number, ...args: Args): void => {
      const before = seenAt ?? now;
      seenAt = now;
      if (now - before > (isHidden ? options.hiddenFreezeMs : options.freezeMs)) {
        for (const link of links) link.thaw(now);
      }
      act(now, ...args);
      const names = moved;
      moved = [];
      update(now, names);
      const { name, cause, retryAt } = worst();
      if (name !== state.name || cause !== state.cause || retryAt !== state.retryAt) {
        state = { name, cause, at: now, retryAt };
        host.state(state);
      }
    };
  }

  function worst(): Omit<State, "at"> {
    if (closed !== null) return { name: "closed", cause: closed, retryAt: null };
    const states = links.map((link) => link.state());
    const rank = (one: Omit<State, "at">): number => WORST_LAST.indexOf(one.name);
    return states.reduce((one, other) => (rank(other) > rank(one) ? other : one), {
      name: states.length ? "live" : "connecting",
      cause: "",
      retryAt: null,
    });
  }

  function rateOf(those: Subscription[]): Rate {
    const rates = those.map(({ everyMs }) => everyMs);
    const rate = rates.reduce((one, other) => (speed(other) < speed(one) ? other : one));
    return isHidden && rate ? Math.max(rate, options.hiddenEveryMs) : rate;
  }

  // Pass on what is wanted of these names, and have the links act.
  function update(now: number, names: Iterable<string>): void {
    if (closed !== null) return;
    for (const name of names) {
      const those = holders.get(name);
      let link = linkOf.get(name);
      if (those) {
        if (!link) linkOf.set(name, (link = linkFor(now, name)));
        const rate = rateOf(those);
        if (link.wants.get(name) !== rate) link.want(name, rate);
      } else if (link) {
        link.unwant(name);
        linkOf.delete(name);
      }
    }
    links = links.filter((link, index) => {
      const isNeeded = !index || link.wants.size;
      if (!isNeeded) link.close();
      return isNeeded;
    });
    for (const link of links) link.pump(now);
  }

  function linkFor(now: number, name: string): Link {
    const link = links.find((one) => one.hasRoomFor(name)) ?? addLink();
    if (!link.isConnected() && link.deadline() === Infinity) link.dial(now);
    return link;
  }

  function addLink(): Link {
    const link = createLink(feed);
    links.push(link);
    return link;
  }

  /** The subscriptions that have a channel, each once. */
  function receiversOf(channel: string): Set<Subscription> {
    return new Set(namesFor(channel).flatMap((name) => holders.get(name) ?? []));
  }

  /** The channels of a subscription that have an event. */
  function matching({ names }: Subscription): string[] {
    return [...newest.keys()].filter((channel) => namesFor(channel).some((one) => names.includes(one)));
  }

  function deliverNewest({ id }: Subscription, channels: Iterable<string>): void {
    for (const channel of channels) {
      const event = newest.get(channel);
      if (event) host.event([id], { ...event, isSnapshot: true });
    }
  }

  return {
    // ---- for the shell

    /** Begin to connect. */
    start: at((now) => {
      if (!links.length && closed === null) addLink().dial(now);
    }),
    /** A socket is open, and commands can be sent. */
    opened: at((now, conn: number) => {
      for (const link of links) link.opened(now, conn);
    }),
    /** A message has arrived. */
    received: at((now, conn: number, message: Message) => {
      for (const link of links) link.received(now, conn, message);
    }),
    /** A socket was not opened or has ended: close code, status of the HTTP answer, or 1006. */
    lost: at((now, conn: number, code: number, cause: string) => {
      for (const link of links) link.lost(now, conn, code, cause);
    }),
    /** Here is a token, and for how long it is valid, if that is known. */
    takeToken: at((now, text: string, validMs: number | null) => {
      isAsked = false;
      token = text;
      tokenUntil = now + (validMs ?? Infinity);
      for (const link of links) link.takeToken(now, text);
    }),
    /** There is no token now. */
    tokenFailed: at((now, cause: string) => {
      isAsked = false;
      for (const link of links) link.tokenFailed(now, cause);
    }),
    /** Do what is due. To be called at `deadline`, or after it. */
    tick: at((now) => {
      if (token !== null && tokenUntil - REFRESH_MS <= now) {
        tokenUntil = Infinity; // once; then the server says that it has expired
        askToken();
      }
      for (const link of links) link.tick(now);
    }),
    /** When to call `tick`; Infinity: not before something else has happened. */
    deadline(): number {
      if (closed !== null) return Infinity;
      const times = links.map((link) => link.deadline());
      if (seenAt !== null && links.some((link) => link.isConnected())) times.push(seenAt + TICK_MS);
      if (token !== null) times.push(tokenUntil - REFRESH_MS);
      return Math.min(...times);
    },

    // ---- for the environment

    /** The network may be back, or somebody looks again: find out at once. */
    probe: at((now) => {
      for (const link of links) {
        link.probe(now);
        link.tick(now);
      }
    }),
    /** Nobody looks, or somebody does again: see `Options.hiddenEveryMs`. */
    hide: at((now, hidden: boolean) => {
      if (hidden !== isHidden) {
        isHidden = hidden;
        update(now, holders.keys());
      }
    }),

    // ---- for the user

    /**
     * Want channels and patterns, as subscription `id`. Of several subscriptions to a name, the
     * fastest rate counts for all of them.
     */
    subscribe: at((now, id: number, names: Iterable<string>, everyMs?: Rate, snapshot?: boolean) => {
      const one: Subscription = {
        id,
        names: [...new Set(names)],
        everyMs: everyMs === undefined ? 0 : everyMs,
        withSnapshot: snapshot !== false,
        withheld: new Set(),
      };
      subscriptions.set(one.id, one);
      for (const name of one.names) holders.set(name, [...(holders.get(name) ?? []), one]);
      if (one.everyMs === null) one.withheld = new Set(matching(one));
      else if (one.withSnapshot) deliverNewest(one, matching(one));
      update(now, one.names);
    }),
    /** Change the rate of a subscription. When a pause ends, the newest events come. */
    setRate: at((now, id: number, everyMs: Rate) => {
      const one = subscriptions.get(id);
      if (!one) return;
      one.everyMs = everyMs;
      if (everyMs !== null) {
        const { withheld } = one;
        one.withheld = new Set();
        deliverNewest(one, withheld);
      }
      update(now, one.names);
    }),
    /** End a subscription. */
    unsubscribe: at((now, id: number) => {
      const one = subscriptions.get(id);
      if (!one) return;
      subscriptions.delete(id);
      for (const name of one.names) {
        const others = (holders.get(name) ?? []).filter((other) => other !== one);
        if (others.length) holders.set(name, others);
        else holders.delete(name);
      }
      update(now, one.names);
    }),
    /** End everything. */
    close: at(() => fail("")),
    /** The newest event of a channel that is subscribed to, if there was one. */
    newest: (channel: string): Event | undefined => newest.get(channel),
    /** The state of the worst link. */
    state: (): State => state,
  };
}
