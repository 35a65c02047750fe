/** Run this function once for this key. */

import { randomUUID } from "node:crypto";
import { create, toBinary } from "@bufbuild/protobuf";
import { durationFromMs, timestampDate } from "@bufbuild/protobuf/wkt";
import { status as Status } from "@grpc/grpc-js";

import { ATTEMPT_TIME, type Claim, Held, of, unprotectedClaim } from "./claim.js";
import { type Clock, type Moment, sleep } from "./clock.js";
import {
  CallError,
  ClaimLostError,
  FailedError,
  Failure,
  FinalError,
  InDoubtError,
  InProgressError,
  InvalidError,
  messageOf,
  NotBegunError,
  NotStoredError,
  type Rule,
  UnreadableError,
} from "./errors.js";
import {
  type BeginRequest,
  BeginRequestSchema,
  type BeginResponse,
  CompleteRequestSchema,
  IdempotencyService,
} from "./generated/onced/v1/idempotency_service_pb.js";
import {
  type Completed,
  OnLapse,
  type Outcome,
  OutcomeSchema,
  type Claim as WireClaim,
} from "./generated/onced/v1/record_pb.js";
import { type OutcomeCodec, outcomeOfError } from "./outcomes.js";
import { CallFailed, type Patience, type Transport } from "./transport.js";

/** How long a duplicate waits for the outcome unless told otherwise, in milliseconds. */
const DEFAULT_WAIT = 60_000;
/**
 * The first wait is short, so that a record in doubt is told of soon and a long wait can be shown; each further one is
 * twice as long, up to the last.
 */
const FIRST_POLL = 1_000;
const LAST_POLL = 16_000;
/** The pause after an answer that came sooner than the wait it was asked for: it could make a busy loop. */
const EARLY_ANSWER_PAUSE = 500;

/** What an attempt is given at least, of the time before a run fails open: less would be an outage to who is only slow. */
const SHORTEST_SHARE = 100;

/** Settings of a run. All times are in milliseconds. */
export interface RunOptions {
  /** The namespace of the key. Default: `default`. */
  namespace?: string | undefined;
  /** A digest of the request, at most 64 bytes, so that the key used for another one is an error. Default: none. */
  fingerprint?: Uint8Array | string | undefined;
  /** How long the claim lives without a renewal, 2 s to 1 h: how soon others take over from a crash. Default: the namespace's. */
  lockTtl?: number | undefined;
  /** How long to wait while somebody else is at it; `Infinity` waits without end. Default: 60 s. */
  wait?: number | undefined;
  /** How long the outcome is kept, at least, 1 min to 31 d. Default: the namespace's. */
  retention?: number | undefined;
  /** What becomes of the key if this process dies while the work runs: the next caller takes over, or an operator looks. Default: the namespace's. */
  onLapse?: "take_over" | "hold" | undefined;
  /** What becomes of the key when the work fails without saying. Default: `retry`. */
  onFailure?: Rule | undefined;
  /** Who asks, shown to duplicates and operators, at most 256 bytes. Default: the client's owner. */
  owner?: string | undefined;
  /** Runs the work without a claim if no server has answered for so long. Default: never. */
  failOpen?: number | undefined;
  /**
   * The caller gives up: the run then fails at once with the signal's reason. Work that has begun is not stopped by
   * this: it goes on under its claim, and its outcome is stored when it ends. Work that listens to the same signal
   * and fails gives the claim back.
   */
  signal?: AbortSignal | undefined;
  /** Called now and then while somebody else is at it. */
  onWait?: ((holder: { owner: string; attempt: number }) => void) | undefined;
}

/** The key has its outcome. */
export interface Completion<T> {
  /** What the work returned: here, or where it ran. */
  readonly value: T;
  /** True if the work ran in this call; false if this is the outcome of another one. */
  readonly ranHere: boolean;
  /** Who completed it. */
  readonly owner: string;
  /** The attempt that completed; 0 if it was not protected. */
  readonly attempt: number;
  /** The fencing token that completed; 0 if it was not protected. */
  readonly token: bigint;
  /** False if the run failed open: the work ran without a claim, and nothing is stored. */
  readonly protected: boolean;
  /** When it was stored, by the storing server's clock. */
  readonly completedAt: Date | undefined;
  /** Until when, at least, it can be read. */
  readonly expiresAt: Date | undefined;
}

