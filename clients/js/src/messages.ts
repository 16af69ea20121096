// The messages of docs/protocol.md. Do not edit it: it was made by
// `trio-odin asyncapi --types typescript`.
// biome-ignore-all format: made by a program

/** The `code` of an error reply. */
export type ErrorCode =
  | "FORBIDDEN_CHANNEL"
  | "INVALID_CHANNEL"
  | "INVALID_COMMAND"
  | "INVALID_JSON"
  | "INVALID_TOKEN"
  | "RATE_LIMIT_EXCEEDED"
  | "TOO_MANY_CHANNELS"
  | "TOO_MANY_PATTERNS";

/** Why events were lost before the fan-out. */
export type GapReason =
  | "core"
  | "shed"
  | "start"
  | "stream"
  | "unreadable"
  | "window";

/** Subscribe to channels and patterns, or change their rate. */
export interface SubscribeCommand {
  readonly type: "subscribe";
  /** Channels such as `BTC.trade`, and patterns such as `*.trade`, `BTC.*` and `>`. */
  readonly channels?: readonly string[];
  /** Whether to send the newest event of each channel that the command adds first. */
  readonly snapshot?: boolean;
  /**
   * At most one message in so many milliseconds, with the newest event of each channel; 0, or
   * absent: every event; null: a pause.
   */
  readonly every_ms?: number | null;
  /** Your position: send what you missed since this offset first. */
  readonly after?: number;
  /** The epoch that `after` counts in, if you know it. */
  readonly epoch?: string;
  /** Whether to send gaps and the state of NATS; absent: as before. */
  readonly notices?: boolean;
  /** Refused: it is `every_ms`. */
  readonly everyMs?: never;
  /** The same keys, as an alternative to the top level. */
  readonly data?: SubscribeKeys;
  /** It comes back in each answer to the command. */
  readonly id?: string | number;
}

/** The keys of `subscribe`, in `data` or at the top level; `data` wins. */
export interface SubscribeKeys {
  /** Channels such as `BTC.trade`, and patterns such as `*.trade`, `BTC.*` and `>`. */
  readonly channels?: readonly string[];
  /** Whether to send the newest event of each channel that the command adds first. */
  readonly snapshot?: boolean;
  /**
   * At most one message in so many milliseconds, with the newest event of each channel; 0, or
   * absent: every event; null: a pause.
   */
  readonly every_ms?: number | null;
  /** Your position: send what you missed since this offset first. */
  readonly after?: number;
  /** The epoch that `after` counts in, if you know it. */
  readonly epoch?: string;
  /** Whether to send gaps and the state of NATS; absent: as before. */
  readonly notices?: boolean;
  /** Refused: it is `every_ms`. */
  readonly everyMs?: never;
}

/** Unsubscribe from channels and patterns. */
export interface UnsubscribeCommand {
  readonly type: "unsubscribe";
  /** Channels and patterns, by the names that you subscribed to. */
  readonly channels?: readonly string[];
  /** The same keys, as an alternative to the top level. */
  readonly data?: UnsubscribeKeys;
  /** It comes back in each answer to the command. */
  readonly id?: string | number;
}

/** The keys of `unsubscribe`, in `data` or at the top level; `data` wins. */
export interface UnsubscribeKeys {
  /** Channels and patterns, by the names that you subscribed to. */
  readonly channels?: readonly string[];
}

/** Ask whether the server is there; the answer is `pong`. */
export interface HeartbeatCommand {
  readonly type: "heartbeat";
  /** Whether to report on NATS, and your position. */
  readonly nats?: boolean;
  /** The same keys, as an alternative to the top level. */
  readonly data?: HeartbeatKeys;
  /** It comes back in each answer to the command. */
  readonly id?: string | number;
}

/** The keys of `heartbeat`, in `data` or at the top level; `data` wins. */
export interface HeartbeatKeys {
  /** Whether to report on NATS, and your position. */
  readonly nats?: boolean;
}

/** Send some of the last messages of this connection again. */
export interface ReplayCommand {
  readonly type: "replay";
  /** Which messages. */
  readonly data: ReplayKeys;
  /** It comes back in each answer to the command. */
  readonly id?: string | number;
}

