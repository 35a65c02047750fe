import assert from "node:assert/strict";
import { test } from "node:test";
import { Clock, type Moment } from "onced";
import { sleep } from "../build/clock.js";

function clock() {
  const time = { monotonic: 1_000, wall: 1_000_000 };
  return { time, clock: new Clock(() => ({ ...time }) as Moment) };
}

test("a machine that was suspended is told by its wall time", () => {
  const { time, clock: it } = clock();
  const before = it.now();
  time.monotonic += 5;
  time.wall += 60_000;
  assert.equal(it.since(before), 60_000);
});

test("a wall clock that is set back lengthens nothing", () => {
  const { time, clock: it } = clock();
  time.wall += 3_600_000;
  const before = it.now();
  time.wall -= 7_200_000;
  time.monotonic += 2_000;
  assert.equal(it.since(before), 2_000);
});

test("no time is negative", () => {
  const { time, clock: it } = clock();
  const before = it.now();
  time.wall -= 1;
  assert.equal(it.since(before), 0);
});

test("the system's clock goes on", async () => {
  const it = new Clock();
  const before = it.now();
  await sleep(20);
  assert.ok(it.since(before) >= 15);
});

test("a sleep ends when it is taken back", async () => {
  const enough = new AbortController();
  const asleep = sleep(3_600_000, enough.signal);
  enough.abort();
  await asleep;
  await sleep(3_600_000, enough.signal);
});
