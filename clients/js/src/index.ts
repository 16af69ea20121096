// The sockets, the clock and the page around the core.
//
// Resource handling: a feed has a socket or more, and one timer, until `close`.

import { createBell, type Listener } from "./bell.js";
import { createCore } from "./core.js";
import { createSubscription, FeedError, type Subscription } from "./subscription.js";
import type { Event, Message, Options, Rate, State } from "./types.js";

export type {
  Balance,
  Candle,
  Creation,
  EventData,
  Favorites,
  Liquidity,
  Metadata,
  Social,
  Trade,
} from "./messages.js";
export { FeedError, type Subscription, type SubscriptionEvents } from "./subscription.js";
export type { Event, Gap, Options, Rate, Refused, State, StateName } from "./types.js";

/** Reads the messages of one socket; see the entry `trio-odin/z1`. */
export interface Reader {
  /** Whether commands can be sent at once. */
  readonly isReady: boolean;
  /** Take the first messages of the socket, until it is ready. */
  prepare(message: Message): Promise<void>;
  read(data: ArrayBuffer): Message;
}

export interface Compression {
  /** The subprotocols to offer, the best one first. */
  offers(): string[];
  /** A reader for a socket with this subprotocol; null if all of it is text. */
  reader(protocol: string, url: string): Reader | null;
}

export interface ConnectOptions extends Partial<Options> {
  /**
   * Gives a JSON Web Token. It is called before the first connection, before a token expires, and
   * when the server refuses one.
   */
  token?: () => string | Promise<string>;
  /** `z1()` of `trio-odin/z1`: less than half of the bytes. */
  compression?: Compression;
  /** The WebSocket to use, where there is none built in (Node 20). */
  WebSocket?: new (
    url: string,
    protocols?: string[],
  ) => WebSocket;
}

export interface SubscribeOptions {
  /** At most one event of each channel in so many ms; 0: every event; null: paused. */
  everyMs?: Rate;
  /** Whether the newest event of each channel comes first; it does unless this is false. */
  snapshot?: boolean;
}

/** A connection to a server, or to the next one. It goes on until it is closed. */
export interface Feed {
  readonly state: State;
  /** The newest event of a channel that is subscribed to. */
  newest<Data = unknown>(channel: string): Event<Data> | undefined;
  /** @throws TypeError if the rate is neither null nor a number from 0 on, or a name is none. */
  subscribe<Data = unknown>(
    channels: string | readonly string[],
    options?: SubscribeOptions,
  ): Subscription<Data>;
  /**
   * Listen to the state, or to the length of each message: bytes, of text characters. The result ends
   * that.
   */
  on(name: "state", listener: Listener<State>): () => void;
  on(name: "bytes", listener: Listener<number>): () => void;
  close(): void;
}

const TOKEN_MS = 30_000;
const PROBE_MS = 3_000;
// Whatever this machine's clock says, a token is not asked for more often than twice a minute.
const VALID_LEAST_MS = 60_000;

const NAME = /^(?!.{65})(>|(\*|[\w-]+)\.([*>]|[\w-]+))$/;

// NaN, of a field that is empty, would be asked for again and again.
function checkRate(rate: Rate): void {
  if (Number.isFinite(rate) ? (rate as number) < 0 : rate !== null)
    throw new TypeError(`everyMs ${rate}: allowed is 0 or more, or null`);
}

/** How long a JSON Web Token is valid from now on; null if it does not say. */
function validMs(token: string): number | null {
  try {
    const claims = (token.split(".")[1] as string).replace(/-/g, "+").replace(/_/g, "/");
    const { exp } = JSON.parse(atob(claims));
    return exp > 0 ? Math.max(exp * 1000 - Date.now(), VALID_LEAST_MS) : null;
  } catch {
    return null;
  }
}

// A browser does not say why a handshake was refused. A plain request to the same address does.
async function whyRefused(url: string, token: string | null): Promise<[number, string]> {
  try {
    const answer = await fetch(url.replace("ws", "http"), {
      cache: "no-store",
      // Not in the address, which proxies log.
      headers: token ? { Authorization: `Bearer ${token}` } : {},
      signal: AbortSignal.timeout(PROBE_MS),
    });
    const { status } = answer;
    const text = (await answer.text()).trim().slice(0, 200);
    if (status === 426) return [1006, "the connection was refused"];
    const wait = answer.headers.get("retry-after");
    return [status, `${text || status}${wait ? `; again in ${wait} s` : ""}`];
  } catch {
    return [1006, "no network, or no server that answers"];
  }
}

