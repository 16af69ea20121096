// Faults in real Chromium: what a naive client and this one make of them.
//
// With FAULTS_RECORD=FILE the result is written there, the data of docs/clients/faults.md.

import { execFileSync } from "node:child_process";
import { createHmac } from "node:crypto";
import { once } from "node:events";
import { readFileSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:http";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Entry, judge, matches, type Verdict } from "../test/server/judge.js";
import {
  example,
  type Program,
  PYTHON,
  type Relay,
  Rig,
  TOKENS,
  until,
  whyNoServer,
} from "../test/server/rig.js";
import { Chromium, findChromium, type Page } from "./chromium.js";

const PER_SECOND = 30;
const WARM_MS = 4_000;
const BACK_MS = 25_000;
const AFTER_MS = 4_000;
const NAMES = TOKENS.map((token) => `${token}.trade`);

const path = findChromium();
const skipped = path ? whyNoServer() : "there is no Chromium on PATH, and CHROMIUM names none";
if (skipped) console.warn(`Tests in Chromium are skipped: ${skipped}`);

interface Log {
  entries: (Entry & { sentAt: number })[];
  states: { name: string; cause: string; at: number }[];
  bytes: number;
  oldAsLiveMs: number;
}

interface Scene {
  page: Page;
  nats: Program;
  server: Program;
  relay: Relay;
}

interface Scenario {
  name: string;
  what: string;
  settings?: Record<string, string>;
  tokens?: () => string[];
  fault(scene: Scene): Promise<void>;
}

/** A row of the table. */
interface Row {
  name: string;
  what: string;
  published: number;
  clients: Record<"naive" | "ours", Found>;
}

interface Found extends Omit<Verdict, "published"> {
  /** Seconds from the end of the fault until an event that was published after it; null: never. */
  back_seconds: number | null;
  /** How long it was called live while its newest price was more than 3 s old. */
  old_as_live_seconds: number;
}

const secret = "0123456789abcdef0123456789abcdef";

function sign(seconds: number): string {
  const encode = (part: object) => Buffer.from(JSON.stringify(part)).toString("base64url");
  const text = `${encode({ alg: "HS256" })}.${encode({ sub: "me", exp: Math.floor(Date.now() / 1_000) + seconds })}`;
  return `${text}.${createHmac("sha256", secret).update(text).digest("base64url")}`;
}

const scenarios: Scenario[] = [
  {
    name: "SIGTERM",
    what: "the server drains, and is started again 1.5 s after its end",
    async fault({ server }) {
      await server.end("SIGTERM");
      await sleep(1_500);
      await server.start();
    },
  },
  {
    name: "`kill -9`",
    what: "the server is killed, and started again after 3 s",
    async fault({ server }) {
      await server.kill();
      await sleep(3_000);
      await server.start();
    },
  },
  {
    name: "rolling restart",
    what: "two workers are replaced, one after the other",
    settings: { WS_WORKERS: "2" },
    async fault({ server }) {
      server.signal("SIGUSR2");
      await sleep(8_000);
    },
  },
  {
    name: "dead network",
    what: "nothing is forwarded for 24 s, and nothing closed",
    async fault({ relay }) {
      relay.die();
      await sleep(24_000);
      relay.live();
    },
  },
  {
    name: "offline",
    what: "the browser is offline for 18 s",
    async fault({ page, relay }) {
      // Chromium does not end an open WebSocket when it is told to be offline: the network does.
      relay.die();
      await page.setOffline(true);
      await sleep(18_000);
      relay.live();
      await page.setOffline(false);
    },
  },
  {
    name: "NATS down",
    what: "NATS is killed, and started again after 15 s with an empty stream",
    async fault({ nats }) {
      await nats.kill();
      await sleep(15_000);
      await nats.start();
    },
  },
  {
    name: "frozen tab",
    what: "the browser freezes the page for 22 s",
    async fault({ page }) {
      await page.freeze();
      await sleep(22_000);
      await page.resume();
    },
  },
  {
    name: "blocked page",
    what: "a script of the page does not yield for 8 s",
    async fault({ page }) {
      await page.evaluate("{ const end = Date.now() + 8_000; while (Date.now() < end); }");
    },
  },
  {
    name: "token expired",
    what: "the server ends connections whose token has expired",
    settings: { WS_JWT_ALGORITHMS: "HS256", WS_PING_INTERVAL: "1s" },
    tokens: () => [sign(1), sign(600)],
    async fault({ page }) {
      const hasEnded = () => page.evaluate<boolean>("!areLive()");
      await until("the end of the first token", hasEnded);
      // Each connection ends at a ping of its own.
      await sleep(2_000);
    },
  },
];

let rig: Rig;
let chromium: Chromium;
let pages: Server;
let origin: Record<string, unknown>;
const rows = new Map<string, Row>();
let examplePage = "";
let hiddenTab: Record<"visible_bytes" | "hidden_bytes", number> | undefined;

beforeAll(async () => {
  if (skipped) return;
  rig = new Rig();
  chromium = await new Chromium().start(path as string);
  const types: Record<string, string> = { html: "text/html", js: "text/javascript" };
  const root = join(import.meta.dirname, "..");
  pages = createServer(({ url = "" }, answer) => {
    try {
      const content = url.startsWith("/example")
        ? examplePage
        : readFileSync(join(root, new URL(url, "http://here").pathname));
      answer.setHeader("content-type", types[url.split(".").at(-1) ?? ""] ?? "text/plain");
      answer.end(content);
    } catch {
      answer.writeHead(404).end();
    }
  }).listen(0, "127.0.0.1");
  await once(pages, "listening");
  origin = provenance();
});

afterAll(async () => {
  await chromium?.stop();
  await rig?.stop();
  pages?.close();
  const record = process.env.FAULTS_RECORD;
  if (!record) return;
  if (rows.size < scenarios.length || !hiddenTab)
    throw new Error("A part was not measured: nothing is written");
  const report = {
    ...{ provenance: origin, command: "nox -s js -- --record docs/clients/faults.json" },
    ...{ browser: chromium.version, per_second: PER_SECOND, tokens: TOKENS.length },
    ...{ rows: scenarios.map(({ name }) => rows.get(name)), hidden_tab: hiddenTab },
  };
  writeFileSync(record, `${JSON.stringify(report, null, 1)}\n`);
});

/** Where these measurements come from, in the words of the other records. */
function provenance(): Record<string, unknown> {
  const code =
    "import msgspec; from trio_odin.lab.provenance import provenance as p; print(msgspec.json.encode(p(None)).decode())";
  return JSON.parse(execFileSync(PYTHON, ["-c", code], { encoding: "utf8" }));
}

async function openPage(options: object): Promise<Page> {
  const { port } = pages.address() as { port: number };
  const page = await chromium.open(`http://127.0.0.1:${port}/browser/page.html`);
  await until("the page", () => page.evaluate<boolean>("!!window.begin"));
  await page.evaluate(`begin(${JSON.stringify({ names: NAMES, ...options })})`);
  await until("both clients", () => page.evaluate<boolean>("areLive()"));
  return page;
}

describe.skipIf(skipped).concurrent("a fault", () => {
  test.each(scenarios)("$name: $what", async ({ name, what, settings = {}, tokens, fault }) => {
    const nats = await rig.nats();
    if (tokens) {
      const keys = join(rig.folder, "secret");
      writeFileSync(keys, secret);
      settings = { ...settings, WS_JWT_KEYS: keys };
    }
    const server = await rig.server(nats, settings);
    const relay = await rig.relay(server.port);
    const publisher = await rig.publisher(nats);
    const url = name.match(/network|offline/) ? relay.url : server.url;
    const page = await openPage({ url, tokens: tokens?.() });

    const from = publisher.published.length;
    publisher.run(PER_SECOND);
    await sleep(WARM_MS);
    await fault({ page, nats, server, relay });
    const ended = Date.now();
    const logs = () => page.evaluate<Record<"naive" | "ours", Log>>("logs");
    const firstAfter = (log: Log) => log.entries.find((one) => one.kind === "event" && one.sentAt >= ended);
    await until("both are back", async () => Object.values(await logs()).every(firstAfter), BACK_MS).catch(
      () => {},
    );
    await sleep(AFTER_MS);
    publisher.pause();
    await sleep(1_500);

    const due = publisher.published.slice(from);
    const found = await logs();
    const judged = (log: Log): Found => {
      const { published: _, ...verdict } = judge(due, log.entries, matches);
      const first = firstAfter(log);
      const back_seconds = first ? Math.round((first.at - ended) / 100) / 10 : null;
      return { ...verdict, back_seconds, old_as_live_seconds: Math.round(log.oldAsLiveMs / 100) / 10 };
    };
    const published = due.filter(({ offset }) => offset !== undefined).length;
    const clients = { naive: judged(found.naive), ours: judged(found.ours) };
    rows.set(name, { name, what, published, clients });
    await page.close();
    for (const program of [server, nats]) await program.kill();

    expect(published).toBeGreaterThan(PER_SECOND * 5);
    expect(clients.ours).toMatchObject({ lost: 0, doubled: 0, older: 0 });
    expect(clients.ours.back_seconds).not.toBeNull();
    expect(clients.ours.old_as_live_seconds).toBeLessThan(20);
  });
});

describe.skipIf(skipped)("a hidden tab", () => {
  test("asks for less, and for all again when it is seen", async () => {
    const nats = await rig.nats();
    const server = await rig.server(nats);
    const publisher = await rig.publisher(nats);
    const page = await openPage({ url: server.url, everyMs: 250, isCompressed: true });
    publisher.run(PER_SECOND);
    const received = () => page.evaluate<number>("logs.ours.entries.length");
    const bytesIn = async (ms: number) => {
      const before = await page.evaluate<number>("logs.ours.bytes");
      await sleep(ms);
      return (await page.evaluate<number>("logs.ours.bytes")) - before;
    };
    await until("events", async () => (await received()) > 20);
    const seen = await bytesIn(10_000);
    await page.hide(true);
    await sleep(1_000);
    const hidden = await bytesIn(10_000);
    await page.hide(false);
    await sleep(1_000);
    const again = await bytesIn(5_000);
    hiddenTab = { visible_bytes: Math.round(seen / 10), hidden_bytes: Math.round(hidden / 10) };
    expect(hidden).toBeLessThan(seen / 3);
    expect(again * 2).toBeGreaterThan(seen / 2);
    await page.close();
  });
});

describe.skipIf(skipped)("the page for npm", () => {
  test('has a program that shows prices, after "back" as well', async () => {
    const nats = await rig.nats();
    const server = await rig.server(nats);
    const publisher = await rig.publisher(nats);
    publisher.run(PER_SECOND);
    const map = JSON.stringify({ imports: { "trio-odin": "/dist/index.js" } });
    examplePage = `<!doctype html><script type="importmap">${map}</script>${example("html", server.url)}`;
    const { port } = pages.address() as { port: number };
    const page = await chromium.open(`http://127.0.0.1:${port}/example.html`);
    const shown = () => page.evaluate<string>("document.querySelector('ul')?.innerText ?? ''");
    await until("both prices", async () => (await shown()).split("\n").length === 2);
    expect((await shown()).split("\n").sort()).toEqual([
      expect.stringMatching(/^BTC\.trade \d+$/),
      expect.stringMatching(/^ETH\.trade \d+$/),
    ]);
    expect(await page.evaluate<string>("prices.className")).toBe("live");

    // A browser keeps it for "back", as nothing is open then, and it goes on.
    await page.evaluate("isKept = true; location.href = '/browser/naive.js'");
    await until("the other page", async () => !(await page.evaluate<boolean>("!!window.prices")));
    const publishedThen = publisher.published.length;
    await page.evaluate("history.back()");
    await until("the page again", () => page.evaluate<boolean>("!!window.prices"));
    const newest = () => page.evaluate<number>("+/BTC.trade (.+)/.exec(prices.innerText)[1]");
    await until("new prices", async () => (await newest()) > publishedThen / TOKENS.length + 5);
    expect(await page.evaluate<boolean>("window.isKept")).toBe(true);
    await page.close();
  });
});
