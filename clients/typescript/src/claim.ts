/** A claim in the hands of its holder: kept alive in the background, and watched on the holder's own clock. */

import { create } from "@bufbuild/protobuf";
import { durationMs } from "@bufbuild/protobuf/wkt";

import { type Clock, type Moment, sleep } from "./clock.js";
import { ClaimLostError, type Lost, type OfClaim, type Rule } from "./errors.js";
import {
  IdempotencyService,
  ReleaseRequestSchema,
  RenewRequestSchema,
} from "./generated/onced/v1/idempotency_service_pb.js";
import { Disposition, type Claim as WireClaim } from "./generated/onced/v1/record_pb.js";
import { jittered } from "./retry.js";
import { CallFailed, type Patience, type Transport } from "./transport.js";

/**
 * The longest sleep between two looks at the clock, in milliseconds. Timers stand still while a machine is suspended,
 * and the clock does not, so nothing sleeps much longer than it may be late.
 */
const TICK = 500;
/** How long one attempt of a call may take, beyond the wait it asks for, before the next server is tried. */
export const ATTEMPT_TIME = 10_000;

/** The right to run the work of a key, as the work gets it. */
export interface Claim {
  /** The namespace of the key. */
  readonly namespace: string;
  /** The key that the run was begun with: behind a middleware with a scope, as onced has it. */
  readonly key: string;
  /**
   * The fencing token: larger than that of every earlier claim of the key. Give it to the resources that the work
   * changes, so that they can refuse a stale holder. 0 if the claim does not protect.
   */
  readonly token: bigint;
  /** How many claims the key has had, this one included. 0 if the claim does not protect. */
  readonly attempt: number;
  /** The last checkpoint of an earlier claim of the key, if there is one. */
  readonly checkpoint: Uint8Array | undefined;
  /** The largest encoded outcome that can be stored, in bytes. */
  readonly maxOutcomeBytes: number;
  /** How long the claim lives without a renewal, in milliseconds. Renewals happen by themselves. */
  readonly lockTtl: number;
  /** How long the lock lives for certain, on this machine's clock, in milliseconds; 0 once the claim is lost. */
  readonly lockLeft: number;
  /** Whether the claim no longer protects the work, and why. */
  readonly lost: Lost | undefined;
  /** Aborted when the claim is lost, with a {@link ClaimLostError} as the reason. Give it to what the work calls. */
  readonly signal: AbortSignal;
  /** False if no server could be reached and the run failed open: others may do the same work at the same time. */
  readonly protected: boolean;
  /**
   * Saves where the work is, at most 64 KiB, for whoever takes over after a lapse or a release. Renews the lock as
   * well. Of two saves under way at once the later one wins. Goes nowhere if the claim does not protect.
   *
   * @throws CallError if it was refused, or no server took it in time. The work may go on, unless the claim is lost.
   */
  saveCheckpoint(data: Uint8Array): Promise<void>;
}

/** The claim of a run that failed open. */
export function unprotectedClaim(namespace: string, key: string): Claim {
  return {
    namespace,
    key,
    token: 0n,
    attempt: 0,
    checkpoint: undefined,
    maxOutcomeBytes: Number.POSITIVE_INFINITY,
    lockTtl: 0,
    lockLeft: 0,
    lost: undefined,
    signal: new AbortController().signal,
    protected: false,
    saveCheckpoint: () => Promise.resolve(),
  };
}

/** What a claim is made of. */
export interface Holding {
  readonly transport: Transport;
  readonly clock: Clock;
  /** How long a call is tried, in milliseconds. */
  readonly timeout: number;
  readonly namespace: string;
  readonly key: string;
  readonly owner: string;
}

/** A claim that is held. Its renewals begin when it is made, and go on until `stop`. */
export class Held implements Claim {
  readonly protected = true;
  readonly token: bigint;
  readonly attempt: number;
  readonly checkpoint: Uint8Array | undefined;
  readonly maxOutcomeBytes: number;
  readonly lockTtl: number;
  readonly #holding: Holding;
  readonly #lost = new AbortController();
  /** Ends the renewals. */
  readonly #stopped = new AbortController();
  #why: Lost | undefined;
  /** The lock lives for so long from then on. */
  #lock: { from: Moment; ms: number };
  /** The sequence of the last checkpoint. */
  #sequence: bigint;

  /** A claim that came as the answer to a Begin that was sent at `sent`. */
  constructor(holding: Holding, claim: WireClaim, sent: Moment) {
    this.#holding = holding;
    this.token = claim.fencingToken;
    this.attempt = Number(claim.attempt);
    this.checkpoint = claim.checkpoint?.data;
    // A server that tells no limit has none that is known here.
    this.maxOutcomeBytes = Number(claim.maxOutcomeBytes) || Number.POSITIVE_INFINITY;
    this.lockTtl = claim.lockTtl ? durationMs(claim.lockTtl) : 0;
    const waited = claim.waited ? durationMs(claim.waited) : 0;
    this.#lock = { from: sent, ms: waited + this.lockTtl };
    this.#sequence = claim.checkpoint?.sequence ?? 0n;
    void this.#keep(sent, waited);
    void this.#guard();
  }