/** Which messages to send again, by `seq`: `from` and `to`, or `since`. */
export interface ReplayKeys {
  /** The first one. */
  readonly from?: number;
  /** The last one. */
  readonly to?: number;
  /** The one before the first; up to the newest. */
  readonly since?: number;
}

/** Ask which channels there are. */
export interface ChannelsCommand {
  readonly type: "channels";
  /** The channels whose names begin with it. */
  readonly prefix?: string;
  /** The channels after this name, which is `next` of the answer before. */
  readonly after?: string;
  /** The same keys, as an alternative to the top level. */
  readonly data?: ChannelsKeys;
  /** It comes back in each answer to the command. */
  readonly id?: string | number;
}

/** The keys of `channels`, in `data` or at the top level; `data` wins. */
export interface ChannelsKeys {
  /** The channels whose names begin with it. */
  readonly prefix?: string;
  /** The channels after this name, which is `next` of the answer before. */
  readonly after?: string;
}

/** Use a new token, before the old one expires. */
export interface TokenCommand {
  readonly type: "token";
  /** A JSON Web Token of the same user. */
  readonly token?: string;
  /** The same key, as an alternative to the top level. */
  readonly data?: TokenKeys;
  /** It comes back in each answer to the command. */
  readonly id?: string | number;
}

/** The key of `token`, in `data` or at the top level; `data` wins. */
export interface TokenKeys {
  /** A JSON Web Token of the same user. */
  readonly token?: string;
}

/** An event of one channel. */
export interface PriceUpdate {
  /**
   * Number on this connection: it starts at 1 and grows by 1 with each message addressed to it. A
   * gap means that events were lost or, with the policy `conflate`, skipped.
   */
  readonly seq: number;
  /** When NATS stored the event, in Unix milliseconds. */
  readonly ts: number;
  readonly type: "price:update";
  readonly priority: 1;
  /** What was published, byte for byte: any JSON, null too. */
  readonly data: unknown;
  /** The channel, one of yours, that the event belongs to. */
  readonly channel: string;
  /**
   * The number of the event in the NATS stream, the same on every server; absent without JetStream.
   */
  readonly offset?: number;
  /** The offset of the event before it in its channel; absent if it is not known. */
  readonly prev?: number;
  /** The span of its fan-out, as a W3C `traceparent`; absent unless it is traced. */
  readonly trace?: string;
  /** True if it is the newest event from before you subscribed. */
  readonly snapshot?: true;
  /** How many older events of the channel gave way to this one; absent if none. */
  readonly skipped?: number;
  /**
   * Running total, on this connection, of the events that gave way because you read too slowly;
   * sent only if it has changed.
   */
  readonly skipped_total?: number;
}

/** The message of a tick: the newest event of each channel that had any since the last one. */
export interface PriceBatch {
  /** Number on this connection; a batch has one. */
  readonly seq: number;
  /** That of its newest event, in Unix milliseconds. */
  readonly ts: number;
  readonly type: "price:batch";
  /** The events, the oldest first. */
  readonly events: readonly BatchEvent[];
}

/** An event in a batch, the newest of its channel. */
export interface BatchEvent {
  /** The channel, one of yours, that the event belongs to. */
  readonly channel: string;
  /**
   * The number of the event in the NATS stream; absent without JetStream, or if that stream has
   * gone.
   */
  readonly offset?: number;
  /** The offset of the event before it in its channel; absent if it is not known. */
  readonly prev?: number;
  /**
   * How many older events of the channel gave way to this one since you were last sent one; absent
   * if none, null if they were too many to be counted.
   */
  readonly skipped?: number | null;
  /** The span of its fan-out, as a W3C `traceparent`; absent unless it is traced. */
  readonly trace?: string;
  /** When NATS stored the event, in Unix milliseconds. */
  readonly ts: number;
  /** What was published, byte for byte: any JSON, null too. */
  readonly data: unknown;
}

