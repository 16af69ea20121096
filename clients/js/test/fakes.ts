// A WebSocket that a test holds the other end of, and a server's answers.

import { vi } from "vitest";
import { type ConnectOptions, connect, type Feed } from "../src/index.js";

type Message = Record<string, unknown>;

export class FakeSocket {
  static all: FakeSocket[] = [];
  readyState = 0;
  protocol = "trio-odin";
  binaryType = "blob";
  onopen: (() => void) | null = null;
  onmessage: ((event: { data: unknown }) => void) | null = null;
  onerror: (() => void) | null = null;
  onclose: ((event: { code: number; reason: string }) => void) | null = null;
  readonly sent: Message[] = [];
  closedWith: number | undefined;

  constructor(
    readonly url: string,
    readonly offers: string[],
  ) {
    FakeSocket.all.push(this);
  }

  static get last(): FakeSocket {
    return FakeSocket.all.at(-1) as FakeSocket;
  }

  send(text: string): void {
    if (this.readyState === 0) throw new Error("It is not open yet");
    this.sent.push(JSON.parse(text));
  }

  close(code?: number): void {
    this.readyState = 2;
    this.closedWith = code;
  }

  // ---- what the other end does

  open(protocol = "trio-odin"): void {
    this.readyState = 1;
    this.protocol = protocol;
    this.onopen?.();
  }

  say(message: unknown): void {
    this.onmessage?.({ data: typeof message === "string" ? message : JSON.stringify(message) });
  }

  end(code = 1006, reason = ""): void {
    this.readyState = 3;
    this.onclose?.({ code, reason });
  }

  /** Acknowledge a command, the last one if none is named, as a server that knows no first values. */
  accept({ channels, id, every_ms }: Message = this.sent.at(-1) as Message): void {
    this.say({ type: "subscription_ack", subscribed: channels, id, epoch: "e", offset: 0, every_ms });
    this.say({ type: "snapshot_done", sent: 0, total: 0, id });
  }
}

let seq = 0;

/** An event as a server sends it; the numbers go on from one to the next. */
export function event(channel: string, offset: number, more: Message = {}): Message {
  return {
    seq: ++seq,
    ts: 1_759_027_038_365,
    type: "price:update",
    data: { price: offset },
    channel,
    offset,
    ...more,
  };
}

/** Connect with fake sockets. The clock stands still until the test moves it. */
export function connectToFakes(
  options: Partial<ConnectOptions> = {},
  url: string | string[] = "ws://one/ws",
): Feed {
  FakeSocket.all = [];
  seq = 0;
  return connect(url, { WebSocket: FakeSocket as unknown as typeof WebSocket, ...options });
}

export function useFakeClock(): void {
  vi.useFakeTimers({ now: 1_759_027_000_000, toFake: ["setTimeout", "clearTimeout", "Date"] });
}

/** Let promises that are settled be heard. */
export async function settle(): Promise<void> {
  for (let turn = 0; turn < 20; turn++) await Promise.resolve();
}

/** A feed that is live with one channel. */
export async function liveWith(channel: string, options: Partial<ConnectOptions> = {}) {
  const feed = connectToFakes(options);
  const subscription = feed.subscribe<{ price: number }>(channel);
  await settle();
  FakeSocket.last.open();
  FakeSocket.last.accept();
  return { feed, subscription, socket: FakeSocket.last };
}
