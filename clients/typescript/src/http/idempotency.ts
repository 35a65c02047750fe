/** The Idempotency-Key header for any server of Node's http module: what the middleware of each framework calls. */

import type { IncomingMessage, ServerResponse } from "node:http";

import type { Claim } from "../claim.js";
import type { Client } from "../client.js";
import {
  ClaimLostError,
  FailedError,
  Failure,
  InDoubtError,
  InProgressError,
  InvalidError,
  messageOf,
  NotBegunError,
  NotStoredError,
  type Rule,
} from "../errors.js";
import type { RunOptions } from "../once.js";
import type { OutcomeCodec } from "../outcomes.js";
import { type Answer, answers, fingerprintOf, keyIn, type ProblemCode, problem, scopedKey } from "./contract.js";
import { type Ending, Recorder, sendAnswer } from "./recorder.js";
import { readBody, shield } from "./request.js";

/** Settings of the middleware. All times are in milliseconds, all sizes in bytes. */
export interface IdempotencyOptions<Request = IncomingMessage> {
  /** The methods that it is for. Default: POST and PATCH. All others pass. */
  methods?: readonly string[];
  /** Whether a request without the header is refused; else it passes. Default: yes. */
  required?: boolean;
  /** The namespace of the keys. Default: `default`. */
  namespace?: string;
  /**
   * Whose key it is, so that two tenants may use the same one: a function of the request, or the name of a header. The
   * same when the request is repeated: an account or tenant, never `Authorization`. Default: all share their keys.
   */
  scope?: string | ((request: Request) => string | undefined | Promise<string | undefined>);
  /** How long a duplicate waits for the answer; 0 answers at once. Default: 10 s. */
  wait?: number;
  /** How long a claim lives without a renewal, 2 s to 1 h: how soon others take over from a crash. Default: the namespace's. */
  lockTtl?: number;
  /** How long answers are kept, at least, 1 min to 31 d. Default: the namespace's. */
  retention?: number;
  /** What becomes of a key if this process dies while the handler runs. Default: the namespace's. */
  onLapse?: "take_over" | "hold";
  /** What becomes of a key when the handler throws or answers 5xx. Default: `retry`. */
  onServerError?: Rule;
  /** Headers of answers that are stored besides the default ones. */
  headers?: readonly string[];
  /** The largest body of a request. Default: 1 MiB. */
  maxRequestBytes?: number;
  /** The largest body of an answer. Default: what the claim allows. */
  maxResponseBytes?: number;
  /** Runs the handler without a claim if no server of onced has answered for so long. Default: never. */
  failOpen?: number;
  /** Told why a request was answered REFUSED. Default: console.error. */
  log?: (message: string, error: unknown) => void;
}

/** What a handler says of its answer: it is the outcome, or what becomes of the key instead. */
export type Decision = "store" | Rule;

/** A request, bare or as Fastify has it. */
type AnyRequest = IncomingMessage | { raw: IncomingMessage };

interface Handling {
  readonly claim: Claim;
  decision?: Decision;
}

const handlings = new WeakMap<IncomingMessage, Handling>();

/** The claim that a request is handled under; undefined if it passed without one. */
export function claimOf(request: AnyRequest): Claim | undefined {
  return handlings.get(bare(request))?.claim;
}

/** Says what becomes of the answer to this request, whatever its status. To be called before it is sent. */
export function decide(request: AnyRequest, decision: Decision): void {
  const handling = handlings.get(bare(request));
  if (handling) handling.decision = decision;
}

function bare(request: AnyRequest): IncomingMessage {
  return "raw" in request ? request.raw : request;
}

/** These say that the request was not looked at, and free the key whatever the rule. */
const NOT_LOOKED_AT: ReadonlySet<number> = new Set([401, 408, 425, 429]);

/** How the handler ended, where its answer is not the outcome. */
class NotStored extends Error {
  constructor(readonly ending: Ending) {
    super(describe(ending));
  }
}

/** One request on its way. */
export interface Exchange<Request> {
  readonly request: IncomingMessage;
  readonly response: ServerResponse;
  /** The path and query as they were sent. */
  readonly target: string;
  /** The request as the framework has it, for the scope. */
  readonly framed: Request;
  /** Lets the handler have it. */
  next(): void;
  /** Told before this middleware answers by itself. */
  answering?(): void;
}