/** The acknowledgement of `subscribe`. */
export interface SubscriptionAck {
  readonly type: "subscription_ack";
  /** The channels and patterns of the command, without those that were refused. */
  readonly subscribed: readonly string[];
  /** How many channels and patterns you are subscribed to now. */
  readonly count: number;
  /**
   * The stream that offsets count in; null without JetStream. It is sent once you have asked for
   * notices, and in answer to `after`.
   */
  readonly epoch?: string | null;
  /**
   * Your position; null if it is not known. It is sent once you have asked for notices, but not in
   * answer to `after`.
   */
  readonly offset?: number | null;
  /**
   * The rate that was granted, in milliseconds: 0 for every event, null for a pause. Absent if you
   * named none.
   */
  readonly every_ms?: number | null;
  /** At most 256 of the names that were refused, if the command had an `id`. */
  readonly refused?: readonly Refusal[];
  /** How many were refused, if they were more than `refused` has. */
  readonly refused_total?: number;
  /** The `id` of the command, if it had one. */
  readonly id?: string | number;
}

/** A channel or pattern to which you were not subscribed. */
export interface Refusal {
  /** Its name, as you wrote it. */
  readonly channel: string;
  /** Why. */
  readonly code: ErrorCode;
}

/** The acknowledgement of `unsubscribe`. */
export interface UnsubscriptionAck {
  readonly type: "unsubscription_ack";
  /** The channels and patterns of the command. */
  readonly unsubscribed: readonly string[];
  /** How many channels and patterns you are subscribed to now. */
  readonly count: number;
  /** The `id` of the command, if it had one. */
  readonly id?: string | number;
}

/** The end of the first values. */
export interface SnapshotDone {
  readonly type: "snapshot_done";
  /** How many were sent. */
  readonly sent: number;
  /** How many there were. */
  readonly total: number;
  /** Why they were not all sent, for a person. */
  readonly message?: string;
  /** The `id` of the command, if it had one. */
  readonly id?: string | number;
}

/** Some channels of a resume may lack events. `resumed` follows. */
export interface ResumeIncomplete {
  readonly type: "resume_incomplete";
  /** The offset that you named. */
  readonly after: number;
  /** How many events were sent. */
  readonly sent: number;
  /** Why, for a person. */
  readonly message: string;
  /** The channels and patterns that may lack events. The others are complete. */
  readonly channels: readonly string[];
  /** The `id` of the command, if it had one. */
  readonly id?: string | number;
}

/** The end of a resume. */
export interface Resumed {
  readonly type: "resumed";
  /** How many events were sent. */
  readonly sent: number;
  /** Your new position; null if it is not known. */
  readonly offset: number | null;
  /** The `id` of the command, if it had one. */
  readonly id?: string | number;
}

/** Some events of a replay were not sent. */
export interface ReplayIncomplete {
  readonly type: "replay_incomplete";
  /** How many were sent. */
  readonly sent: number;
  /** How many you asked for. */
  readonly total: number;
  /** Why, for a person. */
  readonly message: string;
  /** The `id` of the command, if it had one. */
  readonly id?: string | number;
}

/** The end of a replay whose command had an `id`. */
export interface ReplayDone {
  readonly type: "replay_done";
  /** How many events were sent. */
  readonly sent: number;
  /** How many you asked for. */
  readonly total: number;
  /** The `id` of the command, if it had one. */
  readonly id?: string | number;
}

/** The channels that had an event and that your token allows. */
export interface ChannelList {
  readonly type: "channels";
  /** At most 256, sorted by name. */
  readonly channels: readonly ChannelEntry[];
  /** There may be more: ask again with this name as `after`. Absent at the end. */
  readonly next?: string;
  /** The `id` of the command, if it had one. */
  readonly id?: string | number;
}

/** A channel that had an event. */
export interface ChannelEntry {
  /** Its name. */
  readonly channel: string;
  /** The number of its newest event; null without JetStream. */
  readonly offset: number | null;
}

/** The answer to `heartbeat`. All but `ts` is there only if you asked for `nats`. */
export interface Pong {
  readonly type: "pong";
  /** The time of the server, in Unix milliseconds. */
  readonly ts: number;
  /** Whether the server has a connection to NATS. */
  readonly nats?: "connected" | "disconnected";
  /**
   * Milliseconds since anything came from NATS, which is pinged every second; null if nothing has
   * come.
   */
  readonly age_ms?: number | null;
  /** Milliseconds since an event of any channel came; null if none has come. */
  readonly event_age_ms?: number | null;
  /**
   * A position: every event of your channels up to it was sent before this, except for channels
   * that are paused; null if it is not known, or if your newest event was dropped.
   */
  readonly offset?: number | null;
  /** The `id` of the command, if it had one. */
  readonly id?: string | number;
}

