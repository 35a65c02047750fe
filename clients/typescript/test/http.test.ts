import assert from "node:assert/strict";
import { once } from "node:events";
import { createConnection } from "node:net";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { type TestContext, test } from "node:test";
import { Client } from "onced";
import { claimOf, decide, idempotency } from "onced/express";
import { type Asked, answer, ask, counting, FRAMEWORKS, type Handler, type Start, send } from "./http.js";
import { gate, Relay, Server, until } from "./support.js";

async function connect(t: TestContext, options = {}): Promise<{ client: Client; relay: Relay; server: Server }> {
  const server = await Server.start(t);
  const relay = await Relay.start(t, server);
  const client = new Client(relay.address, options);
  t.after(() => client.close(0));
  return { client, relay, server };
}

/** More than a connection takes, until the caller is gone and for a while after. */
async function* endless(gone: Promise<void>): AsyncGenerator<Buffer> {
  let left = 100;
  void gone.then(() => {
    left = Math.min(left, 5);
  });
  for (; left > 0; left -= 1) yield Buffer.alloc(1_000_000);
}

/** Breaks off after its first piece. */
async function* failing(): AsyncGenerator<string> {
  yield "begun";
  throw new Error("boom");
}

/** A test of each framework. */
function each(what: string, check: (t: TestContext, start: Start) => Promise<void>): void {
  for (const [name, start] of Object.entries(FRAMEWORKS)) test(`${name}: ${what}`, (t) => check(t, start));
}

each(`a replay is the same, byte for byte`, async (t, start) => {
  const { client } = await connect(t);
  const body = Buffer.from([0, 255, 10, 13, 128]);
  const headers = {
    "content-type": "application/x-thing",
    location: "/orders/17",
    etag: '"7"',
    link: ['</a>; rel="a"', '</b>; rel="b"'],
    "cache-control": "no-store",
    "x-asked-for": "yes",
    "x-not-asked-for": "no",
  };
  const handler = counting(({ send }) => send(201, headers, body));
  const port = await start(t, client, handler, { headers: ["X-Asked-For"] });
  const first = await ask(port, { key: "k", body: "{}" });
  const second = await ask(port, { key: '"k"', body: "{}" });
  assert.equal(handler.runs, 1);
  assert.deepEqual([first.status, first.body, first.headers["x-not-asked-for"]], [201, body, "no"]);
  assert.equal(first.headers["idempotent-replayed"], undefined);
  assert.deepEqual([second.status, second.body, second.headers["x-not-asked-for"]], [201, body, undefined]);
  assert.equal(second.headers["idempotent-replayed"], "true");
  for (const header of ["content-type", "location", "etag", "link", "cache-control", "x-asked-for"]) {
    assert.equal(second.headers[header], first.headers[header], header);
  }
});

each(`the handler reads the body as if nobody had`, async (t, start) => {
  const { client } = await connect(t);
  const handler = counting(({ body, send }) => send(200, {}, JSON.stringify(body ?? "none")));
  const port = await start(t, client, handler);
  const bodies: [string, Asked, string][] = [
    ["whole", { body: '{"n":1}' }, '{"n":1}'],
    ["chunks", { body: ['{"n"', ":", "2}"] }, '{"n":2}'],
    ["long", { body: `{"n":"${"x".repeat(90_000)}"}` }, `{"n":"${"x".repeat(90_000)}"}`],
  ];
  for (const [key, asked, expected] of bodies) {
    assert.equal((await ask(port, { key, ...asked })).body.toString(), expected);
    assert.equal((await ask(port, { key, ...asked })).headers["idempotent-replayed"], "true");
  }
  assert.equal(handler.runs, bodies.length);
  assert.equal((await ask(port, { key: "none" })).status, 200);
  const empty = await ask(port, { key: "empty chunks", body: [], headers: { "content-type": "text/plain" } });
  assert.equal(empty.status, 200);
});

