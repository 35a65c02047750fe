/** How values are stored, one codec for each kind of them. */

import { type DescMessage, fromBinary, type MessageShape } from "@bufbuild/protobuf";

import { deterministic } from "./protobuf.js";

/** How values of one kind are stored. A codec reads outcomes of its own content type, and those without one. */
export interface Codec<T> {
  readonly contentType: string;
  encode(value: T): Uint8Array;
  decode(bytes: Uint8Array): T;
}

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** JSON, as JSON.stringify and JSON.parse have it. Nothing returned is `null`. The default. */
export const json: Codec<unknown> = {
  contentType: "application/json",
  encode(value) {
    const text = JSON.stringify(value === undefined ? null : value) as string | undefined;
    if (text === undefined) throw new TypeError(`JSON has no ${typeof value}`);
    return Buffer.from(text);
  },
  decode: (bytes) => JSON.parse(utf8.decode(bytes)) as unknown,
};

/** Bytes as they are. */
export const bytes: Codec<Uint8Array> = {
  contentType: "application/octet-stream",
  encode(value) {
    if (!(value instanceof Uint8Array)) throw new TypeError("the work did not return bytes");
    return value;
  },
  decode: (stored) => stored,
};

/** Text, as UTF-8. */
export const text: Codec<string> = {
  contentType: "text/plain; charset=utf-8",
  encode(value) {
    if (typeof value !== "string") throw new TypeError("the work did not return a string");
    if (/\p{Surrogate}/u.test(value)) throw new TypeError("the text holds half of a surrogate pair");
    return Buffer.from(value);
  },
  decode: (stored) => utf8.decode(stored),
};

/** A message of protobuf, by its schema as protoc-gen-es generates it. */
export function protobuf<Desc extends DescMessage>(schema: Desc): Codec<MessageShape<Desc>> {
  return {
    contentType: `application/x-protobuf; messageType="${schema.typeName}"`,
    encode: (value) => deterministic(schema, value),
    decode: (stored) => fromBinary(schema, stored),
  };
}
