// Random faults one after the other, against several clients in Node: `FAULTS=200 SEED=1 npm run faults`.

import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import type { Rate } from "../../src/index.js";
import { z1 } from "../../src/z1.js";
import { follow, live, nats, PER_SECOND, publisher, rig, skipped, sockets, withRig } from "./follow.js";
import { TOKENS, until } from "./rig.js";

const COUNT = Number(process.env.FAULTS ?? 0);
const SEED = Number(process.env.SEED ?? 1);
const RATES: Rate[] = [0, 100, 250, 1_000];
// Those of a patient client would make a fault of the network last a quarter of a minute.
const IMPATIENT = { heartbeatMs: 1_500, pongMs: 1_000, dialMs: 2_000, retryMinMs: 100, retryMaxMs: 1_000 };

withRig();

/** Numbers below 1, the same ones for the same seed (mulberry32). */
function numbers(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

describe.skipIf(skipped || !COUNT)("random faults", () => {
  test(`${COUNT} of them, with seed ${SEED}: nothing is lost without being told, doubled or out of order`, {
    timeout: 60_000 + COUNT * 20_000,
  }, async () => {
    const random = numbers(SEED);
    const pick = <T>(those: readonly T[]): T => those[Math.floor(random() * those.length)] as T;
    const servers = [await rig.server(nats), await rig.server(nats)];
    const relays = await Promise.all(servers.map(({ port }) => rig.relay(port)));
    const urls = relays.map(({ url }) => url);
    const kinds = sockets.flatMap(([, WebSocket]) => [{ WebSocket }, { WebSocket, compression: z1() }]);
    const clients = await Promise.all(kinds.map((kind) => follow(urls, { ...IMPATIENT, ...kind })));
    // Half of them get every event, the others change their rate now and then.
    const changing = clients.filter((_, index) => index % 2);
    publisher.run(PER_SECOND);

    const pause = (most: number): Promise<void> => sleep(random() * most);
    const restart = async (signal: NodeJS.Signals): Promise<void> => {
      const server = pick(servers);
      await server.end(signal);
      await pause(3_000);
      await server.start();
    };
    const faults: Record<string, () => Promise<unknown>> = {
      drain: () => restart("SIGTERM"),
      kill: () => restart("SIGKILL"),
      "drain of all": async () => {
        await Promise.all(servers.map((server) => server.end("SIGTERM")));
        await pause(2_000);
        await Promise.all(servers.map((server) => server.start()));
      },
      cut: async () => pick(relays).cut(),
      "dead network": async () => {
        const dead = random() < 0.5 ? relays : [pick(relays)];
        for (const relay of dead) relay.die();
        await pause(6_000);
        for (const relay of dead) relay.live();
      },
      "NATS gone": async () => {
        await nats.end("SIGKILL");
        await pause(4_000);
        await nats.start();
      },
      rate: async () => pick(changing).subscription.setRate(pick(RATES)),
    };
    const done: string[] = [];
    for (let count = 0; count < COUNT; count++) {
      const name = pick(Object.keys(faults));
      done.push(name);
      await faults[name]?.();
      await pause(2_500);
    }

    for (const { feed } of clients) await live(feed);
    for (const { subscription } of clients) subscription.setRate(0);
    await sleep(3_000);
    const newest = await Promise.all(
      TOKENS.map((token) => until("a connection to NATS", () => publisher.publish(`${token}.trade`))),
    );
    const verdicts = [];
    for (const { feed, verdict } of clients) {
      const found = await verdict();
      const shown = newest.map(({ channel }) => feed.newest<{ n: number }>(channel)?.data.n ?? 0);
      verdicts.push({ ...found, isNewest: newest.every(({ n }, index) => (shown[index] as number) >= n) });
    }
    const counts = Object.keys(faults).map((name) => `${name} ${done.filter((one) => one === name).length}`);
    console.log(counts.join(", "), verdicts);
    for (const one of verdicts) {
      expect(one).toMatchObject({ lost: 0, doubled: 0, older: 0, isNewest: true });
      expect(one.received).toBeGreaterThan(one.published / 4);
    }
  });
});
