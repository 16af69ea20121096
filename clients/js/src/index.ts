// The sockets, the clock and the page around the core.
//
// Resource handling: a feed has a socket or more, and one timer, until `close`.

import { createBell, type Listener } from "./bell.js";
import { createCore } from "./core.js";
import { createSubscription, FeedError, type Subscription } from "./subscription.js";
import type { Event, Message, Options, Rate, State } from "./types.js";

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
  /** `z1()` of `trio-odin/z1`: a third of the bytes. */
  compression?: Compression;
  /** The WebSocket to use, where there is none built in (Node 20). */
  WebSocket?: new (url: string, protocols?: string[]) => WebSocket;
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
  subscribe<Data = unknown>(
    channels: string | readonly string[],
    options?: SubscribeOptions,
  ): Subscription<Data>;
  /** Listen to the state, or to the size of each message in bytes; the result ends that. */
  on(name: "state", listener: Listener<State>): () => void;
  on(name: "bytes", listener: Listener<number>): () => void;
  close(): void;
}

const PROBE_MS = 3_000;

/** How long a JSON Web Token is valid from now on; null if it does not say. */
function validMs(token: string): number | null {
  try {
    const claims = (token.split(".")[1] as string).replace(/-/g, "+").replace(/_/g, "/");
    const { exp } = JSON.parse(atob(claims));
    return typeof exp === "number" ? exp * 1000 - Date.now() : null;
  } catch {
    return null;
  }
}

// A browser does not say why a handshake was refused. A plain request to the same address does.
async function whyRefused(url: string, token: string | null): Promise<[number, string]> {
  try {
    const address = new URL(url.replace(/^ws/, "http"));
    if (token) address.searchParams.set("access_token", token);
    const answer = await fetch(address, { cache: "no-store", signal: AbortSignal.timeout(PROBE_MS) });
    const { status } = answer;
    if (status === 426) return [1006, "the connection was refused"];
    const wait = answer.headers.get("retry-after");
    return [status, `${(await answer.text()).trim()}${wait ? `; again in ${wait} s` : ""}`];
  } catch {
    return [1006, "no network, or no server"];
  }
}

/**
 * Connect to a server, and connect again whenever that is needed.
 *
 * @param url `wss://prices.example.com/ws`, or several of them, which are tried in turn.
 */
