import assert from "node:assert/strict";
import { type TestContext, test } from "node:test";
import {
  type Claim,
  ClaimLostError,
  Client,
  Clock,
  type Codec,
  codecs,
  FailedError,
  Failure,
  FinalError,
  InDoubtError,
  InProgressError,
  InvalidError,
  NotBegunError,
  NotStoredError,
  UnreadableError,
} from "onced";
import { connect, failure, gate, Relay, relayed, Server, until } from "./support.js";

async function one(test: TestContext): Promise<Client> {
  return connect(test, (await Server.start(test)).address);
}

test("duplicates get what the work returned", async (t) => {
  const client = await one(t);
  const begun = gate();
  const release = gate();
  const first = client.once("k", { owner: "first" }).run(async (claim) => {
    begun.open();
    await release.promise;
    return { attempt: claim.attempt, protects: claim.protected, of: [claim.namespace, claim.key] };
  });
  await begun.promise;
  const second = client.once("k").run(() => assert.fail("it ran twice"));
  release.open();
  const done = await first;
  assert.deepEqual(done.value, { attempt: 1, protects: true, of: ["default", "k"] });
  assert.deepEqual([done.ranHere, done.owner, done.attempt, done.protected], [true, "first", 1, true]);
  assert.equal(typeof done.token, "bigint");
  assert.ok(done.completedAt && done.expiresAt && done.expiresAt > done.completedAt);
  const replay = await second;
  assert.deepEqual(replay, { ...done, ranHere: false });
});

test("a key that is used for another request is refused", async (t) => {
  const client = await one(t);
  await client.once("k", { fingerprint: "one" }).run(() => 1);
  const error = await failure(
    client.once("k", { fingerprint: "two" }).run(() => 2),
    NotBegunError,
  );
  assert.equal(error.reason, "FINGERPRINT_MISMATCH");
  assert.equal(error.cause.unavailable, false);
});

test("work that fails gives its key back by the rule", async (t) => {
  const client = await one(t);
  const boom = new Error("boom");
  const plain = await failure(
    client.once("a").run(() => {
      throw boom;
    }),
    FailedError,
  );
  assert.deepEqual([plain.rule, plain.released, plain.cause], ["retry", true, boom]);
  const second = await client.once("a").run((claim) => claim.attempt);
  assert.equal(second.value, 2);
  const doubt = await failure(
    client.once("b", { onFailure: "in_doubt" }).run(() => Promise.reject(boom)),
    FailedError,
  );
  assert.equal(doubt.rule, "in_doubt");
  const error = await failure(
    client.once("b").run(() => 1),
    InDoubtError,
  );
  assert.match(error.reason, /boom/);
  assert.ok(error.token > 0n);
  const said = await failure(
    client.once("c", { onFailure: "in_doubt" }).run(() => Promise.reject(Failure.retry(boom))),
    FailedError,
  );
  assert.deepEqual([said.rule, said.cause], ["retry", boom]);
});

test("a final error is everybody's", async (t) => {
  const client = await one(t);
  const thrown = new FinalError(9, "no funds");
  const here = await failure(
    client.once("k").run(() => Promise.reject(thrown)),
    FinalError,
  );
  assert.deepEqual([here.status, here.message, here.cause], [9, "no funds", thrown]);
  assert.deepEqual([here.ranHere, here.attempt], [true, 1]);
  const elsewhere = await failure(
    client.once("k").run(() => 1),
    FinalError,
  );
  assert.deepEqual([elsewhere.status, elsewhere.message, elsewhere.ranHere], [9, "no funds", false]);
  assert.throws(() => new FinalError(0, "fine"), InvalidError);
});

test("a final error of another key is no outcome unless the work says so", async (t) => {
  const client = await one(t);
  const thrown = new FinalError(9, "no funds");
  const inner = () => client.once("inner").run(() => Promise.reject(thrown));
  for (const replayed of [false, true]) {
    const failed = await failure(client.once("outer").run(inner), FailedError);
    assert.ok(failed.cause instanceof FinalError && failed.cause.ranHere === !replayed);
  }
  assert.equal((await client.once("outer").run(() => 1)).value, 1);
  // The same error of the work's own, though another run has ended with it.
  const own = await failure(
    client.once("own").run(() => Promise.reject(thrown)),
    FinalError,
  );
  assert.deepEqual([own.ranHere, own.message], [true, "no funds"]);
});