/** What a run needs of its client. */
export interface Host {
  readonly transport: Transport;
  readonly clock: Clock;
  /** How long a call is tried, beyond the wait it asks for, in milliseconds. */
  readonly timeout: number;
  readonly owner: string;
  /** Aborted when the client is closed. */
  readonly closing: AbortSignal;
  /** Keeps the connections until `task` has ended. */
  keepFor(task: Promise<unknown>): void;
  /** Counts a run that failed open. */
  failedOpen(): void;
}

/** Begun by a claim, or by an outcome that is there already. */
type Answered = { claim: Held } | { completed: Completed };
/** The same, or without any server. */
type Begun = Answered | "unprotected";
/** Somebody else is at it. */
type Busy = { holder: { owner: string; attempt: number }; sent: Moment };

/** The Begins of one run. */
interface Beginning {
  readonly request: BeginRequest;
  readonly giveUp: AbortSignal;
  /** One of them may have been given a claim that nobody has heard of. */
  unsettled: boolean;
}

/** A function to be run once for a key. Made by `Client.once`; each `run` is an attempt of its own. */
export class Once<C> {
  readonly #host: Host;
  readonly #namespace: string;
  readonly #key: string;
  readonly #options: RunOptions;
  readonly #codec: OutcomeCodec<C>;

  /** @internal */
  constructor(host: Host, key: string, options: RunOptions, codec: OutcomeCodec<C>) {
    for (const name of ["lockTtl", "wait", "retention", "failOpen"] as const) {
      const ms = options[name];
      const fits = ms === undefined || (ms >= 0 && (Number.isFinite(ms) || name === "wait"));
      if (!fits) throw new InvalidError(`${name} is a time in milliseconds, and cannot be ${ms}`);
    }
    this.#host = host;
    this.#namespace = options.namespace ?? "default";
    this.#key = key;
    this.#options = options;
    this.#codec = codec;
  }

