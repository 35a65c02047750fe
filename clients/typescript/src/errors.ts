/** What can go wrong, typed. Each error has a `code`, and says what to do where that is known. */

import type { Any } from "@bufbuild/protobuf/wkt";
import { status as Status } from "@grpc/grpc-js";

import type { Refusal } from "./retry.js";

/** What becomes of the key when work fails: it is free again, or nobody runs it until an operator has resolved it. */
export type Rule = "retry" | "in_doubt";

/**
 * Why a claim no longer protects its work. `taken_over`: a server said so; the key was taken over, settled or deleted.
 * `lock_ended`: the lock ended on this machine's clock, so that others may take over at any moment. `given_back`: the
 * run gave it back.
 */
export type Lost = "taken_over" | "lock_ended" | "given_back";

/** Any error of this library. */
export abstract class OncedError extends Error {
  /** Which error this is. */
  abstract readonly code: string;

  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
  }
}

/** What was given to the library cannot be used: an address, a file, an option. Nothing was sent. */
export class InvalidError extends OncedError {
  readonly code = "invalid";
}

/** There is no fingerprint of this value: it cannot be written in one way only. */
export class UnfitError extends OncedError {
  readonly code = "unfit";
}

/** A call to the servers failed. The `cause` of those below. */
export class CallError extends OncedError {
  readonly code = "call";
  /** The reason that the server gave, such as `FINGERPRINT_MISMATCH`; none if it is not from onced. */
  readonly reason: string | undefined;
  /** The gRPC status code of the last attempt. */
  readonly status: number;
  /** The values that belong to the reason. */
  readonly metadata: Readonly<Record<string, string>>;
  /** True if no server could do it in time. What became of the call is then unknown; else it was refused. */
  readonly unavailable: boolean;

  constructor(message: string, refusal: Pick<Refusal, "reason" | "status" | "metadata">, unavailable: boolean) {
    super(message);
    this.reason = refusal.reason;
    this.status = refusal.status;
    this.metadata = refusal.metadata;
    this.unavailable = unavailable;
  }

  /** True if a server said that the claim is no longer the caller's: taken over, settled, or deleted. */
  get claimLost(): boolean {
    return !this.unavailable && (this.reason === "CLAIM_LOST" || this.reason === "RECORD_NOT_FOUND");
  }

  /** @internal */
  static unknownAnswer(call: string): CallError {
    const message = `the server's answer to ${call} holds nothing known here; is the server newer than this client?`;
    return new CallError(message, { reason: undefined, status: Status.UNKNOWN, metadata: {} }, false);
  }
}

/** The key could not be claimed: a server refused it, or none answered in time. The work did not run. */
export class NotBegunError extends OncedError {
  readonly code = "not_begun";
  declare readonly cause: CallError;

  constructor(cause: CallError) {
    super(cause.message, { cause });
  }

  /** The reason that the server gave, such as `FINGERPRINT_MISMATCH`; none if no server of onced answered. */
  get reason(): string | undefined {
    return this.cause.reason;
  }
}

/** Somebody else was still at it when the wait was over. The work did not run here. */
export class InProgressError extends OncedError {
  readonly code = "in_progress";

  constructor(
    /** Who holds the key. */
    readonly owner: string,
    /** The attempt under way. */
    readonly attempt: number,
  ) {
    super(`${owner || "somebody"} is still at it (attempt ${attempt})`);
  }
}

/** What an earlier claim did is unknown, and nobody runs the key until an operator has resolved it. */
export class InDoubtError extends OncedError {
  readonly code = "in_doubt";

  constructor(
    /** Who held the key. */
    readonly owner: string,
    /** The attempt whose effects are unknown. */
    readonly attempt: number,
    /** The token to resolve. */
    readonly token: bigint,
    /** Why it is in doubt. */
    readonly reason: string,
  ) {
    super(`what ${owner || "the last holder"} did is unknown (${reason}); an operator must resolve token ${token}`);
  }
}

/** What an error says of its claim. */
export interface OfClaim {
  owner: string;
  attempt: number;
  token: bigint;
}

/** The work failed, which is the `cause`, and its claim was given back. */
export class FailedError extends OncedError {
  readonly code = "failed";
  /** Who held the claim. */
  owner = "";
  /** The attempt that it was; 0 if it was not protected. */
  attempt = 0;
  /** Its fencing token; 0 if it was not protected. */
  token = 0n;
  /** How the claim was lost before the work failed, if it was. */
  lost: Lost | undefined = undefined;

