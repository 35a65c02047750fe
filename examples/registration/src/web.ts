/** What both services share: the form, refusals, and how a service starts. */

import type { AddressInfo } from "node:net";
import type { ErrorRequestHandler, Express, Request, Response } from "express";
import pg from "pg";

export const pool = new pg.Pool({
  connectionString: process.env["DATABASE_URL"],
  // A process that is paused in a transaction keeps its row locked, and whoever takes over waits for it.
  idle_in_transaction_session_timeout: 2_000,
  // A claim is renewed while its work hangs, and nobody else gets the key: so nothing may hang for ever. The database
  // ends a statement that waits for a lock; the last one is for a connection on which nothing arrives any more.
  connectionTimeoutMillis: 5_000,
  statement_timeout: 10_000,
  query_timeout: 12_000,
});
// A connection that breaks while nobody uses it is not the end of the service.
pool.on("error", (error) => console.error(`a connection to the database broke: ${error.message}`));

const SITES = new Set(["north", "south"]);

/** The site that a request is for, as the edge has found it; undefined if it is none of ours. */
export function siteOf(request: Request): string | undefined {
  const site = request.get("X-Site");
  return site !== undefined && SITES.has(site) ? site : undefined;
}

export interface Form {
  readonly email: string;
  readonly name: string;
}

class BadField extends Error {}

/** The form in a body. @throws BadField naming the field that is wrong. */
export function formIn(body: unknown): Form {
  const { email, name } = (body ?? {}) as Record<string, unknown>;
  if (email === undefined) throw new BadField("email is missing");
  if (typeof email !== "string" || !/^[^@\s]+@[^@\s]+$/.test(email)) throw new BadField("email is to be an address");
  if (name === undefined) throw new BadField("name is missing");
  if (typeof name !== "string" || name.trim() === "") throw new BadField("name is to be some text");
  return { email: email.toLowerCase(), name: name.trim() };
}

/** Answers with an error: application/problem+json, as the middleware does. */
export function refuse(response: Response, status: number, code: string, detail: string): void {
  response.status(status).type("application/problem+json").send(JSON.stringify({ status, code, detail }));
}

export const onError: ErrorRequestHandler = (error: Error & { status?: number }, _request, response, _next) => {
  if (error instanceof BadField) return refuse(response, 400, "FIELD_INVALID", error.message);
  // The parser of bodies says what it could not read.
  if (error.status !== undefined && error.status < 500) {
    return refuse(response, error.status, "BODY_INVALID", `the body cannot be read: ${error.message}`);
  }
  console.error(error);
  refuse(response, 500, "INTERNAL", "the log says why");
};

export async function showUser(request: Request, response: Response): Promise<void> {
  const { rows } = await pool.query<Form & { id: string }>(
    "SELECT id, email, name FROM users WHERE site = $1 AND id::text = $2",
    [siteOf(request), request.params["id"]],
  );
  if (rows[0]) response.json(rows[0]);
  else refuse(response, 404, "NO_SUCH_USER", "id is of no user of this site");
}

export async function deleteUser(request: Request, response: Response): Promise<void> {
  await pool.query("DELETE FROM users WHERE site = $1 AND id::text = $2", [siteOf(request), request.params["id"]]);
  response.status(204).end();
}

/** Serves on a free port, and says on which. */
export function serve(app: Express): void {
  const server = app.listen(0, "127.0.0.1", () => {
    console.log(`listening on ${(server.address() as AddressInfo).port}`);
  });
}