  /**
   * Runs `work` if the key is the caller's, and stores what it returns; else returns what another call stored.
   *
   * @throws NotBegunError, InProgressError, InDoubtError, UnreadableError: the work did not run.
   * @throws FinalError: it failed for good, here or elsewhere.
   * @throws FailedError, ClaimLostError, NotStoredError: the work ran; they tell what became of the key.
   */
  run<T extends C>(work: (claim: Claim) => T | PromiseLike<T>): Promise<Completion<T>> {
    const running = this.#run(work);
    this.#host.keepFor(running);
    return untilAborted(running, this.#options.signal);
  }

  async #run<T extends C>(work: (claim: Claim) => T | PromiseLike<T>): Promise<Completion<T>> {
    this.#options.signal?.throwIfAborted();
    const begun = await this.#begin();
    if (begun === "unprotected") return this.#runUnprotected(work);
    if ("completed" in begun) {
      const { outcome } = begun.completed;
      if (!outcome) throw new NotBegunError(CallError.unknownAnswer("Begin"));
      return completion(begun.completed, this.#read(begun.completed, outcome) as T, false);
    }
    const { claim } = begun;
    try {
      let value: T;
      try {
        value = await work(claim);
      } catch (error) {
        if (isOwn(error)) return await this.#complete<T>(claim, () => outcomeOfError(error), error);
        const [rule, cause] =
          error instanceof Failure ? [error.rule, error.cause] : [this.#options.onFailure ?? "retry", error];
        throw await giveBack(claim, rule, cause);
      }
      return await this.#complete(claim, () => this.#codec.outcomeOf(value), value);
    } finally {
      claim.stop();
    }
  }

  #read(completed: Completed, outcome: Outcome): C {
    try {
      return this.#codec.valueOf(outcome);
    } catch (error) {
      if (error instanceof FinalError) throw told(error, completed, false);
      if (error instanceof UnreadableError) tell(error, completed);
      throw error;
    }
  }

  /** Begins and waits, with one request id, until the key is ours, has an outcome, or the wait is over. */
  async #begin(): Promise<Begun> {
    const { clock, closing, timeout } = this.#host;
    const { signal, onWait, failOpen, wait = DEFAULT_WAIT } = this.#options;
    const giveUp = new AbortController();
    const beginning: Beginning = { request: this.#request(), giveUp: giveUp.signal, unsettled: false };
    const began = clock.now();
    const unfollow = follow([signal, closing], giveUp);
    const busyFor = async ({ holder, sent }: Busy, poll: number) => {
      const early = Math.min(poll - clock.since(sent), EARLY_ANSWER_PAUSE);
      await sleep(early, giveUp.signal);
      if (clock.since(began) >= wait) throw new InProgressError(holder.owner, holder.attempt);
    };
    try {
      if (failOpen !== undefined) {
        const begun = await this.#beginOrOpen(beginning, failOpen);
        if (begun === "unprotected" || (begun && !("holder" in begun))) return begun;
        if (begun) await busyFor(begun, 0);
      }
      for (let longest = FIRST_POLL; ; longest = Math.min(longest * 2, LAST_POLL)) {
        const poll = Math.max(0, Math.min(longest, wait - clock.since(began)));
        const patience = { total: poll + timeout, attempt: poll + ATTEMPT_TIME };
        const begun = await this.#ask(beginning, poll, patience);
        if (!("holder" in begun)) return begun;
        await busyFor(begun, poll);
        onWait?.(begun.holder);
      }
    } catch (error) {
      if (!(error instanceof CallFailed)) throw error;
      if (beginning.unsettled) this.#host.keepFor(this.#askOnceMore(beginning.request));
      throw error.error ? new NotBegunError(error.error) : this.#gaveUp();
    } finally {
      unfollow();
    }
  }

  /**
   * Begins without a wait, for as long as the caller bears silence: a server that waits for the holder must not be
   * taken for one that does not answer. Undefined if a server is there, and could not do it in that time.
   */
  async #beginOrOpen(beginning: Beginning, failOpen: number): Promise<Begun | Busy | undefined> {
    const { clock, transport } = this.#host;
    const began = clock.now();
    // One server that hangs is not to take the time in which another would answer.
    const share = Math.max(failOpen / transport.servers, SHORTEST_SHARE);
    const attempt = Math.min(share, ATTEMPT_TIME);
    try {
      return await this.#ask(beginning, 0, { total: failOpen, attempt, thorough: true });
    } catch (failed) {
      if (!(failed instanceof CallFailed && failed.error?.unavailable)) throw failed;
      const { aftermath } = failed;
      if (!aftermath.outage) return undefined;
      // It ends early where a server has asked for more time than there is.
      await sleep(failOpen - clock.since(began), beginning.giveUp);
      if (beginning.giveUp.aborted) throw new CallFailed(aftermath, undefined);
      return "unprotected";
    }
  }

