/**
 * Records what a handler answers, in place of sending it, so that it can be stored first. The handler sees nothing of
 * that, nor of a caller that hangs up: it runs to its end.
 */

import type { OutgoingHttpHeader, ServerResponse } from "node:http";

import type { Answer } from "./contract.js";

/** How a handler ended. */
export type Ending =
  /** It answered. */
  | { readonly how: "answered"; readonly answer: Answer }
  /** It answered what is not to be stored and is too large to hold back: the caller has most of it. */
  | { readonly how: "passed"; readonly status: number }
  /** It answers what cannot be stored. */
  | { readonly how: "unstorable"; readonly why: string }
  /** It broke its answer off. */
  | { readonly how: "broken"; readonly why: string };

/**
 * `recording` until the handler has ended, then `held` until what it said is stored, and `open`. `passing` is what is
 * not stored and too large to hold back, `dropping` what is refused, and `over` once that was said.
 */
type State = "recording" | "held" | "open" | "passing" | "dropping" | "over";

/** Headers as they were written. */
type Headers = readonly (readonly [name: string, value: OutgoingHttpHeader])[];
type Done = (error?: Error | null) => void;
type Rest = [chunk?: unknown, encoding?: unknown, done?: unknown];

export class Recorder {
  /** How the handler ended. */
  readonly ended: Promise<Ending>;
  readonly #response: ServerResponse;
  readonly #limit: number;
  readonly #stores: (status: number) => boolean;
  readonly #original: Pick<ServerResponse, "write" | "end" | "writeHead" | "flushHeaders" | "destroy" | "emit">;
  /** What stood in the answer before the handler. */
  readonly #before: Headers;
  /** What stood in it when the handler had ended. */
  #after: Headers = [];
  #end: (ending: Ending) => void = () => {};
  #state: State = "recording";
  #chunks: Buffer[] = [];
  #size = 0;
  /** The status that the answer began with. */
  #status: number | undefined;
  /** What the handler gave to `end`, to be called when all is sent. */
  #done: Done | undefined;
  /** Ends an answer that passes. */
  #finish: (() => void) | undefined;
  #hungUp = false;

  /** Records up to `limit` bytes of answers whose status `stores`, and lets others pass where they are larger. */
  constructor(response: ServerResponse, limit: number, stores: (status: number) => boolean) {
    this.#response = response;
    this.#limit = limit;
    this.#stores = stores;
    this.#before = headersIn(response);
    const { write, end, writeHead, flushHeaders, destroy, emit } = response;
    this.#original = { write, end, writeHead, flushHeaders, destroy, emit };
    this.ended = new Promise((resolve) => {
      this.#end = resolve;
    });
    this.#install();
  }