/** The new token is in force. */
export interface TokenAck {
  readonly type: "token_ack";
  /** When it expires, in Unix seconds; null on a server without tokens. */
  readonly expires_at: number | null;
  /** Your channels and patterns that it does not allow; they have ended. */
  readonly unsubscribed: readonly string[];
  /** How many channels and patterns you are subscribed to now. */
  readonly count: number;
  /** The `id` of the command, if it had one. */
  readonly id?: string | number;
}

/** A command was refused, or a part of it. The connection stays open. */
export interface ErrorReply {
  readonly type: "error";
  /** Why, for a program. */
  readonly code: ErrorCode;
  /** Why, for a person. */
  readonly message: string;
  /** The `id` of the command, if it had one. */
  readonly id?: string | number;
}

/**
 * Events were lost before they reached the server, perhaps none of yours. It is sent if you have
 * asked for notices, before the first event after the loss.
 */
export interface GapNotice {
  readonly type: "gap";
  /** Why. */
  readonly reason: GapReason;
  /** How many events of all channels; null if it is not known. */
  readonly missed: number | null;
  /** The offset of the first of them; null if it is not known. */
  readonly from: number | null;
  /** The offset of the last of them; null if it is not known. */
  readonly to: number | null;
  /** The stream that offsets count in now; null without JetStream. */
  readonly epoch: string | null;
  /** When this was sent, in Unix milliseconds. */
  readonly ts: number;
}

/** The server has lost NATS, or has it again. It is sent if you have asked for notices. */
export interface Upstream {
  readonly type: "upstream";
  /** Whether the server has a connection to NATS. */
  readonly nats: "connected" | "disconnected";
}

/** The server shuts down. It closes this connection with 1001 up to 2 s after its time. */
export interface Draining {
  readonly type: "server:draining";
  /** When to connect again, to this address or another: not earlier. */
  readonly reconnect_in_ms: number;
}

/** The first message with the subprotocol `trio-odin.z1`: which dictionary is used. */
export interface DictionaryNotice {
  readonly type: "dictionary";
  /** The beginning of the SHA-256 of the dictionary. */
  readonly id: string;
  /** Its length. */
  readonly bytes: number;
  /** Its path on the same server. */
  readonly url: string;
}

/** A trade, and what is known of the token after it. */
export interface Trade {
  readonly type: "price:update";
  /** The symbol. */
  readonly tokenId: string;
  /** The price of the trade, with up to 6 decimals. */
  readonly price: number;
  /** What was traded in the last 24 hours. */
  readonly volume24h: number;
  /** The price times the supply. */
  readonly marketCap: number;
  /** Percent, with 2 decimals; negative if the price fell. */
  readonly priceChange24h: number;
  /** When it was made, in Unix milliseconds. */
  readonly timestamp: number;
  /** `simulator`, if the market is simulated. */
  readonly source: string;
  /** 16 hexadecimal digits. */
  readonly nonce: string;
}

/** Liquidity was added to the pool of a token, or removed. */
export interface Liquidity {
  readonly type: "liquidity:update";
  /** The symbol. */
  readonly tokenId: string;
  /** Which of the two. */
  readonly action: "add" | "remove";
  /** How much. */
  readonly amount: number;
  /** What is in the pool after it. */
  readonly totalLiquidity: number;
  /** When it was made, in Unix milliseconds. */
  readonly timestamp: number;
  /** `simulator`, if the market is simulated. */
  readonly source: string;
  /** 16 hexadecimal digits. */
  readonly nonce: string;
}

/** The description of a token has changed. */
export interface Metadata {
  readonly type: "metadata:update";
  /** The symbol. */
  readonly tokenId: string;
  /** Its name for people. */
  readonly name: string;
  /** A sentence. */
  readonly description: string;
  /** The address of its page. */
  readonly website: string;
  /** When it was made, in Unix milliseconds. */
  readonly timestamp: number;
  /** `simulator`, if the market is simulated. */
  readonly source: string;
  /** 16 hexadecimal digits. */
  readonly nonce: string;
}