test("what cannot be stored leaves the key in doubt, whatever the rule", async (t) => {
  const client = await one(t);
  const unfit = await failure(
    client.once("a").run(() => 1n),
    FailedError,
  );
  assert.deepEqual([unfit.rule, unfit.released], ["in_doubt", true]);
  const large = await failure(
    client.once("b").run((claim) => "x".repeat(claim.maxOutcomeBytes)),
    FailedError,
  );
  assert.deepEqual([large.rule, large.released], ["in_doubt", true]);
  await failure(
    client.once("b").run(() => 1),
    InDoubtError,
  );
});

test("an outcome that cannot be encoded leaves the key in doubt, and a value and a final error are alike", async (t) => {
  const client = await one(t);
  for (const [key, encoded] of Object.entries({
    text: "text",
    promise: Promise.resolve(),
    words: new Uint16Array(2),
  })) {
    const codec = { ...codecs.bytes, encode: () => encoded } as unknown as Codec<Uint8Array>;
    const unfit = await failure(
      client.once(key, { codec }).run(() => new Uint8Array()),
      FailedError,
    );
    assert.deepEqual([unfit.rule, unfit.released], ["in_doubt", true]);
  }
  const malformed = new FinalError(9, "no funds", [{ typeUrl: "a", value: 5 } as never]);
  const final = await failure(
    client.once("final").run(() => Promise.reject(malformed)),
    FailedError,
  );
  assert.deepEqual([final.rule, final.released], ["in_doubt", true]);
  await failure(
    client.once("final").run(() => 1),
    InDoubtError,
  );
});

test("work may throw what cannot be shown", async (t) => {
  const client = await one(t);
  const unreadable = Object.defineProperty(new Error(), "message", {
    get() {
      throw new Error("no");
    },
  });
  for (const [key, thrown] of Object.entries({
    bare: Object.create(null),
    unreadable,
    number: Object.assign(new Error(), { message: 5 }),
  })) {
    const error = await failure(
      client.once(key).run(() => Promise.reject(thrown)),
      FailedError,
    );
    assert.deepEqual([error.cause, error.released], [thrown, true]);
  }
});

test("errors of work tell whose claim it was", async (t) => {
  const { relay, client } = await relayed(t, { timeout: 500, owner: "me" });
  let token = 0n;
  const keep = (claim: Claim) => {
    token = claim.token;
    return 1;
  };
  const failed = await failure(
    client.once("failed").run((claim) => Promise.reject(new Error(`${keep(claim)}`))),
    FailedError,
  );
  assert.deepEqual([failed.owner, failed.attempt, failed.token, failed.lost], ["me", 1, token, undefined]);
  relay.fate = (method) => (method === "Complete" ? { code: 14 } : "pass");
  const unknown = await failure(client.once("unknown", { lockTtl: 2_000 }).run(keep), NotStoredError);
  assert.deepEqual([unknown.owner, unknown.attempt, unknown.token], ["me", 1, token]);
  await relay.behind.kill();
  const open = await failure(
    client.once("open", { failOpen: 100 }).run(() => Promise.reject(new Error("boom"))),
    FailedError,
  );
  assert.deepEqual([open.owner, open.attempt, open.token], ["me", 0, 0n]);
});

test("values come back as they were, and are read by their own codec alone", async (t) => {
  const client = await one(t);
  const bytes = new Uint8Array([0, 255, 128]);
  await client.once("bytes", { codec: codecs.bytes }).run(() => bytes);
  const again = await client.once("bytes", { codec: codecs.bytes }).run(() => bytes);
  assert.deepEqual(Buffer.from(again.value), Buffer.from(bytes));
  await client.once("text", { codec: codecs.text }).run(() => "zwölf €");
  assert.equal((await client.once("text", { codec: codecs.text }).run(() => "")).value, "zwölf €");
  await client.once("nothing").run(() => undefined);
  assert.equal((await client.once("nothing").run(() => assert.fail())).value, null);
  const error = await failure(
    client.once("text").run(() => assert.fail()),
    UnreadableError,
  );
  assert.deepEqual([error.contentType, error.attempt], ["text/plain; charset=utf-8", 1]);
});

