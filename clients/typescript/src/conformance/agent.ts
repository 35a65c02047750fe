/** The agent that the conformance driver plays scenarios with: commands in, answers and events out, one a line. */

import { createInterface } from "node:readline";
import type { Claim, Client, Codec } from "../index.js";
import * as onced from "../index.js";

type Json = Record<string, unknown>;
/** How the work of a run ends. */
type End = (work: { returns: unknown } | { throws: unknown }) => void;

interface Run {
  readonly codec: string;
  readonly giveUp: AbortController;
  claim?: Claim;
  end?: End | undefined;
}

/** A command that cannot be carried out. */
class Refused extends Error {
  constructor(
    readonly kind: string,
    message: string,
  ) {
    super(message);
  }
}

const clients = new Map<string, Client>();
const runs = new Map<string, Run>();
const CODECS: Record<string, Codec<unknown>> = {
  json: onced.codecs.json,
  bytes: onced.codecs.bytes as Codec<unknown>,
  text: onced.codecs.text as Codec<unknown>,
};
/** How often a claim is looked at, to tell when it is lost, in milliseconds. */
const LOOK = 20;

const COMMANDS: Record<string, (command: Json) => Promise<Json> | Json> = {
  connect(command) {
    const client = new onced.Client(optional(command["servers"]), {
      caFile: optional(command["ca"]),
      certFile: optional(command["cert"]),
      keyFile: optional(command["key"]),
      token: optional(command["token"]),
      tokenFile: optional(command["token_file"]),
      timeout: optional(command["timeout"]),
      owner: optional(command["owner"]),
    });
    clients.set(String(command["client"]), client);
    return {};
  },
  run(command) {
    start(command);
    return {};
  },
  finish(command) {
    const run = runOf(command);
    if (!run.end) throw new Refused("unknown", "no work of this run waits to be ended");
    run.end(endOf(command, run));
    run.end = undefined;
    return {};
  },
  async checkpoint(command) {
    await claimOf(command).saveCheckpoint(Buffer.from(String(command["data"]), "base64"));
    return {};
  },
  claim(command) {
    const claim = claimOf(command);
    const { token, attempt, lockLeft: left, lost = null } = claim;
    return { token: `${token}`, attempt: `${attempt}`, left, lost, protected: claim.protected };
  },
  cancel(command) {
    runOf(command).giveUp.abort();
    return {};
  },
  fingerprint(command) {
    return { digest: Buffer.from(digest(command)).toString("hex") };
  },
  counts(command) {
    return { unprotected: clientOf(command).unprotected };
  },
  async close(command) {
    await clientOf(command).close(Number(command["patience"]));
    return {};
  },
};

function start(command: Json): void {
  const name = String(command["run"]);
  const codec = String(command["codec"] ?? "json");
  const run: Run = { codec, giveUp: new AbortController() };
  const fingerprint = optional<string>(command["fingerprint"]);
  const once = clientOf(command).once(String(command["key"]), {
    namespace: optional(command["namespace"]),
    fingerprint: fingerprint === undefined ? undefined : Buffer.from(fingerprint, "base64"),
    lockTtl: optional(command["lock_ttl"]),
    wait: command["wait"] === null ? Number.POSITIVE_INFINITY : optional(command["wait"]),
    retention: optional(command["retention"]),
    onLapse: optional(command["on_lapse"]),
    onFailure: optional(command["on_failure"]),
    owner: optional(command["owner"]),
    failOpen: optional(command["fail_open"]),
    codec: CODECS[codec],
    signal: run.giveUp.signal,
  });
  runs.set(name, run);
  once
    .run((claim) => work(name, run, claim))
    .then(
      ({ value, ranHere: ran_here, owner, attempt, token, ...rest }) => {
        const told = { ran_here, owner, attempt: `${attempt}`, token: `${token}`, protected: rest.protected };
        ended(name, { result: "done", value: shown(codec, value), ...told });
      },
      (error: unknown) => ended(name, failure(error)),
    );
}

