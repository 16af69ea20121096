// The core does what tests/client/vectors say, as the one in Python does.

import { readdirSync, readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { createCore } from "../src/core.js";
import type { Event, Host, Options } from "../src/types.js";

type Step = { at?: number; do?: [string, ...unknown[]]; then?: unknown[]; deadline?: number | null };

interface Scenario {
  title: string;
  urls?: string[];
  needsToken?: boolean;
  random?: number;
  options?: Partial<Options>;
  steps: Step[];
}

const FOLDER = new URL("../../../tests/client/vectors/", import.meta.url);
const files = readdirSync(FOLDER).filter((name) => name.endsWith(".json"));

/** The keys that say something. */
function asEvent({ channel, data, unixMs, offset, prev, skipped, isSnapshot, epoch, trace }: Event): object {
  return {
    channel,
    data,
    ts: unixMs,
    ...(offset !== undefined && { offset }),
    ...(prev !== undefined && { prev }),
    ...(skipped !== 0 && { skipped }),
    ...(isSnapshot && { snapshot: true }),
    ...(epoch !== null && { epoch }),
    ...(trace !== undefined && { trace }),
  };
}

function recordingHost(outputs: unknown[]): Host {
  return {
    dial: (...args) => outputs.push(["dial", ...args]),
    send: (...args) => outputs.push(["send", ...args]),
    drop: (...args) => outputs.push(["drop", ...args]),
    askToken: () => outputs.push(["askToken"]),
    event: (ids, event) => outputs.push(["event", ids, asEvent(event)]),
    gap: (ids, { channels, missed, reason }) => outputs.push(["gap", ids, channels, missed, reason]),
    refused: (ids, { channel, code }) => outputs.push(["refused", ids, channel, code]),
    state: ({ name, cause, retryAt }) =>
      outputs.push(["state", name, cause, ...(retryAt === null ? [] : [retryAt])]),
  };
}

function run({ urls = ["wss://a/ws"], needsToken = false, random = 0.5, options = {}, steps }: Scenario) {
  const outputs: unknown[] = [];
  const core = createCore(urls, recordingHost(outputs), { needsToken, options, random: () => random });
  const inputs = core as unknown as Record<string, (now: number, ...args: unknown[]) => void>;
  steps.forEach((step, number) => {
    if (step.deadline !== undefined) {
      expect(core.deadline(), `step ${number}`).toBe(step.deadline ?? Infinity);
      return;
    }
    const [name, ...args] = step.do as [string, ...unknown[]];
    const input = inputs[name];
    if (!input) throw new Error(`no input ${name}`);
    input(step.at as number, ...args);
    expect(outputs.splice(0), `step ${number}: ${name}`).toEqual(step.then ?? []);
  });
}

for (const file of files) {
  describe(file.replace(".json", ""), () => {
    const scenarios: Scenario[] = JSON.parse(readFileSync(new URL(file, FOLDER), "utf8"));
    for (const scenario of scenarios) test(scenario.title, () => run(scenario));
  });
}

// ---- what only this language has: outputs are calls of a host, which may call back

const ACK = { type: "subscription_ack", subscribed: ["A.t", "B.t"], count: 2, epoch: "e1", offset: 0 };
const DONE = { type: "snapshot_done", sent: 0, total: 0 };

function eventOf(seq: number, channel: string, offset: number): object {
  return { seq, type: "price:update", ts: offset, data: offset, channel, offset };
}

test("A delay of 0 stays one, however often it has doubled", () => {
  const outputs: unknown[] = [];
  const options = { retryMinMs: 0 };
  const core = createCore(["wss://a/ws"], recordingHost(outputs), { options, random: () => 0.5 });
  core.start(0);
  for (let conn = 1; conn <= 1_100; conn++) {
    core.lost(conn, conn, 1006, "x");
    expect(core.deadline()).toBe(conn);
    core.tick(conn);
  }
  expect(outputs).toContainEqual(["dial", 1_101, "wss://a/ws", null]);
});

/** A core that is live with subscription 1 to A.t and B.t, and whose host does `act` at each event. */
function liveCore(act: (core: ReturnType<typeof createCore>, event: Event) => void) {
  const outputs: unknown[] = [];
  const host = recordingHost(outputs);
  const { event: record } = host;
  host.event = (ids, event) => {
    record(ids, event);
    act(core, event);
  };
  const core = createCore(["wss://a/ws"], host, { random: () => 0.5 });
  core.start(0);
  core.subscribe(0, 1, ["A.t", "B.t"]);
  core.opened(5, 1);
  core.received(6, 1, { ...ACK, id: 1 });
  core.received(7, 1, { ...DONE, id: 1 });
  outputs.length = 0;
  return { core, outputs };
}

const BATCH = {
  seq: 1,
  type: "price:batch",
  ts: 2,
  events: [
    { channel: "A.t", offset: 1, ts: 1, data: 1 },
    { channel: "B.t", offset: 2, ts: 2, data: 2 },
  ],
};
const A1 = ["event", [1], { channel: "A.t", data: 1, ts: 1, offset: 1, epoch: "e1" }];
const B2 = ["event", [1], { channel: "B.t", data: 2, ts: 2, offset: 2, epoch: "e1" }];

describe("a host that calls back", () => {
  test("What it does comes after what has happened, in order", () => {
    const { core, outputs } = liveCore((core, { channel, isSnapshot }) => {
      if (channel !== "A.t" || isSnapshot) return;
      core.setRate(3000, 1, 1000);
      core.subscribe(3000, 2, ["B.t"]);
    });
    core.received(3000, 1, BATCH);
    expect(outputs).toEqual([
      A1,
      B2,
      ["send", 1, { type: "subscribe", channels: ["A.t", "B.t"], snapshot: true, every_ms: 1000, id: 2 }],
      ["event", [2], { channel: "B.t", data: 2, ts: 2, offset: 2, snapshot: true, epoch: "e1" }],
    ]);
  });

  test("It may close everything in the middle of a batch", () => {
    const { core, outputs } = liveCore((core) => core.close(3000));
    core.received(3000, 1, BATCH);
    expect(outputs).toEqual([A1, B2, ["drop", 1, 1000], ["state", "closed", ""]]);
    core.received(3001, 1, eventOf(2, "A.t", 3));
    expect(outputs).toHaveLength(4);
    expect(core.deadline()).toBe(Infinity);
  });

  test("It may end its subscription, and the position is still right", () => {
    const { core, outputs } = liveCore((core, { channel }) => {
      if (channel === "A.t") core.unsubscribe(3000, 1);
      else core.subscribe(3000, 2, ["B.t"], 0, false);
    });
    core.received(3000, 1, BATCH);
    expect(outputs).toEqual([A1, B2, ["send", 1, { type: "unsubscribe", channels: ["A.t", "B.t"], id: 2 }]]);
  });

  test("It may throw, and the rest comes all the same", () => {
    const { core, outputs } = liveCore((_, { channel }) => {
      if (channel === "A.t") throw new Error("of the user");
    });
    expect(() => core.received(3000, 1, BATCH)).toThrow("of the user");
    core.tick(3001);
    expect(outputs).toEqual([A1, B2]);
  });
});