export class Idempotency<Request> {
  readonly #client: Client;
  readonly #options: IdempotencyOptions<Request>;
  readonly #run: RunOptions;
  readonly #methods: ReadonlySet<string>;
  readonly #codec: OutcomeCodec<Answer>;

  constructor(client: Client, options: IdempotencyOptions<Request>) {
    const { methods = ["POST", "PATCH"], headers = [], onServerError: onFailure = "retry", wait = 10_000 } = options;
    const { namespace, lockTtl, retention, onLapse, failOpen } = options;
    this.#client = client;
    this.#options = options;
    // As they stand in requests: one in small letters would match none, and take the key from all.
    this.#methods = new Set(methods.map((method) => method.toUpperCase()));
    this.#codec = answers(headers);
    this.#run = { namespace, wait, lockTtl, retention, onLapse, onFailure, failOpen };
    // What is wrong with them shows now, and not with the first request.
    client.onceBy("", this.#run, this.#codec);
  }

  /** Handles a request. Fails if it cannot: the framework then answers. */
  async handle(exchange: Exchange<Request>): Promise<void> {
    const { request } = exchange;
    if (!this.#methods.has(request.method ?? "")) return exchange.next();
    const header = request.headersDistinct["idempotency-key"];
    if (header === undefined && this.#options.required === false) return exchange.next();
    const key = await this.#keyOf(exchange, header);
    if (typeof key !== "string") return refuse(exchange, key);
    const { maxRequestBytes: limit = 1_048_576 } = this.#options;
    const body = await readBody(request, limit);
    if (body === "gone") return;
    if (body === "large") {
      return refuse(exchange, problem("REQUEST_TOO_LARGE", `the body may have ${limit} bytes at most`));
    }
    const unshield = shield(request);
    try {
      await this.#once(exchange, key, fingerprintOf(request.method ?? "", exchange.target, body));
    } finally {
      unshield();
    }
  }

  /** The key in onced; or why there is none. */
  async #keyOf({ request, framed }: Exchange<Request>, header: string[] | undefined): Promise<string | Answer> {
    if (header === undefined)
      return problem("IDEMPOTENCY_KEY_MISSING", "send one with each request, and the same one again with a retry");
    const key = header.length === 1 ? keyIn(header[0] ?? "") : undefined;
    const invalid = "it is to be one quoted string, or the bare text, of 1 to 512 printable ASCII characters";
    if (key === undefined) return problem("IDEMPOTENCY_KEY_INVALID", invalid);
    const { scope: wanted } = this.#options;
    if (wanted === undefined) return key;
    const named = typeof wanted === "string" ? request.headersDistinct[wanted.toLowerCase()] : undefined;
    const scope = typeof wanted === "string" ? only(named) : await wanted(framed);
    if (!scope) {
      const what = typeof wanted === "string" ? `the header ${wanted}` : "what says whose key it is";
      return problem("SCOPE_MISSING", `${what} is missing`);
    }
    return scopedKey(scope, key) ?? problem("IDEMPOTENCY_KEY_INVALID", "it is to have 479 characters at most");
  }

  async #once(exchange: Exchange<Request>, key: string, fingerprint: Uint8Array): Promise<void> {
    const { response } = exchange;
    const gone = new AbortController();
    const hangUp = () => gone.abort();
    let recorder: Recorder | undefined;
    // A caller that hangs up before the handler has begun wants nothing any more. After that it is not asked.
    response.once("close", hangUp);
    const work = async (claim: Claim): Promise<Answer> => {
      response.off("close", hangUp);
      return this.#handle(exchange, claim, (made) => {
        recorder = made;
      });
    };
    const send = (answer: Answer) => (recorder ? recorder.sendInstead(answer) : refuse(exchange, answer));
    try {
      const run = this.#client.onceBy(key, { ...this.#run, fingerprint, signal: gone.signal }, this.#codec);
      const done = await run.run(work);
      if (recorder) recorder.sendOwn(done.value);
      else if (done.protected) replay(exchange, done.value);
    } catch (error) {
      if (gone.signal.aborted) return;
      const own = ownAnswer(error);
      if (own && recorder) recorder.sendOwn(own);
      else send(this.#problemOf(error));
    } finally {
      response.off("close", hangUp);
    }
  }

