import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import * as grpc from "@grpc/grpc-js";
import { CallFailed } from "../build/transport.js";
import { alone, calling, PATIENCE } from "./caller.js";
import { type Fake, refusal, type Stream } from "./fake.js";
import { failure, until } from "./support.js";

test("a session without calls is ended, and opened again when there are many", async (t) => {
  const { fake, caller } = await calling(t);
  // Half a minute is long.
  const { setTimeout: real } = globalThis;
  const shortened = (f: () => void, ms: number) => real(f, ms === 30_000 ? 1_500 : ms);
  t.mock.method(globalThis, "setTimeout", shortened);
  const stream = await caller.inSession();
  // Its connection has calls that are no session's.
  await pause(1_300);
  assert.equal(stream.left, undefined);
  await until(() => stream.left === "half-closed", "it is ended");
  await caller.reopen();
  assert.equal(fake.streams.length, 2);
});

test("a session of a connection without calls is ended soon, for it keeps the process from ending", async (t) => {
  const { fake, caller } = await calling(t);
  const stream = await caller.inSession();
  const began = performance.now();
  caller.giveUp.abort();
  await until(() => stream.left === "half-closed", "it is ended");
  assert.ok(performance.now() - began < 10_000);
  assert.equal(fake.streams.length, 1);
});

test("a session that cannot be opened is not tried again for a minute", async (t) => {
  const { fake, caller } = await calling(t);
  fake.open = (stream) => stream.emit("error", refusal(12, "UNIMPLEMENTED"));
  await caller.begin("first");
  await caller.crowd(16);
  await until(() => fake.streams.length === 1, "it is tried");
  for (let round = 0; round < 20; round += 1) await caller.begin("a");
  caller.slept += 59_000;
  await caller.begin("a");
  assert.deepEqual([fake.streams.length, alone(fake).length], [1, 21]);
  caller.slept += 1_000;
  await caller.begin("a");
  await until(() => fake.streams.length === 2, "it is tried again");
});

for (const [how, cut] of [
  ["says that it is away", (stream: Stream) => stream.emit("error", refusal(14, "DRAINING"))],
  ["breaks the connection off", (_stream: Stream, fake: Fake) => fake.kill()],
] as const) {
  test(`a session whose server ${how} before it is open is tried again after a second`, async (t) => {
    const { fake, caller } = await calling(t);
    fake.open = (stream) => cut(stream, fake);
    await caller.begin("first");
    await caller.crowd(15);
    const began = performance.now();
    const beside = caller.begin("a");
    await until(() => fake.streams.length === 1, "it is tried");
    if (how.startsWith("breaks")) await fake.listen();
    fake.open = (stream) => stream.emit("error", refusal(14, "DRAINING"));
    await beside;
    for (let round = 0; round < 20; round += 1) await caller.begin("b");
    assert.ok(fake.streams.length <= 1 + (performance.now() - began) / 1_000);
    fake.open = (stream) => stream.sendMetadata(new grpc.Metadata());
    await caller.crowd(1);
    caller.slept += 1_000;
    await caller.reopen();
  });
}

test("sessions that are cut as soon as they are open are not opened without end", async (t) => {
  const { fake, caller } = await calling(t);
  fake.open = (stream) => {
    stream.sendMetadata(new grpc.Metadata());
    setTimeout(() => stream.end(), 50);
  };
  await caller.begin("first");
  await caller.crowd(16);
  for (let round = 0; round < 100; round += 1) {
    await caller.begin("a");
    await pause(5);
  }
  assert.equal(fake.streams.length, 3);
  fake.open = (stream) => stream.sendMetadata(new grpc.Metadata());
  caller.slept += 60_000;
  await caller.reopen();
});

test("a session on which nothing came in a call's time takes no more, and ends with its last one", async (t) => {
  const { fake, caller } = await calling(t);
  const stream = await caller.inSession();
  fake.carry = () => {};
  const giveUp = new AbortController();
  const stays = failure(caller.begin("a", PATIENCE, giveUp.signal), CallFailed);
  await failure(caller.begin("b", { total: 300, attempt: 300 }), CallFailed);
  await caller.begin("c");
  assert.deepEqual([alone(fake), stream.left], [["c"], undefined]);
  giveUp.abort();
  await stays;
  await until(() => stream.left === "half-closed", "it is ended");
});