each(`a key is one header, and one request`, async (t, start) => {
  const { client } = await connect(t);
  const handler = counting(({ send }) => send(200, {}, "ok"));
  const port = await start(t, client, handler, { maxRequestBytes: 100 });
  const refused: [Asked, number, string][] = [
    [{}, 400, "IDEMPOTENCY_KEY_MISSING"],
    [{ key: '"k' }, 400, "IDEMPOTENCY_KEY_INVALID"],
    [{ key: ["a", "b"] }, 400, "IDEMPOTENCY_KEY_INVALID"],
    [{ key: "k", body: `"${"x".repeat(99)}"` }, 413, "REQUEST_TOO_LARGE"],
    [{ key: "k", body: ['"', "x".repeat(50), "x".repeat(50), '"'] }, 413, "REQUEST_TOO_LARGE"],
  ];
  for (const [asked, status, code] of refused) {
    const got = await ask(port, asked);
    assert.deepEqual([got.status, got.code], [status, code]);
  }
  assert.equal(handler.runs, 0);
  assert.equal((await ask(port, { method: "GET" })).status, 200);
  assert.equal((await ask(port, { key: "k", body: "[1]" })).status, 200);
  for (const other of [{ body: "[2]" }, { path: "/orders?x" }, { method: "PATCH", body: "[1]" }]) {
    const got = await ask(port, { key: "k", ...other });
    assert.deepEqual([got.status, got.code], [422, "FINGERPRINT_MISMATCH"]);
  }
  assert.equal(handler.runs, 2);
});

each(`a key is that of its scope, and may be left out if that is said`, async (t, start) => {
  const { client } = await connect(t);
  const handler = counting(({ request, send }) => send(200, {}, `${claimOf(request)?.key}`));
  const port = await start(t, client, handler, { scope: "X-Tenant", required: false });
  const of = (tenant: string) => ({ key: '"k"', headers: { "x-tenant": tenant } });
  for (const tenant of ["a", "b", "a", "b"]) assert.equal((await ask(port, of(tenant))).status, 200);
  assert.equal(handler.runs, 2);
  assert.equal((await ask(port, of("a"))).body.toString(), "ca978112ca1bbdcafac231b39a23dc4d:k");
  const without = await ask(port, { key: "k" });
  assert.deepEqual([without.status, without.code], [400, "SCOPE_MISSING"]);
  const long = await ask(port, { key: "x".repeat(480), headers: { "x-tenant": "a" } });
  assert.equal(long.code, "IDEMPOTENCY_KEY_INVALID");
  for (const _ of [1, 2]) assert.equal((await ask(port, {})).status, 200);
  assert.equal(handler.runs, 4);
});

each(`a method is the same however it is written`, async (t, start) => {
  const { client } = await connect(t);
  const port = await start(t, client, ({ send }) => send(200, {}, "ok"), { methods: ["post"] });
  assert.equal((await ask(port, {})).code, "IDEMPOTENCY_KEY_MISSING");
});

each(`a duplicate waits, or is told to come again`, async (t, start) => {
  const { client } = await connect(t);
  const release = gate();
  const handler = counting(async ({ send }) => {
    await release.promise;
    return send(200, {}, "ok");
  });
  const port = await start(t, client, handler);
  const impatient = await start(t, client, handler, { wait: 0 });
  const first = ask(port, { key: "k" });
  await until(() => handler.runs === 1, "the handler runs");
  const second = ask(port, { key: "k" });
  const told = await ask(impatient, { key: "k" });
  assert.deepEqual([told.status, told.code, told.headers["retry-after"]], [409, "REQUEST_IN_PROGRESS", "1"]);
  release.open();
  assert.equal((await first).body.toString(), "ok");
  assert.equal((await second).headers["idempotent-replayed"], "true");
  assert.equal(handler.runs, 1);
});

