// Drains of several servers, and NATS down, against real servers.

import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import { follow, live, NOTHING_WRONG, nats, PER_SECOND, publisher, rig, skipped, withRig } from "./follow.js";
import { until } from "./rig.js";

withRig();

describe.skipIf(skipped)("a drain", () => {
  test("of one of two servers is not noticed", async () => {
    const [one, other] = [await rig.server(nats), await rig.server(nats)];
    const { feed, states, more, verdict } = await follow([one.url, other.url]);
    publisher.run(PER_SECOND);
    await more(50);
    await one.end("SIGTERM");
    await sleep(500);
    const found = await verdict();
    expect(found).toMatchObject({ ...NOTHING_WRONG, received: found.published });
    // "connecting" for a moment, if the old server closes before the new one has answered.
    expect(states.filter(({ name }) => name === "offline")).toEqual([]);
    expect(feed.state.name).toBe("live");
    await other.kill();
  });

  test("of two workers, one after the other, is not noticed", async () => {
    const server = await rig.server(nats, { WS_WORKERS: "2" });
    const pages = await Promise.all([1, 2, 3, 4].map(() => follow(server.url)));
    publisher.run(PER_SECOND);
    await pages[0]?.more(50);
    server.signal("SIGUSR2");
    await sleep(6_000);
    for (const { states, verdict } of pages) {
      const found = await verdict();
      expect(found).toMatchObject({ ...NOTHING_WRONG, received: found.published });
      expect(states.filter(({ name }) => name === "offline")).toEqual([]);
    }
    await server.kill();
  });
});

describe.skipIf(skipped)("NATS", () => {
  test("that is gone makes prices stale, and what is lost is told", async () => {
    const its = await rig.nats();
    const server = await rig.server(its);
    const from = await rig.publisher(its);
    const { feed, states, more, verdict } = await follow(server.url, {}, { from });
    from.run(PER_SECOND);
    await more(20);
    await its.kill();
    await until("stale", () => feed.state.name === "stale");
    await its.start();
    await live(feed);
    await more(50);
    const found = await verdict();
    expect(found).toMatchObject({ lost: 0, doubled: 0, older: 0 });
    expect(states.map(({ name }) => name)).toEqual(["live", "stale", "live"]);
    await server.kill();
    await its.kill();
  });
});
