import assert from "node:assert/strict";
import { test } from "node:test";
import { fromBinary } from "@bufbuild/protobuf";
import { FailedError, InProgressError, NotBegunError } from "onced";
import { BeginRequestSchema } from "../build/generated/onced/v1/idempotency_service_pb.js";
import { connect, failure, gate, Relay, relayed, Server, until } from "./support.js";

test("an outage runs the work if the caller says so, and a known holder or a refusal is none", async (t) => {
  const server = await Server.start(t);
  const client = connect(t, server.address);
  const release = gate();
  const begun = gate();
  const held = client.once("held").run(() => {
    begun.open();
    return release.promise;
  });
  await begun.promise;
  await failure(
    client.once("held", { wait: 0, failOpen: 30_000 }).run(() => assert.fail()),
    InProgressError,
  );
  await failure(
    client.once("k", { namespace: "NOT VALID", failOpen: 30_000 }).run(() => assert.fail()),
    NotBegunError,
  );
  release.open();
  await held;
  await server.kill();
  const done = await client.once("k", { namespace: "shop", failOpen: 300 }).run(async (claim) => {
    await claim.saveCheckpoint(new Uint8Array([1]));
    const { namespace, key, token, attempt, checkpoint, lost } = claim;
    return [claim.protected, namespace, key, token, attempt, checkpoint, lost];
  });
  assert.deepEqual(done.value, [false, "shop", "k", 0n, 0, undefined, undefined]);
  assert.deepEqual([done.ranHere, done.protected, done.token, client.unprotected], [true, false, 0n, 1]);
  const failed = await failure(
    client.once("k", { failOpen: 300 }).run(() => Promise.reject(new Error("boom"))),
    FailedError,
  );
  assert.equal(failed.released, false);
});

test("a key that is known to be held is no outage when its server is gone later", async (t) => {
  const { relay, client, direct } = await relayed(t, { timeout: 500 });
  const release = gate();
  const begun = gate();
  const held = direct.once("k").run(() => {
    begun.open();
    return release.promise;
  });
  await begun.promise;
  const run = client.once("k", { failOpen: 30_000, wait: Number.POSITIVE_INFINITY }).run(() => assert.fail("it ran"));
  await until(() => relay.count("Begin") === 2, "it has been told who holds the key");
  // Who waits for the holder is not silent: as long as it may come to that, nobody is asked to wait.
  const [first, second] = relay.requests.map((request) => fromBinary(BeginRequestSchema, request));
  assert.deepEqual([first?.wait?.seconds, first?.wait?.nanos, second?.wait?.seconds], [0n, 0, 1n]);
  relay.fate = () => ({ code: 14 });
  await failure(run, NotBegunError);
  assert.equal(client.unprotected, 0);
  release.open();
  await held;
});

test("nothing runs without a claim before its time, whatever servers ask for", async (t) => {
  const { relay, client } = await relayed(t);
  relay.fate = () => ({ code: 14, pushback: "3600000" });
  const began = performance.now();
  const done = await client.once("k", { failOpen: 700 }).run(() => performance.now() - began);
  assert.equal(done.protected, false);
  assert.ok(done.value >= 699, `${done.value}`);
  const giveUp = new AbortController();
  const run = client.once("k", { failOpen: 1_000, signal: giveUp.signal }).run(() => assert.fail("it ran"));
  await until(() => relay.count("Begin") === 2, "it has asked");
  giveUp.abort(new Error("enough"));
  assert.equal((await failure(run, Error)).message, "enough");
  assert.equal(await client.close(), true);
  assert.equal(client.unprotected, 1);
});

test("a server that has said more than UNAVAILABLE is no outage, and is asked as long as without failing open", async (t) => {
  const { relay, client } = await relayed(t);
  for (const [code, key] of [
    [1, "cancelled"],
    [2, "unknown"],
  ] as const) {
    const began = performance.now();
    let first = true;
    relay.fate = () => {
      if (performance.now() - began > 900) return "pass";
      const fate = { code: first ? code : 14 };
      first = false;
      return fate;
    };
    assert.equal((await client.once(key, { failOpen: 300 }).run(() => 1)).protected, true);
  }
  assert.equal(client.unprotected, 0);
});

test("a server that hangs does not take the time before failing open from another one that answers", async (t) => {
  const server = await Server.start(t);
  const relays = [await Relay.start(t, server), await Relay.start(t, server)];
  const client = connect(
    t,
    relays.map((relay) => relay.address),
  );
  await client.once("before").run(() => 1);
  const used = relays.find((relay) => relay.seen.length > 0);
  assert.ok(used);
  used.fate = () => "hold";
  const done = await client.once("k", { failOpen: 1_500 }).run(() => 1);
  assert.deepEqual([done.protected, client.unprotected, used.count("Begin")], [true, 0, 2]);
});
