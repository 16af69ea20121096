// What a user has of some channels: a loop over events, or listeners.

import { createBell, type Listener } from "./bell.js";
import type { Event, Gap, Rate } from "./types.js";

/** What went wrong; `code` is one of docs/protocol.md, or `NO_WEBSOCKET`. */
export class FeedError extends Error {
  readonly code: string;
  /** The channel or pattern that is refused, if it is about one. */
  readonly channel: string | undefined;

  constructor(code: string, message: string, channel?: string) {
    super(message);
    this.name = "FeedError";
    this.code = code;
    this.channel = channel;
  }
}

export interface SubscriptionEvents<Data> {
  event: Event<Data>;
  gap: Gap;
  refused: FeedError;
}

/**
 * Some channels and patterns of a feed.
 *
 * Its loop gives the newest event of each channel: while the body of the loop waits, a newer event
 * takes the place of the one before, which counts as `skipped`. The loop ends when the subscription
 * does, and `break` ends the subscription. Listeners get every event.
 */
export interface Subscription<Data = unknown> extends AsyncIterable<Event<Data>> {
  readonly channels: readonly string[];
  /** Add a listener; the result removes it. */
  on<Name extends keyof SubscriptionEvents<Data>>(
    name: Name,
    listener: Listener<SubscriptionEvents<Data>[Name]>,
  ): () => void;
  /** Change the rate; see `SubscribeOptions.everyMs`. */
  setRate(everyMs: Rate): void;
  close(): void;
}

export function createSubscription(
  channels: readonly string[],
  { setRate, close }: { setRate: (everyMs: Rate) => void; close: () => void },
) {
  const bell = createBell<SubscriptionEvents<unknown>>();
  const waiting = new Map<string, Event>();
  let isIterated = false;
  let isEnded = false;
  let wake: (() => void) | null = null;

  function take(event: Event): void {
    bell.ring("event", event);
    if (!isIterated && bell.has("event")) return;
    const { channel } = event;
    const older = waiting.get(channel);
    if (older) {
      waiting.delete(channel);
      const isCounted = older.skipped !== null && event.skipped !== null;
      const skipped = isCounted ? older.skipped + 1 + event.skipped : null;
      waiting.set(channel, { ...event, skipped });
    } else waiting.set(channel, event);
    wake?.();
  }

  function end(): void {
    isEnded = true;
    wake?.();
  }

  const forUser: Subscription = {
    channels,
    on: bell.on,
    setRate(everyMs) {
      if (!isEnded) setRate(everyMs);
    },
    close() {
      if (isEnded) return;
      waiting.clear();
      end();
      close();
    },
    async *[Symbol.asyncIterator]() {
      isIterated = true;
      try {
        while (true) {
          for (const [channel, event] of waiting) {
            waiting.delete(channel);
            yield event;
            if (isEnded) break;
          }
          if (isEnded && !waiting.size) return;
          if (!waiting.size) {
            await new Promise<void>((resolve) => {
              wake = resolve;
            });
            wake = null;
          }
        }
      } finally {
        forUser.close();
      }
    },
  };
  return { forUser, ring: bell.ring, take, end };
}
