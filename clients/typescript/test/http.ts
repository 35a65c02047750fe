/** Servers of each framework, with one handler for all, and a caller. */

import { once } from "node:events";
import * as http from "node:http";
import type { AddressInfo } from "node:net";
import { Readable } from "node:stream";
import type { TestContext } from "node:test";
import express5 from "express";
import express4 from "express4";
import fastify from "fastify";
import type { Client } from "onced";
import { idempotency as forExpress, type IdempotencyOptions } from "onced/express";
import { idempotency as forFastify } from "onced/fastify";

/** What a handler gets, and answers by. */
export interface Exchange {
  readonly request: http.IncomingMessage;
  readonly response: http.ServerResponse;
  /** What the framework's parser made of the body. */
  readonly body: unknown;
  /** Answers by the framework's own means. */
  send(status: number, headers: Record<string, string | string[]>, body: string | Buffer | Readable): unknown;
}

export type Handler = (exchange: Exchange) => unknown;

/** A handler that counts how often it runs. */
export function counting(handler: Handler): Handler & { runs: number } {
  const counted = Object.assign(
    (exchange: Exchange) => {
      counted.runs += 1;
      return handler(exchange);
    },
    { runs: 0 },
  );
  return counted;
}

/** Starts a server with one handler for all of its paths. `between` passes before the framework's parser reads. */
export type Start = (
  test: TestContext,
  client: Client,
  handler: Handler,
  options?: IdempotencyOptions,
  between?: () => Promise<void>,
) => Promise<number>;

function withExpress(express: typeof express5): Start {
  return async (test, client, handler, options, between = async () => {}) => {
    const app = express();
    app.use(forExpress(client, options));
    app.use((_request, _response, next) => void between().then(next));
    app.use(express.json(), express.text({ type: "text/*" }));
    app.use((request, response, next) => {
      const send: Exchange["send"] = (status, headers, body) => {
        response.status(status).set(headers);
        if (body instanceof Readable) body.pipe(response);
        else response.send(body);
      };
      // Express 4 does not look at promises.
      Promise.resolve()
        .then(() => handler({ request, response, body: request.body as unknown, send }))
        .catch(next);
    });
    app.use((error: Error, _request: unknown, response: http.ServerResponse, _next: unknown) => {
      response.statusCode = 500;
      response.end(`it failed: ${error.message}`);
    });
    return listening(test, http.createServer(app as http.RequestListener));
  };
}

const withFastify: Start = async (test, client, handler, options, between = async () => {}) => {
  const app = fastify({ forceCloseConnections: true });
  await app.register(forFastify(client, options as object));
  app.addHook("preParsing", async () => between());
  app.all("/*", async (request, reply) => {
    const send: Exchange["send"] = (status, headers, body) => reply.status(status).headers(headers).send(body);
    const exchange = { request: request.raw, response: reply.raw, body: request.body, send };
    await handler(exchange);
    return reply;
  });
  app.setErrorHandler((error: Error, _request, reply) => reply.status(500).send(`it failed: ${error.message}`));
  await app.listen({ port: 0, host: "127.0.0.1" });
  test.after(() => app.close());
  return (app.server.address() as AddressInfo).port;
};

export const FRAMEWORKS: Record<string, Start> = {
  "Express 4": withExpress(express4),
  "Express 5": withExpress(express5),
  Fastify: withFastify,
};

async function listening(test: TestContext, server: http.Server): Promise<number> {
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  test.after(() => {
    server.closeAllConnections();
    server.close();
  });
  return (server.address() as AddressInfo).port;
}

/** What a caller got. */
export interface Got {
  readonly status: number;
  readonly headers: http.IncomingHttpHeaders;
  readonly body: Buffer;
  /** The code of a refusal. */
  readonly code: string | undefined;
}

export interface Asked {
  readonly key?: string | string[];
  readonly method?: string;
  readonly path?: string;
  readonly headers?: http.OutgoingHttpHeaders;
  /** Sent in chunks if it is an array. */
  readonly body?: string | string[];
}

/** Sends a request on a connection of its own. */
export function send(
  port: number,
  { key, method = "POST", path = "/orders", headers = {}, body }: Asked,
): http.ClientRequest {
  const type = body === undefined ? {} : { "content-type": "application/json" };
  const all = { ...type, ...headers, ...(key !== undefined && { "idempotency-key": key }) };
  const request = http.request({ port, host: "127.0.0.1", method, path, headers: all, agent: false });
  if (Array.isArray(body)) {
    request.setHeader("transfer-encoding", "chunked");
    request.flushHeaders();
    for (const chunk of body) request.write(chunk);
    request.end();
  } else request.end(body);
  return request;
}

/** The answer to a request. */
export async function answer(request: http.ClientRequest): Promise<Got> {
  const [response] = (await once(request, "response")) as [http.IncomingMessage];
  const chunks: Buffer[] = [];
  for await (const chunk of response) chunks.push(chunk as Buffer);
  const body = Buffer.concat(chunks);
  const refused = response.headers["content-type"] === "application/problem+json";
  const code = refused ? (JSON.parse(body.toString()) as { code: string }).code : undefined;
  return { status: response.statusCode ?? 0, headers: response.headers, body, code };
}

export function ask(port: number, asked: Asked): Promise<Got> {
  return answer(send(port, asked));
}