  /** Sends what the handler answered. */
  sendOwn({ status, body }: Answer): void {
    const response = this.#response;
    if (this.#state === "passing") {
      this.#state = "open";
      if (this.#hungUp) this.#close();
      else this.#finish?.();
      return;
    }
    this.#reopen("open");
    // Nothing that was done to it since has a place in what is stored.
    replaceHeaders(response, this.#after);
    response.statusCode = status;
    if (this.#hungUp) this.#close();
    else (this.#original.end as (...rest: Rest) => void).call(response, body, this.#done);
  }

  /** Sends `answer` in place of whatever the handler said. */
  sendInstead(answer: Answer): void {
    const response = this.#response;
    this.#reopen("over");
    replaceHeaders(response, this.#before);
    response.statusMessage = "";
    if (this.#hungUp) this.#close();
    else (this.#original.end as (...rest: Rest) => void).call(response, withHead(response, answer));
  }

  #install(): void {
    const response = this.#response;
    response.write = ((...rest: Rest) => this.#write(rest)) as ServerResponse["write"];
    response.end = ((...rest: Rest) => this.#finishWith(rest)) as ServerResponse["end"];
    response.writeHead = ((status: number, ...rest: unknown[]) =>
      this.#head(status, rest)) as ServerResponse["writeHead"];
    response.flushHeaders = () => {
      if (this.#sends) this.#original.flushHeaders.call(response);
      else if (this.#state === "recording") this.#begin();
    };
    response.destroy = (error?: Error) => {
      if (this.#state === "recording") {
        this.#state = "dropping";
        this.#end({ how: "broken", why: error?.message ?? "the handler broke its answer off" });
      } else if (this.#state === "passing") this.#passed(() => {});
      return this.#original.destroy.call(response, error);
    };
    response.emit = ((event: string, ...rest: unknown[]) => {
      if (event !== "close" || this.#state === "open" || this.#state === "over") {
        return this.#original.emit.call(response, event, ...rest);
      }
      // Node has said so just now, and to nobody but this.
      Object.assign(response, { destroyed: false, _closed: false });
      this.#hungUp = true;
      // Who waits for room in a connection that is gone is to go on.
      if (this.#state === "passing") this.#original.emit.call(response, "drain");
      return true;
    }) as ServerResponse["emit"];
  }

  #write(rest: Rest): boolean {
    const [chunk, encoding, done] = arranged(rest);
    if (this.#sends && !this.#hungUp) {
      return (this.#original.write as (...rest: Rest) => boolean).apply(this.#response, rest);
    }
    if (this.#state === "recording") this.#record(chunk, encoding);
    // It may be beyond what is held back by now.
    if (done) process.nextTick(done);
    return true;
  }

  #finishWith(rest: Rest): ServerResponse {
    const response = this.#response;
    const end = this.#original.end as (...rest: Rest) => ServerResponse;
    if (this.#state === "open") return end.apply(response, rest);
    if (this.#state === "passing") {
      this.#passed(() => end.apply(response, rest));
      return response;
    }
    const [chunk, encoding, done] = arranged(rest);
    if (this.#state === "recording") this.#record(chunk, encoding);
    // What was recorded last may have been too much.
    const state = this.#state as State;
    if (state === "recording") this.#hold(done);
    else if (state === "passing") this.#passed(() => end.call(response, done));
    else if (done) process.nextTick(done);
    return response;
  }

  /** Adds to what is recorded. Something that is not to be stored passes from the limit on. */
  #record(chunk: unknown, encoding: BufferEncoding | undefined): void {
    this.#begin();
    if (chunk === undefined) return;
    const bytes = typeof chunk === "string" ? Buffer.from(chunk, encoding) : Buffer.from(chunk as Uint8Array);
    if (this.#sends) this.#pass(bytes);
    if (this.#state !== "recording") return;
    this.#chunks.push(bytes);
    this.#size += bytes.length;
    if (this.#size > this.#limit) this.#outgrow(`it is larger than the ${this.#limit} bytes that can be stored`);
  }

  /** Begins the answer, unless it has begun with this status. */
  #begin(): void {
    const response = this.#response;
    // Through the property: others that look at the head before it is sent are asked as well.
    if (this.#status !== response.statusCode) response.writeHead(response.statusCode);
    const type = String(response.getHeader("content-type") ?? "");
    if (this.#state === "recording" && /^\s*text\/event-stream\b/i.test(type)) {
      this.#outgrow("it is a stream of events, which has no end");
    }
  }

  #head(status: number, rest: unknown[]): ServerResponse {
    const response = this.#response;
    if (this.#sends || (this.#state === "over" && !response.headersSent)) {
      return (this.#original.writeHead as (...rest: unknown[]) => ServerResponse).call(response, status, ...rest);
    }
    if (this.#state !== "recording") return response;
    if (!Number.isInteger(status) || status < 100 || status > 999) throw new RangeError(`invalid status: ${status}`);
    // Nothing was sent: an answer that begins with another status takes the place of what was said before.
    if (this.#status !== undefined && this.#status !== status) [this.#chunks, this.#size] = [[], 0];
    this.#status = status;
    response.statusCode = status;
    const [message, headers] = typeof rest[0] === "string" ? [rest[0], rest[1]] : [undefined, rest[0] ?? rest[1]];
    if (message !== undefined) response.statusMessage = message;
    setHeaders(response, headers);
    if (status < 200) this.#outgrow(`a status of ${status} is no answer`);
    return response;
  }

  /** The answer is none that can be held back. */
  #outgrow(why: string): void {
    const response = this.#response;
    const held = Buffer.concat(this.#chunks);
    this.#chunks = [];
    if (response.statusCode < 200 || this.#stores(response.statusCode)) {
      this.#state = "dropping";
      this.#end({ how: "unstorable", why });
      return;
    }
    this.#state = "passing";
    if (held.length > 0) this.#pass(held);
    else this.#original.flushHeaders.call(response);
  }

  #pass(bytes: Uint8Array): void {
    (this.#original.write as (chunk: Uint8Array) => boolean).call(this.#response, bytes);
  }

  #passed(finish: () => void): void {
    this.#finish ??= finish;
    this.#end({ how: "passed", status: this.#response.statusCode });
  }

  /** The handler has answered: to it, all is sent. */
  #hold(done: Done | undefined): void {
    const response = this.#response;
    this.#state = "held";
    this.#done = done;
    this.#after = headersIn(response);
    const { statusCode: status } = response;
    const bodiless = status === 204 || status === 304 || response.req.method === "HEAD";
    const body = bodiless ? new Uint8Array() : Buffer.concat(this.#chunks);
    const headers = new Map<string, string[]>();
    for (const [name, value] of this.#after) {
      headers.set(name.toLowerCase(), Array.isArray(value) ? [...value] : [String(value)]);
    }
    this.#end({ how: "answered", answer: { status, headers, body } });
    // `writableEnded` is this as well.
    (response as { finished: boolean }).finished = true;
    Object.defineProperty(response, "headersSent", { get: () => true, configurable: true });
  }

  #reopen(state: State): void {
    if (this.#state === "held") {
      (this.#response as { finished: boolean }).finished = false;
      Reflect.deleteProperty(this.#response, "headersSent");
    }
    this.#state = state;
  }

  /** Tells what Node told before: who waits for the answer to be sent must not wait for ever. */
  #close(): void {
    Object.assign(this.#response, { finished: true, destroyed: true, _closed: true });
    this.#response.emit("close");
  }

  /** Whether what the handler writes goes out. */
  get #sends(): boolean {
    return this.#state === "open" || this.#state === "passing";
  }
}

/** Sends `answer`, on top of the headers that are there. */
export function sendAnswer(response: ServerResponse, answer: Answer): void {
  response.end(withHead(response, answer));
}

/** Sets the head of `answer`, and returns its body. */
function withHead(response: ServerResponse, { status, headers, body }: Answer): Uint8Array {
  response.statusCode = status;
  for (const [name, values] of headers) {
    response.setHeader(name, values.length === 1 ? (values[0] ?? "") : [...values]);
  }
  return body;
}

function headersIn(response: ServerResponse): Headers {
  // Node has it for all that goes out, and its types for requests alone.
  const { getRawHeaderNames } = response as ServerResponse & { getRawHeaderNames(): string[] };
  return getRawHeaderNames.call(response).map((name) => [name, response.getHeader(name) ?? ""]);
}

function replaceHeaders(response: ServerResponse, headers: Headers): void {
  for (const name of response.getHeaderNames()) response.removeHeader(name);
  for (const [name, value] of headers) response.setHeader(name, value);
}

/** The arguments of `write` and `end`, of which each but the last may be left out, or null. */
function arranged(rest: Rest): [chunk: unknown, encoding: BufferEncoding | undefined, done: Done | undefined] {
  const done = rest.find((part) => typeof part === "function") as Done | undefined;
  const [chunk, encoding] = rest.map((part) => (typeof part === "function" ? undefined : (part ?? undefined)));
  return [chunk, encoding as BufferEncoding | undefined, done];
}

/** Sets what `writeHead` was given: an object, names and values in turn, or pairs of them. */
function setHeaders(response: ServerResponse, headers: unknown): void {
  if (Array.isArray(headers)) {
    const flat = headers.flatMap((part: unknown) =>
      Array.isArray(part) && headers.length > 0 ? part : [part],
    ) as string[];
    const names = flat.filter((_, index) => index % 2 === 0);
    for (const name of names) response.removeHeader(name);
    names.forEach((name, index) => {
      response.appendHeader(name, flat[index * 2 + 1] ?? "");
    });
  } else if (typeof headers === "object" && headers !== null) {
    for (const [name, value] of Object.entries(headers as Record<string, OutgoingHttpHeader>)) {
      response.setHeader(name, value);
    }
  }
}