/** What people say about a token. */
export interface Social {
  readonly type: "social:update";
  /** The symbol. */
  readonly tokenId: string;
  /** How many follow it. */
  readonly followers: number;
  /** How many comments there are. */
  readonly comments: number;
  /** From -1, bad, to 1, good, with 2 decimals. */
  readonly sentiment: number;
  /** When it was made, in Unix milliseconds. */
  readonly timestamp: number;
  /** `simulator`, if the market is simulated. */
  readonly source: string;
  /** 16 hexadecimal digits. */
  readonly nonce: string;
}

/** A user has added a token to the favorites, or removed it. */
export interface Favorites {
  readonly type: "favorites:update";
  /** The symbol. */
  readonly tokenId: string;
  /** 1 or -1. */
  readonly change: -1 | 1;
  /** How many have it among their favorites after that. */
  readonly favorites: number;
  /** When it was made, in Unix milliseconds. */
  readonly timestamp: number;
  /** `simulator`, if the market is simulated. */
  readonly source: string;
  /** 16 hexadecimal digits. */
  readonly nonce: string;
}

/** Somebody has created a token, which is paid for with this one. */
export interface Creation {
  readonly type: "creation:new";
  /** The symbol. */
  readonly tokenId: string;
  /** The symbol of the new one. */
  readonly createdId: string;
  /** The account that created it. */
  readonly creator: string;
  /** How many of it there are. */
  readonly supply: number;
  /** When it was made, in Unix milliseconds. */
  readonly timestamp: number;
  /** `simulator`, if the market is simulated. */
  readonly source: string;
  /** 16 hexadecimal digits. */
  readonly nonce: string;
}

/** The prices of a token in one minute: so far, or for good. */
export interface Candle {
  readonly type: "candle:update";
  /** The symbol. */
  readonly tokenId: string;
  /** How long it is: `1m`. */
  readonly interval: "1m";
  /** When it began, in Unix milliseconds. */
  readonly openTime: number;
  /** When it ends, in Unix milliseconds: the last one of it. */
  readonly closeTime: number;
  /** The first price; without a trade, the last one before. */
  readonly open: number;
  /** The highest price. */
  readonly high: number;
  /** The lowest price. */
  readonly low: number;
  /** The last price. */
  readonly close: number;
  /** What was traded. */
  readonly volume: number;
  /** How many trades there were. */
  readonly trades: number;
  /** Whether it has ended. */
  readonly isFinal: boolean;
  /** When it was made, in Unix milliseconds. */
  readonly timestamp: number;
  /** `simulator`, if the market is simulated. */
  readonly source: string;
  /** 16 hexadecimal digits. */
  readonly nonce: string;
}

/** What an account has of a token has changed. */
export interface Balance {
  readonly type: "balances:update";
  /** The symbol. */
  readonly tokenId: string;
  /** The account. */
  readonly account: string;
  /** By how much; negative if it has less. */
  readonly change: number;
  /** What it has after that. */
  readonly balance: number;
  /** When it was made, in Unix milliseconds. */
  readonly timestamp: number;
  /** `simulator`, if the market is simulated. */
  readonly source: string;
  /** 16 hexadecimal digits. */
  readonly nonce: string;
}

/** What is in `data`, by the event type: the second part of the channel. */
export interface EventData {
  readonly trade?: Trade;
  readonly liquidity?: Liquidity;
  readonly metadata?: Metadata;
  readonly social?: Social;
  readonly favorites?: Favorites;
  readonly creation?: Creation;
  readonly analytics?: Candle;
  readonly balances?: Balance;
}

/** Any command. */
export type Command =
  | SubscribeCommand
  | UnsubscribeCommand
  | HeartbeatCommand
  | ReplayCommand
  | ChannelsCommand
  | TokenCommand;

/** Any message of the server: `type` says which. */
export type ServerMessage =
  | PriceUpdate
  | PriceBatch
  | SubscriptionAck
  | UnsubscriptionAck
  | SnapshotDone
  | ResumeIncomplete
  | Resumed
  | ReplayIncomplete
  | ReplayDone
  | ChannelList
  | Pong
  | TokenAck
  | ErrorReply
  | GapNotice
  | Upstream
  | Draining
  | DictionaryNotice;
