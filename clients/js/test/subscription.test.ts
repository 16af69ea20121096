// The loops over a subscription.

import { afterEach, beforeEach, expect, test, vi } from "vitest";
import type { Event } from "../src/index.js";
import { connectToFakes, event, FakeSocket, liveWith, settle, useFakeClock } from "./fakes.js";

beforeEach(useFakeClock);
afterEach(() => {
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

/** What a loop would do, step by step. */
function stepper(subscription: AsyncIterable<Event<{ price: number }>>) {
  const loop = subscription[Symbol.asyncIterator]();
  return {
    async next() {
      const { done, value } = await loop.next();
      return done ? "done" : [value.channel, value.data.price, value.skipped];
    },
    leave: () => loop.return?.(),
  };
}

test("a loop gets what came before it began, the newest of each channel", async () => {
  const { subscription, socket } = await liveWith("*.x");
  for (const [channel, offset] of [
    ["A.x", 1],
    ["B.x", 2],
    ["A.x", 3],
  ] as const)
    socket.say(event(channel, offset));
  const loop = stepper(subscription);
  expect(await loop.next()).toEqual(["A.x", 3, 1]);
  expect(await loop.next()).toEqual(["B.x", 2, 0]);
});

test("what gave way is summed up, and is unknown if a part of it is", async () => {
  const { subscription, socket } = await liveWith("*.x");
  const loop = stepper(subscription);
  const next = loop.next();
  await settle();
  socket.say(event("A.x", 1));
  expect(await next).toEqual(["A.x", 1, 0]);
  const batch = (offset: number, skipped: number | null) => ({
    ...{ seq: offset + 100, ts: 1, type: "price:batch", skipped_total: 0 },
    events: [{ channel: "A.x", offset, ts: 1, data: { price: offset }, skipped }],
  });
  socket.say({ ...batch(5, 3), seq: 2 });
  socket.say({ ...batch(9, 2), seq: 3 });
  expect(await loop.next()).toEqual(["A.x", 9, 6]);
  socket.say({ ...batch(12, null), seq: 4 });
  socket.say({ ...batch(13, 0), seq: 5 });
  expect(await loop.next()).toEqual(["A.x", 13, null]);
});

test("the busiest channel has its turn", async () => {
  const { subscription, socket } = await liveWith("*.x");
  let offset = 0;
  for (const channel of ["A.x", "B.x", "C.x"]) socket.say(event(channel, ++offset));
  const turns: string[] = [];
  for await (const { channel } of subscription) {
    turns.push(channel);
    if (turns.length === 6) break;
    // All others come again before the next turn, and the busy one most often.
    for (const other of ["A.x", "B.x", "C.x", "A.x"]) socket.say(event(other, ++offset));
  }
  expect(turns).toEqual(["A.x", "B.x", "C.x", "A.x", "B.x", "C.x"]);
});

test("several loops get the same events, and the last one to leave ends the subscription", async () => {
  const { subscription, socket } = await liveWith("*.x");
  const one = stepper(subscription);
  const other = stepper(subscription);
  const both = Promise.all([one.next(), other.next()]);
  await settle();
  socket.say(event("A.x", 1));
  expect(await both).toEqual([
    ["A.x", 1, 0],
    ["A.x", 1, 0],
  ]);
  await one.leave();
  socket.say(event("A.x", 2));
  expect(await other.next()).toEqual(["A.x", 2, 0]);
  expect(socket.sent).toHaveLength(1);
  await other.leave();
  expect(socket.sent.at(-1)).toMatchObject({ type: "unsubscribe", channels: ["*.x"] });
});

test("break ends the subscription, and so does an error in the body", async () => {
  for (const leave of ["break", "throw"]) {
    const { subscription, socket } = await liveWith("A.x");
    socket.say(event("A.x", 1));
    try {
      for await (const _ of subscription) {
        if (leave === "break") break;
        throw new Error("mine");
      }
    } catch (error) {
      expect(error).toEqual(new Error("mine"));
    }
    expect(socket.sent.at(-1)).toMatchObject({ type: "unsubscribe" });
  }
});

test("close() ends a loop that waits, and what waits is not given out", async () => {
  const { subscription, socket } = await liveWith("A.x");
  const waiting = stepper(subscription);
  const next = waiting.next();
  await settle();
  subscription.close();
  expect(await next).toBe("done");

  const { subscription: second, socket: its } = await liveWith("A.x");
  its.say(event("A.x", 1));
  second.close();
  expect(await stepper(second).next()).toBe("done");
  expect(socket.sent.at(-1)).toMatchObject({ type: "unsubscribe" });
});

test("a loop throws why the feed has ended, after what had come", async () => {
  const { subscription, socket } = await liveWith("A.x");
  socket.say(event("A.x", 1));
  socket.end(4501, "Token is not valid any more");
  const loop = stepper(subscription);
  expect(await loop.next()).toEqual(["A.x", 1, 0]);
  await expect(loop.next()).rejects.toMatchObject({ code: "CLOSED", message: "Token is not valid any more" });
});

test("nothing is kept for a loop while a listener has it", async () => {
  const { subscription, socket } = await liveWith("A.x");
  const prices: number[] = [];
  const stop = subscription.on("event", ({ data }) => prices.push(data.price));
  socket.say(event("A.x", 1));
  stop();
  socket.say(event("A.x", 2));
  expect(prices).toEqual([1]);
  expect(await stepper(subscription).next()).toEqual(["A.x", 2, 0]);
});

test("the first listener gets what came before it, the newest of each channel, and once", async () => {
  const { subscription, socket } = await liveWith("*.x");
  for (const [channel, offset] of [
    ["A.x", 1],
    ["B.x", 2],
    ["A.x", 3],
  ] as const)
    socket.say(event(channel, offset));
  const heard: unknown[] = [];
  const hear = ({ channel, data, skipped }: Event<{ price: number }>) =>
    heard.push([channel, data.price, skipped]);
  subscription.on("gap", () => {});
  await settle();
  subscription.on("event", hear);
  expect(heard).toEqual([]);
  await settle();
  const waited = [
    ["A.x", 3, 1],
    ["B.x", 2, 0],
  ];
  expect(heard).toEqual(waited);
  subscription.on("event", () => {});
  await settle();
  socket.say(event("A.x", 4));
  expect(heard).toEqual([...waited, ["A.x", 4, 0]]);
});

test("what waited for a listener comes before newer events, and not after the end", async () => {
  const { subscription, socket } = await liveWith("A.x");
  const heard: number[] = [];
  socket.say(event("A.x", 1));
  subscription.on("event", ({ data }) => heard.push(data.price));
  socket.say(event("A.x", 2));
  await settle();
  expect(heard).toEqual([1, 2]);

  const { feed, subscription: other, socket: its } = await liveWith("A.x");
  its.say(event("A.x", 1));
  other.on("event", ({ data }) => heard.push(data.price));
  feed.close();
  await settle();
  expect(heard).toEqual([1, 2]);
});

test("break does not end a subscription that has a listener for events", async () => {
  const { subscription, socket } = await liveWith("A.x");
  const loop = stepper(subscription);
  const heard: number[] = [];
  const stop = subscription.on("event", ({ data }) => heard.push(data.price));
  socket.say(event("A.x", 1));
  const next = loop.next();
  await settle();
  socket.say(event("A.x", 2));
  await next;
  await loop.leave();
  socket.say(event("A.x", 3));
  expect(heard).toEqual([1, 2, 3]);
  expect(socket.sent).toHaveLength(1);

  stop();
  subscription.on("gap", () => {});
  const second = stepper(subscription);
  const its = second.next();
  await settle();
  socket.say(event("A.x", 4));
  expect(await its).toEqual(["A.x", 4, 0]);
  await second.leave();
  expect(socket.sent.at(-1)).toMatchObject({ type: "unsubscribe", channels: ["A.x"] });
});

test("a function that is added twice is removed once", async () => {
  const { subscription, socket } = await liveWith("A.x");
  const listener = vi.fn();
  const stop = subscription.on("event", listener);
  subscription.on("event", listener);
  stop();
  stop();
  socket.say(event("A.x", 1));
  expect(listener).toHaveBeenCalledOnce();
});

test("a listener that adds itself again is called once for each event", async () => {
  const { subscription, socket } = await liveWith("A.x");
  let calls = 0;
  let stop = (): void => {};
  const once = (): void => {
    calls++;
    stop();
    stop = subscription.on("event", once);
  };
  stop = subscription.on("event", once);
  socket.say(event("A.x", 1));
  socket.say(event("A.x", 2));
  expect(calls).toBe(2);
});

test("a second subscription to a channel gets its newest event, without a command", async () => {
  const { feed, socket } = await liveWith("A.x");
  socket.say(event("A.x", 1));
  const second = stepper(feed.subscribe<{ price: number }>("A.x"));
  expect(await second.next()).toEqual(["A.x", 1, 0]);
  expect(socket.sent).toHaveLength(1);
  expect(feed.newest("A.x")).toMatchObject({ offset: 1 });
});

test("a rate that is set before the subscription is made is that of the command", async () => {
  const feed = connectToFakes();
  feed.subscribe(["A.x", "B.x"], { snapshot: false }).setRate(1_000);
  await settle();
  FakeSocket.last.open();
  expect(FakeSocket.last.sent).toMatchObject([{ channels: ["A.x", "B.x"], every_ms: 1_000 }]);
  feed.close();
});

test.each([Number.NaN, -1, Infinity, "250", {}])("%s is no rate, and nothing is sent", async (value) => {
  const { feed, subscription, socket } = await liveWith("A.x");
  const everyMs = value as number;
  const error = new TypeError(`everyMs ${value}: allowed is 0 or more, or null`);
  expect(() => feed.subscribe("B.x", { everyMs })).toThrow(error);
  expect(() => subscription.setRate(everyMs)).toThrow(error);
  await settle();
  expect(socket.sent).toHaveLength(1);
  feed.close();
});

test.each(["", "A", "A.", "A.x.y", "A*.x", "A.x ", ">.x", `A.${"x".repeat(63)}`, undefined, 1.5])(
  "%j is no channel, and nothing is sent",
  async (value) => {
    const { feed, socket } = await liveWith("A.x");
    const error = new TypeError(`channel ${value}: allowed is A.b, A.*, *.b, >`);
    expect(() => feed.subscribe(["B.x", value as string])).toThrow(error);
    await settle();
    expect(socket.sent).toHaveLength(1);
    feed.close();
  },
);

test.each(["A_1-b.x-Y", ">", "*.x", "A.*", "A.>", "*.*", "*.>", `A.${"x".repeat(62)}`])(
  "%s is a channel or a pattern",
  async (name) => {
    const { feed, socket } = await liveWith("B.y");
    feed.subscribe(name);
    await settle();
    expect(socket.sent.at(-1)).toMatchObject({ type: "subscribe", channels: [name] });
    feed.close();
  },
);