for (const [how, by] of Object.entries<Handler>({
  "at once": ({ send }) => send(200, {}, "done"),
  "as a stream": ({ send }) => send(200, {}, Readable.from(["do", "ne"])),
  "through a pipeline": ({ response }) => pipeline(Readable.from(["do", "ne"]), response).catch(() => {}),
  "in pieces": ({ response }) => {
    response.write("do");
    response.end("ne");
  },
})) {
  each(`a handler whose caller hung up runs to its end, and its answer is stored: ${how}`, async (t, start) => {
    const { client, relay } = await connect(t);
    const release = gate();
    const hungUp = gate();
    let toldOf = 0;
    const handler = counting(async (exchange) => {
      exchange.request.on("aborted", () => (toldOf += 1)).on("close", () => (toldOf += 1));
      exchange.response.on("close", () => (toldOf += 1));
      exchange.request.socket.on("close", () => hungUp.open());
      await release.promise;
      assert.deepEqual([toldOf, exchange.response.destroyed, exchange.body], [0, false, { n: 1 }]);
      return by(exchange);
    });
    const port = await start(t, client, handler, { wait: 0 });
    const request = send(port, { key: "k", body: '{"n":1}' });
    request.on("error", () => {});
    await until(() => handler.runs === 1, "the handler runs");
    request.destroy();
    await hungUp.promise;
    assert.equal((await ask(port, { key: "k", body: '{"n":1}' })).code, "REQUEST_IN_PROGRESS");
    assert.equal(relay.count("Release"), 0);
    release.open();
    let again = await ask(port, { key: "k", body: '{"n":1}' });
    await until(async () => {
      again = await ask(port, { key: "k", body: '{"n":1}' });
      return again.code !== "REQUEST_IN_PROGRESS";
    }, "the answer is stored");
    assert.deepEqual([again.status, again.body.toString(), handler.runs], [200, "done", 1]);
    assert.equal(relay.count("Release"), 0);
  });
}

each("a parser that comes after the caller has hung up finds the body", async (t, start) => {
  const { client, relay } = await connect(t);
  const passed = gate();
  const release = gate();
  const handler = counting(({ body, send }) => send(200, {}, JSON.stringify(body ?? "none")));
  let waits = true;
  const port = await start(t, client, handler, {}, () => {
    passed.open();
    return waits ? release.promise : Promise.resolve();
  });
  const request = send(port, { key: "k", body: '{"n":1}' });
  request.on("error", () => {});
  await passed.promise;
  waits = false;
  request.destroy();
  // By the time that a later request was answered the server knows as well.
  await ask(port, { method: "GET" });
  release.open();
  await until(() => relay.count("Complete") === 1, "the answer is stored");
  assert.equal((await ask(port, { key: "k", body: '{"n":1}' })).body.toString(), '{"n":1}');
});

each(`an empty body that comes in one packet with its head keeps nobody waiting`, async (t, start) => {
  const { client } = await connect(t);
  const port = await start(t, client, ({ send }) => send(200, {}, "ok"));
  const socket = createConnection(port, "127.0.0.1");
  t.after(() => socket.destroy());
  const head = [
    "POST / HTTP/1.1",
    "Host: a",
    "Idempotency-Key: k",
    "Content-Type: text/plain",
    "Transfer-Encoding: chunked",
  ];
  socket.write(`${head.join("\r\n")}\r\n\r\n0\r\n\r\n`);
  const [answered] = (await once(socket, "data")) as [Buffer];
  assert.match(answered.toString(), /^HTTP\/1.1 200 /);
});

each(`a caller that hangs up before its turn takes none`, async (t, start) => {
  const { client, relay } = await connect(t);
  relay.fate = (method) => (method === "Begin" && relay.count("Begin") === 1 ? "hold" : "pass");
  const handler = counting(({ send }) => send(200, {}, "ok"));
  const port = await start(t, client, handler);
  const request = send(port, { key: "k" });
  request.on("error", () => {});
  await until(() => relay.count("Begin") === 1, "the Begin is under way");
  request.destroy();
  await until(() => relay.count("Release") === 1, "its claim is given back");
  assert.equal(handler.runs, 0);
  assert.equal((await ask(port, { key: "k" })).status, 200);
});