  get namespace(): string {
    return this.#holding.namespace;
  }

  get key(): string {
    return this.#holding.key;
  }

  get owner(): string {
    return this.#holding.owner;
  }

  get signal(): AbortSignal {
    return this.#lost.signal;
  }

  get lockLeft(): number {
    return this.lost === undefined ? this.#left() : 0;
  }

  get lost(): Lost | undefined {
    if (this.#why === undefined && this.#left() === 0) this.#lose("lock_ended");
    return this.#why;
  }

  async saveCheckpoint(data: Uint8Array): Promise<void> {
    if (this.lost === "taken_over" || this.lost === "given_back") throw of(this, new ClaimLostError(this.lost));
    this.#sequence += 1n;
    const checkpoint = { sequence: this.#sequence, data };
    try {
      await this.#renew({ total: this.#holding.timeout, attempt: this.#attemptTime }, checkpoint);
    } catch (error) {
      throw (error instanceof CallFailed && error.error) || error;
    }
  }

  /** Ends the renewals, since the run has ended. */
  stop(): void {
    this.#stopped.abort();
  }

  /** Gives the claim back by `rule`. Fails with CallFailed if that was not confirmed. */
  async release(rule: Rule, reason: string): Promise<void> {
    this.stop();
    // Parts of the work may still run elsewhere.
    this.#lose("given_back");
    const { transport, namespace, key, timeout } = this.#holding;
    const request = create(ReleaseRequestSchema, {
      namespace,
      key,
      fencingToken: this.token,
      disposition: rule === "retry" ? Disposition.RETRY : Disposition.IN_DOUBT,
      reason: head(reason, 1_024),
    });
    const patience = { total: timeout, attempt: ATTEMPT_TIME };
    await transport.call("holding", IdempotencyService.method.release, request, patience);
  }

  /** Renews when a fifth to two fifths of the TTL have passed. A lock that has ended is renewed all the same. */
  async #keep(sent: Moment, waited: number): Promise<void> {
    let [from, wait] = [sent, waited + jittered((this.lockTtl * 2) / 5)];
    for (;;) {
      await this.#sleepUntil(from, wait);
      if (this.#stopped.signal.aborted) return;
      try {
        const patience = { total: this.lockTtl / 3, attempt: this.#attemptTime };
        await this.#renew(patience);
        wait = jittered((this.lockTtl * 2) / 5);
      } catch {
        if (this.#why === "taken_over") return;
        wait = this.lockTtl / 20;
      }
      from = this.#holding.clock.now();
    }
  }

  /** Ends the lock on time, whatever its renewals are doing. */
  async #guard(): Promise<void> {
    while (this.lost === undefined && !this.#stopped.signal.aborted) {
      await sleep(Math.min(Math.max(1, this.#left()), TICK), this.#stopped.signal);
    }
  }

  async #sleepUntil(from: Moment, ms: number): Promise<void> {
    for (;;) {
      const left = ms - this.#holding.clock.since(from);
      if (left <= 0 || this.#stopped.signal.aborted) return;
      await sleep(Math.min(left, TICK), this.#stopped.signal);
    }
  }

  async #renew(patience: Patience, checkpoint?: { sequence: bigint; data: Uint8Array }): Promise<void> {
    const { transport, namespace, key, clock } = this.#holding;
    const ours = { namespace, key, fencingToken: this.token };
    const request = create(RenewRequestSchema, checkpoint ? { ...ours, checkpoint } : ours);
    const signal = checkpoint ? undefined : this.#stopped.signal;
    try {
      const { renew } = IdempotencyService.method;
      const { message, sent } = await transport.call("holding", renew, request, patience, signal);
      const ms = message.lockExpiresIn ? durationMs(message.lockExpiresIn) : 0;
      if (ms - clock.since(sent) > this.#left()) this.#lock = { from: sent, ms };
    } catch (error) {
      if (error instanceof CallFailed && error.error?.claimLost) this.#lose("taken_over");
      throw error;
    }
  }

  #left(): number {
    return Math.max(0, this.#lock.ms - this.#holding.clock.since(this.#lock.from));
  }

  /** One attempt of a Renew leaves time for another one, at another server, within the TTL. */
  get #attemptTime(): number {
    return Math.min(Math.max(this.lockTtl / 4, 250), 10_000);
  }

  #lose(why: Lost): void {
    if (this.#why === "taken_over") return;
    this.#why = why;
    this.#lost.abort(of(this, new ClaimLostError(why)));
  }
}

/** Adds to an error whose claim it is. */
export function of<E extends OfClaim>({ owner, attempt, token }: Held, error: E): E {
  return Object.assign(error, { owner, attempt, token });
}

/** The first `max` bytes of `text`, cut between characters. */
export function head(text: string, max: number): string {
  const bytes = Buffer.from(text);
  if (bytes.length <= max) return bytes.toString();
  let end = max;
  while (((bytes[end] ?? 0) & 0xc0) === 0x80) end -= 1;
  return bytes.subarray(0, end).toString();
}
