// What a client has got, held against what was published.

/** An event that was published; `offset` if the stream has confirmed it. */
export interface Published {
  readonly channel: string;
  readonly n: number;
  readonly at: number;
  offset?: number;
}

/** What a client has handed out, in that order. */
export type Entry =
  | { kind: "event"; at: number; channel: string; n: number; skipped: number | null }
  | { kind: "gap"; at: number; channels: readonly string[] };

export interface Verdict {
  /** Events that the stream has confirmed. */
  published: number;
  received: number;
  /** Missing, and nobody has said so. */
  lost: number;
  /** Missing, and a gap or `skipped` has said so. */
  told: number;
  doubled: number;
  /** Handed out after a newer one of the channel. */
  older: number;
}

// A gap may follow the first event after it: what is sent again ends with what could not be.
const LATE_MS = 5_000;

/**
 * Judge one client.
 *
 * @param published what was published from the moment when the client was live, in that order.
 * @param matches whether a name of a gap is about a channel.
 */
export function judge(
  published: readonly Published[],
  entries: readonly Entry[],
  matches: (name: string, channel: string) => boolean,
): Verdict {
  const verdict: Verdict = { published: 0, received: 0, lost: 0, told: 0, doubled: 0, older: 0 };
  for (const channel of new Set(published.map((one) => one.channel))) {
    const those = published.filter((one) => one.channel === channel);
    const first = those[0]?.n ?? 0;
    const confirmed = new Set(those.filter(({ offset }) => offset !== undefined).map(({ n }) => n));
    const gaps = entries.filter(
      (one) => one.kind === "gap" && one.channels.some((name) => matches(name, channel)),
    );
    let newest = first - 1;
    let newestAt = Number.NEGATIVE_INFINITY;
    const seen = new Set<number>();
    verdict.published += confirmed.size;

    // Judge what is missing between two events, or after the last one.
    const close = (n: number, at: number, skipped: number | null): void => {
      let missing = 0;
      for (let one = newest + 1; one < n; one++) if (confirmed.has(one)) missing++;
      const isTold =
        skipped === null ||
        skipped >= missing ||
        gaps.some((gap) => gap.at >= newestAt && gap.at <= at + LATE_MS);
      verdict[isTold ? "told" : "lost"] += missing;
    };

    for (const entry of entries) {
      if (entry.kind !== "event" || entry.channel !== channel || entry.n < first) continue;
      if (seen.has(entry.n)) verdict.doubled++;
      else verdict.received++;
      seen.add(entry.n);
      if (entry.n < newest) verdict.older++;
      if (entry.n <= newest) continue;
      close(entry.n, entry.at, entry.skipped);
      newest = entry.n;
      newestAt = entry.at;
    }
    close((those.at(-1)?.n ?? 0) + 1, Number.POSITIVE_INFINITY, 0);
  }
  return verdict;
}

/** Whether `name`, a channel or a pattern, is about `channel`. */
export function matches(name: string, channel: string): boolean {
  const parts = channel.split(".");
  return name.split(".").every((part, index) => part === ">" || part === "*" || part === parts[index]);
}