each(`what is not an outcome passes, and leaves the key as the rule says`, async (t, start) => {
  const { client } = await connect(t);
  const handler = counting(({ request, send }) => {
    const [, status = "", decision] = (request.url ?? "").split("/");
    if (decision) decide(request, decision as "store");
    if (status === "throw") throw new Error("boom");
    return send(Number(status), {}, "said");
  });
  const retries = await start(t, client, handler);
  const doubts = await start(t, client, handler, { onServerError: "in_doubt" });
  const cases: [port: number, path: string, status: number, then: string][] = [
    [retries, "/200", 200, "replayed"],
    [retries, "/302", 302, "replayed"],
    [retries, "/404", 404, "replayed"],
    [retries, "/401", 401, "ran"],
    [retries, "/429", 429, "ran"],
    [retries, "/503", 503, "ran"],
    [retries, "/throw", 500, "ran"],
    [doubts, "/503/", 503, "IN_DOUBT"],
    [doubts, "/throw/", 500, "IN_DOUBT"],
    [doubts, "/408", 408, "ran"],
    [doubts, "/500/store", 500, "replayed"],
    [doubts, "/502/retry", 502, "ran"],
    [retries, "/201/retry", 201, "ran"],
    [retries, "/202/in_doubt", 202, "IN_DOUBT"],
  ];
  for (const [port, path, status, then] of cases) {
    const before = handler.runs;
    const first = await ask(port, { key: path, path });
    assert.deepEqual([first.status, first.code, handler.runs], [status, undefined, before + 1], path);
    const second = await ask(port, { key: path, path });
    const replayed = second.headers["idempotent-replayed"] === "true" ? "replayed" : undefined;
    const came = second.code ?? replayed ?? (handler.runs === before + 2 ? "ran" : "?");
    assert.equal(came, then, path);
    if (then !== "IN_DOUBT") assert.deepEqual([second.status, second.body], [status, first.body], path);
  }
});

each(`an answer in pieces is held back, and one that breaks off is none`, async (t, start) => {
  const { client } = await connect(t);
  const handler = counting(({ request, response }) => {
    response.writeHead(201, { Location: "/x", ETag: '"1"' });
    response.write("one ");
    response.write(Buffer.from("two "));
    if (request.url === "/broken") throw new Error("boom");
    response.end("three", "utf8");
    assert.deepEqual([response.headersSent, response.writableEnded], [true, true]);
  });
  const port = await start(t, client, handler);
  for (const replayed of [undefined, "true"]) {
    const got = await ask(port, { key: "k" });
    assert.deepEqual([got.status, got.body.toString(), got.headers.location], [201, "one two three", "/x"]);
    assert.equal(got.headers["idempotent-replayed"], replayed);
  }
  for (const runs of [2, 3]) {
    const broken = await ask(port, { key: "b", path: "/broken" });
    assert.deepEqual([broken.status, broken.body.toString(), handler.runs], [500, "it failed: boom", runs]);
  }
});

each(`an answer that is destroyed is a failure, and goes by the rule`, async (t, start) => {
  const { client, relay } = await connect(t);
  const handler = counting(({ request, response, send }) => {
    const [, how, decision] = (request.url ?? "").split("/");
    if (decision) decide(request, decision as "store");
    if (handler.runs > 1) return send(200, {}, "again");
    if (how === "begun") response.write("begun");
    if (how === "failed") return pipeline(Readable.from(failing()), response).catch(() => {});
    return response.destroy();
  });
  const options = { wait: 300, log: () => {} };
  const retries = await start(t, client, handler, options);
  const doubts = await start(t, client, handler, { ...options, onServerError: "in_doubt" });
  const cases: [port: number, decision: string, then: string][] = [
    [retries, "", "again"],
    [doubts, "", "IN_DOUBT"],
    [doubts, "retry", "again"],
    // What is not there cannot be stored.
    [retries, "store", "IN_DOUBT"],
  ];
  for (const path of ["/destroyed", "/begun", "/failed"]) {
    for (const [port, decision, then] of cases) {
      const asked = { key: `${port}${path}/${decision}`, path: `${path}/${decision}` };
      handler.runs = 0;
      const released = relay.count("Release");
      await assert.rejects(ask(port, asked), asked.key);
      await until(() => relay.count("Release") > released, "the claim is given back");
      const again = await ask(port, asked);
      assert.equal(again.code ?? again.body.toString(), then, asked.key);
    }
  }
});

