/**
 * Fingerprints: digests of requests, so that a key that is reused for another request is an error. All are 32 bytes,
 * and the same in every language.
 */

import { createHash } from "node:crypto";
import type { DescMessage, MessageShape } from "@bufbuild/protobuf";

import { UnfitError } from "./errors.js";
import { canonical, canonicalRead, pointedAt, read } from "./json.js";
import { deterministicKnown } from "./protobuf.js";

/** Of bytes. */
export function ofBytes(data: Uint8Array): Uint8Array {
  return createHash("sha256").update(data).digest();
}

/**
 * Of a value that JSON has, in its canonical form (RFC 8785): the order of keys does not matter.
 *
 * @throws UnfitError for integers beyond 2^53 - 1, NaN, infinities, half surrogate pairs, and what JSON has not.
 */
export function ofJson(value: unknown): Uint8Array {
  return ofText(canonical(value));
}

/**
 * Of JSON as it came.
 *
 * @throws UnfitError as {@link ofJson}, if it is no JSON, and if a key is twice in an object.
 */
export function ofJsonText(text: string): Uint8Array {
  return ofText(canonicalRead(read(text)));
}

/**
 * Of the fields of `value` that the JSON pointers (RFC 6901) point at, such as `/order/id`. What is not there is left
 * out.
 *
 * @throws UnfitError as {@link ofJson}, if a pointer is none, and if nothing is there at all.
 */
export function ofFields(value: unknown, pointers: readonly string[]): Uint8Array {
  return ofText(selected(value, pointers, canonical));
}

/** The same of JSON as it came. */
export function ofFieldsText(text: string, pointers: readonly string[]): Uint8Array {
  return ofText(selected(read(text), pointers, canonicalRead));
}

/**
 * Of a message of protobuf: its full name, a zero byte, and its deterministic encoding.
 *
 * @throws UnfitError if it, or a message within it, has unknown fields.
 */
export function ofMessage<Desc extends DescMessage>(schema: Desc, message: MessageShape<Desc>): Uint8Array {
  const encoded = deterministicKnown(schema, message);
  return createHash("sha256").update(`${schema.typeName}\0`).update(encoded).digest();
}

function selected(value: unknown, pointers: readonly string[], written: (value: unknown) => string): string {
  const fields = pointers.map((pointer) => [pointer, pointedAt(value, pointer)] as const);
  const there = fields.filter(([, field]) => field !== undefined);
  if (there.length === 0) throw new UnfitError(`nothing is at ${pointers.join(", ") || "no pointer at all"}`);
  return written(Object.fromEntries(there));
}

function ofText(text: string): Uint8Array {
  return createHash("sha256").update(text).digest();
}