export function connect(url: string | readonly string[], options: ConnectOptions = {}): Feed {
  const { token, compression, WebSocket: Socket = globalThis.WebSocket, ...numbers } = options;
  if (!Socket) throw new FeedError("NO_WEBSOCKET", "There is no WebSocket here: pass one as option");
  const sockets = new Map<number, WebSocket>();
  const subscriptions = new Map<number, ReturnType<typeof createSubscription>>();
  const bell = createBell<{ state: State; bytes: number }>();
  const watched: (() => void)[] = [];
  let ids = 0;
  let timer: ReturnType<typeof setTimeout> | undefined;
  let timerAt = Infinity;

  const core = createCore(
    typeof url === "string" ? [url] : url,
    {
      dial,
      send: (conn, message) => sockets.get(conn)?.send(JSON.stringify(message)),
      drop(conn, code) {
        const socket = sockets.get(conn);
        sockets.delete(conn);
        socket?.close(code);
      },
      async askToken() {
        try {
          const text = (await token?.()) as string;
          act((now) => core.takeToken(now, text, validMs(text)));
        } catch (error) {
          act((now) => core.tokenFailed(now, `no token: ${error}`));
        }
      },
      event(ids, event) {
        for (const id of ids) subscriptions.get(id)?.take(event);
      },
      gap(ids, gap) {
        for (const id of ids) subscriptions.get(id)?.ring("gap", gap);
      },
      refused(ids, { channel, code }) {
        const error = new FeedError(code, `The server does not give ${channel}: ${code}`, channel);
        for (const id of ids) subscriptions.get(id)?.ring("refused", error);
      },
      state(state) {
        if (state.name === "closed") end();
        bell.ring("state", state);
      },
    },
    { needsToken: !!token, options: numbers },
  );

  // Report something to the core, and see when it wants to be called next.
  function act(report: (now: number) => void): void {
    report(Date.now());
    const at = core.deadline();
    if (at === timerAt) return;
    clearTimeout(timer);
    timerAt = at;
    if (at === Infinity) return;
    const ring = (): void => {
      timerAt = Infinity;
      act(core.tick);
    };
    timer = setTimeout(ring, Math.max(0, at - Date.now()));
  }

  function dial(conn: number, to: string, text: string | null): void {
    const offers = [...(compression?.offers() ?? []), "trio-odin"];
    if (text) offers.push(`bearer.${text}`);
    let reader: Reader | null = null;
    let isOpen = false;
    let isRefused = false;
    let socket: WebSocket;
    const isOurs = (): boolean => sockets.get(conn) === socket;
    const lost = (code: number, cause: string): void => {
      if (!isOurs()) return;
      sockets.delete(conn);
      act((now) => core.lost(now, conn, code, cause));
    };
    const opened = (): void => {
      isOpen = true;
      act((now) => core.opened(now, conn));
    };
    const refused = async (): Promise<void> => {
      if (isRefused || !isOurs()) return;
      isRefused = true;
      lost(...(await whyRefused(to, text)));
    };
    try {
      socket = new Socket(to, offers);
    } catch (error) {
      // Not a URL: there is no point in trying again.
      queueMicrotask(() => act((now) => core.lost(now, conn, 403, String(error))));
      return;
    }
    sockets.set(conn, socket);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      reader = compression?.reader(socket.protocol, to) ?? null;
      if (!reader || reader.isReady) opened();
    };
    socket.onmessage = ({ data }) => {
      if (!isOurs()) return;
      const isText = typeof data === "string";
      bell.ring("bytes", isText ? data.length : data.byteLength);
      if (!isText && !reader) return;
      const message: Message = isText ? JSON.parse(data) : reader?.read(data);
      if (isOpen) act((now) => core.received(now, conn, message));
      else {
        reader?.prepare(message).then(
          () => isOurs() && opened(),
          (error) => {
            lost(1006, String(error));
            socket.close();
          },
        );
      }
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
    clearTimeout(timer);
    for (const stop of watched) stop();
    for (const one of subscriptions.values()) one.end();
    subscriptions.clear();
  }

  function watch(target: EventTarget | undefined, name: string, report: (now: number) => void): void {
    if (!target?.addEventListener) return;
    const listener = (): void => act(report);
    target.addEventListener(name, listener);
    watched.push(() => target.removeEventListener(name, listener));
  }

  const page = globalThis.document as Document | undefined;
  const hide = (now: number): void => core.hide(now, !!page?.hidden);
  act((now) => {
    core.start(now);
    hide(now);
  });
  watch(globalThis as unknown as EventTarget, "online", core.probe);
  watch(globalThis as unknown as EventTarget, "pageshow", core.probe);
  watch(page, "resume", core.probe);
  watch(page, "visibilitychange", (now) => {
    hide(now);
    if (!page?.hidden) core.probe(now);
  });

  return {
    get state() {
      return core.state();
    },
    newest: <Data>(channel: string) => core.newest(channel) as Event<Data> | undefined,
    on: bell.on as Feed["on"],
    subscribe<Data>(channels: string | readonly string[], asked: SubscribeOptions = {}) {
      const names = typeof channels === "string" ? [channels] : [...channels];
      const id = ++ids;
      let { everyMs = 0 } = asked;
      let isSubscribed = false;
      const one = createSubscription(names, {
        setRate(rate) {
          everyMs = rate;
          if (isSubscribed) act((now) => core.setRate(now, id, rate));
        },
        close() {
          subscriptions.delete(id);
          if (isSubscribed) act((now) => core.unsubscribe(now, id));
        },
      });
      subscriptions.set(id, one);
      // First the caller adds its listeners.
      queueMicrotask(() => {
        if (!subscriptions.has(id)) return;
        isSubscribed = true;
        act((now) => core.subscribe(now, id, names, everyMs, asked.snapshot));
        if (core.state().name === "closed") end();
      });
      return one.forUser as Subscription<Data>;
    },
    close: () => act(core.close),
  };
}
