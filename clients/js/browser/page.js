// Both clients in a page, and what each of them has handed out.

import { connect } from "/dist/index.js";
import { z1 } from "/dist/z1.js";
import { naive } from "./naive.js";

const SAMPLE_MS = 100;
const OLD_MS = 3_000;

/** Keeps what one client hands out, and for how long it calls old prices live. */
function follow(isLive) {
  const log = { entries: [], states: [], bytes: 0, oldAsLiveMs: 0 };
  let newest = Date.now();
  let sampledAt = Date.now();
  setInterval(() => {
    const now = Date.now();
    // In a page that did not run, nobody has looked.
    if (isLive() && now - newest > OLD_MS) log.oldAsLiveMs += Math.min(now - sampledAt, 2 * SAMPLE_MS);
    sampledAt = now;
  }, SAMPLE_MS);
  return {
    log,
    event(channel, { n, sentAt }, skipped) {
      newest = Math.max(newest, sentAt);
      log.entries.push({ kind: "event", at: Date.now(), channel, n, skipped, sentAt });
    },
    gap(channels) {
      log.entries.push({ kind: "gap", at: Date.now(), channels });
    },
  };
}

/** `tokens` are given in turn, and the last one from then on; the naive client has the first one. */
window.begin = ({ url, names, tokens = [], everyMs = 0, isCompressed = false }) => {
  const plain = tokens.length ? `${url}?access_token=${tokens[0]}` : url;
  const simple = follow(() => first.isLive);
  const first = naive(plain, names, (channel, data) => simple.event(channel, data, 0));

  const token = tokens.length ? () => (tokens.length > 1 ? tokens.shift() : tokens[0]) : undefined;
  const feed = connect(url, { token, compression: isCompressed ? z1() : undefined });
  const ours = follow(() => feed.state.name === "live");
  feed.on("bytes", (length) => {
    ours.log.bytes += length;
  });
  feed.on("state", (state) => ours.log.states.push(state));
  const subscription = feed.subscribe(names, { everyMs });
  subscription.on("gap", ({ channels }) => ours.gap(channels));
  subscription.on("event", ({ channel, data, skipped, isSnapshot }) => {
    if (!isSnapshot) ours.event(channel, data, skipped);
  });
  window.areLive = () => first.isLive && feed.state.name === "live";
  window.logs = { naive: simple.log, ours: ours.log };
};
