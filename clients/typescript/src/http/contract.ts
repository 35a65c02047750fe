/** The HTTP contract, without any HTTP: keys, fingerprints, what is stored of an answer, and what refusals look like. */

import { createHash } from "node:crypto";
import { create } from "@bufbuild/protobuf";
import { UnreadableError } from "../errors.js";
import { OutcomeSchema } from "../generated/onced/v1/record_pb.js";
import { type OutcomeCodec, responseOf } from "../outcomes.js";

const MAX_KEY_BYTES = 512;

/** Headers of an answer that are stored, besides those that the options name. In small letters. */
const STORED_HEADERS = [
  "cache-control",
  "content-disposition",
  "content-encoding",
  "content-language",
  "etag",
  "last-modified",
  "link",
  "location",
  "retry-after",
  "vary",
];

/** The key in an Idempotency-Key header: a quoted string (RFC 9651) or the bare text. Undefined if it is neither. */
export function keyIn(header: string): string | undefined {
  const text = header.replace(/^[ \t]+|[ \t]+$/g, "");
  const quoted = /^"((?:[ !#-[\]-~]|\\["\\])*)"$/.exec(text)?.[1]?.replace(/\\(["\\])/g, "$1");
  const key = quoted ?? (/^[ !#-~][ -~]*$/.test(text) ? text : "");
  return key.length >= 1 && key.length <= MAX_KEY_BYTES ? key : undefined;
}

/** The key as onced has it: apart from the same key of another scope. Undefined if it is too long for that. */
export function scopedKey(scope: string, key: string): string | undefined {
  const stored = `${createHash("sha256").update(scope).digest("hex").slice(0, 32)}:${key}`;
  return stored.length <= MAX_KEY_BYTES ? stored : undefined;
}

/** The fingerprint of a request: its method, its path and query as sent, and its body. */
export function fingerprintOf(method: string, target: string, body: Uint8Array): Uint8Array {
  return createHash("sha256").update(`http\0${method}\0${target}\0`).update(body).digest();
}

/** An answer, as it is stored and replayed. */
export interface Answer {
  readonly status: number;
  /** Names in small letters, each with its values. They are as Node has them: a character for each byte. */
  readonly headers: ReadonlyMap<string, readonly string[]>;
  readonly body: Uint8Array;
}

/** How answers become outcomes, and outcomes answers. */
export function answers(moreHeaders: readonly string[]): OutcomeCodec<Answer> {
  const names = [...STORED_HEADERS, ...moreHeaders.map((name) => name.toLowerCase())];
  return {
    outcomeOf({ status, headers, body }) {
      const metadata: Record<string, string> = { "http.status": `${status}` };
      for (const name of names) {
        const values = headers.get(name);
        if (values) metadata[`http.header.${name}`] = utf8(name, values.join("\n"));
      }
      const contentType = utf8("content-type", headers.get("content-type")?.[0] ?? "");
      return create(OutcomeSchema, { result: { case: "response", value: body }, contentType, metadata });
    },
    valueOf(outcome) {
      const body = responseOf(outcome);
      const { contentType, metadata } = outcome;
      const status = Number(metadata["http.status"]);
      if (!(Number.isInteger(status) && status >= 200 && status <= 599)) {
        throw new UnreadableError("the outcome is no answer of HTTP: it has no http.status", contentType);
      }
      const headers = new Map<string, string[]>();
      if (contentType !== "") headers.set("content-type", [latin1(contentType)]);
      for (const [name, values] of Object.entries(metadata)) {
        const header = /^http\.header\.(.+)$/.exec(name)?.[1];
        if (header !== undefined) headers.set(header, values.split("\n").map(latin1));
      }
      return { status, headers, body };
    },
  };
}

const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** What the bytes of a header say. */
function utf8(name: string, value: string): string {
  try {
    return strict.decode(Buffer.from(value, "latin1"));
  } catch (error) {
    throw new TypeError(`the header ${name} is not UTF-8`, { cause: error });
  }
}

function latin1(value: string): string {
  return Buffer.from(value, "utf8").toString("latin1");
}

/** A refusal of the middleware: its status, and what is wrong in general. */
const PROBLEMS = {
  IDEMPOTENCY_KEY_MISSING: [400, "The Idempotency-Key header is missing"],
  IDEMPOTENCY_KEY_INVALID: [400, "The Idempotency-Key header cannot be used"],
  SCOPE_MISSING: [400, "The request does not say whose key it is"],
  REQUEST_IN_PROGRESS: [409, "A request with this key is being processed"],
  CLAIM_LOST: [409, "Another attempt took over"],
  IN_DOUBT: [409, "What an earlier request with this key did is unknown"],
  REQUEST_TOO_LARGE: [413, "The request is too large"],
  FINGERPRINT_MISMATCH: [422, "The key was used for another request"],
  RESPONSE_NOT_STORABLE: [500, "The response cannot be stored"],
  REFUSED: [500, "The request could not be made idempotent"],
  UNAVAILABLE: [503, "Idempotency cannot be ensured now"],
} as const;

export type ProblemCode = keyof typeof PROBLEMS;

/** What to try again, and after how many seconds. */
const RETRY_AFTER: ReadonlySet<ProblemCode> = new Set(["REQUEST_IN_PROGRESS", "CLAIM_LOST", "UNAVAILABLE"]);

/** A refusal as an answer: application/problem+json (RFC 9457). */
export function problem(code: ProblemCode, detail: string): Answer {
  const [status, title] = PROBLEMS[code];
  const headers = new Map([["content-type", ["application/problem+json"]]]);
  if (RETRY_AFTER.has(code)) headers.set("retry-after", ["1"]);
  return { status, headers, body: Buffer.from(JSON.stringify({ title, status, detail, code })) };
}
