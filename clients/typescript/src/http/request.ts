/** The body of a request, read by the middleware and left there for the handler. */

import type { IncomingMessage } from "node:http";
import { setImmediate as parsed } from "node:timers/promises";

import { InvalidError } from "../errors.js";

/** The body; `large` if it is over the limit, and `gone` if the caller hung up before it had sent it all. */
export type Body = Uint8Array | "large" | "gone";

/**
 * Reads the body, up to `limit` bytes, and puts it back, so that the handler reads it as if nobody had. A body that was
 * read before, by another middleware, has to be in `rawBody`.
 */
export async function readBody(request: IncomingMessage, limit: number): Promise<Body> {
  const { rawBody } = request as { rawBody?: unknown };
  if (rawBody instanceof Uint8Array) return rawBody.length > limit ? "large" : rawBody;
  const length = request.headers["content-length"];
  const none = length === undefined ? request.headers["transfer-encoding"] === undefined : Number(length) === 0;
  if (none) return new Uint8Array();
  if (request.readableDidRead || request.readableEnded) {
    throw new InvalidError(
      "the body of the request was read before: put this middleware in front of body parsers, or keep the bytes in request.rawBody",
    );
  }
  if (Number(length) > limit) return "large";
  // A stream that is read at its end says so, once, and the handler would wait for that in vain. So an empty body
  // must not be read, and whether it is empty shows when the parser has been through what has arrived.
  await parsed();
  return new Promise((resolve) => new Reading(request, limit, resolve).begin());
}

class Reading {
  readonly #chunks: Buffer[] = [];
  #size = 0;

  constructor(
    readonly request: IncomingMessage,
    readonly limit: number,
    readonly resolve: (body: Body) => void,
  ) {}

  begin(): void {
    const { request } = this;
    if (request.destroyed) this.#gone();
    else if (request.complete) this.#take();
    else request.on("readable", this.#take).on("close", this.#gone).on("error", this.#gone);
  }

  readonly #take = (): void => {
    const { request } = this;
    while (request.readableLength > 0) {
      const chunk = request.read() as Buffer;
      this.#size += chunk.length;
      if (this.#size > this.limit) {
        this.#end("large");
        return;
      }
      this.#chunks.push(chunk);
    }
    if (!request.complete) return;
    const body = Buffer.concat(this.#chunks);
    // In this same turn: the stream has reached its end, and has not said so yet.
    if (body.length > 0) request.unshift(body);
    this.#end(body);
  };

  readonly #gone = (): void => this.#end("gone");

  #end(body: Body): void {
    this.request.off("readable", this.#take).off("close", this.#gone).off("error", this.#gone);
    this.resolve(body);
  }
}

/**
 * Keeps a hang-up from a request that has arrived whole: what becomes of its connection is nothing to who reads it.
 * Without this a parser that comes later would find no body, and the answer to that would be stored. Returns how to
 * end that.
 */
export function shield(request: IncomingMessage): () => void {
  const { socket } = request;
  let hungUp = false;
  request.destroy = () => {
    hungUp = true;
    // By this some parsers tell whether there is anything to read.
    Object.defineProperty(socket, "readable", { value: true, configurable: true });
    return request;
  };
  return () => {
    Reflect.deleteProperty(request, "destroy");
    Reflect.deleteProperty(socket, "readable");
    if (hungUp) request.destroy();
  };
}