test("who waits no longer is told who holds the key", async (t) => {
  const client = await one(t);
  const release = gate();
  const begun = gate();
  const first = client.once("k", { owner: "first" }).run(() => {
    begun.open();
    return release.promise;
  });
  await begun.promise;
  const waits: string[] = [];
  const error = await failure(
    client.once("k", { wait: 1_200, onWait: ({ owner }) => waits.push(owner) }).run(() => 1),
    InProgressError,
  );
  assert.deepEqual([error.owner, error.attempt, waits], ["first", 1, ["first"]]);
  release.open();
  await first;
});

test("a checkpoint is handed to whoever comes next, and counted on from", async (t) => {
  const client = await one(t);
  const save = (data: string) => async (claim: Claim) => {
    const found = claim.checkpoint && Buffer.from(claim.checkpoint).toString();
    await claim.saveCheckpoint(Buffer.from(data));
    throw new Error(found ?? "none");
  };
  assert.match((await failure(client.once("k").run(save("one")), FailedError)).message, /none/);
  assert.match((await failure(client.once("k").run(save("two")), FailedError)).message, /one/);
  assert.match((await failure(client.once("k").run(save("three")), FailedError)).message, /two/);
});

test("a lock that ended on this machine's clock is lost, and its outcome is stored all the same", async (t) => {
  const server = await Server.start(t);
  const relay = await Relay.start(t, server);
  let slept = 0;
  const clock = new Clock(() => ({ monotonic: performance.now(), wall: Date.now() + slept }));
  const client = connect(t, relay.address, { clock });
  const done = await client.once("k", { lockTtl: 30_000 }).run(async (claim) => {
    assert.equal(claim.lost, undefined);
    assert.ok(claim.lockLeft > 0 && claim.lockLeft <= 30_000);
    relay.fate = (method) => (method === "Renew" ? "hold" : "pass");
    slept = 31_000;
    await until(() => claim.signal.aborted, "the lock ends");
    assert.ok(claim.signal.reason instanceof ClaimLostError);
    assert.deepEqual([claim.lost, claim.lockLeft], ["lock_ended", 0]);
    return 1;
  });
  assert.deepEqual([done.value, done.ranHere], [1, true]);
});

test("a claim is renewed, and one that was taken over sends nothing", async (t) => {
  const { relay, client, direct } = await relayed(t);
  const kept = gate();
  const stolen = gate();
  const run = client.once("k", { lockTtl: 2_000 }).run(async (claim) => {
    await until(() => relay.count("Renew") >= 2, "it is renewed twice");
    assert.equal(claim.lost, undefined);
    relay.fate = (method) => (method === "Renew" ? { code: 14 } : "pass");
    kept.open();
    await stolen.promise;
    relay.fate = () => "pass";
    await until(() => claim.lost === "taken_over", "it is told who has the key");
    return "stale";
  });
  await kept.promise;
  const other = await direct.once("k", { wait: Number.POSITIVE_INFINITY }).run((claim) => {
    stolen.open();
    return claim.attempt;
  });
  assert.equal(other.value, 2);
  const error = await failure(run, ClaimLostError);
  assert.equal(error.lost, "taken_over");
  assert.deepEqual([error.attempt, error.token > 0n && error.token < other.token, error.owner !== ""], [1, true, true]);
  assert.deepEqual([relay.count("Complete"), relay.count("Release")], [0, 0]);
});

test("a Complete whose answer was lost is repeated, and one that nobody confirms never releases", async (t) => {
  const { relay, client, direct } = await relayed(t, { timeout: 1_000 });
  let lost = 1;
  relay.fate = (method) => (method === "Complete" && lost-- > 0 ? "lose" : "pass");
  assert.equal((await client.once("a").run(() => 1)).ranHere, true);
  assert.equal(relay.count("Complete"), 2);
  relay.fate = (method) => (method === "Complete" ? "lose" : "pass");
  const error = await failure(
    client.once("b", { lockTtl: 2_000 }).run(() => 2),
    NotStoredError,
  );
  assert.equal(error.outcome, 2);
  assert.equal(relay.count("Release"), 0);
  assert.equal((await direct.once("b").run(() => 3)).value, 2);
});

