/** JSON in its canonical form (RFC 8785), refusing what other languages would read as something else. */

import { UnfitError } from "./errors.js";

/**
 * The canonical form of `value`, which is what JSON has: null, booleans, numbers, strings, arrays and plain objects.
 * Properties that are undefined are left out, and `toJSON` is called, as by JSON.stringify. All else is refused.
 */
export function canonical(value: unknown): string {
  return shallow(() => written(value, "", exact));
}

/** The same of what {@link read} gave, which has looked at the integers as they were written. */
export function canonicalRead(value: unknown): string {
  return shallow(() => written(value, "", numeral));
}

type Numeral = (value: number) => string;

function shallow(write: () => string): string {
  try {
    return write();
  } catch (error) {
    if (error instanceof RangeError) throw new UnfitError("it is nested too deeply", { cause: error });
    throw error;
  }
}

function written(value: unknown, key: string, numeral: Numeral): string {
  switch (typeof value) {
    case "boolean":
      return value ? "true" : "false";
    case "number":
      return numeral(value);
    case "bigint":
      if (BigInt.asIntN(54, value) !== value) throw tooLarge(value);
      return exact(Number(value));
    case "string":
      return quoted(value);
    case "object":
      return value === null ? "null" : composed(value, key, numeral);
    default:
      throw new UnfitError(`JSON has no ${typeof value}`);
  }
}

function composed(value: object, key: string, numeral: Numeral): string {
  if ("toJSON" in value && typeof value.toJSON === "function") return written(value.toJSON(key), key, numeral);
  if (Array.isArray(value)) {
    return `[${Array.from(value, (item, index) => written(item, `${index}`, numeral)).join(",")}]`;
  }
  const prototype: unknown = Object.getPrototypeOf(value);
  // A Map or a Set would be {} whatever it holds. What is plain in another realm is plain.
  if (prototype !== null && Object.getPrototypeOf(prototype) !== null) {
    throw new UnfitError(`a ${value.constructor.name} is no plain object: say what of it counts`);
  }
  const members = Object.entries(value).filter(([, member]) => member !== undefined);
  // By UTF-16 code units, which is how JavaScript compares strings.
  members.sort(([a], [b]) => (a < b ? -1 : 1));
  return `{${members.map(([name, member]) => `${quoted(name)}:${written(member, name, numeral)}`).join(",")}}`;
}

/** A number of the program's: an integer beyond 2^53 - 1 may have been another one before it was read. */
function exact(value: number): string {
  if (Number.isInteger(value) && !Number.isSafeInteger(value)) throw tooLarge(value);
  return numeral(value);
}

function numeral(value: number): string {
  if (!Number.isFinite(value)) throw new UnfitError(`JSON has no ${value}`);
  return JSON.stringify(value);
}

function quoted(text: string): string {
  // A pair of surrogates is one character under the flag u, so what matches stands alone.
  if (/\p{Surrogate}/u.test(text)) throw new UnfitError("a string holds half of a surrogate pair");
  return JSON.stringify(text);
}

function tooLarge(value: number | bigint | string): UnfitError {
  return new UnfitError(`${value} is beyond 2^53 - 1, which JSON cannot be trusted with: write it as a string`);
}

/** Reads JSON, and refuses integers beyond 2^53 - 1 and a key twice in an object. */
export function read(text: string): unknown {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new UnfitError(`it is no JSON: ${(error as Error).message}`, { cause: error });
  }
  check(text);
  return value;
}

const TOKENS = /"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|[{}[\]:,]/g;

/** Looks for what JSON.parse lets pass without a word. `text` is known to be JSON. */
function check(text: string): void {
  const keys: (Set<string> | undefined)[] = [];
  let last = "";
  for (const [token] of text.matchAll(TOKENS)) {
    if (token === "{") keys.push(new Set());
    else if (token === "[") keys.push(undefined);
    else if (token === "}" || token === "]") keys.pop();
    else if (token === ":") unique(keys.at(-1), JSON.parse(last) as string);
    else if (/^-?\d+$/.test(token) && !Number.isSafeInteger(Number(token))) throw tooLarge(token);
    last = token;
  }
}

function unique(keys: Set<string> | undefined, key: string): void {
  if (keys?.has(key)) throw new UnfitError(`the key ${JSON.stringify(key)} is there twice`);
  keys?.add(key);
}

/** What a JSON pointer (RFC 6901) points at; undefined if it is not there. */
export function pointedAt(value: unknown, pointer: string): unknown {
  if (!/^(\/([^/~]|~[01])*)*$/.test(pointer)) {
    throw new UnfitError(`"${pointer}" is no JSON pointer: write "" or /field/0/field, with ~1 for / and ~0 for ~`);
  }
  const steps = pointer.split("/").slice(1);
  return steps.reduce<unknown>((at, step) => stepInto(at, step.replaceAll("~1", "/").replaceAll("~0", "~")), value);
}

function stepInto(value: unknown, step: string): unknown {
  if (typeof value !== "object" || value === null) return undefined;
  if (Array.isArray(value)) return /^(0|[1-9]\d*)$/.test(step) ? (value[Number(step)] as unknown) : undefined;
  return Object.hasOwn(value, step) ? (value as Record<string, unknown>)[step] : undefined;
}
