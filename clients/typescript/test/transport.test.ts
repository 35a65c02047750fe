import assert from "node:assert/strict";
import dns from "node:dns";
import { once } from "node:events";
import { writeFileSync } from "node:fs";
import { createServer, type Socket } from "node:net";
import { type TestContext, test } from "node:test";
import { status } from "@grpc/grpc-js";
import { Client, type ClientOptions, InvalidError, NotBegunError } from "onced";
import { isLoopback } from "../build/access.js";
import { certificates, connect, directory, gate, Relay, Server } from "./support.js";

async function refusal(client: Client, failOpen?: number): Promise<NotBegunError> {
  const run = client.once("k", { wait: 0, failOpen }).run(() => assert.fail("it ran"));
  const error: unknown = await run.catch((error: unknown) => error);
  assert.ok(error instanceof NotBegunError, String(error));
  return error;
}

test("addresses are checked before anything is sent", () => {
  for (const good of [
    "127.0.0.1:7411",
    "http://onced.internal:7411",
    "[::1]:7411",
    "https://onced:443",
    ["a:1", " b:2"],
  ]) {
    assert.ok(new Client(good));
  }
  const bad: [string | string[], RegExp][] = [
    ["127.0.0.1", /port/],
    ["etcd://127.0.0.1:1", /HOST:PORT/],
    ["not an address", /HOST:PORT/],
    ["http://a:1/path", /HOST:PORT/],
    ["a:0", /port/],
    ["a:70000", /port/],
    ["", /at least one/],
    [[], /at least one/],
  ];
  for (const [address, why] of bad) {
    assert.throws(
      () => new Client(address),
      (error) => error instanceof InvalidError && why.test(error.message),
    );
  }
});

test("without an address the environment has it", async (t) => {
  const server = await Server.start(t);
  process.env["ONCED_SERVER"] = server.address;
  t.after(() => delete process.env["ONCED_SERVER"]);
  const client = new Client();
  t.after(() => client.close());
  assert.equal((await client.once("k").run(() => 1)).value, 1);
});

test("what a client is to show is checked before anything is sent", (t) => {
  const dir = certificates(t);
  const invalid: [string, ClientOptions, RegExp][] = [
    ["localhost:1", { caFile: `${dir}/ca.crt` }, /https:/],
    ["https://localhost:1", { caFile: `${dir}/none` }, /none/],
    ["https://localhost:1", { caFile: `${dir}/ca.key` }, /no certificate/],
    ["https://localhost:1", { certFile: `${dir}/caller.crt` }, /together/],
    ["https://localhost:1", { certFile: `${dir}/caller.crt`, keyFile: `${dir}/server.key` }, /cannot be used/],
    ["localhost:1", { tokenFile: `${dir}/none` }, /none/],
    ["localhost:1", { token: "" }, /empty/],
    ["localhost:1", { token: "a\nb" }, /one line/],
    ["localhost:1", { token: "a", tokenFile: "b" }, /both/],
    ["onced:1", { token: "t" }, /for all to read/],
    ["https://onced:1,onced:2", { token: "t" }, /for all to read/],
    ["localhost:1", { timeout: 0 }, /timeout/],
  ];
  for (const [address, options, why] of invalid) {
    assert.throws(
      () => new Client(address, options),
      (error) => error instanceof InvalidError && why.test(error.message),
      why.source,
    );
  }
  assert.ok(new Client("onced:1", { token: "t", allowTokenInPlaintext: true }));
});

test("loopback is told from the network", () => {
  for (const here of ["127.0.0.1", "127.9.9.9", "[::1]", "localhost"]) assert.ok(isLoopback(here), here);
  for (const there of ["10.0.0.1", "onced", "[2001:db8::1]", "0.0.0.0", "localhost.example.com", "[::]"]) {
    assert.ok(!isLoopback(there), there);
  }
});

test("when a server dies the next one is asked", async (t) => {
  const first = await Relay.start(t, await Server.start(t));
  const other = await Server.start(t);
  const second = await Relay.start(t, other);
  const client = connect(t, [first.address, second.address]);
  await client.once("k").run(() => 1);
  const [used, spare] = first.seen.length > 0 ? [first, second] : [second, first];
  assert.deepEqual(spare.seen, []);
  used.fate = () => ({ code: status.UNAVAILABLE });
  assert.equal((await client.once("again").run(() => 2)).ranHere, true);
  assert.deepEqual(spare.seen, ["Begin", "Complete"]);
  const asked = used.seen.length;
  await client.once("stays").run(() => 3);
  assert.equal(used.seen.length, asked);
});