  /** Lets the handler run, and waits for its answer. */
  async #handle(exchange: Exchange<Request>, claim: Claim, made: (recorder: Recorder) => void): Promise<Answer> {
    const { request, response } = exchange;
    const handling: Handling = { claim };
    handlings.set(request, handling);
    if (!claim.protected) {
      exchange.next();
      // Nothing is stored, and nobody asks.
      return { status: 0, headers: new Map(), body: new Uint8Array() };
    }
    const decision = (status: number): Decision => handling.decision ?? this.#decision(status);
    const limit = Math.min(this.#options.maxResponseBytes ?? Number.POSITIVE_INFINITY, claim.maxOutcomeBytes);
    const recorder = new Recorder(response, limit, (status) => decision(status) === "store");
    made(recorder);
    exchange.next();
    const ending = await recorder.ended;
    const status = ending.how === "answered" ? ending.answer.status : ending.how === "passed" ? ending.status : 500;
    const decided = ending.how === "unstorable" ? "in_doubt" : decision(status);
    if (ending.how === "answered" && decided === "store") return ending.answer;
    const notStored = new NotStored(ending);
    throw decided === "retry" ? Failure.retry(notStored) : Failure.inDoubt(notStored);
  }

  #decision(status: number): Decision {
    if (NOT_LOOKED_AT.has(status)) return "retry";
    return status >= 500 ? (this.#options.onServerError ?? "retry") : "store";
  }

  /** What the caller is told of an error of the run. */
  #problemOf(error: unknown): Answer {
    const detail = messageOf(error instanceof FailedError ? error.cause : error);
    const code = problemCode(error);
    if (code === "REFUSED" || code === "RESPONSE_NOT_STORABLE") {
      const { log = console.error } = this.#options;
      log(`onced: a request was answered ${code}: ${detail}`, error);
      // What onced said is for the operator.
      if (code === "REFUSED") return problem(code, "the service that keeps the keys refused; the log says why");
    }
    return problem(code, detail);
  }
}

function problemCode(error: unknown): ProblemCode {
  if (error instanceof InProgressError) return "REQUEST_IN_PROGRESS";
  if (error instanceof InDoubtError) return "IN_DOUBT";
  if (error instanceof NotBegunError) {
    if (error.reason === "FINGERPRINT_MISMATCH") return "FINGERPRINT_MISMATCH";
    return error.cause.unavailable ? "UNAVAILABLE" : "REFUSED";
  }
  const unstorable = error instanceof FailedError || error instanceof ClaimLostError ? error.cause : undefined;
  if (error instanceof FailedError || unstorable instanceof NotStored) return "RESPONSE_NOT_STORABLE";
  return error instanceof ClaimLostError ? "CLAIM_LOST" : "REFUSED";
}

/** The handler's own answer, where it is handed out although it is not stored. */
function ownAnswer(error: unknown): Answer | undefined {
  // The work was done.
  if (error instanceof NotStoredError) return error.outcome as Answer;
  const cause = error instanceof FailedError || error instanceof ClaimLostError ? error.cause : undefined;
  const ending = cause instanceof NotStored ? cause.ending : undefined;
  if (ending?.how === "answered") return ending.answer;
  return ending?.how === "passed" ? { status: ending.status, headers: new Map(), body: new Uint8Array() } : undefined;
}

function describe(ending: Ending): string {
  switch (ending.how) {
    case "answered":
      return `the handler answered ${ending.answer.status}`;
    case "passed":
      return `the handler answered ${ending.status}`;
    default:
      return ending.why;
  }
}

function replay(exchange: Exchange<unknown>, answer: Answer): void {
  exchange.answering?.();
  exchange.response.setHeader("Idempotent-Replayed", "true");
  sendAnswer(exchange.response, answer);
}

function refuse(exchange: Exchange<unknown>, answer: Answer): void {
  exchange.answering?.();
  sendAnswer(exchange.response, answer);
}

function only(values: string[] | undefined): string | undefined {
  return values?.length === 1 ? values[0] : undefined;
}

/** Refuses what this cannot do, before anything has run. */
export function assertHttp1(request: IncomingMessage): void {
  if (request.httpVersionMajor >= 2)
    throw new InvalidError("this middleware is for HTTP/1.1: it cannot hold back answers of HTTP/2");
}
