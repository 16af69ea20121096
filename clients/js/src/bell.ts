export type Listener<T> = (value: T) => void;

/** Tells the listeners. One that throws does not keep the others from hearing it. */
export function createBell<Events extends object>() {
  const listeners = new Map<keyof Events, Set<Listener<never>>>();
  return {
    has: (name: keyof Events): boolean => !!listeners.get(name)?.size,
    on<Name extends keyof Events>(name: Name, listener: Listener<Events[Name]>): () => void {
      const those = listeners.get(name) ?? new Set();
      // One of its own: a function that is added twice is called twice, and removed once.
      const one = (value: Events[Name]): void => listener(value);
      listeners.set(name, those.add(one));
      return () => those.delete(one);
    },
    ring<Name extends keyof Events>(name: Name, value: Events[Name]): void {
      const those = listeners.get(name);
      // A copy: a listener that adds one while it is called would never come to an end.
      for (const listener of [...(those ?? [])]) {
        if (!those?.has(listener)) continue;
        try {
          (listener as Listener<Events[Name]>)(value);
        } catch (error) {
          // As with an event of a browser: the error is reported, and the feed goes on.
          queueMicrotask(() => {
            throw error;
          });
        }
      }
    },
  };
}
