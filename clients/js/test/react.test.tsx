// @vitest-environment happy-dom
// The hooks, in a DOM.

import { act, StrictMode, useState } from "react";
import { createRoot, type Root } from "react-dom/client";
import { renderToString } from "react-dom/server";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { FeedContext, useChannel, useFeedState } from "../src/react.js";
import { connectToFakes, event, FakeSocket, settle } from "./fakes.js";

type Price = { price: number };

let root: Root;
let box: HTMLElement;
let frames: (() => void)[];
const renders = new Map<string, number>();

beforeEach(() => {
  vi.stubGlobal("IS_REACT_ACT_ENVIRONMENT", true);
  frames = [];
  vi.stubGlobal("requestAnimationFrame", (frame: () => void) => frames.push(frame));
  renders.clear();
  box = document.createElement("div");
  root = createRoot(box);
});

afterEach(() => {
  act(() => root.unmount());
  vi.unstubAllGlobals();
});

/** Let a frame pass; how many callbacks it had. */
function frame(): number {
  const those = frames;
  frames = [];
  act(() => {
    for (const one of those) one();
  });
  return those.length;
}

function Quote({ channel, everyMs }: { channel: string; everyMs?: number | null }) {
  renders.set(channel, (renders.get(channel) ?? 0) + 1);
  return <b>{useChannel<Price>(channel, { everyMs })?.data.price ?? "–"} </b>;
}

function Pair() {
  const [isPaused, pause] = useState(false);
  return (
    <>
      <Quote channel="A.x" everyMs={isPaused ? null : 0} />
      <Quote channel="A.x" />
      <button type="button" onClick={() => pause(!isPaused)}>
        |
      </button>
    </>
  );
}

function Status() {
  return useFeedState().name;
}

async function show(content: React.ReactNode, feed = connectToFakes()) {
  await act(async () => root.render(<FeedContext.Provider value={feed}>{content}</FeedContext.Provider>));
  await settle();
  const socket = FakeSocket.last;
  await act(async () => {
    if (socket.readyState) return;
    socket.open();
    socket.accept();
  });
  return { feed, socket };
}

test("a component shows the newest event, once a frame", async () => {
  const { socket } = await show(<Quote channel="A.x" />);
  expect(box.textContent).toBe("– ");
  const before = renders.get("A.x") as number;
  for (let offset = 1; offset <= 50; offset++) socket.say(event("A.x", offset));
  expect(frame()).toBe(1);
  expect(box.textContent).toBe("50 ");
  expect(renders.get("A.x")).toBe(before + 1);
  expect(frame()).toBe(0);
});

test("all components of a frame are rendered in one frame, and only those with an event", async () => {
  const { socket } = await show(["A.x", "B.x", "C.x"].map((name) => <Quote key={name} channel={name} />));
  socket.accept();
  const before = renders.get("C.x");
  socket.say(event("A.x", 1));
  socket.say(event("B.x", 2));
  expect(frame()).toBe(1);
  expect(box.textContent).toBe("1 2 – ");
  expect(renders.get("C.x")).toBe(before);
});

test("two components share one subscription, and the second shows the newest event at once", async () => {
  const feed = connectToFakes();
  const { socket } = await show([<Quote key="1" channel="A.x" />], feed);
  socket.say(event("A.x", 7));
  frame();
  await show([<Quote key="1" channel="A.x" />, <Quote key="2" channel="A.x" />], feed);
  expect(box.textContent).toBe("7 7 ");
  expect(socket.sent.filter(({ type }) => type === "unsubscribe")).toEqual([]);
});

test("StrictMode subscribes once and unmounting unsubscribes", async () => {
  const { feed, socket } = await show(
    <StrictMode>
      <Quote channel="A.x" />
    </StrictMode>,
  );
  expect(socket.sent).toMatchObject([{ type: "subscribe", channels: ["A.x"] }]);
  socket.say(event("A.x", 1));
  frame();
  expect(box.textContent).toBe("1 ");
  socket.say(event("A.x", 2));
  await show(null, feed);
  // The frame that was asked for finds nobody.
  expect(frame()).toBe(1);
  expect(socket.sent.at(-1)).toMatchObject({ type: "unsubscribe", channels: ["A.x"] });
});

test("a new rate changes the subscription and makes no other", async () => {
  const feed = connectToFakes();
  const { socket } = await show(<Quote channel="A.x" everyMs={250} />, feed);
  expect(socket.sent.at(-1)).toMatchObject({ every_ms: 250 });
  await show(<Quote channel="A.x" everyMs={1_000} />, feed);
  expect(socket.sent.at(-1)).toMatchObject({ type: "subscribe", every_ms: 1_000 });
  expect(socket.sent).toHaveLength(2);
});

test("a paused component stands still while another goes on", async () => {
  const { socket } = await show(<Pair />);
  const click = () => act(async () => box.querySelector("button")?.click());
  socket.say(event("A.x", 1));
  frame();
  await click();
  socket.say(event("A.x", 2));
  frame();
  expect(box.textContent).toBe("1 2 |");
  await click();
  frame();
  expect(box.textContent).toBe("2 2 |");
});

test("another channel begins without the price of the one before", async () => {
  const feed = connectToFakes();
  const { socket } = await show(<Quote channel="A.x" />, feed);
  socket.say(event("A.x", 1));
  frame();
  await show(<Quote channel="B.x" />, feed);
  expect(box.textContent).toBe("– ");
});

test("the state of the feed is shown", async () => {
  const { feed } = await show(<Status />);
  expect(box.textContent).toBe("live");
  act(() => feed.close());
  expect(box.textContent).toBe("closed");
});

test("a server renders no price and opens no subscription", () => {
  const feed = connectToFakes();
  const page = renderToString(
    <FeedContext.Provider value={feed}>
      <Quote channel="A.x" />
    </FeedContext.Provider>,
  );
  expect(page).toContain("–");
  feed.close();
});

test("a component without a feed says so", () => {
  expect(() => renderToString(<Quote channel="A.x" />)).toThrow("There is no feed");
});
