// Tokens, against a real server.

import { createHmac } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import type { FeedError } from "../../src/index.js";
import {
  follow,
  live,
  NOTHING_WRONG,
  nats,
  open,
  PER_SECOND,
  publisher,
  rig,
  skipped,
  sockets,
  withRig,
} from "./follow.js";
import { type Program, until } from "./rig.js";

withRig();

const secret = "0123456789abcdef0123456789abcdef";
const part = (claims: object): string => Buffer.from(JSON.stringify(claims)).toString("base64url");

function sign(claims: object, key = secret): string {
  const text = `${part({ alg: "HS256", typ: "JWT" })}.${part(claims)}`;
  return `${text}.${createHmac("sha256", key).update(text).digest("base64url")}`;
}

describe.skipIf(skipped).each(sockets)("tokens, with %s", (_, WebSocket) => {
  let server: Program;
  beforeAll(async () => {
    const keys = join(rig.folder, "secret");
    writeFileSync(keys, secret);
    const settings = { WS_JWT_KEYS: keys, WS_JWT_ALGORITHMS: "HS256", WS_PING_INTERVAL: "1s" };
    server = await rig.server(nats, { ...settings, WS_KEEPALIVE_TIMEOUT: "20s" });
  });
  const inSeconds = (seconds: number): number => Math.floor(Date.now() / 1_000) + seconds;

  test("that expire are replaced, and nothing is lost", async () => {
    let asked = 0;
    // The first one has expired when the server looks, 5 s later.
    const token = () => sign({ sub: "me", exp: inSeconds(asked++ ? 600 : 1) });
    const { more, states, verdict } = await follow(server.url, { WebSocket, token });
    publisher.run(PER_SECOND);
    await until("a second token", () => asked > 1);
    await until("live again", () => states.at(-1)?.name === "live");
    await more(20);
    const found = await verdict();
    expect(found).toMatchObject({ ...NOTHING_WRONG, received: found.published });
    expect(states.map(({ name }) => name)).toEqual(["live", "offline", "connecting", "live"]);
    expect(states[1]?.cause).toBe("Token expired: come back with a new one");
  });

  test("for some channels refuse the others", async () => {
    const token = () => sign({ sub: "me", exp: inSeconds(600), channels: ["BTC.*"] });
    const feed = open(server.url, { WebSocket, token });
    const refused: FeedError[] = [];
    feed.subscribe(["BTC.trade", "ETH.trade"]).on("refused", (error) => refused.push(error));
    await until("refused", () => refused.length);
    expect(refused).toMatchObject([{ code: "FORBIDDEN_CHANNEL", channel: "ETH.trade" }]);
    await live(feed);
  });

  test("that are refused are asked for anew, with the server's reason", async () => {
    let asked = 0;
    const key = () => (asked++ ? secret : secret.toUpperCase());
    const { states } = await follow(server.url, {
      ...{ WebSocket, retryMinMs: 10 },
      token: () => sign({ sub: "me", exp: inSeconds(600) }, key()),
    });
    expect(states.map(({ name }) => name)).toEqual(["offline", "connecting", "live"]);
    expect(states[0]?.cause).toMatch(/token/i);
  });

  test("that are missing end the feed", async () => {
    const feed = open(server.url, { WebSocket });
    await until("closed", () => feed.state.name === "closed");
    expect(feed.state.cause).toMatch(/token/i);
  });
});