each(`a handler that ends the connection, and not its answer, runs to its end`, async (t, start) => {
  const { client, relay } = await connect(t);
  const release = gate();
  const handler = counting(async ({ request, send }) => {
    request.socket.destroy();
    await release.promise;
    return send(200, {}, "done");
  });
  const port = await start(t, client, handler, { wait: 0 });
  await assert.rejects(ask(port, { key: "k" }));
  assert.equal((await ask(port, { key: "k" })).code, "REQUEST_IN_PROGRESS");
  release.open();
  await until(() => relay.count("Complete") === 1, "the answer is stored");
  assert.equal((await ask(port, { key: "k" })).body.toString(), "done");
  assert.deepEqual([handler.runs, relay.count("Release")], [1, 0]);
});

each(`an answer that cannot be stored is refused, and its key is in doubt`, async (t, start) => {
  const { client } = await connect(t);
  const open = gate();
  const handler = counting(async ({ request, response, send }) => {
    switch (request.url) {
      case "/large":
        return send(200, {}, "x".repeat(101));
      case "/pieces":
        for (let n = 0; n < 11; n += 1) response.write("x".repeat(10));
        return response.end();
      case "/events":
        response.writeHead(200, { "Content-Type": "text/event-stream" });
        response.write("data: 1\n\n");
        await open.promise;
        response.write("data: 2\n\n");
        return response.end();
      default:
        return send(200, { location: "/\xe9" }, "");
    }
  });
  const port = await start(t, client, handler, { maxResponseBytes: 100, log: () => {} });
  for (const path of ["/large", "/pieces", "/events", "/latin1"]) {
    const got = await ask(port, { key: path, path });
    assert.deepEqual([got.status, got.code], [500, "RESPONSE_NOT_STORABLE"], path);
    assert.equal(got.headers.location, undefined);
    assert.equal((await ask(port, { key: path, path })).code, "IN_DOUBT", path);
  }
  open.open();
  assert.equal(handler.runs, 4);
});

each(`what is not stored passes, however large it is`, async (t, start) => {
  const { client, relay } = await connect(t);
  const handler = counting(({ send }) =>
    send(503, {}, Readable.from(["x".repeat(80), "y".repeat(80), "z".repeat(80)])),
  );
  const port = await start(t, client, handler, { maxResponseBytes: 100 });
  const got = await ask(port, { key: "k" });
  const expected = "x".repeat(80) + "y".repeat(80) + "z".repeat(80);
  assert.deepEqual([got.status, got.body.toString()], [503, expected]);
  assert.equal(relay.count("Release"), 1);
  assert.equal((await ask(port, { key: "k" })).status, 503);
  assert.equal(handler.runs, 2);
});

each(`a caller that hangs up while an answer passes does not keep the key from others`, async (t, start) => {
  const { client, relay } = await connect(t);
  const handler = counting(({ request, send }) => {
    const more = handler.runs === 1 ? Readable.from(endless(hungUp.promise)) : "short";
    request.socket.on("close", () => hungUp.open());
    return send(503, {}, more);
  });
  const hungUp = gate();
  const port = await start(t, client, handler, { maxResponseBytes: 100 });
  const request = send(port, { key: "k" });
  request.on("error", () => {});
  await once(request, "response");
  request.destroy();
  await until(() => relay.count("Release") === 1, "the key is free once the handler has ended");
  assert.equal((await ask(port, { key: "k" })).body.toString(), "short");
});

