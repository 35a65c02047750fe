/** The registration of users, behind onced: the same request gets the same answer, whatever happens in between. */

import express, { type Request } from "express";
import { Client } from "onced";
import { claimOf, idempotency } from "onced/express";

import { reach } from "./faults.js";
import { deleteUser, type Form, formIn, onError, pool, refuse, serve, showUser, siteOf } from "./web.js";

const client = new Client(); // at ONCED_SERVER

const app = express();
app.use(
  idempotency<Request>(client, {
    namespace: "users",
    // Keys are made by browsers, which know nothing of each other's sites. Without a site: 400.
    scope: siteOf,
    // Others take over 2 s after a crash, well within the patience of who asks (client.ts).
    lockTtl: 2_000,
    // A little less than that patience: a 409 with Retry-After says more than silence.
    wait: 2_500,
    // As long as anybody may send the same form again.
    retention: 24 * 3_600_000,
    // Whether a failed attempt has made the user is known to the table `registrations`, so the next one may look.
    onServerError: "retry",
  }),
);
app.use(express.json());

app.post("/users", async (request, response) => {
  const form = formIn(request.body);
  const site = siteOf(request);
  const claim = claimOf(request);
  if (site === undefined || claim === undefined) throw new Error("the middleware lets nothing pass without these");
  reach("before_commit");
  const user = await register(site, keyOf(request), claim.token, form);
  reach("after_commit");
  if (user === "stale") {
    console.log("refused a stale claim");
    response.set("Retry-After", "1");
    return refuse(response, 503, "STALE_CLAIM", "another attempt took over; its answer is what counts");
  }
  console.log(user === "used" ? "refused an e-mail that is used" : "registered");
  // A 4xx is stored like any other answer: this key stays refused, also when the e-mail is free again.
  if (user === "used") return refuse(response, 409, "EMAIL_USED", "email is already used");
  response.status(201).location(`/users/${user.id}`).json(user);
});

// These repeat by themselves, without a key.
app.get("/users/:id", showUser);
app.delete("/users/:id", deleteUser);
app.use(onError);
serve(app);

/** The key as the middleware reads it: quoted and bare are the same one. */
function keyOf(request: Request): string {
  return (request.get("Idempotency-Key") ?? "").trim().replace(/^"(.*)"$/, "$1");
}

type User = Form & { readonly id: string };

/**
 * Makes the user and notes under its key that it did, in one transaction. An attempt that died after it had committed is
 * found here by the next one, which else would meet its own e-mail. One that was paused, and has been taken over from,
 * is refused by its fencing token.
 */
async function register(site: string, key: string, token: bigint, form: Form): Promise<User | "used" | "stale"> {
  const db = await pool.connect();
  let broken: unknown;
  try {
    await db.query("BEGIN");
    const noted = await db.query<{ user_id: string | null }>(
      `INSERT INTO registrations (site, key, token) VALUES ($1, $2, $3)
       ON CONFLICT (site, key) DO UPDATE SET token = excluded.token WHERE registrations.token <= excluded.token
       RETURNING user_id`,
      [site, key, token],
    );
    const found = noted.rows[0];
    const id = found?.user_id ?? (found && (await insert()));
    // Committed in any case: once somebody is told that the e-mail is used, no older attempt makes the user after all.
    await db.query("COMMIT");
    if (found === undefined) return "stale";
    return id ? { id, ...form } : "used";
  } catch (error) {
    broken = error;
    throw error;
  } finally {
    // A connection that failed goes, and its transaction with it.
    db.release(broken !== undefined);
  }

  async function insert(): Promise<string | undefined> {
    const { rows } = await db.query<{ id: string }>(
      "INSERT INTO users (site, email, name) VALUES ($1, $2, $3) ON CONFLICT (site, email) DO NOTHING RETURNING id",
      [site, form.email, form.name],
    );
    const id = rows[0]?.id;
    if (id) await db.query("UPDATE registrations SET user_id = $3 WHERE site = $1 AND key = $2", [site, key, id]);
    return id;
  }
}
