export type Listener<T> = (value: T) => void;

/** Tells the listeners. One that throws does not keep the others from hearing it. */
export function createBell<Events extends object>() {
  const listeners = new Map<keyof Events, Set<Listener<never>>>();
  return {
    has: (name: keyof Events): boolean => !!listeners.get(name)?.size,
    on<Name extends keyof Events>(name: Name, listener: Listener<Events[Name]>): () => void {
      const those = listeners.get(name) ?? new Set();
      listeners.set(name, those.add(listener as Listener<never>));
      return () => those.delete(listener as Listener<never>);
    },
    ring<Name extends keyof Events>(name: Name, value: Events[Name]): void {
      for (const listener of listeners.get(name) ?? []) {
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
