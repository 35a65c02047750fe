/**
 * What is sent again, and when. Every call of onced may be repeated with the same arguments, so the only questions
 * are whether it would help, and how long to wait.
 */

import { fromBinary } from "@bufbuild/protobuf";
import { durationMs } from "@bufbuild/protobuf/wkt";
import { type ServiceError, status as Status } from "@grpc/grpc-js";

import { type ErrorInfo, ErrorInfoSchema, RetryInfoSchema } from "./generated/details_pb.js";
import { type Status as RpcStatus, StatusSchema } from "./generated/google/rpc/status_pb.js";

/** The wait before the second round over the servers, before jitter. Milliseconds, as all times here. */
const FIRST_WAIT = 50;
/** The longest wait between rounds, before jitter. */
const LONGEST_WAIT = 2_000;
/** The domain of every ErrorInfo that onced sends. */
const DOMAIN = "onced.dev";

/** How an attempt failed: what the server said, or what the transport met. */
export interface Refusal {
  /** The gRPC status code. */
  readonly status: number;
  /** The reason that onced gave; none if it is not from onced. */
  readonly reason: string | undefined;
  readonly message: string;
  /** The values that belong to the reason. */
  readonly metadata: Readonly<Record<string, string>>;
  /** Somebody said this, who is not onced: it is not what a broken connection comes as. */
  readonly foreign: boolean;
  /** The server asked for this much time; `"never"` if it forbids to ask again. */
  readonly pushback: number | "never";
}

/** Thrown for an attempt that failed otherwise than as a ServiceError of gRPC. */
export class Refused extends Error {
  constructor(readonly refusal: Refusal) {
    super(refusal.message);
  }
}

/** What `error` says. */
export function refusalOf(error: ServiceError): Refusal {
  const [packed] = error.metadata.get("grpc-status-details-bin");
  const details = packed instanceof Uint8Array ? decoded(packed) : undefined;
  const refusal = told(error.code, error.details, details, isSaid(error));
  const [asked] = error.metadata.get("grpc-retry-pushback-ms");
  return asked === undefined ? refusal : { ...refusal, pushback: pushback(asked.toString()) };
}

/** What a call in a session was refused with: the same as if it were the status of a unary one. */
export function refusalIn(status: RpcStatus): Refusal {
  return told(status.code, status.message, status, isBroken(status.code));
}

function told(code: number, message: string, details: RpcStatus | undefined, isSaid: boolean): Refusal {
  const info = infoOf(details);
  return {
    status: code,
    reason: info?.reason,
    message: message || `status ${Status[code] ?? code}`,
    metadata: info?.metadata ?? {},
    foreign: info === undefined && isSaid,
    pushback: retryDelay(details),
  };
}

/** What an attempt met that nobody has answered, or not so that it can be read. */
export function silence(status: number, message: string): Refusal {
  return { status, reason: undefined, message, metadata: {}, foreign: false, pushback: 0 };
}

/** Whether the same call may fare better at another time, or at another server. */
export function worthRepeating(refusal: Refusal): boolean {
  if (refusal.pushback === "never") return false;
  switch (refusal.status) {
    case Status.UNAVAILABLE:
    case Status.DEADLINE_EXCEEDED:
      return true;
    // Broken connections come as these codes, without a reason of the server's.
    case Status.CANCELLED:
    case Status.UNKNOWN:
      return refusal.reason === undefined;
    // Some of what ends a stream of HTTP/2 comes as another code, by this text.
    default:
      return refusal.reason === undefined && refusal.message.includes("Received RST_STREAM");
  }
}

/** Whether broken connections come as this code as well. */
function isBroken(code: number): boolean {
  return code === Status.CANCELLED || code === Status.UNKNOWN;
}

/** Whether CANCELLED or UNKNOWN was sent so, and is not the connection's own word for its end. */
function isSaid({ code, details, metadata }: ServiceError): boolean {
  if (!isBroken(code)) return false;
  const own = /^(Call cancelled|Cancelled on client|No status information received)$/;
  return !own.test(details) || Object.keys(metadata.getMap()).length > 0;
}

/**
 * How long to wait before attempt number `attempts` (the first is 0) over `servers` servers. One that was not tried
 * in this round is tried at once: its neighbour's pushback does not bind it. `pushback` is the longest of the round.
 */
export function pause(attempts: number, servers: number, pushback: number): number {
  if (attempts % servers !== 0) return 0;
  const round = Math.min(attempts / servers - 1, 16);
  const backoff = jittered(Math.min(FIRST_WAIT * 2 ** round, LONGEST_WAIT));
  // Jitter goes on top of a pushback: less than it would be refused again.
  return pushback === 0 ? backoff : Math.max(backoff, pushback + jittered(pushback / 8));
}

/** Between half of `ms` and all of it. */
export function jittered(ms: number): number {
  return ms * (0.5 + Math.random() / 2);
}

function decoded(packed: Uint8Array): RpcStatus | undefined {
  try {
    return fromBinary(StatusSchema, packed);
  } catch {
    return undefined; // Details that cannot be read say nothing; the code still does.
  }
}

function infoOf(status: RpcStatus | undefined): ErrorInfo | undefined {
  const info = detail(status, "google.rpc.ErrorInfo", (value) => fromBinary(ErrorInfoSchema, value));
  return info?.domain === DOMAIN ? info : undefined;
}

function retryDelay(status: RpcStatus | undefined): number {
  const info = detail(status, "google.rpc.RetryInfo", (value) => fromBinary(RetryInfoSchema, value));
  return info?.retryDelay ? Math.max(0, durationMs(info.retryDelay)) : 0;
}

function detail<T>(status: RpcStatus | undefined, type: string, read: (value: Uint8Array) => T): T | undefined {
  const found = status?.details.find((any) => any.typeUrl.endsWith(`/${type}`));
  try {
    return found && read(found.value);
  } catch {
    return undefined;
  }
}

/** By gRPC's retry design, a pushback that is no number of milliseconds forbids the retry. */
function pushback(text: string): number | "never" {
  return /^\d{1,15}$/.test(text) ? Number(text) : "never";
}

/** A time for people. */
export function rounded(ms: number): string {
  return ms < 1_000 ? `${Math.round(ms)} ms` : `${Math.round(ms / 100) / 10} s`;
}
