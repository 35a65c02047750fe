/** The client of onced: run this function once for this key, wherever and however often it is called. */

export type { Access } from "./access.js";
export type { Claim } from "./claim.js";
export { Client, type ClientOptions, type OnceOptions } from "./client.js";
export { Clock, type Moment } from "./clock.js";
export type { Codec } from "./codecs.js";
export * as codecs from "./codecs.js";
export {
  CallError,
  ClaimLostError,
  FailedError,
  Failure,
  FinalError,
  InDoubtError,
  InProgressError,
  InvalidError,
  type Lost,
  NotBegunError,
  NotStoredError,
  OncedError,
  type Rule,
  UnfitError,
  UnreadableError,
} from "./errors.js";
export * as fingerprint from "./fingerprint.js";
export type { Completion, Once, RunOptions } from "./once.js";
