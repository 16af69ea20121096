// What a user has of some channels: loops over events, or listeners.

import { createBell, type Listener } from "./bell.js";
import type { Event, Gap, Rate } from "./types.js";

/**
 * What went wrong; `code` is one of docs/protocol.md, `NO_WEBSOCKET`, or `CLOSED`: the feed has
 * ended for good, and the message says why.
 */
export class FeedError extends Error {
  override readonly name = "FeedError";

  constructor(
    readonly code: string,
    message: string,
    /** The channel or pattern that is refused, if it is about one. */
    readonly channel?: string,
  ) {
    super(message);
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
 * takes the place of the one before, which counts as `skipped`. Several loops get the same events.
 * `break` in the last of them ends the subscription, unless it has a listener for events. A loop ends
 * when the subscription does; it throws a `FeedError` if the feed has ended for another reason than
 * `close()`. Listeners get every event; the first one also what came before it, the newest of each
 * channel.
 */
export interface Subscription<Data = unknown> extends AsyncIterable<Event<Data>> {
  readonly channels: readonly string[];
  /** Add a listener; the result removes it. A refusal that nobody listens to is a warning. */
  on<Name extends keyof SubscriptionEvents<Data>>(
    name: Name,
    listener: Listener<SubscriptionEvents<Data>[Name]>,
  ): () => void;
  /** Change the rate; see `SubscribeOptions.everyMs`. Throws a TypeError if it is none. */
  setRate(everyMs: Rate): void;
  close(): void;
}

/** What waits for a loop: the newest event of each channel, in the order of the first one. */
interface Loop {
  readonly waiting: Map<string, Event>;
  wake?: () => void;
}

export function createSubscription(
  channels: readonly string[],
  { setRate, close }: { setRate: (everyMs: Rate) => void; close: () => void },
) {
  const bell = createBell<SubscriptionEvents<unknown>>();
  // What comes before the first loop or listener waits for it.
  let unused: Loop | null = { waiting: new Map() };
  const loops = new Set<Loop>([unused]);
  let ended: { error?: FeedError | "" } | null = null;

  function handOver(): void {
    if (ended || !unused || !bell.count("event")) return;
    for (const [channel, event] of unused.waiting) {
      unused.waiting.delete(channel);
      bell.ring("event", event);
    }
  }

  function take(event: Event): void {
    // First what is older.
    handOver();
    const isHeard = bell.ring("event", event);
    for (const loop of loops) {
      if (loop === unused && isHeard) continue;
      const { waiting, wake } = loop;
      let { channel, skipped } = event;
      const older = waiting.get(channel);
      if (older && skipped !== null) skipped = older.skipped === null ? null : older.skipped + 1 + skipped;
      // Not behind the others: the busiest channel would never have its turn.
      waiting.set(channel, { ...event, skipped });
      wake?.();
    }
  }

  function end(error?: FeedError | ""): void {
    ended ??= { error };
    for (const { wake } of loops) wake?.();
  }

  const forUser: Subscription = {
    channels,
    on(name, listener) {
      // Once the caller has what ends it.
      queueMicrotask(handOver);
      return bell.on(name, listener);
    },
    setRate,
    close() {
      if (ended) return;
      for (const { waiting } of loops) waiting.clear();
      end();
      close();
    },
    async *[Symbol.asyncIterator]() {
      const loop: Loop = unused ?? { waiting: new Map() };
      unused = null;
      loops.add(loop);
      const { waiting } = loop;
      try {
        while (true) {
          for (const [channel, event] of waiting) {
            waiting.delete(channel);
            yield event;
          }
          if (ended?.error) throw ended.error;
          if (ended) return;
          await new Promise<void>((resolve) => {
            loop.wake = resolve;
          });
        }
      } finally {
        loops.delete(loop);
        if (!loops.size && !bell.count("event")) forUser.close();
      }
    },
  };
  return { forUser, bell, take, end };
}
