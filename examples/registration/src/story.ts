/**
 * Plays the same registrations against the naive service, against the one behind onced with a hash of the body as key,
 * and against the same one with a UUID for each form. Fails unless all is as told.
 */

import { createHash, randomUUID } from "node:crypto";
import type pg from "pg";

import { type Answer, type Registration, register } from "./client.js";
import {
  callsWaiting,
  endHosts,
  expect,
  Host,
  losesReply,
  makeDatabase,
  say,
  table,
  transactionsWaiting,
  until,
  verdict,
} from "./stage.js";

/** A way to run the service, with two hosts, and what went wrong there. */
interface World {
  readonly name: "naive" | "hashed" | "keyed";
  readonly program: "naive" | "service";
  readonly keyOf: (body: string) => string;
  readonly url: string;
  readonly pool: pg.Pool;
  readonly a: Host;
  readonly b: Host;
  /** Callers told that their own e-mail is used by somebody else. */
  refusedOwn: number;
  /** Accounts that are made after their caller was told no. */
  late: number;
  /** Callers told that they have an account, who have none. */
  noAccount: number;
  /** Callers given the account of somebody else. */
  others: number;
}

async function makeWorld(name: World["name"], keyOf: World["keyOf"]): Promise<World> {
  const program = name === "naive" ? "naive" : "service";
  const { url, pool } = await makeDatabase(name);
  const [a, b] = await Promise.all([Host.start(program, url), Host.start(program, url)]);
  return { name, program, keyOf, url, pool, a, b, refusedOwn: 0, late: 0, noAccount: 0, others: 0 };
}

/** A form that was filled in, with the key that was made for it. */
function formOf(world: World, email: string, site = "north"): Registration {
  const body = JSON.stringify({ email, name: "A person" });
  return { site, body, key: world.keyOf(body) };
}

/** Whether an answer is that the caller's own e-mail is used, which is counted. */
function tally(world: World, answer: Answer): Answer {
  if (answer.body.code === "EMAIL_USED") world.refusedOwn += 1;
  return answer;
}

async function usersWith(world: World, email: string): Promise<number> {
  return (await world.pool.query("SELECT FROM users WHERE email = $1", [email])).rowCount ?? 0;
}

async function forget(world: World, { body }: Answer): Promise<void> {
  await fetch(`${world.b.url}/users/${body.id}`, { method: "DELETE", headers: { "X-Site": "north" } });
}

const told = ({ status, body, replayed }: Answer) =>
  `${status}${body.code ? ` ${body.code}` : ""}${replayed ? ", a replay" : ""}`;

async function lostReply(world: World): Promise<void> {
  const hosts = [await losesReply(world.a), world.b.url];
  const answer = tally(world, await register(hosts, formOf(world, "lost@example.com")));
  say(`  The reply is lost, the caller asks again: ${told(answer)}`);
  expect(answer.sent === 2 && (await usersWith(world, "lost@example.com")) === 1, "sent twice, registered once");
  expect(answer.status === (world.program === "naive" ? 409 : 201), `after a lost reply: ${told(answer)}`);
}

async function atOnce(world: World): Promise<void> {
  const form = formOf(world, "at-once@example.com");
  const hosts = [world.a.url, world.b.url, world.a.url, world.b.url, world.a.url];
  // Somebody is about to take this e-mail: whoever comes first gets no further, until the others are there.
  const ahead = await world.pool.connect();
  await ahead.query("BEGIN");
  await ahead.query("INSERT INTO users (site, email, name) VALUES ('north', 'at-once@example.com', 'Nobody')");
  const asked = Promise.all(hosts.map((host) => register([host], form)));
  const [atWork, waiting] = world.program === "naive" ? [5, 0] : [1, 4];
  const there = async () => (await transactionsWaiting(world.pool)) === atWork && (await callsWaiting()) === waiting;
  await until(`${atWork} of five are at work, and ${waiting} wait`, there);
  await ahead.query("ROLLBACK");
  ahead.release();
  const answers = await asked;
  for (const answer of answers) tally(world, answer);
  const created = answers.filter((answer) => answer.status === 201);
  const ids = new Set(created.map((answer) => answer.body.id));
  const how = world.program === "naive" ? "" : ", of which four wait for the first";
  const came = `201 for ${created.length}, 409 for ${answers.filter((answer) => answer.status === 409).length}`;
  say(`  The same form five times at once, at two hosts${how}: ${came}`);
  expect(ids.size === 1, "one user is registered, by one id");
  expect(created.length === (world.program === "naive" ? 1 : 5), `${created.length} of five were told 201`);
}

