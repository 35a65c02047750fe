/** How values become outcomes, and outcomes values. */

import { types } from "node:util";
import { create } from "@bufbuild/protobuf";

import type { Codec } from "./codecs.js";
import { FinalError, messageOf, UnreadableError } from "./errors.js";
import { type Outcome, OutcomeSchema } from "./generated/onced/v1/record_pb.js";

/** How a run reads and writes whole outcomes. */
export interface OutcomeCodec<T> {
  outcomeOf(value: T): Outcome;
  valueOf(outcome: Outcome): T;
}

export function outcomesBy<T>(codec: Codec<T>): OutcomeCodec<T> {
  return {
    outcomeOf(value) {
      const encoded: unknown = codec.encode(value);
      if (!types.isUint8Array(encoded))
        throw new TypeError(`the codec of ${codec.contentType} encoded to no Uint8Array`);
      return create(OutcomeSchema, { result: { case: "response", value: encoded }, contentType: codec.contentType });
    },
    valueOf(outcome) {
      const response = responseOf(outcome);
      if (outcome.contentType !== "" && outcome.contentType !== codec.contentType) {
        const message = `the outcome is ${outcome.contentType}, and was to be ${codec.contentType}`;
        throw new UnreadableError(message, outcome.contentType);
      }
      try {
        return codec.decode(response);
      } catch (error) {
        const message = `the outcome cannot be read as ${codec.contentType}: ${messageOf(error)}`;
        throw new UnreadableError(message, outcome.contentType, error);
      }
    },
  };
}

/** The response of an outcome; its final error is thrown. */
export function responseOf(outcome: Outcome): Uint8Array {
  const { result, contentType } = outcome;
  switch (result.case) {
    case "response":
      return result.value;
    case "error":
      throw new FinalError(result.value.code, result.value.message, result.value.details);
    default:
      throw new UnreadableError("the outcome is of a kind that is unknown here", contentType);
  }
}

/** The outcome of work that failed for good. */
export function outcomeOfError(error: FinalError): Outcome {
  const { status: code, message, details } = error;
  return create(OutcomeSchema, { result: { case: "error", value: { code, message, details: [...details] } } });
}