test("a server that does not take connections is passed over", async (t) => {
  const server = await Server.start(t);
  const client = connect(t, ["127.0.0.1:1", server.address]);
  for (const key of ["a", "b", "c"]) assert.equal((await client.once(key).run(() => key)).value, key);
});

test("a server that takes connections and says nothing is passed over", async (t) => {
  const sockets: Socket[] = [];
  const mute = createServer((socket) => sockets.push(socket)).listen(0, "127.0.0.1");
  await once(mute, "listening");
  t.after(() => {
    mute.close();
    for (const socket of sockets) socket.destroy();
  });
  const { port } = mute.address() as { port: number };
  const server = await Server.start(t);
  const client = connect(t, [`127.0.0.1:${port}`, server.address]);
  for (const key of ["a", "b"]) assert.equal((await client.once(key).run(() => key)).value, key);
});

test("the longest pushback of a round is kept, whichever server asked for it", async (t) => {
  const server = await Server.start(t);
  const relays = [await Relay.start(t, server), await Relay.start(t, server)];
  const client = connect(
    t,
    relays.map((relay) => relay.address),
    { timeout: 5_000 },
  );
  for (const relay of relays)
    relay.fate = () => ({ code: status.UNAVAILABLE, pushback: relay === relays[0] ? "60000" : "1" });
  // There is no time for a minute, so the call ends after one round.
  const error = await refusal(client);
  assert.equal(error.cause.unavailable, true);
  assert.deepEqual(
    relays.map((relay) => relay.seen.length),
    [1, 1],
  );
});

test("a pushback that is no number ends the call", async (t) => {
  const relay = await Relay.start(t, await Server.start(t));
  const client = connect(t, relay.address);
  relay.fate = () => ({ code: status.UNAVAILABLE, pushback: "-1" });
  assert.equal((await refusal(client)).cause.unavailable, false);
  assert.equal(relay.seen.length, 1);
});

test("holders have a connection of their own", async (t) => {
  const server = await Server.start(t, "--limits-connections", "2");
  const client = connect(t, server.address);
  const begun = gate();
  const end = gate();
  const held = client.once("k", { wait: 0 }).run(async (claim) => {
    await claim.saveCheckpoint(new Uint8Array([1]));
    begun.open();
    await end.promise;
    return 1;
  });
  await begun.promise;
  // Both places are taken by one client: one connection that waits, one that holds.
  const stranger = connect(t, server.address, { timeout: 300 });
  assert.equal((await refusal(stranger)).cause.unavailable, true);
  end.open();
  assert.equal((await held).value, 1);
});

test("TLS: the server is known by its CA and its name", async (t) => {
  const dir = certificates(t);
  const ca = { caFile: `${dir}/ca.crt`, timeout: 600_000 };
  const server = await Server.start(t, "--tls-cert", `${dir}/server.crt`, "--tls-key", `${dir}/server.key`);
  const stranger = await Server.start(t, "--tls-cert", `${dir}/stranger.crt`, "--tls-key", `${dir}/stranger.key`);
  assert.equal(
    (
      await connect(t, `https://localhost:${server.port}`, ca)
        .once("k")
        .run(() => 1)
    ).value,
    1,
  );
  const wrong: [string, ClientOptions, RegExp][] = [
    [`https://${server.address}`, { ...ca, caFile: `${dir}/other-ca.crt` }, /caFile/],
    [`https://${server.address}`, { timeout: 600_000 }, /caFile/],
    [`https://${stranger.address}`, ca, /other names/],
    [server.address, { timeout: 600_000 }, /https:/],
  ];
  for (const [address, options, advice] of wrong) {
    // At once, and not when the time is up; and an error of whoever set it up is no outage.
    const client = connect(t, address, options);
    assert.match((await refusal(client)).message, advice);
    assert.match((await refusal(client, 1)).message, advice);
    assert.equal(client.unprotected, 0);
  }
});

