export type Listener<T> = (value: T) => void;

/** Tells the listeners. One that throws does not keep the others from hearing it. */
export function createBell<Events extends object>() {
  const listeners = new Map<keyof Events, Set<Listener<never>>>();
  return {
    on<Name extends keyof Events>(name: Name, listener: Listener<Events[Name]>): () => void {
      const those = listeners.get(name) ?? new Set();
      // One of its own: a function that is added twice is called twice, and removed once.
      const one = (value: Events[Name]): void => listener(value);
      listeners.set(name, those.add(one));
      return () => those.delete(one);
    },
    count: (name: keyof Events): number => listeners.get(name)?.size ?? 0,
    /** Whether there was one to tell. */
    ring<Name extends keyof Events>(name: Name, value: Events[Name]): boolean {
      // A copy: a listener that adds one while it is called would never come to an end.
      const its = listeners.get(name) ?? new Set();
      const those = [...its];
      for (const listener of those) {
        if (!its.has(listener)) continue;
        try {
          (listener as Listener<Events[Name]>)(value);
        } catch (error) {
          // As with an event of a browser: the error is reported, and the feed goes on.
          queueMicrotask(() => {
            throw error;
          });
        }
      }
      return those.length > 0;
    },
  };
}
