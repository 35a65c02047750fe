/** The registration of users, behind onced: the same request gets the same answer, whatever happens in between. */

import express, { type Request } from "express";
import { type Claim, Client } from "onced";
import { claimOf, idempotency } from "onced/express";

import { reach } from "./faults.js";
import { deleteUser, type Form, formIn, onError, pool, refuse, serve, showUser, siteOf } from "./web.js";

const client = new Client(); // at ONCED_SERVER

/** How soon after a crash others take over, in ms. It is renewed while a request is at work, however long that is. */
const LOCK_TTL = Number(process.env["LOCK_TTL"] ?? 20) * 1_000;

const app = express();
app.use(
  idempotency<Request>(client, {
    namespace: "users",
    // Keys are made by browsers, which know nothing of each other's sites. Without a site: 400.
    scope: siteOf,
    lockTtl: LOCK_TTL,
    // Longer, to see a takeover; and less than the patience of who asks (client.ts): a 409 says more than silence.
    wait: 1.25 * LOCK_TTL,
    // As long as anybody may send the same form again.
    retention: 24 * 3_600_000,
    // What a failed attempt has committed is known to the table `registrations`, so the next one may look.
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
  const outcome = await register(site, claim, form);
  reach("after_commit");
  if (outcome === "stale") {
    console.log("refused a stale claim");
    response.set("Retry-After", "1");
    return refuse(response, 503, "STALE_CLAIM", "another attempt took over; its answer is what counts");
  }
  console.log("refused" in outcome ? "refused an e-mail that is used" : "registered");
  // A 4xx is stored like any other answer: this key stays refused, also when the e-mail is free again.
  if ("refused" in outcome) return refuse(response, 409, outcome.refused, "email is already used");
  const user = { id: outcome.id, ...form };
  response.status(201).location(`/users/${user.id}`).json(user);
});

// These repeat by themselves, without a key.
app.get("/users/:id", showUser);
app.delete("/users/:id", deleteUser);
app.use(onError);
serve(app);

/** What became of a key, as the table has it. */
type Outcome = { readonly id: string } | { readonly refused: "EMAIL_USED" };

/**
 * Makes the user, or refuses to, and notes that under the key, in one transaction. An attempt that died after it had
 * committed is found here by the next one, which else would meet its own e-mail, or find one free that it was refused.
 * One that was paused, and has been taken over from, is refused by its fencing token.
 */
async function register(site: string, { key, token }: Claim, form: Form): Promise<Outcome | "stale"> {
  const db = await pool.connect();
  let broken: unknown;
  try {
    await db.query("BEGIN");
    const noted = await db.query<{ outcome: Outcome | null }>(
      `INSERT INTO registrations (key, token) VALUES ($1, $2)
       ON CONFLICT (key) DO UPDATE SET token = excluded.token WHERE registrations.token <= excluded.token
       RETURNING outcome`,
      [key, token],
    );
    const found = noted.rows[0];
    const outcome = found && (found.outcome ?? (await decide()));
    // A refusal as well: once somebody is told that the e-mail is used, no attempt makes the user after all.
    await db.query("COMMIT");
    return outcome ?? "stale";
  } catch (error) {
    broken = error;
    throw error;
  } finally {
    // A connection that failed goes, and its transaction with it.
    db.release(broken !== undefined);
  }

  async function decide(): Promise<Outcome> {
    const { rows } = await db.query<{ id: string }>(
      "INSERT INTO users (site, email, name) VALUES ($1, $2, $3) ON CONFLICT (site, email) DO NOTHING RETURNING id",
      [site, form.email, form.name],
    );
    const outcome: Outcome = rows[0] ?? { refused: "EMAIL_USED" };
    await db.query("UPDATE registrations SET outcome = $2 WHERE key = $1", [key, outcome]);
    return outcome;
  }
}