each(`without onced nothing runs, unless that is said`, async (t, start) => {
  const { client, server } = await connect(t, { timeout: 500 });
  const handler = counting(({ request, send }) => send(200, {}, `${claimOf(request)?.protected}`));
  const closed = await start(t, client, handler);
  const opened = await start(t, client, handler, { failOpen: 200 });
  assert.equal((await ask(closed, { key: "a", body: "{}" })).body.toString(), "true");
  await server.kill();
  const refused = await ask(closed, { key: "b", body: "{}" });
  assert.deepEqual([refused.status, refused.code, refused.headers["retry-after"]], [503, "UNAVAILABLE", "1"]);
  assert.equal(handler.runs, 1);
  assert.equal((await ask(opened, { key: "b", body: "{}" })).body.toString(), "false");
  assert.deepEqual([handler.runs, client.unprotected], [2, 1]);
});

each(`an answer that is not known to be stored is handed out, and a refusal of onced is logged`, async (t, start) => {
  const { client, relay } = await connect(t, { timeout: 300 });
  const handler = counting(({ send }) => send(200, {}, "done"));
  const port = await start(t, client, handler, { lockTtl: 2_000 });
  relay.fate = (method) => (method === "Complete" ? { code: 14 } : "pass");
  assert.equal((await ask(port, { key: "a" })).body.toString(), "done");
  const told: unknown[] = [];
  const refused = await start(t, client, handler, { namespace: "NOT VALID", log: (text) => told.push(text) });
  relay.fate = () => "pass";
  const got = await ask(refused, { key: "a" });
  assert.deepEqual([got.status, got.code, told.length], [500, "REFUSED", 1]);
  assert.equal(handler.runs, 1);
});

test("an outcome that is no answer of HTTP is not replayed", async (t) => {
  const { client } = await connect(t);
  await client.once("k").run(() => 1);
  const handler = counting(({ send }) => send(200, {}, "ok"));
  const port = await (FRAMEWORKS["Express 5"] as Start)(t, client, handler, { log: () => {} });
  const got = await ask(port, { key: "k" });
  assert.deepEqual([got.status, got.code, handler.runs], [500, "REFUSED", 0]);
});

test("a stale handler's answer is not handed out", async (t) => {
  const { client, relay, server } = await connect(t);
  const other = new Client(server.address);
  t.after(() => other.close(0));
  const release = gate();
  const handler = counting(async ({ send }) => {
    await release.promise;
    return send(200, {}, "stale");
  });
  const port = await (FRAMEWORKS["Express 5"] as Start)(t, client, handler, { lockTtl: 2_000 });
  relay.fate = (method) => (method === "Renew" ? { code: 14 } : "pass");
  const stale = ask(port, { key: "k" });
  await until(() => handler.runs === 1, "the handler runs");
  const { attempt } = await other.once("k", { wait: Number.POSITIVE_INFINITY }).run(() => 1);
  assert.equal(attempt, 2);
  release.open();
  const got = await stale;
  assert.deepEqual([got.status, got.code, got.headers["retry-after"]], [409, "CLAIM_LOST", "1"]);
});

test("a body that another middleware has read has to be kept for this one", async (t) => {
  const { client } = await connect(t);
  const { default: express } = await import("express");
  const { createServer } = await import("node:http");
  const read = express();
  read.use(express.json(), idempotency(client), (_request, response) => response.send("ran"));
  const kept = express();
  const verify = (request: object, _response: unknown, body: Buffer) => Object.assign(request, { rawBody: body });
  kept.use(express.json({ verify }), idempotency(client), (_request, response) => response.send("ran"));
  const ports = [];
  for (const app of [read, kept]) {
    const server = createServer(app).listen(0, "127.0.0.1");
    await once(server, "listening");
    t.after(() => server.close());
    ports.push((server.address() as { port: number }).port);
  }
  const [unread = 0, good = 0] = ports;
  const refused = await ask(unread, { key: "k", body: "{}" });
  assert.equal(refused.status, 500);
  assert.match(refused.body.toString(), /in front of body parsers/);
  assert.equal((await answer(send(good, { key: "k", body: "{}" }))).body.toString(), "ran");
});
