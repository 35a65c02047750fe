/**
 * Protobuf in one form only: fields by number, and the entries of maps by key. The library that encodes leaves maps in
 * the order of JavaScript's objects, so what it wrote is put in order here.
 */

import { type DescField, type DescMessage, type MessageShape, ScalarType, toBinary } from "@bufbuild/protobuf";
import { BinaryReader, BinaryWriter, WireType } from "@bufbuild/protobuf/wire";

import { UnfitError } from "./errors.js";

type MapField = DescField & { fieldKind: "map" };
type Key = string | number | bigint | boolean;

/** The deterministic encoding of a message. */
export function deterministic<Desc extends DescMessage>(schema: Desc, message: MessageShape<Desc>): Uint8Array {
  return inOrder(schema, toBinary(schema, message), false);
}

/** The same, of a message that has no unknown fields; an UnfitError if it has. */
export function deterministicKnown<Desc extends DescMessage>(schema: Desc, message: MessageShape<Desc>): Uint8Array {
  return inOrder(schema, toBinary(schema, message), true);
}

function inOrder(desc: DescMessage, bytes: Uint8Array, knownOnly: boolean): Uint8Array {
  const records: { number: number; key?: Key; bytes: Uint8Array }[] = [];
  const reader = new BinaryReader(bytes);
  while (reader.pos < reader.len) {
    const start = reader.pos;
    const [number, wireType] = reader.tag();
    const field = desc.fields.find((known) => known.number === number);
    if (field === undefined && knownOnly) {
      throw new UnfitError(`${desc.typeName} has field ${number}, which is unknown here`);
    }
    if (wireType === WireType.StartGroup) throw new UnfitError(`${desc.typeName} has a group: it has no one form here`);
    if (field?.fieldKind === "map") {
      const { key, entry } = mapEntry(field, reader.bytes(), knownOnly);
      records.push({ number, key, bytes: tagged(number, entry) });
    } else if (field?.message && wireType === WireType.LengthDelimited) {
      records.push({ number, bytes: tagged(number, inOrder(field.message, reader.bytes(), knownOnly)) });
    } else {
      reader.skip(wireType, number);
      records.push({ number, bytes: bytes.subarray(start, reader.pos) });
    }
  }
  records.sort((a, b) => a.number - b.number || byKey(a.key, b.key));
  return Buffer.concat(records.map((record) => record.bytes));
}

/** The entry of a map as it was written, key first, with a message as its value put in order. */
function mapEntry(field: MapField, bytes: Uint8Array, knownOnly: boolean): { key: Key; entry: Uint8Array } {
  const reader = new BinaryReader(bytes);
  reader.tag();
  const key = mapKey(reader, field.mapKey);
  if (field.mapKind !== "message") return { key, entry: bytes };
  const first = bytes.subarray(0, reader.pos);
  reader.tag();
  return { key, entry: Buffer.concat([first, tagged(2, inOrder(field.message, reader.bytes(), knownOnly))]) };
}

function mapKey(reader: BinaryReader, type: MapField["mapKey"]): Key {
  switch (type) {
    case ScalarType.STRING:
      return reader.string();
    case ScalarType.BOOL:
      return reader.bool();
    case ScalarType.INT32:
      return reader.int32();
    case ScalarType.INT64:
      return reader.int64();
    case ScalarType.UINT32:
      return reader.uint32();
    case ScalarType.UINT64:
      return reader.uint64();
    case ScalarType.SINT32:
      return reader.sint32();
    case ScalarType.SINT64:
      return reader.sint64();
    case ScalarType.FIXED32:
      return reader.fixed32();
    case ScalarType.FIXED64:
      return reader.fixed64();
    case ScalarType.SFIXED32:
      return reader.sfixed32();
    case ScalarType.SFIXED64:
      return reader.sfixed64();
  }
}

/** Strings by their UTF-8 bytes, numbers by value, false before true; records without a key stay as they came. */
function byKey(a: Key | undefined, b: Key | undefined): number {
  if (typeof a === "string" && typeof b === "string") return Buffer.compare(Buffer.from(a), Buffer.from(b));
  if (a === undefined || b === undefined || a === b) return 0;
  return a < b ? -1 : 1;
}

function tagged(number: number, bytes: Uint8Array): Uint8Array {
  return new BinaryWriter().tag(number, WireType.LengthDelimited).bytes(bytes).finish();
}
