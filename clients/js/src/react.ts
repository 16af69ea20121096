// React: a component shows the newest event of a channel, and renders once a frame at most.

import {
  createContext,
  useCallback,
  useContext,
  useEffect,
  useRef,
  useSyncExternalStore,
} from "react";
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
  const subscription = useRef<Subscription | null>(null);
  const rate = useRef(everyMs);
  const subscribe = useCallback(
    (notify: () => void) => {
      const one = feed.subscribe(channel, { everyMs: rate.current });
      const show = (): void => inNextFrame(notify);
      one.on("event", show);
      subscription.current = one;
      return () => {
        due.delete(notify);
        one.close();
      };
    },
    [feed, channel],
  );
  useEffect(() => {
    if (rate.current !== everyMs) subscription.current?.setRate(everyMs);
    rate.current = everyMs;
  }, [everyMs]);
  const newest = useCallback(() => feed.newest<Data>(channel), [feed, channel]);
  return useSyncExternalStore(subscribe, newest, () => undefined);
}

/** The state of the feed. */
export function useFeedState(given?: Feed): State {
  const feed = useFeed(given);
  const subscribe = useCallback((notify: () => void) => feed.on("state", notify), [feed]);
  const state = useCallback(() => feed.state, [feed]);
  return useSyncExternalStore(subscribe, state, state);
}