test("TLS to a port without is told so, and is no outage", async (t) => {
  const dir = certificates(t);
  const server = await Server.start(t);
  const client = connect(t, `https://${server.address}`, { caFile: `${dir}/ca.crt`, timeout: 600_000 });
  assert.match((await refusal(client)).message, /http:\/\//);
  assert.match((await refusal(client, 1)).message, /http:\/\//);
  assert.equal(client.unprotected, 0);
});

test("what is set up wrong at one server is no outage, though the other one is away", async (t) => {
  const dir = certificates(t);
  const server = await Server.start(t);
  const servers = [`https://${server.address}`, "https://127.0.0.1:1"];
  const client = connect(t, servers, { caFile: `${dir}/ca.crt` });
  for (let round = 0; round < 4; round += 1) await refusal(client, 1);
  assert.equal(client.unprotected, 0);
});

test("what comes to be set up wrong is no outage either", async (t) => {
  const dir = certificates(t);
  const server = await Server.start(t);
  const client = connect(t, server.address, { timeout: 1_000 });
  await client.once("before").run(() => 1);
  await server.kill();
  await Server.start(
    t,
    "--listen",
    server.address,
    "--tls-cert",
    `${dir}/server.crt`,
    "--tls-key",
    `${dir}/server.key`,
  );
  const error = await refusal(client, 1_000);
  assert.match(error.message, /https:/);
  assert.equal(client.unprotected, 0);
});

/** Makes looking up names fail with `code`; or hang without one. */
function misname(t: TestContext, code: string | undefined): void {
  const failed = Object.assign(new Error(`getaddrinfo ${code}`), { code });
  t.mock.method(dns.promises, "lookup", () => (code === undefined ? new Promise(() => {}) : Promise.reject(failed)));
}

for (const code of ["ENOTFOUND", "EAI_AGAIN"]) {
  test(`a name that was never found is no outage: ${code}`, async (t) => {
    misname(t, code);
    const client = connect(t, "onced.invalid:7411", { timeout: 300 });
    const error = await refusal(client, 300);
    assert.match(error.message, /Name resolution failed/);
    assert.equal(client.unprotected, 0);
  });
}

for (const code of ["ENOTFOUND", "EAI_AGAIN", undefined]) {
  test(`a name that was right once, and is found no more, is an outage: ${code ?? "no answer"}`, async (t) => {
    const server = await Server.start(t);
    const client = connect(t, `localhost:${server.port}`);
    await client.once("before").run(() => 1);
    misname(t, code);
    await server.kill();
    assert.equal((await client.once("k", { failOpen: 300 }).run(() => 1)).protected, false);
  });
}

test("name servers that do not answer are an outage", async (t) => {
  misname(t, undefined);
  const client = connect(t, "onced.invalid:7411");
  assert.equal((await client.once("k", { failOpen: 300 }).run(() => 1)).protected, false);
});

test("mutual TLS: who has no certificate that is taken is told so", async (t) => {
  const dir = certificates(t);
  const tls = ["--tls-cert", `${dir}/server.crt`, "--tls-key", `${dir}/server.key`];
  const server = await Server.start(t, ...tls, "--tls-client-ca", `${dir}/ca.crt`, "--tls-client-auth", "required");
  const address = `https://${server.address}`;
  const shown = (name: string) => ({
    caFile: `${dir}/ca.crt`,
    certFile: `${dir}/${name}.crt`,
    keyFile: `${dir}/${name}.key`,
  });
  assert.equal(
    (
      await connect(t, address, shown("caller"))
        .once("k")
        .run(() => 1)
    ).value,
    1,
  );
  assert.match((await refusal(connect(t, address, shown("other-caller")))).message, /client_ca/);
  assert.match((await refusal(connect(t, address, { caFile: `${dir}/ca.crt` }))).message, /certFile/);
});

/** A token, and the line of the server's file that takes it. */
const TOKENS = {
  one: "onced_qtEIZOnfaBzenIT3Qyi6whkDfyuPr5sVjaNkqw6IE_8",
  line: "orders = sha256:8e32d25fb66869b000bf28c03f150582952515457b9bcead6326ba37cfd8fa98",
};

test("a token is shown, and read again from its file when it is refused", async (t) => {
  const dir = directory(t);
  writeFileSync(`${dir}/tokens`, `${TOKENS.line}\n`);
  const server = await Server.start(t, "--access-tokens", `${dir}/tokens`);
  assert.equal(
    (
      await connect(t, server.address, { token: TOKENS.one })
        .once("k")
        .run(() => 1)
    ).value,
    1,
  );
  assert.equal((await refusal(connect(t, server.address))).reason, "CREDENTIALS_MISSING");
  const wrong = connect(t, server.address, { token: "onced_no-token" });
  assert.equal((await refusal(wrong, 1)).reason, "CREDENTIALS_INVALID");
  assert.equal(wrong.unprotected, 0);
  writeFileSync(`${dir}/token`, "onced_no-token\n");
  const client = connect(t, server.address, { tokenFile: `${dir}/token` });
  assert.equal((await refusal(client)).reason, "CREDENTIALS_INVALID");
  writeFileSync(`${dir}/token`, `${TOKENS.one}\n`);
  assert.equal((await client.once("k").run(() => assert.fail("it ran twice"))).value, 1);
});
