// The shell around the core, with fake sockets and a fake clock.

import { afterEach, beforeEach, describe, expect, expectTypeOf, test, vi } from "vitest";
import type { Candle, Event, EventData, Feed, FeedError, Gap, State, Trade } from "../src/index.js";
import { connect } from "../src/index.js";
import { connectToFakes, event, FakeSocket, liveWith, settle, useFakeClock } from "./fakes.js";

const answers: (Response | Error)[] = [];
const asked: string[] = [];
const credentials: (string | null)[] = [];

beforeEach(() => {
  useFakeClock();
  answers.length = asked.length = credentials.length = 0;
  vi.stubGlobal("fetch", async (url: string, { headers }: RequestInit) => {
    asked.push(url);
    credentials.push(new Headers(headers).get("authorization"));
    const answer = answers.shift() ?? new TypeError("failed to fetch");
    if (answer instanceof Error) throw answer;
    return answer;
  });
});

afterEach(() => {
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

function statesOf(feed: Feed): State[] {
  const states: State[] = [];
  feed.on("state", (state) => states.push(state));
  return states;
}

const jwt = (claims: object): string => `h.${btoa(JSON.stringify(claims))}.s`;

describe("a connection", () => {
  test("is opened at once and offers the subprotocol", () => {
    connectToFakes();
    expect(FakeSocket.all.map(({ url, offers }) => [url, offers])).toEqual([["ws://one/ws", ["trio-odin"]]]);
  });

  test("takes an address of the page's own server", () => {
    vi.stubGlobal("location", { href: "https://prices.example.com/list?x" });
    connectToFakes({}, "/ws");
    expect(FakeSocket.last.url).toBe("wss://prices.example.com/ws");
  });

  test("that is not a URL is an error at once", () => {
    expect(() => connectToFakes({}, "nonsense")).toThrow(TypeError);
  });

  test("needs a WebSocket", () => {
    vi.stubGlobal("WebSocket", undefined);
    expect(() => connect("ws://one/ws")).toThrow(expect.objectContaining({ code: "NO_WEBSOCKET" }));
  });

  test("that the page may not open ends the feed", async () => {
    class Forbidden {
      constructor() {
        throw new Error("insecure");
      }
    }
    const feed = connectToFakes({ WebSocket: Forbidden as unknown as typeof WebSocket });
    await settle();
    expect(feed.state).toMatchObject({ name: "closed", cause: "Error: insecure" });
    expect(vi.getTimerCount()).toBe(0);
  });

  test("goes to the next address after one that does not open", async () => {
    connectToFakes({}, ["ws://one/ws", "ws://two/ws"]);
    FakeSocket.last.end();
    await settle();
    vi.advanceTimersByTime(1_000);
    expect(FakeSocket.all.map(({ url }) => url)).toEqual(["ws://one/ws", "ws://two/ws"]);
  });

  test("without an answer is given up after its deadline", async () => {
    const feed = connectToFakes({ dialMs: 7_000 });
    vi.advanceTimersByTime(6_999);
    expect(feed.state.name).toBe("connecting");
    vi.advanceTimersByTime(1);
    expect(feed.state).toMatchObject({ name: "offline", cause: "no answer" });
    expect(FakeSocket.last.closedWith).toBe(4000);
  });

  test("takes an option that is undefined for one that is not given", () => {
    const feed = connectToFakes({ dialMs: undefined, answerMs: undefined, retryMinMs: undefined });
    vi.advanceTimersByTime(9_999);
    expect(feed.state.name).toBe("connecting");
    vi.advanceTimersByTime(1);
    expect(feed.state).toMatchObject({ name: "offline", cause: "no answer" });
    expect(feed.state.retryAt).toBeLessThanOrEqual(Date.now() + 500);
  });

  test("of Node fires an error alone when it is refused", async () => {
    const feed = connectToFakes();
    FakeSocket.last.onerror?.();
    await settle();
    expect(feed.state).toMatchObject({ name: "offline", cause: "no network, or no server that answers" });
  });

  test("that fires an error and a close asks once why", async () => {
    connectToFakes();
    FakeSocket.last.onerror?.();
    FakeSocket.last.end();
    await settle();
    expect(asked).toEqual(["http://one/ws"]);
    expect(credentials).toEqual([null]);
  });

  test("survives a second clock that goes back, and no time runs backwards", async () => {
    // The next attempt is not within the last millisecond of this test.
    const random = vi.spyOn(Math, "random").mockReturnValue(0.5);
    const { feed, subscription, socket } = await liveWith("A.x");
    const states = statesOf(feed);
    vi.setSystemTime(Date.now() - 3_600_000);
    const prices: number[] = [];
    subscription.on("event", ({ data }) => prices.push(data.price));
    socket.say(event("A.x", 1));
    vi.advanceTimersByTime(14_001);
    expect(prices).toEqual([1]);
    expect(states.map(({ name, cause }) => [name, cause])).toEqual([["offline", "no sign of life"]]);
    expect(states[0]?.at).toBeGreaterThan(1_759_027_000_000);
    random.mockRestore();
  });

  test("does not renew its timer with each message", async () => {
    const { socket } = await liveWith("A.x");
    const set = vi.spyOn(globalThis, "setTimeout");
    for (let offset = 1; offset <= 100; offset++) socket.say(event("A.x", offset));
    expect(set).not.toHaveBeenCalled();
    expect(vi.getTimerCount()).toBe(1);
  });
});

test("a server that drains at once is left before it closes", async () => {
  const { feed, socket } = await liveWith("A.x");
  const states = statesOf(feed);
  vi.advanceTimersByTime(3_000); // else it stays for a second, however often servers leave
  socket.say({ type: "server:draining", reconnect_in_ms: 0 });
  socket.end(1001, "Server is shutting down");
  expect(FakeSocket.all).toHaveLength(2);
  expect(states.map(({ name, cause }) => [name, cause])).toEqual([["connecting", "draining"]]);
  feed.close();
});

describe("a refused handshake", () => {
  test.each([
    [403, "Origin not allowed", "closed"],
    [401, "Token required", "closed"],
    [503, "Server at capacity", "offline"],
    [404, "<html>not here</html>", "offline"],
  ])("with %d is understood", async (status, text, name) => {
    const feed = connectToFakes();
    answers.push(new Response(text, { status }));
    FakeSocket.last.end();
    await settle();
    expect(feed.state).toMatchObject({ name, cause: text });
  });

  test("waits as long as the server says", async () => {
    const feed = connectToFakes();
    answers.push(new Response("Too many connections", { status: 429, headers: { "retry-after": "7" } }));
    FakeSocket.last.end();
    await settle();
    expect(feed.state.cause).toBe("Too many connections; again in 7 s");
    expect(feed.state.retryAt).toBeGreaterThanOrEqual(Date.now() + 7_000);
    expect(feed.state.retryAt).toBeLessThan(Date.now() + 8_000);
  });

  test("says nothing once the feed is closed", async () => {
    const feed = connectToFakes();
    answers.push(new Response("Origin not allowed", { status: 403 }));
    FakeSocket.last.end();
    feed.close();
    await settle();
    expect(feed.state).toMatchObject({ name: "closed", cause: "" });
  });
});

describe("a message", () => {
  test.each(["{", "null", '{"type":"price:batch","seq":1,"events":[null]}'])(
    "%s ends the connection",
    async (text) => {
      const { feed, socket } = await liveWith("A.x");
      socket.say(text);
      expect(feed.state.name).toBe("offline");
      expect(socket.readyState).toBe(2);
      vi.advanceTimersByTime(1_000);
      expect(FakeSocket.all).toHaveLength(2);
    },
  );

  test("of a connection that was given up is ignored", async () => {
    const { subscription, socket } = await liveWith("A.x");
    const events: Event[] = [];
    subscription.on("event", (one) => events.push(one));
    vi.setSystemTime(Date.now() + 20_000);
    // The first one finds that the page was frozen, and nobody sees the thousands after it.
    for (let offset = 1; offset <= 2_000; offset++) socket.say(event("A.x", offset));
    expect(events).toEqual([]);
    expect(FakeSocket.all).toHaveLength(2);
    expect(socket.closedWith).toBe(4000);
  });

  test("has its length told", async () => {
    const { feed, socket } = await liveWith("A.x");
    const lengths: number[] = [];
    feed.on("bytes", (length) => lengths.push(length));
    socket.say('{"type":"pong"}');
    expect(lengths).toEqual([15]);
  });
});

test("payloads have types", async () => {
  const feed = connectToFakes();
  const trades = feed.subscribe<Trade>("*.trade");
  trades.on("event", ({ data }) => expectTypeOf(data.price).toEqualTypeOf<number>());
  const candles = feed.subscribe<Candle>("*.analytics");
  candles.on("event", ({ data }) => expectTypeOf(data.isFinal).toEqualTypeOf<boolean>());
  expectTypeOf<EventData["trade"]>().toEqualTypeOf<Trade | undefined>();
  feed.close();
});

describe("a listener", () => {
  test("that closes its subscription is not called again", async () => {
    const { subscription, socket } = await liveWith("A.x");
    const prices: number[] = [];
    subscription.on("event", ({ data }) => {
      prices.push(data.price);
      subscription.close();
    });
    socket.say({ seq: 1, ts: 1, type: "price:batch", events: [event("A.x", 1), event("A.x", 2)] });
    expect(prices).toEqual([1]);
    expect(socket.sent.at(-1)).toMatchObject({ type: "unsubscribe", channels: ["A.x"] });
  });

  test("that closes the feed is not called again", async () => {
    const { feed, subscription, socket } = await liveWith("A.x");
    const prices: number[] = [];
    subscription.on("event", ({ data }) => {
      prices.push(data.price);
      feed.close();
    });
    socket.say({ seq: 1, ts: 1, type: "price:batch", events: [event("A.x", 1), event("A.x", 2)] });
    expect(prices).toEqual([1]);
    expect(feed.state.name).toBe("closed");
  });

  test("that changes the rate or closes the feed does so after the message", async () => {
    const { feed, subscription, socket } = await liveWith("A.x");
    const seen: unknown[] = [];
    subscription.on("event", ({ offset }) => {
      if (offset === 1) subscription.setRate(250);
      if (offset === 2) feed.close();
    });
    subscription.on("event", ({ offset }) => seen.push(offset));
    feed.on("state", ({ name }) => seen.push(name));
    socket.say(event("A.x", 1));
    expect(socket.sent.at(-1)).toMatchObject({ channels: ["A.x"], every_ms: 250 });
    socket.say(event("A.x", 2));
    socket.say(event("A.x", 3));
    expect(seen).toEqual([1, 2, "closed"]);
    expect(socket.closedWith).toBe(1000);
  });

  test("of the state can subscribe, and gets the state in order", async () => {
    const feed = connectToFakes();
    const names: string[] = [];
    feed.on("state", ({ name }) => {
      if (name === "live") feed.subscribe("B.x");
      names.push(name);
    });
    feed.subscribe("A.x");
    await settle();
    FakeSocket.last.open();
    FakeSocket.last.accept();
    await settle();
    expect(names).toEqual(["live"]);
    expect(FakeSocket.last.sent.at(-1)).toMatchObject({ channels: ["B.x"] });
  });

  test("that throws does not keep others from hearing", async () => {
    const { subscription, socket } = await liveWith("A.x");
    const thrown: unknown[] = [];
    vi.stubGlobal("queueMicrotask", (act: () => void) => {
      try {
        act();
      } catch (error) {
        thrown.push(error);
      }
    });
    const prices: number[] = [];
    subscription.on("event", () => {
      throw new Error("mine");
    });
    subscription.on("event", ({ data }) => prices.push(data.price));
    socket.say(event("A.x", 1));
    expect(prices).toEqual([1]);
    expect(thrown).toEqual([new Error("mine")]);
  });

  test("hears of gaps and refusals", async () => {
    const { subscription, socket } = await liveWith("A.x");
    const gaps: Gap[] = [];
    subscription.on("gap", (gap) => gaps.push(gap));
    socket.say({ type: "gap", reason: "shed", missed: 3, from: null, to: null, epoch: "e", ts: 1 });
    expect(gaps).toEqual([{ channels: ["A.x"], missed: null, reason: "shed" }]);

    const refusals: FeedError[] = [];
    const feed = connectToFakes();
    feed.subscribe("A.x").on("refused", (error) => refusals.push(error));
    const warn = vi.spyOn(console, "warn").mockReturnValue();
    feed.subscribe("A.x");
    await settle();
    FakeSocket.last.open();
    const { id } = FakeSocket.last.sent[0] as { id: number };
    const refused = [{ channel: "A.x", code: "FORBIDDEN_CHANNEL" }];
    FakeSocket.last.say({ type: "subscription_ack", subscribed: [], id, refused, epoch: "e", offset: 0 });
    expect(refusals).toMatchObject([{ name: "FeedError", code: "FORBIDDEN_CHANNEL", channel: "A.x" }]);
    expect(warn).toHaveBeenCalledExactlyOnceWith(refusals[0]);
  });
});

describe("a token", () => {
  test("is asked for first and offered as a subprotocol", async () => {
    connectToFakes({ token: async () => "abc" });
    expect(FakeSocket.all).toEqual([]);
    await settle();
    expect(FakeSocket.last.offers).toEqual(["trio-odin", "bearer.abc"]);
  });

  test.each([
    ["throws", () => Promise.reject("down"), "no token: down"],
    [
      "throws at once",
      () => {
        throw "down";
      },
      "no token: down",
    ],
    ["gives none", () => "", "no token: none given"],
    ["gives an object", () => ({ token: "abc" }), "no token: object given"],
    ["gives a number", () => 7, "no token: number given"],
  ] as [string, () => string, string][])(
    "function that %s is called again later",
    async (_, token, cause) => {
      const call = vi.fn(token);
      const feed = connectToFakes({ token: call });
      await settle();
      expect(feed.state).toMatchObject({ name: "offline", cause });
      vi.advanceTimersByTime(500);
      await settle();
      expect(call).toHaveBeenCalledTimes(2);
    },
  );

  test("function that hangs has a deadline, and its late answer is not used", async () => {
    const resolves: ((token: string) => void)[] = [];
    const feed = connectToFakes({ token: () => new Promise((resolve) => resolves.push(resolve)) });
    await settle();
    // As long as in Python: an answer of a slow service is not thrown away.
    vi.advanceTimersByTime(29_000);
    await settle();
    expect(feed.state.name).toBe("connecting");
    vi.advanceTimersByTime(1_000);
    await settle();
    expect(feed.state).toMatchObject({ name: "offline", cause: "no token: no answer" });
    vi.advanceTimersByTime(500);
    await settle();
    resolves[0]?.("late");
    await settle();
    expect(FakeSocket.all).toEqual([]);
    resolves[1]?.("new");
    await settle();
    expect(FakeSocket.last.offers).toContain("bearer.new");
    feed.close();
    expect(vi.getTimerCount()).toBe(0);
  });

  test("is renewed before it expires, on the open connection", async () => {
    const until = (seconds: number): string => jwt({ exp: Date.now() / 1000 + seconds });
    const { feed, socket } = await liveWith("A.x", { token: () => until(300), heartbeatMs: 1e9 });
    await settle();
    FakeSocket.last.open();
    vi.advanceTimersByTime(269_000);
    const tokens = () => FakeSocket.last.sent.filter(({ type }) => type === "token");
    await settle();
    expect(tokens()).toEqual([]);
    vi.advanceTimersByTime(2_000);
    await settle();
    expect(tokens()).toHaveLength(1);
    expect(socket).toBe(FakeSocket.last);
    feed.close();
  });

  test("that has expired by this machine's clock is not asked for all the time", async () => {
    const token = vi.fn(() => jwt({ exp: Date.now() / 1000 - 3_600 }));
    const feed = connectToFakes({ token, heartbeatMs: 1e9 });
    await settle();
    FakeSocket.last.open();
    for (let second = 0; second < 120; second++) {
      vi.advanceTimersByTime(1_000);
      await settle();
    }
    expect(token.mock.calls.length).toBeLessThanOrEqual(5);
    feed.close();
  });

  test("is asked for anew when the server refuses it", async () => {
    let number = 0;
    const feed = connectToFakes({ token: () => `t${++number}` });
    await settle();
    answers.push(new Response("Token expired", { status: 401 }));
    FakeSocket.last.end();
    await settle();
    // Not in the address: proxies log it.
    expect(asked).toEqual(["http://one/ws"]);
    expect(credentials).toEqual(["Bearer t1"]);
    vi.advanceTimersByTime(1_000);
    await settle();
    expect(FakeSocket.last.offers).toContain("bearer.t2");
    feed.close();
  });
});

describe("a reader of compressed messages", () => {
  function compression() {
    let finish: (error?: Error) => void = () => {};
    const reader = {
      isReady: false,
      prepare: vi.fn(
        () =>
          new Promise<void>((resolve, reject) => {
            finish = (error) => {
              reader.isReady = !error;
              if (error) reject(error);
              else resolve();
            };
          }),
      ),
      read: (data: ArrayBuffer) => JSON.parse(new TextDecoder().decode(data)),
    };
    return {
      offers: () => ["z"],
      reader: () => reader,
      its: reader,
      finish: (error?: Error) => finish(error),
    };
  }

  test("is prepared with the first message, and no other is lost meanwhile", async () => {
    const z = compression();
    const feed = connectToFakes({ compression: z });
    feed.subscribe("A.x");
    await settle();
    const socket = FakeSocket.last;
    expect(socket.offers).toEqual(["z", "trio-odin"]);
    socket.open("z");
    socket.say({ type: "dictionary", id: "1", url: "/dictionary/1" });
    socket.say({ type: "server:draining", reconnect_in_ms: 50 });
    await settle();
    expect(socket.sent).toEqual([]);
    expect(z.its.prepare).toHaveBeenCalledExactlyOnceWith({
      type: "dictionary",
      id: "1",
      url: "/dictionary/1",
    });
    z.finish();
    await settle();
    expect(socket.sent).toMatchObject([{ type: "subscribe", channels: ["A.x"] }]);
    // The notice has been heard as well. A connection is kept for a second.
    vi.advanceTimersByTime(1_000);
    expect(FakeSocket.all).toHaveLength(2);
    feed.close();
  });

  test("that cannot be prepared ends the connection", async () => {
    const z = compression();
    const feed = connectToFakes({ compression: z });
    const socket = FakeSocket.last;
    socket.open("z");
    socket.say({ type: "dictionary", id: "1", url: "/dictionary/1" });
    z.finish(new Error("404"));
    await settle();
    expect(feed.state).toMatchObject({ name: "offline", cause: "Error: 404" });
    expect(socket.readyState).toBe(2);
  });

  test("does no harm when the socket closes while it is prepared", async () => {
    const z = compression();
    const feed = connectToFakes({ compression: z });
    const socket = FakeSocket.last;
    socket.open("z");
    socket.say({ type: "dictionary", id: "1", url: "/dictionary/1" });
    socket.end(1001, "Server is shutting down");
    expect(feed.state).toMatchObject({ name: "offline", cause: "Server is shutting down" });
    expect(asked).toEqual([]);
    z.finish();
    await settle();
    expect(socket.sent).toEqual([]);
    expect(feed.state.name).toBe("offline");
  });
});

describe("a page", () => {
  function stubPage() {
    const page = { hidden: false };
    const world = new EventTarget();
    vi.stubGlobal("document", page);
    vi.stubGlobal("addEventListener", world.addEventListener.bind(world));
    return { page, fire: (name: string) => world.dispatchEvent(new globalThis.Event(name)) };
  }

  test("that is hidden asks for less, and for all when it is seen again", async () => {
    const { page, fire } = stubPage();
    const feed = connectToFakes();
    feed.subscribe("A.x", { everyMs: 250 });
    await settle();
    const socket = FakeSocket.last;
    socket.open();
    socket.accept();
    page.hidden = true;
    fire("visibilitychange");
    expect(socket.sent.at(-2)).toMatchObject({ channels: ["A.x"], every_ms: 5_000 });
    socket.accept(socket.sent.at(-2));
    page.hidden = false;
    fire("visibilitychange");
    expect(socket.sent.slice(-2)).toMatchObject([{ every_ms: 250 }, { type: "heartbeat" }]);
    feed.close();
  });

  test("that is frozen leaves at once and is back at once", async () => {
    const { fire } = stubPage();
    const { feed, socket } = await liveWith("A.x");
    fire("freeze");
    expect(socket.closedWith).toBe(1000);
    vi.setSystemTime(Date.now() + 60_000);
    fire("resume");
    expect(FakeSocket.all).toHaveLength(2);
    FakeSocket.last.open();
    expect(FakeSocket.last.sent).toMatchObject([{ channels: ["A.x"], after: 0, epoch: "e" }]);
    feed.close();
  });

  test("that goes into the cache for back has no socket, and a new one on return", async () => {
    const { fire } = stubPage();
    const { socket, feed } = await liveWith("A.x");
    fire("pagehide");
    expect(socket.closedWith).toBe(1000);
    fire("pageshow");
    expect(FakeSocket.all).toHaveLength(2);
    feed.close();
  });

  test("without network is told after one heartbeat, and dials when it is back", async () => {
    const { fire } = stubPage();
    const { feed, socket } = await liveWith("A.x");
    fire("offline");
    expect(socket.sent.at(-1)).toMatchObject({ type: "heartbeat" });
    vi.advanceTimersByTime(4_000);
    expect(feed.state.name).toBe("offline");
    fire("online");
    expect(FakeSocket.all).toHaveLength(2);
    feed.close();
  });

  test("keeps no listener of a feed that is closed", async () => {
    const { fire } = stubPage();
    const { feed } = await liveWith("A.x");
    feed.close();
    for (const name of ["visibilitychange", "resume", "online", "pageshow", "freeze"]) fire(name);
    expect(FakeSocket.all).toHaveLength(1);
    expect(vi.getTimerCount()).toBe(0);
  });
});

describe("close()", () => {
  const open = async (): Promise<void> => FakeSocket.last.open();
  test.each<[string, () => Promise<void>]>([
    ["dialing", async () => {}],
    ["open", open],
    ["between two connections", async () => FakeSocket.last.end(1001)],
    ["asking why", async () => FakeSocket.last.end(1006)],
  ])("ends a feed that is %s", async (_, prepare) => {
    const feed = connectToFakes();
    const states = statesOf(feed);
    const subscription = feed.subscribe("A.x");
    await settle();
    await prepare();
    feed.close();
    feed.close();
    await settle();
    vi.advanceTimersByTime(60_000);
    expect(states.at(-1)).toMatchObject({ name: "closed", cause: "" });
    expect(states.filter(({ name }) => name === "closed")).toHaveLength(1);
    expect(FakeSocket.all).toHaveLength(1);
    expect(vi.getTimerCount()).toBe(0);
    const loop = subscription[Symbol.asyncIterator]();
    expect(await loop.next()).toEqual({ done: true, value: undefined });
  });

  test("before the subscription is made makes none", async () => {
    const { feed, socket } = await liveWith("A.x");
    const late = feed.subscribe("B.x");
    late.close();
    await settle();
    expect(socket.sent).toHaveLength(1);
    feed.close();
  });

  test("a subscription to a closed feed ends", async () => {
    const feed = connectToFakes();
    feed.close();
    const events: Event[] = [];
    for await (const one of feed.subscribe("A.x")) events.push(one);
    expect(events).toEqual([]);
  });
});