  constructor(
    cause: unknown,
    /** What was asked to become of the key. */
    readonly rule: Rule,
    /** Whether that was confirmed. If not, the claim lapses by itself after its lock TTL. */
    readonly released: boolean,
    /** Why it was not confirmed. */
    readonly releaseError?: CallError,
  ) {
    super(`the work failed: ${messageOf(cause)}`, { cause });
  }
}

const LOST: Record<Lost, string> = {
  taken_over: "the claim was taken over, settled or deleted",
  lock_ended: "the lock could not be renewed in time, so that others may take over",
  given_back: "the claim was given back",
};

/**
 * The claim was lost while the work ran, so that its outcome does not count: somebody else may have run it. Also the
 * reason of {@link Claim.signal}. If the work failed, that is the `cause`.
 */
export class ClaimLostError extends OncedError {
  readonly code = "claim_lost";
  /** Who held the claim. */
  owner = "";
  /** The attempt that it was; 0 if it was not protected. */
  attempt = 0;
  /** Its fencing token; 0 if it was not protected. */
  token = 0n;

  constructor(
    /** How it was lost. */
    readonly lost: Lost,
    cause?: unknown,
  ) {
    super(LOST[lost], cause === undefined ? undefined : { cause });
  }
}

/**
 * The work is done, but its outcome is not known to be stored. The claim is not given back, since the outcome may be
 * there: it lapses by itself if it is not.
 */
export class NotStoredError extends OncedError {
  readonly code = "not_stored";
  /** Who held the claim. */
  owner = "";
  /** The attempt that it was; 0 if it was not protected. */
  attempt = 0;
  /** Its fencing token; 0 if it was not protected. */
  token = 0n;
  declare readonly cause: CallError;

  constructor(
    cause: CallError,
    /** What the work returned, or the {@link FinalError} that it threw. */
    readonly outcome: unknown,
  ) {
    super(`the work is done, but its outcome is not known to be stored: ${cause.message}`, { cause });
  }

  /** The reason that the server gave. */
  get reason(): string | undefined {
    return this.cause.reason;
  }
}

/** The key has an outcome that the codec cannot read. Nothing ran. */
export class UnreadableError extends OncedError {
  readonly code = "unreadable";
  /** Who completed it. */
  owner = "";
  /** The attempt that completed. */
  attempt = 0;
  /** The fencing token that completed. */
  token = 0n;

  constructor(
    message: string,
    /** How the outcome says that it is to be read. */
    readonly contentType: string,
    cause?: unknown,
  ) {
    super(message, cause === undefined ? undefined : { cause });
  }
}

/** Thrown by work: it failed for good, and every caller with this key gets the same error. */
export class FinalError extends OncedError {
  readonly code = "final";
  /** True if the work ran in this call; false if this is the outcome of another one. */
  ranHere = false;
  /** Who completed it; the same of the next two. */
  owner = "";
  /** The attempt that completed; 0 if it was not protected. */
  attempt = 0;
  /** The fencing token that completed; 0 if it was not protected. */
  token = 0n;

  constructor(
    /** A gRPC status code other than OK, 1 to 16, such as 9 for a failed precondition. */
    readonly status: number,
    message: string,
    /** Details that go with it, returned as they came. */
    readonly details: readonly Any[] = [],
  ) {
    super(message);
    if (!Number.isInteger(status) || status < 1 || status > 16) {
      throw new InvalidError(`the status of a final error is a gRPC code from 1 to 16, not ${status}`);
    }
  }
}

/** Thrown by work: it failed, and this becomes of the key, whatever the option `onFailure` says. */
export class Failure extends Error {
  private constructor(
    readonly rule: Rule,
    cause: unknown,
  ) {
    super(messageOf(cause), { cause });
    this.name = "Failure";
  }

  /** Nothing happened, or it is safe to do again: the key is free for the next caller. */
  static retry(cause: unknown): Failure {
    return new Failure("retry", cause);
  }

  /** What happened is unknown: nobody runs the key until an operator has resolved it. */
  static inDoubt(cause: unknown): Failure {
    return new Failure("in_doubt", cause);
  }
}

/** The text of whatever was thrown. Never fails. */
export function messageOf(thrown: unknown): string {
  try {
    return String(thrown instanceof Error ? thrown.message : thrown);
  } catch {
    return "what was thrown cannot be shown as text";
  }
}
