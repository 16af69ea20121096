// Prices, rates and resumes in Node, against a real server.

import { setTimeout as sleep } from "node:timers/promises";
import { beforeAll, describe, expect, test } from "vitest";
import { z1 } from "../../src/z1.js";
import {
  follow,
  live,
  NOTHING_WRONG,
  nats,
  PER_SECOND,
  publisher,
  rig,
  skipped,
  sockets,
  withRig,
} from "./follow.js";
import { type Program, TOKENS, until } from "./rig.js";

withRig();

describe.skipIf(skipped).each(sockets)("with %s", (_, WebSocket) => {
  let server: Program;
  beforeAll(async () => {
    server = await rig.server(nats);
  });

  test.each([
    ["plain", () => ({})],
    ["compressed", () => ({ compression: z1() })],
  ])("every event comes once, %s", async (_kind, options) => {
    const { feed, more, verdict } = await follow(server.url, { WebSocket, ...options() });
    let binary = 0;
    feed.on("bytes", (length) => {
      binary += length;
    });
    publisher.run(PER_SECOND);
    await more(100);
    const found = await verdict();
    expect(found).toMatchObject({ ...NOTHING_WRONG, received: found.published });
    const each = binary / found.received;
    if (_kind === "plain") expect(each).toBeGreaterThan(120);
    else expect(each).toBeLessThan(100);
  });

  test("a rate gives the newest and says what it skipped", async () => {
    const { subscription, entries, more, verdict } = await follow(
      server.url,
      { WebSocket },
      { everyMs: 500 },
    );
    publisher.run(10 * PER_SECOND);
    await more(2 * TOKENS.length);
    subscription.setRate(0);
    await more(100);
    const found = await verdict();
    expect(found).toMatchObject({ lost: 0, doubled: 0, older: 0 });
    expect(found.received + found.told).toBe(found.published);
    expect(found.told).toBeGreaterThan(100);
    expect(entries.filter(({ kind }) => kind === "gap")).toEqual([]);
  });

  test("a server that is gone and back is resumed from", async () => {
    const { feed, states, more, verdict } = await follow(server.url, { WebSocket, compression: z1() });
    publisher.run(PER_SECOND);
    for (const signal of ["SIGTERM", "SIGKILL"] as const) {
      await more(20);
      await server.end(signal);
      await until("noticed", () => feed.state.name === "offline");
      await sleep(500);
      await server.start();
      await live(feed);
    }
    const found = await verdict();
    expect(found).toMatchObject({ ...NOTHING_WRONG, received: found.published });
    expect(states.map(({ name }) => name)).toContain("offline");
  });
});
