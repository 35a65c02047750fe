import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { type TestContext, test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import { create } from "@bufbuild/protobuf";
import * as grpc from "@grpc/grpc-js";
import { Clock } from "onced";
import { BeginRequestSchema } from "../build/generated/onced/v1/idempotency_service_pb.js";
import { Sessions } from "../build/session.js";
import { CallFailed } from "../build/transport.js";
import { alone, begin, calling, fencing, PATIENCE } from "./caller.js";
import { answer, Fake, refusal, type Stream, status } from "./fake.js";
import { connect, directory, failure, gate, until } from "./support.js";

test("many calls go into a session, which is opened beside them, and few into none", async (t) => {
  const { fake, caller } = await calling(t);
  let opening: Stream | undefined;
  fake.open = (stream) => {
    opening = stream;
  };
  await caller.begin("first");
  await caller.crowd(14);
  await caller.begin("a");
  assert.equal(fake.streams.length, 0);
  await caller.crowd(1);
  // It opens for as long as it takes: nobody waits for that.
  assert.equal(fencing(await caller.begin("b")), 7n);
  await until(() => opening !== undefined, "it is being opened");
  assert.equal(fencing(await caller.begin("c")), 7n);
  assert.deepEqual([alone(fake), fake.carried.length], [["a", "b", "c"], 0]);
  opening?.sendMetadata(new grpc.Metadata());
  await caller.reopen();
  const all = await Promise.all(Array.from({ length: 100 }, (_, i) => caller.begin(`${i}`)));
  assert.ok(all.every((begun) => fencing(begun) === 7n));
  assert.equal(new Set(fake.carried.map(({ id }) => id)).size, 100);
  assert.deepEqual([fake.streams.length, alone(fake).length], [1, 3]);
  // The other connection has had no calls.
  await caller.renew(new Uint8Array());
  assert.equal(fake.unary.at(-1)?.name, "renew");
  const [first] = fake.carried;
  assert.deepEqual([first?.timeout?.seconds, first?.timeout?.nanos], [10n, 0]);
});

test("without sessions none is opened", async (t) => {
  const { fake, caller } = await calling(t, { sessions: false });
  await caller.begin("first");
  await caller.crowd(40);
  await caller.begin("a");
  assert.equal(fake.streams.length, 0);
});

test("an answer for nobody is dropped, and one that cannot be read is an error of its call", async (t) => {
  const { fake, caller } = await calling(t);
  await caller.inSession();
  fake.carry = (call, stream) => {
    answer(stream, { ...call, id: 999_999n });
    answer(stream, call);
    answer(stream, call);
  };
  assert.equal(fencing(await caller.begin("a")), 7n);
  for (const said of [{ case: undefined }, { case: "renew", value: {} }, { case: "error", value: {} }] as const) {
    fake.carry = (call, stream) => answer(stream, call, said);
    const failed = await failure(caller.begin("b"), CallFailed);
    assert.deepEqual([failed.error?.status, failed.error?.unavailable], [grpc.status.INTERNAL, false]);
    assert.deepEqual(failed.aftermath, { unsettled: true, outage: false });
  }
  assert.deepEqual([fake.streams.length, alone(fake)], [1, []]);
});

test("an error in a session is that of a unary call", async (t) => {
  const { fake, caller } = await calling(t);
  await caller.inSession();
  fake.carry = (call, stream) => answer(stream, call, { case: "error", value: status(9, "FINGERPRINT_MISMATCH") });
  const failed = await failure(caller.begin("a"), CallFailed);
  assert.deepEqual([failed.error?.status, failed.error?.reason], [9, "FINGERPRINT_MISMATCH"]);
  // This one may pass: it is called again, in the session.
  let refusals = 2;
  fake.carry = (call, stream) => {
    if (refusals-- === 0) answer(stream, call);
    else answer(stream, call, { case: "error", value: status(14, "OVERLOADED") });
  };
  assert.equal(fencing(await caller.begin("b")), 7n);
  assert.deepEqual([fake.carried.length, alone(fake)], [4, []]);
});

const ENDS: Record<string, (stream: Stream, fake: Fake) => void> = {
  "with OK": (stream) => stream.end(),
  "with an error": (stream) => stream.emit("error", refusal(14, "DRAINING")),
  "with an error that no call would be repeated after": (stream) => stream.emit("error", refusal(7, "ACCESS_DENIED")),
  "with an answer that is no message": (stream) => stream.write(Buffer.from([0xff]) as never),
  "with its connection": (_stream, fake) => fake.kill(),
};

for (const [how, end] of Object.entries(ENDS)) {
  test(`calls of a session that ends ${how} are made again at once`, async (t) => {
    const { fake, caller } = await calling(t);
    const stream = await caller.inSession();
    fake.carry = () => {};
    const calls = Promise.all(["a", "b", "c"].map((key) => caller.begin(key)));
    await until(() => fake.carried.length === 3, "they are open");
    caller.slept += 5_000;
    end(stream, fake);
    // Until there is a connection again they may be made more often than once, and so in another session.
    const again = how === "with its connection";
    if (again) {
      fake.carry = (call, stream) => answer(stream, call);
      await fake.listen();
    }
    for (const begun of await calls) {
      assert.equal(fencing(begun), 7n);
      // The lock is counted from the call that was answered.
      assert.ok(Date.now() + caller.slept - begun.sent.wall < 4_000);
    }
    if (!again) assert.deepEqual(alone(fake).sort(), ["a", "b", "c"]);
  });
}

test("a call of a session is counted from when it was sent there", async (t) => {
  const { fake, caller } = await calling(t);
  await caller.inSession();
  fake.carry = (call, stream) => {
    caller.slept += 5_000;
    answer(stream, call);
  };
  const { sent } = await caller.begin("a");
  assert.ok(Date.now() + caller.slept - sent.wall >= 5_000);
});

test("what was sent in a session that ended may have been carried out, and is made again in the time that is left", async (t) => {
  const { fake, caller } = await calling(t);
  const stream = await caller.inSession();
  fake.carry = () => {};
  fake.refuse = ({ request }) => (request.key === "a" ? refusal(7, "ACCESS_DENIED") : "held");
  const refused = failure(caller.begin("a"), CallFailed);
  const late = failure(caller.begin("b", { total: 2_000, attempt: 2_000 }), CallFailed);
  await until(() => fake.carried.length === 2, "they are open");
  await pause(1_000);
  const began = performance.now();
  stream.end();
  const { error, aftermath } = await refused;
  assert.deepEqual([error?.reason, aftermath.unsettled], ["ACCESS_DENIED", true]);
  assert.equal((await late).error?.unavailable, true);
  assert.ok(performance.now() - began < 1_500, `${performance.now() - began}`);
});

for (const reason of ["DRAINING", "CREDENTIALS_EXPIRED"]) {
  test(`a call that is answered with ${reason} is made again, and its session ends with its last one`, async (t) => {
    const tokenFile = `${directory(t)}/token`;
    writeFileSync(tokenFile, "one");
    const { fake, caller } = await calling(t, { tokenFile });
    const stream = await caller.inSession();
    assert.deepEqual(stream.metadata.get("authorization"), ["Bearer one"]);
    const answered = gate();
    fake.carry = async (call, stream) => {
      const { key } = call.call.value as { key: string };
      if (key === "b") {
        writeFileSync(tokenFile, "two");
        caller.slept += 5_000;
        return answer(stream, call, { case: "error", value: status(14, reason) });
      }
      await answered.promise;
      answer(stream, call);
    };
    const stays = caller.begin("a");
    assert.equal(fencing(await caller.begin("b")), 7n);
    assert.deepEqual(alone(fake), ["b"]);
    assert.equal(fake.unary.at(-1)?.token, "Bearer two");
    await caller.begin("c");
    assert.deepEqual(alone(fake), ["b", "c"]);
    assert.equal(stream.left, undefined);
    answered.open();
    assert.equal(fencing(await stays), 7n);
    await until(() => stream.left === "half-closed", "it is ended");
    assert.equal(alone(fake).length, 2);
    await caller.reopen();
    assert.deepEqual(fake.streams.at(-1)?.metadata.get("authorization"), ["Bearer two"]);
  });
}

test("a call that its caller gives up is taken back, and so is one that takes too long", async (t) => {
  const { fake, caller } = await calling(t);
  await caller.inSession();
  const open: [Parameters<Fake["carry"]>[0], Stream][] = [];
  fake.carry = (...call) => open.push(call);
  const giveUp = new AbortController();
  const givenUp = failure(caller.begin("a", PATIENCE, giveUp.signal), CallFailed);
  await until(() => fake.carried.length === 1, "it is open");
  giveUp.abort();
  const { error, aftermath } = await givenUp;
  assert.deepEqual([error, aftermath.unsettled], [undefined, true]);
  await until(() => fake.carried.length === 2, "it is taken back");
  // The session is not dead: something comes.
  fake.carry = (call, stream) => {
    open.push([call, stream]);
    answer(stream, { ...call, id: 999_999n });
  };
  const began = performance.now();
  const late = await failure(caller.begin("b", { total: 300, attempt: 300 }), CallFailed);
  const took = performance.now() - began;
  assert.deepEqual([late.error?.status, late.aftermath.unsettled], [grpc.status.DEADLINE_EXCEEDED, true]);
  // The server keeps the time, and has a little longer to say so.
  assert.ok(took >= 370, `${took}`);
  await until(() => fake.carried.length === 4, "it is taken back as well");
  const [first, second, third, fourth] = fake.carried;
  assert.deepEqual([second?.call.case, fourth?.call.case], ["cancel", "cancel"]);
  assert.deepEqual([first?.id, third?.id], [second?.id, fourth?.id]);
  assert.deepEqual([third?.timeout?.seconds, third?.timeout?.nanos], [0n, 300_000_000]);
  // What they are answered now is nothing to anybody.
  for (const [call, stream] of open) answer(stream, call);
  fake.carry = (call, stream) => answer(stream, call);
  assert.equal(fencing(await caller.begin("c")), 7n);
  assert.deepEqual([fake.streams.length, alone(fake)], [1, []]);
});

test("that the time of a call is up is no answer of a server, though it says so", async (t) => {
  const { fake, caller } = await calling(t);
  await caller.inSession();
  fake.carry = (call, stream) => answer(stream, call, { case: "error", value: status(4, "DEADLINE_EXCEEDED") });
  const { error, aftermath } = await failure(caller.begin("a", { total: 300, attempt: 300 }), CallFailed);
  assert.deepEqual([error?.status, error?.reason, error?.unavailable], [4, undefined, true]);
  assert.deepEqual(aftermath, { unsettled: true, outage: true });
  assert.deepEqual([fake.streams.length, alone(fake)], [1, []]);
});

test("a call that a full session refused is made again by itself, and the session goes on", async (t) => {
  const { fake, caller } = await calling(t);
  await caller.inSession();
  const full = status(14, "OVERLOADED", "max_session_calls");
  fake.carry = (call, stream) => answer(stream, call, { case: "error", value: full });
  assert.equal(fencing(await caller.begin("a")), 7n);
  fake.refuse = ({ request }) => (request.key === "b" ? refusal(7, "ACCESS_DENIED") : "held");
  const { error, aftermath } = await failure(caller.begin("b"), CallFailed);
  assert.deepEqual([error?.reason, aftermath.unsettled], ["ACCESS_DENIED", false]);
  fake.carry = (call, stream) => answer(stream, call);
  await caller.begin("c");
  assert.deepEqual([fake.streams.length, fake.carried.length, alone(fake)], [1, 3, ["a", "b"]]);
});

for (const [code, reason, outage] of [
  [14, "DRAINING", true],
  [16, "CREDENTIALS_EXPIRED", false],
] as const) {
  test(`${reason} in a session ${outage ? "may be" : "is not"} part of an outage, and nothing was carried out`, async (t) => {
    const { fake, caller } = await calling(t);
    await caller.inSession();
    fake.carry = (call, stream) => answer(stream, call, { case: "error", value: status(code, reason) });
    const away = refusal(14, "DRAINING");
    // There is no time for that, so it is called once.
    away.metadata.set("grpc-retry-pushback-ms", "60000");
    fake.refuse = () => away;
    const { aftermath } = await failure(caller.begin("a"), CallFailed);
    assert.deepEqual(aftermath, { unsettled: false, outage });
  });
}

test("what is large goes by itself, and what is too many", async (t) => {
  const { fake, caller } = await calling(t);
  await caller.renew(new Uint8Array());
  for (let i = 0; i < 16; i += 1) {
    fake.refuse = ({ name }) => (name === "renew" ? "held" : undefined);
    caller.renew(new Uint8Array(), { total: 100_000, attempt: 100_000 }).catch(() => {});
  }
  await until(() => fake.unary.length === 17, "they are there");
  fake.refuse = () => undefined;
  const carries = () => fake.carried.length > 0;
  await until(() => caller.renew(new Uint8Array()).then(carries), "there is a session");
  const unary = fake.unary.length;
  await caller.renew(new Uint8Array(65_000));
  assert.equal(fake.unary.length, unary);
  await caller.renew(new Uint8Array(65_536));
  assert.equal(fake.unary.length, unary + 1);
  fake.carry = () => {};
  const carried = fake.carried.length;
  for (let i = 0; i < 512; i += 1) caller.renew(new Uint8Array()).catch(() => {});
  await until(() => fake.carried.length === carried + 512, "they are open");
  await caller.renew(new Uint8Array());
  assert.equal(fake.unary.length, unary + 2);
});

test("what a server does not read does not pile up", async (t) => {
  const fake = await Fake.start(t);
  const connection = new grpc.Client(fake.address, grpc.credentials.createInsecure());
  t.after(() => connection.close());
  await new Promise((resolve) => connection.waitForReady(Date.now() + 3_000, resolve));
  const sessions = new Sessions(connection, new Clock());
  for (let i = 0; i < 16; i += 1) sessions.enter(undefined);
  await until(() => sessions.enter(undefined) !== undefined, "there is a session");
  fake.streams[0]?.pause();
  const request = create(BeginRequestSchema, { key: "x".repeat(50_000) });
  let sent = 0;
  for (let round = 0; round < 5; round += 1) {
    const giveUp = new AbortController();
    const one = () => sessions.enter(undefined)?.call(begin, request, 100_000, giveUp.signal);
    const made = Array.from({ length: 200 }, one).filter((call) => call !== undefined);
    sent += made.length;
    // All are taken back, so that there is room for other calls, but none for what they have left.
    giveUp.abort();
    await Promise.all(made.map((call) => failure(call, Error)));
  }
  assert.ok(sent > 200 && sent < 520, `${sent}`);
  fake.streams[0]?.resume();
  await until(() => sessions.enter(undefined) !== undefined, "there is room again");
  sessions.close();
});

test("what cannot be written fails as without a session", async (t) => {
  const { fake, caller } = await calling(t);
  const unfit = create(BeginRequestSchema, { key: "a", fingerprint: "none" as never });
  const fail = () => failure(caller.transport.call("waiting", begin, unfit, PATIENCE), CallFailed);
  const before = await fail();
  assert.match(before.message, /serializ/);
  await caller.inSession();
  assert.equal((await fail()).message, before.message);
  await caller.begin("b");
  assert.deepEqual([fake.streams.length, alone(fake)], [1, []]);
});

/** Runs of a client that are in sessions, when they have begun. */
async function runs(test: TestContext) {
  const fake = await Fake.start(test);
  const client = connect(test, fake.address);
  await client.once("first").run(() => 1);
  const end = gate();
  let begun = 0;
  const work = () => {
    begun += 1;
    return end.promise;
  };
  const all = Array.from({ length: 40 }, (_, i) => client.once(`${i}`).run(work));
  await until(() => begun === 40 && fake.streams.length === 1, "they have begun");
  return { fake, client, all, end };
}

test("closing a client ends its sessions, once what its work has come to is stored there", async (t) => {
  const { fake, client, all, end } = await runs(t);
  const closed = client.close();
  end.open();
  assert.equal((await Promise.all(all)).length, 40);
  assert.equal(await closed, true);
  await until(() => fake.streams.every(({ left }) => left === "half-closed"), "they are ended");
});

test("a claim that nobody heard of in a session is given back", async (t) => {
  const { fake, client, end, all } = await runs(t);
  const carried = () => fake.carried.filter(({ call }) => call.case === "begin");
  fake.carry = () => {};
  const giveUp = new AbortController();
  const run = client.once("k", { signal: giveUp.signal }).run(() => assert.fail("it ran"));
  await until(() => carried().length === 1, "its Begin is under way");
  fake.carry = (call, stream) => answer(stream, call);
  giveUp.abort(new Error("enough"));
  assert.equal((await failure(run, Error)).message, "enough");
  await until(() => fake.unary.some(({ name }) => name === "release"), "its claim is given back");
  const [first, again] = carried().map(({ call }) => call.value as { requestId: string });
  assert.equal(again?.requestId, first?.requestId);
  end.open();
  await Promise.all(all);
});
