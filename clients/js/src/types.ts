/**
 * The time between two events of a channel in milliseconds; 0 is every event, null a pause. Of several
 * subscriptions to a channel the fastest rate counts: a slower one gets those events, too.
 */
export type Rate = number | null;

/** An event of a channel. */
export interface Event<Data = unknown> {
  /** `BTC.trade` */
  readonly channel: string;
  /** What was published, as JSON. It may be null. */
  readonly data: Data;
  /** When NATS stored it, in Unix milliseconds. */
  readonly unixMs: number;
  /** Its number in the stream `epoch`; absent without JetStream. */
  readonly offset?: number;
  /** The offset of the event before it in its channel, if it is known. */
  readonly prev?: number;
  /** How many older events of the channel gave way to this one; null if that is not known. */
  readonly skipped: number | null;
  /** Whether it is the newest event from before, and not a new one. */
  readonly isSnapshot: boolean;
  /** The stream that `offset` and `prev` count in; null without JetStream. */
  readonly epoch: string | null;
  /** The span of the server that sent it, as a W3C `traceparent`; absent unless it is traced. */
  readonly trace?: string;
}

/** Events that were lost, or may have been. */
export interface Gap {
  /** The channels and patterns that may lack events. */
  readonly channels: readonly string[];
  /** How many are missing in all of them; null if that is not known. */
  readonly missed: number | null;
  /**
   * `resume`: after a lost connection; `slow`: this client reads too slowly; `hole`: found by the
   * number of the event before; `snapshot`: a server sends at most 1,000 first values at once; or
   * what the server says: `start`, `window`, `stream`, `core`, `unreadable`, `shed`.
   */
  readonly reason: string;
}

export type StateName = "connecting" | "live" | "stale" | "offline" | "closed";

/** The state of a feed: `stale` is connected, but prices may be old; `closed` is for good. */
export interface State {
  readonly name: StateName;
  /** Why, as a sentence or a word; empty if there is nothing to say. */
  readonly cause: string;
  /** When that began, in Unix milliseconds. */
  readonly at: number;
  /** When it connects again; null unless `offline`. */
  readonly retryAt: number | null;
}

/** A channel or pattern that the server does not give. */
export interface Refused {
  readonly channel: string;
  /** `INVALID_CHANNEL`, `FORBIDDEN_CHANNEL`, `TOO_MANY_CHANNELS`, `TOO_MANY_PATTERNS` … */
  readonly code: string;
}

/** The numbers of a client, in milliseconds. The defaults suit the server's. */
export interface Options {
  /** How long a socket may take to open. */
  dialMs: number;
  /** How long an answer to a command may take. */
  answerMs: number;
  /** How often the client asks for the state of NATS and its position. */
  heartbeatMs: number;
  /** How long the answer may take if nothing else arrives. Then the connection is lost. */
  pongMs: number;
  /** How old the server's last message from NATS may be. */
  staleMs: number;
  /** A client that did nothing for so long was frozen. It drops what has piled up. */
  freezeMs: number;
  /** The same while it is hidden, where browsers let timers run once a minute. */
  hiddenFreezeMs: number;
  /** The rate, while hidden, of what is faster and has a rate; 0 changes none. */
  hiddenEveryMs: number;
  /** The first delay before it connects again is up to this, and doubles. */
  retryMinMs: number;
  /** The greatest delay. */
  retryMaxMs: number;
  /** Channels and patterns on one connection. Further ones get another. */
  maxChannels: number;
  /** Patterns on one connection. */
  maxPatterns: number;
  /**
   * Of how many channels the newest event is kept: of those that had one last, and of all that are
   * subscribed to by name. Of another one an event that comes twice is handed out twice.
   */
  maxNewest: number;
}

// What the core does with its outputs, in the order in which it calls them.
export interface Host {
  dial(conn: number, url: string, token: string | null): void;
  send(conn: number, message: object): void;
  drop(conn: number, code: number): void;
  askToken(): void;
  event(subscriptions: number[], event: Event): void;
  gap(subscriptions: number[], gap: Gap): void;
  refused(subscriptions: number[], refused: Refused): void;
  state(state: State): void;
}

// biome-ignore lint/suspicious/noExplicitAny: what a server sends is checked where it is used
export type Message = Record<string, any>;
