/** Middleware for Express 4 and 5, and for whatever else takes functions of (request, response, next). */

import type { IncomingMessage, ServerResponse } from "node:http";

import type { Client } from "./client.js";
import { assertHttp1, Idempotency, type IdempotencyOptions } from "./http/idempotency.js";

export { claimOf, type Decision, decide, type IdempotencyOptions } from "./http/idempotency.js";

/**
 * Makes handlers idempotent by the Idempotency-Key header of their requests. Put it in front of body parsers: it reads
 * the body as it came, and leaves it there for them.
 *
 * @throws InvalidError if an option cannot be used.
 */
export function idempotency<Request extends IncomingMessage = IncomingMessage>(
  client: Client,
  options: IdempotencyOptions<Request> = {},
): (request: Request, response: ServerResponse, next: (error?: unknown) => void) => void {
  const middleware = new Idempotency<Request>(client, options);
  return (request, response, next) => {
    const { originalUrl } = request as { originalUrl?: string };
    const target = originalUrl ?? request.url ?? "";
    const run = async () => {
      assertHttp1(request);
      await middleware.handle({ request, response, target, framed: request, next: () => next() });
    };
    run().catch(next);
  };
}