/** Unix time in milliseconds, which never goes back. That it leaps while a machine sleeps is wanted. */
function createClock(): () => number {
  let ahead = 0;
  let last = 0;
  return () => (last = Date.now() + (ahead = Math.max(ahead, last - Date.now())));
}

/**
 * Connect to a server, and connect again whenever that is needed.
 *
 * @param url `wss://prices.example.com/ws`, or `/ws` of this page's server, or several of them, which
 *   are tried in turn.
 * @throws TypeError if it is not a URL; FeedError if there is no WebSocket.
 */
export function connect(url: string | readonly string[], options: ConnectOptions = {}): Feed {
  const { token, compression, WebSocket: Socket = globalThis.WebSocket } = options;
  if (!Socket) throw new FeedError("NO_WEBSOCKET", "Pass a WebSocket: there is none here");
  const urls = [url].flat().map((one) => {
    return new URL(one, globalThis.location?.href).href.replace(/^http/, "ws");
  });
  const sockets = new Map<number, WebSocket>();
  const subscriptions = new Map<number, ReturnType<typeof createSubscription>>();
  const bell = createBell<{ state: State; bytes: number }>();
  const closed = new AbortController();
  const clock = createClock();
  // What the core hands out while it works. Users get it afterwards, as they may call it again.
  const due: (() => void)[] = [];
  let isHandingOut = false;
  let ids = 0;
  let timer: ReturnType<typeof setTimeout> | undefined;
  let timerAt = Infinity;

  const core = createCore(
    urls,
    {
      dial,
      send: (conn, message) => sockets.get(conn)?.send(JSON.stringify(message)),
      drop,
      askToken,
      event: (to, event) => tell(to, (one) => one.take(event)),
      gap: (to, gap) => tell(to, ({ bell }) => bell.ring("gap", gap)),
      refused(to, { channel, code }) {
        const error = new FeedError(code, `The server does not give ${channel}: ${code}`, channel);
        tell(to, ({ bell }) => bell.ring("refused", error) || console.warn(error));
      },
      state(state) {
        due.push(() => {
          bell.ring("state", state);
          if (state.name === "closed") end();
        });
      },
    },
    { needsToken: !!token, options },
  );

  function tell(to: number[], how: (one: ReturnType<typeof createSubscription>) => void): void {
    due.push(() => {
      for (const id of to) {
        const one = subscriptions.get(id);
        if (one) how(one);
      }
    });
  }

  // Report something to the core, hand out what follows, and see when it wants to be called next.
  function act<Args extends unknown[]>(report: (now: number, ...args: Args) => void, ...args: Args): void {
    const now = clock();
    report(now, ...args);
    let at = core.deadline();
    if (at <= now) {
      // Not by a timer: a server that drains at once closes with the next message.
      core.tick(now);
      at = core.deadline();
    }
    if (at < timerAt) {
      clearTimeout(timer);
      timerAt = at;
      timer = setTimeout(ring, at - now);
    }
    if (isHandingOut) return;
    isHandingOut = true;
    for (const handOut of due) handOut();
    due.length = 0;
    isHandingOut = false;
  }

  function drop(conn: number, code: number): void {
    const socket = sockets.get(conn);
    sockets.delete(conn);
    socket?.close(code);
  }

  function ring(): void {
    timerAt = Infinity;
    act(core.tick);
  }

  async function askToken(): Promise<void> {
    let late: ReturnType<typeof setTimeout> | undefined;
    try {
      const text = await Promise.race([
        // Not at once: the core is at work.
        Promise.resolve().then(token),
        new Promise<never>((_, reject) => {
          late = setTimeout(reject, TOKEN_MS, "no answer");
        }),
      ]);
      if (!text || typeof text !== "string") throw `${text ? typeof text : "none"} given`;
      act(core.takeToken, text, validMs(text));
    } catch (error) {
      act(core.tokenFailed, `no token: ${error}`);
    } finally {
      clearTimeout(late);
    }
  }

  function dial(conn: number, to: string, text: string | null): void {
    const offers = [...(compression?.offers() ?? []), "trio-odin"];
    if (text) offers.push(`bearer.${text}`);
    let reader: Reader | null | undefined;
    let isOpen = false;
    // What has come while the reader was prepared.
    let early: unknown[] | undefined;
    let socket: WebSocket;
    const isOurs = (): boolean => sockets.get(conn) === socket;
    const lost = (code: number, cause: string): void => {
      if (!isOurs()) return;
      sockets.delete(conn);
      act(core.lost, conn, code, cause);
    };
    const opened = (): void => {
      isOpen = true;
      if (isOurs()) act(core.opened, conn);
    };
    const refused = async (): Promise<void> => {
      if (!isOurs()) return;
      // Once: an error and a close tell the same.
      socket.onerror = socket.onclose = null;
      lost(...(await whyRefused(to, text)));
    };
    const read = (data: unknown): Message =>
      typeof data === "string" ? JSON.parse(data) : (reader as Reader).read(data as ArrayBuffer);
    const received = async (data: unknown): Promise<void> => {
      if (!isOurs()) return;
      try {
        if (isOpen) act(core.received, conn, read(data));
        else if (early) early.push(data);
        else {
          early = [];
          await reader?.prepare(read(data));
          opened();
          for (const one of early) received(one);
        }
      } catch (error) {
        // What follows it would be taken for complete.
        socket.close();
        lost(1006, `${error}`);
      }
    };
    try {
      socket = new Socket(to, offers);
    } catch (error) {
      // The page may not connect there at all, so there is no point in trying again.
      queueMicrotask(() => act(core.lost, conn, 403, `${error}`));
      return;
    }
    sockets.set(conn, socket);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      reader = compression?.reader(socket.protocol, to);
      if (!reader || reader.isReady) opened();
    };
    socket.onmessage = ({ data }) => {
      if (!isOurs()) return;
      bell.ring("bytes", data.length ?? data.byteLength);
      received(data);
    };
    // Node's WebSocket fires no `close` after a refused handshake.
    socket.onerror = () => {
      if (!isOpen && socket.readyState !== 1) refused();
    };
    socket.onclose = ({ code, reason }) => {
      if (code === 1006 && !isOpen && !reader) refused();
      else lost(code, reason || `closed with ${code}`);
    };
  }

  function end(): void {
    const { cause } = core.state();
    closed.abort();
    clearTimeout(timer);
    for (const one of subscriptions.values()) one.end(cause && new FeedError("CLOSED", cause));
    subscriptions.clear();
  }

  // The network may be back, and somebody may look again, or nobody.
  const look = (now: number): void => {
    core.hide(now, !!globalThis.document?.hidden);
    core.probe(now);
  };
  // A browser keeps a page for "back" only if nothing is open; and what a frozen page does not read
  // piles up. The next event, or the core's timer, brings new connections.
  const leave = (now: number): void => {
    for (const conn of sockets.keys()) {
      drop(conn, 1000);
      core.lost(now, conn, 1001, "the page is frozen");
    }
  };
  const watch = (names: string, report: (now: number) => void): void => {
    // Those of the document pass here, too, if they are captured.
    const how = { capture: true, signal: closed.signal };
    for (const name of names.split(" ")) globalThis.addEventListener?.(name, () => act(report), how);
  };
  act(core.start);
  act(look);
  watch("online offline pageshow resume visibilitychange", look);
  watch("pagehide freeze", leave);

  return {
    get state() {
      return core.state();
    },
    newest: core.newest as Feed["newest"],
    on: bell.on as Feed["on"],
    subscribe<Data>(channels: string | readonly string[], asked: SubscribeOptions = {}) {
      const names = [channels].flat();
      const id = ++ids;
      let { everyMs = 0 } = asked;
      checkRate(everyMs);
      for (const name of names) {
        if (!name?.match?.(NAME)) throw new TypeError(`channel ${name}: allowed is A.b, A.*, *.b, >`);
      }
      const one = createSubscription(names, {
        setRate(rate) {
          checkRate(rate);
          everyMs = rate;
          act(core.setRate, id, rate);
        },
        close() {
          subscriptions.delete(id);
          act(core.unsubscribe, id);
        },
      });
      subscriptions.set(id, one);
      // First the caller adds its listeners.
      queueMicrotask(() => {
        if (!subscriptions.has(id)) return;
        act(core.subscribe, id, names, everyMs, asked.snapshot);
        if (closed.signal.aborted) end();
      });
      return one.forUser as Subscription<Data>;
    },
    close() {
      act(core.close);
      // At once: what was about to be handed out is not.
      end();
    },
  };
}
