/** Real servers, certificates and a proxy for the tests. All of it is on the loopback, and ends with the test. */

import assert from "node:assert/strict";
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { TestContext } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import * as grpc from "@grpc/grpc-js";
import { Client, type ClientOptions } from "onced";

const BINARY = process.env["ONCED_BINARY"];
assert.ok(BINARY, "ONCED_BINARY is to name the program of the server");

/** A server of onced. */
export class Server {
  private constructor(
    readonly address: string,
    readonly child: ChildProcess,
  ) {}

  static async start(test: TestContext, ...flags: string[]): Promise<Server> {
    const listen = flags.includes("--listen") ? [] : ["--listen", "127.0.0.1:0"];
    const args = ["serve", ...listen, "--admin-listen", "off", "--store", "memory:", ...flags];
    const child = spawn(BINARY as string, args, { stdio: ["ignore", "pipe", "pipe"] });
    test.after(() => child.kill("SIGKILL"));
    let log = "";
    child.stderr.on("data", (text: Buffer) => {
      log += text.toString();
    });
    for await (const line of createInterface({ input: child.stdout })) {
      const address = /^listening on (.+)$/.exec(line)?.[1];
      if (!address) continue;
      child.stdout.resume();
      return new Server(address, child);
    }
    throw new Error(`the server did not start: ${log}`);
  }

  get port(): string {
    return this.address.split(":").at(-1) ?? "";
  }

  /** Ends it, as by kill -9. */
  async kill(): Promise<void> {
    this.child.kill("SIGKILL");
    if (this.child.exitCode === null && this.child.signalCode === null) await once(this.child, "exit");
  }
}

/** A directory of the test's own. */
export function directory(test: TestContext): string {
  const path = mkdtempSync(join(tmpdir(), "onced-"));
  test.after(() => rmSync(path, { recursive: true }));
  return path;
}

/** A CA and what it signed: `server` for localhost and 127.0.0.1, `stranger` for another name, `caller`; and another CA. */
export function certificates(test: TestContext): string {
  const dir = directory(test);
  const openssl = (...args: string[]) => execFileSync("openssl", args, { cwd: dir, stdio: "pipe" });
  const key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
  for (const ca of ["ca", "other-ca"]) {
    openssl("req", "-x509", ...key, "-days", "30", "-keyout", `${ca}.key`, "-out", `${ca}.crt`, "-subj", `/CN=${ca}`);
  }
  const names = {
    server: "DNS:localhost,IP:127.0.0.1",
    stranger: "DNS:elsewhere.example",
    caller: "URI:spiffe://prod/orders",
    "other-caller": "URI:spiffe://prod/orders",
  };
  for (const [name, alternatives] of Object.entries(names)) {
    const ca = name.startsWith("other") ? "other-ca" : "ca";
    writeFileSync(join(dir, "names"), `subjectAltName=${alternatives}`);
    openssl("req", ...key, "-keyout", `${name}.key`, "-out", `${name}.csr`, "-subj", `/CN=${name}`);
    const signed = ["-CA", `${ca}.crt`, "-CAkey", `${ca}.key`, "-CAcreateserial", "-days", "30", "-extfile", "names"];
    openssl("x509", "-req", "-in", `${name}.csr`, ...signed, "-out", `${name}.crt`);
  }
  return dir;
}

/** What befalls a call on its way. `lose`: it is carried out, and nobody hears of it. `hold`: its answer never comes. */
export type Fate = "pass" | "lose" | "hold" | { code: number; pushback?: string };

/** Stands in front of a server, sees each call, and says what befalls it. */
export class Relay {
  /** The calls that came, by method. */
  readonly seen: string[] = [];
  /** What they said. */
  readonly requests: Buffer[] = [];
  /** What befalls a call. */
  fate: (method: string) => Fate = () => "pass";
  readonly #server = new grpc.Server();
  address = "";

  private constructor(readonly behind: Server) {}

