/** A plugin for Fastify 5. */

import type { IncomingMessage, ServerResponse } from "node:http";

import type { Client } from "./client.js";
import { assertHttp1, Idempotency, type IdempotencyOptions } from "./http/idempotency.js";

export { claimOf, type Decision, decide, type IdempotencyOptions } from "./http/idempotency.js";

/** What the plugin needs of a request of Fastify's. */
export interface RawRequest {
  readonly raw: IncomingMessage;
  readonly originalUrl: string;
}

interface RawReply {
  readonly raw: ServerResponse;
  hijack(): unknown;
}

type Hook = (request: RawRequest, reply: RawReply, done: (error?: Error) => void) => void;

interface Instance {
  addHook(name: "onRequest", hook: Hook): unknown;
}

/** A plugin of Fastify's. */
export type Plugin = (instance: Instance, options: unknown, done: (error?: Error) => void) => void;

/**
 * Makes handlers idempotent by the Idempotency-Key header of their requests. Register it, and it holds for all routes
 * of the instance that it is registered with.
 *
 * @throws InvalidError if an option cannot be used.
 */
export function idempotency<Request extends RawRequest = RawRequest>(
  client: Client,
  options: IdempotencyOptions<Request> = {},
): Plugin {
  const middleware = new Idempotency<Request>(client, options);
  const hook: Hook = (framed, reply, done) => {
    const { raw: request, originalUrl: target } = framed;
    const run = async () => {
      assertHttp1(request);
      await middleware.handle({
        request,
        response: reply.raw,
        target,
        framed: framed as Request,
        next: () => done(),
        answering: () => reply.hijack(),
      });
    };
    run().catch(done);
  };
  const plugin: Plugin = (instance, _options, done) => {
    instance.addHook("onRequest", hook);
    done();
  };
  // The hook is for who registers the plugin, and not for a context of its own.
  return Object.assign(plugin, { [Symbol.for("skip-override")]: true, [Symbol.for("fastify.display-name")]: "onced" });
}