async function crash(world: World): Promise<void> {
  const dies = await Host.start(world.program, world.url, "after_commit:SIGKILL");
  const answer = tally(world, await register([dies.url, world.b.url], formOf(world, "crash@example.com")));
  await dies.says("ended SIGKILL");
  say(`  A host is killed between the commit and the reply, the caller asks another one: ${told(answer)}`);
  expect((await usersWith(world, "crash@example.com")) === 1, "one user is registered in spite of the crash");
  expect(answer.status === (world.program === "naive" ? 409 : 201), `after a crash: ${told(answer)}`);
}

/** A refusal that was committed, and that onced has not heard of, stands like any other. */
async function crashOfRefusal(world: World): Promise<void> {
  const holder = await register([world.a.url], formOf(world, "refusal@example.com"));
  const dies = await Host.start(world.program, world.url, "after_commit:SIGKILL");
  const form = formOf(world, "refusal@example.com");
  // Its caller asks nobody else, and gives up.
  const first = await register([dies.url], form).catch(() => "no answer");
  await dies.says("ended SIGKILL");
  await forget(world, holder);
  const second = await register([world.b.url], form);
  say("  A host is killed between the commit of a refusal and the reply; the e-mail is free again, the caller asks");
  say(`    another host: ${told(second)}`);
  expect(first === "no answer" && second.body.code === "EMAIL_USED", `a refusal stands: ${told(second)}`);
}

async function pause(world: World): Promise<void> {
  const pauses = await Host.start(world.program, world.url, "before_commit:SIGSTOP");
  const form = formOf(world, "pause@example.com");
  const first = register([pauses.url], form);
  await pauses.says("SIGSTOP before_commit");
  const other = await register([world.b.url], formOf(world, "pause@example.com"));
  const second = await register([world.b.url], form);
  expect(second.body.code === "EMAIL_USED", `somebody else was faster: ${told(second)}`);
  await forget(world, other);
  pauses.signal("SIGCONT");
  await pauses.says(world.program === "naive" ? "registered" : "refused a stale claim");
  const late = await usersWith(world, "pause@example.com");
  world.late += late;
  say(`  A host is paused, somebody else takes the e-mail, the caller asks another host: ${told(second)};`);
  const end = late ? "it makes the account after all" : "it is refused by its fencing token";
  say(`    the e-mail is free again, the first host goes on: ${end}`);
  expect(late === (world.program === "naive" ? 1 : 0), `${late} accounts are made after their caller was refused`);
  const last = await first;
  if (world.program !== "naive") expect(last.body.code === "EMAIL_USED", `the first attempt hears: ${told(last)}`);
}

async function registerAgain(world: World): Promise<void> {
  const first = await register([world.b.url], formOf(world, "again@example.com"));
  await forget(world, first);
  const second = await register([world.b.url], formOf(world, "again@example.com"));
  const there = await usersWith(world, "again@example.com");
  if (second.status === 201 && there === 0) world.noAccount += 1;
  const right = second.status === 201 && there === (world.name === "hashed" ? 0 : 1);
  expect(right, `registered again: ${told(second)}, ${there} accounts`);
  say(`  A person registers, deletes the account and registers again: ${told(second)}; accounts: ${there}`);
}

async function equalForms(world: World): Promise<void> {
  // Behind a shared mailbox there are two people with the same form.
  const first = await register([world.a.url], formOf(world, "office@example.com"));
  const second = await register([world.b.url], formOf(world, "office@example.com"));
  const given = second.status === 201 && second.body.id === first.body.id;
  if (given) world.others += 1;
  const right = world.name === "hashed" ? given : second.status === 409 && second.body.code === "EMAIL_USED";
  expect(right, `two people with equal forms: ${told(first)}, and ${told(second)}`);
  say(`  Two people send equal forms: the second is told ${told(second)}`);
}

/** A refusal is an answer like any other: the same request gets it again. */
async function sameRefusal(world: World): Promise<void> {
  const holder = await register([world.a.url], formOf(world, "taken@example.com"));
  const form = formOf(world, "taken@example.com");
  const refused = await register([world.a.url], form);
  await forget(world, holder);
  const repeated = await register([world.b.url], form);
  const fresh = await register([world.b.url], formOf(world, "taken@example.com"));
  say(`  Somebody else's e-mail: ${told(refused)}; the same request when it is free again: ${told(repeated)};`);
  say(`    a new form: ${told(fresh)}`);
  expect(refused.status === 409 && repeated.status === 409 && repeated.replayed, "a refusal is replayed");
  expect(fresh.status === 201, "a new form is looked at anew");
}