test("a caller that gives up before it has begun runs nothing, and gives back what it never heard of", async (t) => {
  const { relay, client, direct } = await relayed(t);
  relay.fate = (method) => (method === "Begin" && relay.count("Begin") === 1 ? "hold" : "pass");
  const giveUp = new AbortController();
  const run = client.once("k", { signal: giveUp.signal, lockTtl: 3_600_000 }).run(() => assert.fail("it ran"));
  await until(() => relay.count("Begin") === 1, "the Begin is under way");
  giveUp.abort(new Error("enough"));
  assert.equal((await failure(run, Error)).message, "enough");
  await until(() => relay.count("Release") === 1, "the claim is given back");
  assert.equal((await direct.once("k").run((claim) => claim.attempt)).value <= 2, true);
  await failure(
    client.once("k", { signal: AbortSignal.abort(new Error("before")) }).run(() => assert.fail()),
    Error,
  );
});

test("a caller that gives up while the work runs leaves it its claim, and its outcome is stored", async (t) => {
  const { relay, client, direct } = await relayed(t);
  const giveUp = new AbortController();
  const begun = gate();
  const release = gate();
  const run = client.once("k", { signal: giveUp.signal }).run(async (claim) => {
    begun.open();
    await release.promise;
    assert.equal(claim.lost, undefined);
    return "done";
  });
  await begun.promise;
  giveUp.abort();
  assert.equal((await failure(run, Error)).name, "AbortError");
  await failure(
    direct.once("k", { wait: 0 }).run(() => 1),
    InProgressError,
  );
  release.open();
  assert.equal((await direct.once("k").run(() => assert.fail())).value, "done");
  assert.equal(relay.count("Release"), 0);
});

test("closing waits for work and for its Complete, and begins nothing more", async (t) => {
  const { relay, client, direct } = await relayed(t);
  const begun = gate();
  const release = gate();
  const run = client.once("k").run(async () => {
    begun.open();
    await release.promise;
    return 1;
  });
  await begun.promise;
  const waits = client.once("other", { wait: Number.POSITIVE_INFINITY });
  assert.equal(await client.close(0), false);
  const closed = await failure(
    waits.run(() => assert.fail()),
    NotBegunError,
  );
  assert.match(closed.message, /closed/);
  let lost = 1;
  relay.fate = (method) => (method === "Complete" && lost-- > 0 ? "lose" : "pass");
  const closing = client.close(Number.MAX_SAFE_INTEGER);
  release.open();
  assert.equal(await closing, true);
  assert.equal((await run).value, 1);
  assert.equal((await direct.once("k").run(() => assert.fail())).value, 1);
});

test("closing gives back the claim of a Begin that nobody heard of", async (t) => {
  const { relay, client } = await relayed(t);
  relay.fate = (method) => (method === "Begin" && relay.count("Begin") === 1 ? "hold" : "pass");
  const run = client.once("k").run(() => assert.fail("it ran"));
  await until(() => relay.count("Begin") === 1, "the Begin is under way");
  const closing = client.close();
  assert.match((await failure(run, NotBegunError)).message, /closed/);
  assert.equal(await closing, true);
  assert.equal(relay.count("Release"), 1);
});

test("a client is closed at the end of its block", async (t) => {
  const server = await Server.start(t);
  let outside: Client;
  {
    await using client = new Client(server.address);
    outside = client;
    await client.once("k").run(() => 1);
  }
  await failure(
    outside.once("k").run(() => 1),
    NotBegunError,
  );
});

test("options that cannot be used are refused at once", async (t) => {
  const client = await one(t);
  for (const options of [
    { wait: -1 },
    { lockTtl: Number.NaN },
    { retention: Number.POSITIVE_INFINITY },
    { failOpen: -5 },
  ]) {
    assert.throws(() => client.once("k", options), InvalidError);
  }
  const error = await failure(
    client.once("k", { lockTtl: 1 }).run(() => 1),
    NotBegunError,
  );
  assert.equal(error.reason, "TTL_OUT_OF_RANGE");
});
