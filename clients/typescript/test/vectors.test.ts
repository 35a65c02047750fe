import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { type DescMessage, fromJson, type JsonValue } from "@bufbuild/protobuf";
import { codecs, fingerprint, UnfitError } from "onced";
import * as service from "onced/v1/idempotency_service";
import * as record from "onced/v1/record";
import { fingerprintOf, keyIn, scopedKey } from "../build/http/contract.js";
import { canonicalRead, pointedAt, read } from "../build/json.js";

interface Vectors {
  bytes: { data: string; digest: string }[];
  json: { text: string; canonical: string; digest: string }[];
  json_refused: { text: string; why: string }[];
  fields: { text: string; pointers: string[]; canonical: string; digest: string }[];
  fields_refused: { text: string; pointers: string[]; why: string }[];
  protobuf: { type: string; json: JsonValue; encoded: string; digest: string }[];
  scope: { scope: string; key: string; stored: string }[];
  http: { method: string; target: string; body: string; digest: string }[];
  keys: { header: string; key: string }[];
  keys_refused: { header: string }[];
}

const file = new URL("../../vectors/fingerprints.json", import.meta.url);
const vectors = JSON.parse(readFileSync(file, "utf8")) as Vectors;
const hex = (digest: Uint8Array) => Buffer.from(digest).toString("hex");

/** Checks each vector of a kind, of which there is at least one. */
function each<K extends keyof Vectors>(kind: K, check: (vector: Vectors[K][number]) => void): void {
  test(`vectors: ${kind}`, () => {
    assert.ok(vectors[kind].length > 0);
    for (const vector of vectors[kind]) {
      try {
        check(vector);
      } catch (error) {
        throw new Error(JSON.stringify(vector).slice(0, 300), { cause: error });
      }
    }
  });
}

each("bytes", ({ data, digest }) => {
  assert.equal(hex(fingerprint.ofBytes(Buffer.from(data, "base64"))), digest);
});
each("json", ({ text, canonical, digest }) => {
  assert.equal(canonicalRead(read(text)), canonical);
  assert.equal(hex(fingerprint.ofJsonText(text)), digest);
});
each("json_refused", ({ text }) => {
  assert.throws(() => fingerprint.ofJsonText(text), UnfitError);
});
each("fields", ({ text, pointers, digest }) => {
  assert.equal(hex(fingerprint.ofFieldsText(text, pointers)), digest);
});
each("fields_refused", ({ text, pointers }) => {
  assert.throws(() => fingerprint.ofFieldsText(text, pointers), UnfitError);
});
each("protobuf", ({ type, json, encoded, digest }) => {
  const schemas = Object.values({ ...service, ...record }) as { kind?: string; typeName?: string }[];
  const schema = schemas.find(({ kind, typeName }) => kind === "message" && typeName === type) as DescMessage;
  const message = fromJson(schema, json);
  assert.equal(Buffer.from(codecs.protobuf(schema).encode(message)).toString("base64"), encoded);
  assert.equal(hex(fingerprint.ofMessage(schema, message)), digest);
});
each("scope", ({ scope, key, stored }) => {
  assert.equal(scopedKey(scope, key), stored);
});
each("http", ({ method, target, body, digest }) => {
  assert.equal(hex(fingerprintOf(method, target, Buffer.from(body, "base64"))), digest);
});
each("keys", ({ header, key }) => {
  assert.equal(keyIn(header), key);
});
each("keys_refused", ({ header }) => {
  assert.equal(keyIn(header), undefined);
});

test("a scope leaves room for keys of 479 bytes", () => {
  assert.equal(scopedKey("acme", "x".repeat(479))?.length, 512);
  assert.equal(scopedKey("acme", "x".repeat(480)), undefined);
});

test("a value has the fingerprint of its text", () => {
  const value = { b: [1, 2.5, null, true, "€😀"], a: { at: new Date(0), none: undefined }, n: 9_007_199_254_740_991n };
  const text = `{"n": 9007199254740991, "a": {"at": "1970-01-01T00:00:00.000Z"}, "b": [1, 2.50, null, true, "€😀"]}`;
  assert.deepEqual(fingerprint.ofJson(value), fingerprint.ofJsonText(text));
  assert.deepEqual(fingerprint.ofFields(value, ["/b/1", "/a/at"]), fingerprint.ofFieldsText(text, ["/a/at", "/b/1"]));
});

test("a value that JSON has not, or not for certain, is refused", () => {
  const loop: unknown[] = [];
  loop.push(loop);
  const unfit = [NaN, -Infinity, 2 ** 53, -(2 ** 53), 1e300, 2n ** 53n, undefined, () => 1, Symbol("s"), "\ud800"];
  for (const value of [
    ...unfit,
    { "\udc00": 1 },
    [undefined],
    new Map([["a", 1]]),
    new Set(),
    /x/,
    new Uint8Array(1),
    loop,
  ]) {
    assert.throws(() => fingerprint.ofJson(value), UnfitError);
  }
});

test("a property that is inherited is not there", () => {
  assert.equal(pointedAt({}, "/toString"), undefined);
  assert.throws(() => fingerprint.ofFields({}, ["/constructor"]), UnfitError);
});

test("unknown fields have no fingerprint, at any depth", () => {
  const unknown = { no: 99, wireType: 0, data: new Uint8Array([1]) };
  const completed = fromJson(record.CompletedSchema, { outcome: { response: "" } });
  if (completed.outcome) completed.outcome.$unknown = [unknown];
  assert.throws(() => fingerprint.ofMessage(record.CompletedSchema, completed), UnfitError);
});