  /** Begins once. */
  async #ask(beginning: Beginning, poll: number, patience: Patience): Promise<Answered | Busy> {
    const { request, giveUp } = beginning;
    request.wait = durationFromMs(Math.round(poll));
    try {
      const { begin } = IdempotencyService.method;
      const { message, sent } = await this.#host.transport.call("waiting", begin, request, patience, giveUp);
      // What an earlier one was given would have been given again by this answer.
      beginning.unsettled = false;
      return this.#answered(request, message, sent, giveUp);
    } catch (error) {
      if (error instanceof CallFailed) beginning.unsettled ||= error.aftermath.unsettled;
      throw error;
    }
  }

  /** What a Begin came to. */
  #answered(request: BeginRequest, { result }: BeginResponse, sent: Moment, giveUp: AbortSignal): Answered | Busy {
    switch (result.case) {
      case "claim": {
        const claim = this.#held(request, result.value, sent);
        if (!giveUp.aborted) return { claim };
        this.#host.keepFor(claim.release("retry", "its caller gave up"));
        throw this.#gaveUp();
      }
      case "completed":
        return { completed: result.value };
      case "inDoubt": {
        const { owner, attempt, fencingToken, reason } = result.value;
        throw new InDoubtError(owner, Number(attempt), fencingToken, reason);
      }
      case "inProgress": {
        const { owner, attempt } = result.value;
        return { holder: { owner, attempt: Number(attempt) }, sent };
      }
      default:
        throw new NotBegunError(CallError.unknownAnswer("Begin"));
    }
  }

  #held({ namespace, key, owner }: BeginRequest, claim: WireClaim, sent: Moment): Held {
    const { transport, clock, timeout } = this.#host;
    return new Held({ transport, clock, timeout, namespace, key, owner }, claim, sent);
  }

  #gaveUp(): unknown {
    const { signal } = this.#options;
    if (signal?.aborted) return signal.reason;
    const refusal = { reason: undefined, status: Status.CANCELLED, metadata: {} };
    return new NotBegunError(new CallError("the client was closed", refusal, true));
  }

  /** A Begin that nobody heard of may have been given a claim. Nothing has run under it: it is given back. */
  async #askOnceMore(request: BeginRequest): Promise<void> {
    const patience = { total: ATTEMPT_TIME, attempt: ATTEMPT_TIME };
    const { begin } = IdempotencyService.method;
    const asked = create(BeginRequestSchema, { ...request, wait: durationFromMs(0) });
    const { message, sent } = await this.#host.transport.call("waiting", begin, asked, patience);
    if (message.result.case !== "claim") return;
    const claim = this.#held(request, message.result.value, sent);
    await claim.release("retry", "its caller gave up before it heard of it");
  }

  async #runUnprotected<T extends C>(work: (claim: Claim) => T | PromiseLike<T>): Promise<Completion<T>> {
    this.#host.failedOpen();
    try {
      const value = await work(unprotectedClaim(this.#namespace, this.#key));
      const owner = this.#options.owner ?? this.#host.owner;
      const nothing = { completedAt: undefined, expiresAt: undefined };
      return { value, ranHere: true, owner, attempt: 0, token: 0n, protected: false, ...nothing };
    } catch (error) {
      const owner = this.#options.owner ?? this.#host.owner;
      if (isOwn(error)) throw told(error, { owner, attempt: 0n, fencingToken: 0n }, true);
      const rule = error instanceof Failure ? error.rule : (this.#options.onFailure ?? "retry");
      const failed = new FailedError(error instanceof Failure ? error.cause : error, rule, false);
      throw Object.assign(failed, { owner });
    }
  }

  /** Stores the outcome, with `result` for the caller. Once it is sent the claim is never given back. */
  async #complete<T>(claim: Held, outcomeOf: () => Outcome, result: T | FinalError): Promise<Completion<T>> {
    const cause = result instanceof FinalError ? result : undefined;
    let outcome: Outcome;
    try {
      outcome = outcomeOf();
      assertFits(outcome, claim.maxOutcomeBytes, cause);
    } catch (error) {
      // The work ran to its end, so whatever the rule for failures is, nobody may run it again unasked.
      throw await giveBack(claim, "in_doubt", error);
    }
    if (claim.lost === "taken_over") throw of(claim, new ClaimLostError("taken_over", cause));
    const { namespace, key, token: fencingToken } = claim;
    const request = create(CompleteRequestSchema, { namespace, key, fencingToken, outcome });
    // Work that is done is worth trying for as long as the lock would have lived.
    const patience = { total: Math.max(this.#host.timeout, claim.lockTtl), attempt: ATTEMPT_TIME };
    let completed: Completed | undefined;
    try {
      const { complete } = IdempotencyService.method;
      completed = (await this.#host.transport.call("holding", complete, request, patience)).message.completed;
    } catch (error) {
      const failed = error instanceof CallFailed ? error.error : undefined;
      if (!failed) throw error;
      throw of(claim, failed.claimLost ? new ClaimLostError("taken_over", cause) : new NotStoredError(failed, result));
    }
    if (!completed) throw of(claim, new NotStoredError(CallError.unknownAnswer("Complete"), result));
    if (!(result instanceof FinalError)) return completion(completed, result, true);
    throw told(result, completed, true);
  }

  #request(): BeginRequest {
    const { fingerprint, lockTtl, retention, onLapse, owner } = this.#options;
    return create(BeginRequestSchema, {
      namespace: this.#namespace,
      key: this.#key,
      // Each run is an attempt of its own, and an id is spent once its claim was given back.
      requestId: randomUUID(),
      owner: owner ?? this.#host.owner,
      fingerprint: typeof fingerprint === "string" ? Buffer.from(fingerprint) : (fingerprint ?? new Uint8Array()),
      ...(lockTtl !== undefined && { lockTtl: durationFromMs(Math.round(lockTtl)) }),
      ...(retention !== undefined && { retention: durationFromMs(Math.round(retention)) }),
      onLapse: onLapse === undefined ? OnLapse.UNSPECIFIED : onLapse === "hold" ? OnLapse.HOLD : OnLapse.TAKE_OVER,
    });
  }
}

type Completer = Pick<Completed, "owner" | "attempt" | "fencingToken">;

/** Adds to an error whose outcome it is. */
function tell(error: FinalError | UnreadableError, { owner, attempt, fencingToken }: Completer): void {
  Object.assign(error, { owner, attempt: Number(attempt), token: fencingToken });
}

/** The final errors that came out of runs. */
const ofRuns = new WeakSet<FinalError>();

/** The final error that a run ends with: another than the work's, which may be thrown again, in another run, too. */
function told(of: FinalError, completer: Completer, ranHere: boolean): FinalError {
  const error = new FinalError(of.status, of.message, of.details);
  if (ranHere) error.cause = of;
  error.ranHere = ranHere;
  tell(error, completer);
  ofRuns.add(error);
  return error;
}

/** Whether the work says so of itself that it failed for good, and not of a run of another key. */
function isOwn(error: unknown): error is FinalError {
  return error instanceof FinalError && !ofRuns.has(error);
}

/** Gives the claim back by `rule`, because of `cause`: the error to throw. */
async function giveBack(claim: Held, rule: Rule, cause: unknown): Promise<ClaimLostError | FailedError> {
  const { lost } = claim;
  if (lost === "taken_over") return of(claim, new ClaimLostError(lost, cause));
  try {
    await claim.release(rule, messageOf(cause));
    return of(claim, Object.assign(new FailedError(cause, rule, true), { lost }));
  } catch (error) {
    const failed = error instanceof CallFailed ? error.error : undefined;
    if (failed?.claimLost) return of(claim, new ClaimLostError(lost ?? "taken_over", cause));
    return of(claim, Object.assign(new FailedError(cause, rule, false, failed), { lost }));
  }
}

/** Fails if the outcome cannot be encoded, or takes more than `max` bytes. */
function assertFits(outcome: Outcome, max: number, cause: unknown): void {
  const size = toBinary(OutcomeSchema, outcome).length;
  if (size <= max) return;
  throw new Error(`the outcome takes ${size} bytes encoded, and the server stores at most ${max}`, { cause });
}

function completion<T>(completed: Completed, value: T, ranHere: boolean): Completion<T> {
  const { owner, attempt, fencingToken, completedAt, expiresAt } = completed;
  return {
    value,
    ranHere,
    owner,
    attempt: Number(attempt),
    token: fencingToken,
    protected: true,
    completedAt: completedAt && timestampDate(completedAt),
    expiresAt: expiresAt && timestampDate(expiresAt),
  };
}

/** Aborts `controller` as soon as one of `signals` is aborted, until the function that it returns is called. */
function follow(signals: readonly (AbortSignal | undefined)[], controller: AbortController): () => void {
  const abort = () => controller.abort();
  for (const signal of signals) {
    if (signal?.aborted) abort();
    signal?.addEventListener("abort", abort, { once: true });
  }
  return () => {
    for (const signal of signals) signal?.removeEventListener("abort", abort);
  };
}

/** What `running` comes to, or the reason of `signal` if that is aborted first. */
function untilAborted<T>(running: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal?.reason as Error);
    signal?.addEventListener("abort", abort, { once: true });
    running.then(resolve, reject).finally(() => signal?.removeEventListener("abort", abort));
  });
}