async function twoSites(world: World): Promise<void> {
  const north = formOf(world, "sites@example.com");
  const south = { ...north, site: "south" };
  const [one, other] = [await register([world.a.url], north), await register([world.a.url], south)];
  const accounts = await usersWith(world, "sites@example.com");
  say(`  One key at two sites: ${told(one)} and ${told(other)}, ${accounts} accounts`);
  expect(one.status === 201 && other.status === 201, "each site has keys of its own");
  expect(one.body.id !== other.body.id && !other.replayed, "each site has users of its own");
}

/** What is one key to onced is one row in the table, however it is written. */
async function quotedKey(world: World): Promise<void> {
  const form = formOf(world, "quoted@example.com");
  const quoted = await register([world.a.url], { ...form, key: String.raw`"a \"quoted\" key"` });
  const bare = await register([world.a.url], { ...form, key: 'a "quoted" key' });
  const { rows } = await world.pool.query("SELECT FROM registrations WHERE key LIKE '%:a \"quoted\" key'");
  say(`  One key, quoted and bare: ${told(quoted)} and ${told(bare)}`);
  expect(quoted.status === 201 && bare.replayed && rows.length === 1, "quoted and bare are one key");
}

async function wrongRequests(world: World): Promise<void> {
  const good = formOf(world, "wrong@example.com");
  await register([world.a.url], good);
  const cases: [string, Registration, number, RegExp][] = [
    ["no e-mail", { ...good, key: randomUUID(), body: '{"name":"A person"}' }, 400, /^email is missing$/],
    ["no name", { ...good, key: randomUUID(), body: '{"email":"a@example.com"}' }, 400, /^name is missing$/],
    ["no JSON", { ...good, key: randomUUID(), body: "{" }, 400, /body cannot be read/],
    ["an unknown site", { ...good, site: "east" }, 400, /SCOPE_MISSING/],
    ["an empty key", { ...good, key: "" }, 400, /IDEMPOTENCY_KEY_INVALID/],
    ["the key of another form", { ...formOf(world, "other@example.com"), key: good.key }, 422, /FINGERPRINT_MISMATCH/],
  ];
  for (const [what, registration, status, says] of cases) {
    const answer = await register([world.a.url], registration);
    const text = [answer.body.code, answer.body.detail].join("\n");
    const right = answer.status === status && text.split("\n").some((line) => says.test(line));
    expect(right, `${what}: ${answer.status} ${text}`);
  }
  say(`  Wrong requests (${cases.map(([what]) => what).join(", ")}): refused, and told why`);
}

async function tell(): Promise<void> {
  const uuid = () => randomUUID();
  const hash = (body: string) => createHash("sha256").update(body).digest("hex");

  say("Without onced: the unique index keeps duplicates out");
  const naive = await makeWorld("naive", uuid);
  for (const scene of [lostReply, atOnce, crash, pause, registerAgain, equalForms]) await scene(naive);

  say("\nBehind onced, a hash of the body as key");
  const hashed = await makeWorld("hashed", hash);
  for (const scene of [lostReply, atOnce, registerAgain, equalForms]) await scene(hashed);

  say("\nBehind onced, a UUID for each form that is shown");
  const keyed = await makeWorld("keyed", uuid);
  const likewise = [lostReply, atOnce, crash, pause, registerAgain, equalForms];
  const besides = [sameRefusal, crashOfRefusal, twoSites, quotedKey, wrongRequests];
  for (const scene of [...likewise, ...besides]) await scene(keyed);

  expect(naive.refusedOwn === 6, "the naive service refuses six callers their own e-mail");
  expect(hashed.noAccount === 1 && hashed.others === 1, "a hash of the body as key surprises twice");
  expect(keyed.refusedOwn + keyed.late + keyed.noAccount + keyed.others === 0, "with UUIDs nothing goes wrong");

  say("");
  table([
    ["", "without onced", "body hash as key", "UUID as key"],
    ["told that their own e-mail is used", ...[naive, hashed, keyed].map((world) => `${world.refusedOwn}`)],
    ["accounts made after their caller was refused", `${naive.late}`, "not tried", `${keyed.late}`],
    ["told that they have an account, and have none", ...[naive, hashed, keyed].map((world) => `${world.noAccount}`)],
    ["given the account of somebody else", ...[naive, hashed, keyed].map((world) => `${world.others}`)],
  ]);
}

try {
  await tell();
} finally {
  endHosts();
}
process.exit(verdict());