/** Waits to be told how to end, whatever becomes of the claim. */
async function work(name: string, run: Run, claim: Claim): Promise<unknown> {
  run.claim = claim;
  let told: string | undefined;
  const look = setInterval(() => {
    if (claim.lost !== undefined && claim.lost !== told) write({ event: "lost", run: name, why: claim.lost });
    told = claim.lost;
  }, LOOK);
  const end = new Promise<Parameters<End>[0]>((resolve) => {
    run.end = resolve;
  });
  const { token, attempt, checkpoint } = claim;
  const saved = checkpoint === undefined ? null : Buffer.from(checkpoint).toString("base64");
  const event = { run: name, token: `${token}`, attempt: `${attempt}`, checkpoint: saved };
  write({ event: "started", ...event, protected: claim.protected });
  const ends = await end;
  clearInterval(look);
  if ("throws" in ends) throw ends.throws;
  return ends.returns;
}

function endOf(command: Json, { codec }: Run): Parameters<End>[0] {
  const { value, fail, message, final, panic } = command;
  const error = new Error(String(message ?? panic ?? ""));
  if (final !== undefined) {
    const { code, message: text } = final as { code: number; message: string };
    return { throws: new onced.FinalError(code, text) };
  }
  if (fail === "retry") return { throws: onced.Failure.retry(error) };
  if (fail === "in_doubt") return { throws: onced.Failure.inDoubt(error) };
  if (fail !== undefined || panic !== undefined) return { throws: error };
  return { returns: codec === "bytes" ? Buffer.from(String(value), "base64") : value };
}

function ended(run: string, result: Json): void {
  write({ event: "ended", run, ...result });
}

function shown(codec: string, value: unknown): unknown {
  return codec === "bytes" ? Buffer.from(value as Uint8Array).toString("base64") : (value ?? null);
}

/** What an error has, by the names of the contract. */
function failure(error: unknown): Json {
  if (!(error instanceof onced.OncedError)) return { result: "cancelled", message: String(error) };
  const had = error as onced.OncedError & Json;
  const { reason, owner, attempt, token, rule, released, lost, status, ranHere, message } = had;
  return {
    result: had.code,
    message,
    ...(reason !== undefined && { reason }),
    ...(owner !== undefined && { owner }),
    ...(attempt !== undefined && { attempt: String(attempt) }),
    ...(token !== undefined && { token: String(token) }),
    ...(rule !== undefined && { rule }),
    ...(released !== undefined && { released }),
    ...(lost !== undefined && { lost }),
    ...(status !== undefined && { code: status }),
    ...(ranHere !== undefined && { ran_here: ranHere }),
  };
}

function digest(command: Json): Uint8Array {
  const text = String(command["text"]);
  switch (command["kind"]) {
    case "bytes":
      return onced.fingerprint.ofBytes(Buffer.from(String(command["data"]), "base64"));
    case "json":
      return onced.fingerprint.ofJsonText(text);
    case "fields":
      return onced.fingerprint.ofFieldsText(text, command["pointers"] as string[]);
    default:
      throw new Refused("unknown", `no fingerprint is called ${String(command["kind"])}`);
  }
}

/** The field of a command, if it has one. The driver keeps to the types. */
function optional<T>(field: unknown): T | undefined {
  return field === null ? undefined : (field as T | undefined);
}

function clientOf(command: Json): Client {
  const client = clients.get(String(command["client"]));
  if (!client) throw new Refused("unknown", "there is no client by that name");
  return client;
}

function runOf(command: Json): Run {
  const run = runs.get(String(command["run"]));
  if (!run) throw new Refused("unknown", "there is no run by that name");
  return run;
}

function claimOf(command: Json): Claim {
  const { claim } = runOf(command);
  if (!claim) throw new Refused("unknown", "the run has no claim");
  return claim;
}

function write(line: Json): void {
  process.stdout.write(`${JSON.stringify(line)}\n`);
}

async function answer(line: string): Promise<void> {
  const command = JSON.parse(line) as Json;
  const { id } = command;
  try {
    const carryOut = COMMANDS[String(command["do"])];
    if (!carryOut) throw new Refused("unknown", `nothing is called ${String(command["do"])}`);
    write({ id, ok: await carryOut(command) });
  } catch (error) {
    const { kind, code } = error as { kind?: string; code?: string };
    write({ id, error: { kind: kind ?? code ?? "unknown", message: String(error) } });
  }
}

createInterface({ input: process.stdin })
  .on("line", (line) => void answer(line))
  .on("close", () => process.exit());