  static async start(test: TestContext, behind: Server): Promise<Relay> {
    const relay = new Relay(behind);
    const real = new grpc.Client(behind.address, grpc.credentials.createInsecure());
    const bytes = (message: Buffer) => message;
    const method = (name: string) => ({
      path: `/onced.v1.IdempotencyService/${name}`,
      requestStream: false,
      responseStream: false,
      requestSerialize: bytes,
      requestDeserialize: bytes,
      responseSerialize: bytes,
      responseDeserialize: bytes,
    });
    const names = ["Begin", "Complete", "Renew", "Release"];
    const service = Object.fromEntries(names.map((name) => [name, method(name)]));
    const handlers = names.map((name) => [name, relay.#handler(real, name)]);
    relay.#server.addService(service, Object.fromEntries(handlers) as grpc.UntypedServiceImplementation);
    const port = await new Promise<number>((resolve, reject) => {
      const insecure = grpc.ServerCredentials.createInsecure();
      relay.#server.bindAsync("127.0.0.1:0", insecure, (error, bound) => (error ? reject(error) : resolve(bound)));
    });
    relay.address = `127.0.0.1:${port}`;
    test.after(() => {
      relay.#server.forceShutdown();
      real.close();
    });
    return relay;
  }

  count(method: string): number {
    return this.seen.filter((name) => name === method).length;
  }

  #handler(real: grpc.Client, name: string): grpc.handleUnaryCall<Buffer, Buffer> {
    return (call, answer) => {
      this.seen.push(name);
      this.requests.push(call.request);
      const fate = this.fate(name);
      if (typeof fate === "object") {
        const trailers = new grpc.Metadata();
        if (fate.pushback !== undefined) trailers.set("grpc-retry-pushback-ms", fate.pushback);
        answer({ code: fate.code, details: "refused by the test", metadata: trailers });
        return;
      }
      const bytes = (message: Buffer) => message;
      const path = `/onced.v1.IdempotencyService/${name}`;
      const forwarded = real.makeUnaryRequest(path, bytes, bytes, call.request, (error, response) => {
        if (fate === "hold") return;
        if (fate === "lose") answer({ code: grpc.status.UNKNOWN, details: "lost by the test" });
        else answer(error, response);
      });
      call.on("cancelled", () => fate !== "hold" && forwarded.cancel());
    };
  }
}

/** A client that is closed when the test ends. */
export function connect(test: TestContext, servers: string | string[], options: ClientOptions = {}): Client {
  const client = new Client(servers, options);
  test.after(() => client.close(0));
  return client;
}

/** A client whose calls pass a relay, and one whose calls do not. */
export async function relayed(
  test: TestContext,
  options: ClientOptions = {},
): Promise<{ relay: Relay; client: Client; direct: Client }> {
  const server = await Server.start(test);
  const relay = await Relay.start(test, server);
  return { relay, client: connect(test, relay.address, options), direct: connect(test, server.address) };
}

/** What a run fails with. */
export async function failure<E extends Error>(run: Promise<unknown>, type: new (...args: never[]) => E): Promise<E> {
  const error: unknown = await run.then(
    (value) => assert.fail(`it came to ${JSON.stringify(value)}`),
    (error: unknown) => error,
  );
  assert.ok(error instanceof type, `it failed with ${String(error)}`);
  return error;
}

/** Waits until `condition` holds; a generous while. */
export async function until(condition: () => boolean | Promise<boolean>, what: string): Promise<void> {
  for (let round = 0; round < 3_000; round += 1) {
    if (await condition()) return;
    await pause(10);
  }
  assert.fail(`it never came to this: ${what}`);
}

/** A promise, and how to settle it. */
export function gate<T = void>(): { promise: Promise<T>; open: (value: T) => void } {
  let open: (value: T) => void = () => {};
  const promise = new Promise<T>((resolve) => {
    open = resolve;
  });
  return { promise, open };
}
