// The judge of the tests against real servers.

import { expect, test } from "vitest";
import { type Entry, judge, matches, type Published } from "./judge.js";

const published = (...numbers: number[]): Published[] =>
  numbers.map((n) => ({ channel: "A.x", n, at: n * 100, offset: n }));
const event = (n: number, skipped: number | null = 0, at = n * 100): Entry => ({
  ...{ kind: "event", at, channel: "A.x", n, skipped },
});
const gap = (at: number, ...channels: string[]): Entry => ({ kind: "gap", at, channels });

test("what came once and in order is received", () => {
  expect(judge(published(1, 2, 3), [event(1), event(2), event(3)], matches)).toEqual({
    ...{ published: 3, received: 3, lost: 0, told: 0, doubled: 0, older: 0 },
  });
});

test("what is missing is lost, in between and at the end", () => {
  expect(judge(published(1, 2, 3, 4), [event(1), event(3)], matches)).toMatchObject({ received: 2, lost: 2 });
  expect(judge(published(1, 2), [], matches)).toMatchObject({ lost: 2 });
});

test("what was skipped, or is in a gap, is told", () => {
  expect(judge(published(1, 2, 3, 4), [event(1), event(4, 2)], matches)).toMatchObject({ lost: 0, told: 2 });
  expect(judge(published(1, 2, 3, 4), [event(1), event(4, 1)], matches)).toMatchObject({ lost: 2, told: 0 });
  expect(judge(published(1, 2, 3), [event(1), gap(250, "*.x"), event(3)], matches)).toMatchObject({
    told: 1,
  });
  expect(judge(published(1, 2, 3), [event(1), gap(250, "B.x"), event(3)], matches)).toMatchObject({
    lost: 1,
  });
});

test("a gap of before says nothing, and one that follows at once does", () => {
  expect(judge(published(1, 2, 3), [gap(50, "A.x"), event(1), event(3)], matches)).toMatchObject({ lost: 1 });
  expect(judge(published(1, 2, 3), [event(1), event(3), gap(400, "A.x")], matches)).toMatchObject({
    told: 1,
  });
  expect(judge(published(1, 2, 3), [event(1), event(3), gap(9_000, "A.x")], matches)).toMatchObject({
    lost: 1,
  });
});

test("what comes again is doubled, and what is older counts as that", () => {
  const seen = judge(published(1, 2, 3), [event(1), event(3, 1), event(3), event(2)], matches);
  expect(seen).toEqual({ published: 3, received: 3, lost: 0, told: 1, doubled: 1, older: 1 });
});

test("what the stream has not confirmed is not due, but may come", () => {
  const those = published(1, 2, 3);
  delete (those[1] as Published).offset;
  expect(judge(those, [event(1), event(3)], matches)).toMatchObject({ published: 2, lost: 0 });
  expect(judge(those, [event(1), event(2), event(3)], matches)).toMatchObject({ received: 3, lost: 0 });
});

test("patterns match as the server's do", () => {
  for (const name of ["A.x", "A.*", "*.x", "*.*", ">", "A.>"]) expect(matches(name, "A.x")).toBe(true);
  for (const name of ["B.x", "A.y", "*.y", "B.>"]) expect(matches(name, "A.x")).toBe(false);
});
