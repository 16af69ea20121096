// React: a component shows the newest event of a channel, and renders once a frame at most.

import { createContext, useCallback, useContext, useEffect, useMemo, useSyncExternalStore } from "react";
import type { Event, Feed, Rate, State, Subscription } from "./index.js";

/** The feed for the components below: `<FeedContext.Provider value={feed}>`. */
export const FeedContext = createContext<Feed | null>(null);

export interface UseChannelOptions {
  /** At most one event in so many ms; 0: every event; null: paused. */
  everyMs?: Rate;
  /** The feed, if it is not that of `FeedContext`. */
  feed?: Feed;
}

const due = new Set<() => void>();

/** Call `notify` in the next frame, with all others of that frame. */
function inNextFrame(notify: () => void): void {
  if (!due.size) {
    requestAnimationFrame(() => {
      const those = [...due];
      due.clear();
      for (const one of those) one();
    });
  }
  due.add(notify);
}

/** What one component shows of a channel: it stands still while the component is paused. */
function createStore<Data>(feed: Feed, channel: string) {
  let everyMs: Rate = 0;
  let subscription: Subscription<Data> | null = null;
  let event: Event<Data> | undefined;
  let shown: Event<Data> | undefined;
  return {
    newest: () => (shown ??= feed.newest<Data>(channel)),
    setRate(rate: Rate): void {
      if (rate === everyMs) return;
      everyMs = rate;
      subscription?.setRate(rate);
    },
    subscribe(notify: () => void): () => void {
      const one = feed.subscribe<Data>(channel, { everyMs });
      const show = (): void => {
        shown = event;
        notify();
      };
      one.on("event", (newer) => {
        event = newer;
        inNextFrame(show);
      });
      subscription = one;
      return () => {
        due.delete(show);
        one.close();
      };
    },
  };
}

function useFeed(given: Feed | undefined): Feed {
  const around = useContext(FeedContext);
  const feed = given ?? around;
  if (!feed) throw new Error("There is no feed: pass one as option, or put a FeedContext around");
  return feed;
}

/** The newest event of `channel`; undefined until there is one. */
export function useChannel<Data = unknown>(
  channel: string,
  { everyMs = 0, feed: given }: UseChannelOptions = {},
): Event<Data> | undefined {
  const feed = useFeed(given);
  const store = useMemo(() => createStore<Data>(feed, channel), [feed, channel]);
  // Before the subscription is made, which React does in an effect of its own, later than this.
  useEffect(() => store.setRate(everyMs), [store, everyMs]);
  return useSyncExternalStore(store.subscribe, store.newest, () => undefined);
}

/** The state of the feed. */
export function useFeedState(given?: Feed): State {
  const feed = useFeed(given);
  const subscribe = useCallback((notify: () => void) => feed.on("state", notify), [feed]);
  const state = useCallback(() => feed.state, [feed]);
  return useSyncExternalStore(subscribe, state, state);
}
