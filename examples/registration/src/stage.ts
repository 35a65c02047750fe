/** What the story is played on: processes of the services, replies that get lost, and an account of it all. */

import { type ChildProcess, spawn } from "node:child_process";
import { EventEmitter, once } from "node:events";
import { readFileSync } from "node:fs";
import net from "node:net";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import pg from "pg";

/** Long enough for a machine under load: nothing waits for so long unless it is broken. */
const LIMIT = 20_000;

/** One process of a service: a host. */
export class Host {
  readonly #child: ChildProcess;
  readonly #lines: string[] = [];
  readonly #heard = new EventEmitter();
  #log = "";
  url = "";

  private constructor(program: string, database: string, fault: string) {
    const env = { ...process.env, DATABASE_URL: database, FAULT: fault };
    const file = new URL(`${program}.js`, import.meta.url).pathname;
    this.#child = spawn(process.execPath, [file], { env, stdio: ["ignore", "pipe", "pipe"] });
    hosts.add(this);
    this.#child.stderr?.on("data", (text) => {
      this.#log += text;
    });
    const { stdout } = this.#child;
    if (stdout) createInterface(stdout).on("line", (line) => this.#note(line));
    this.#child.once("exit", (code, signal) => this.#note(`ended ${signal ?? code}`));
  }

  static async start(program: string, database: string, fault = ""): Promise<Host> {
    const host = new Host(program, database, fault);
    const line = await host.says("listening on ");
    host.url = `http://127.0.0.1:${line.replace(/\D/g, "")}`;
    return host;
  }

  /** Waits until it has said a line that begins so. */
  async says(start: string): Promise<string> {
    const signal = AbortSignal.timeout(LIMIT);
    for (;;) {
      const line = this.#lines.find((said) => said.startsWith(start));
      if (line !== undefined) return line;
      await once(this.#heard, "line", { signal }).catch(() => {
        throw new Error(`a host did not say "${start}":\n${this.#lines.join("\n")}\n${this.#log}`);
      });
    }
  }

  signal(name: NodeJS.Signals): void {
    this.#child.kill(name);
  }

  #note(line: string): void {
    this.#lines.push(line);
    this.#heard.emit("line");
  }
}

const hosts = new Set<Host>();

/** Ends all hosts, those that are paused too. */
export function endHosts(): void {
  for (const host of hosts) host.signal("SIGKILL");
}

/** Stands before a host, and loses its first reply: the host has answered, and nobody hears it. */
export async function losesReply(host: Host): Promise<string> {
  let lost = false;
  const server = net.createServer((caller) => {
    const behind = net.connect(Number(new URL(host.url).port), "127.0.0.1");
    caller.on("error", () => behind.destroy()).pipe(behind);
    behind.on("error", () => caller.destroy());
    behind.on("data", (reply) => {
      if (lost) caller.write(reply);
      else {
        lost = true;
        caller.resetAndDestroy();
        behind.destroy();
      }
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  server.unref();
  return `http://127.0.0.1:${(server.address() as net.AddressInfo).port}`;
}

/** An empty database of this name, with the tables. */
export async function makeDatabase(name: string): Promise<{ url: string; pool: pg.Pool }> {
  const url = new URL(process.env["DATABASE_URL"] ?? "");
  const server = new pg.Client({ connectionString: url.href });
  await server.connect();
  await server.query(`CREATE DATABASE ${name}`);
  await server.end();
  url.pathname = `/${name}`;
  const pool = new pg.Pool({ connectionString: url.href });
  // The server ends before the story does.
  pool.on("error", () => {});
  await pool.query(readFileSync("schema.sql", "utf8"));
  return { url: url.href, pool };
}

/** How many calls wait at onced for the holder of their key. */
export async function callsWaiting(): Promise<number> {
  const metrics = await (await fetch(`${process.env["ONCED_ADMIN"]}/metrics`)).text();
  return Number(/^onced_limit_used\{limit="max_waiting_calls"\} (\S+)$/m.exec(metrics)?.[1]);
}

/** How many transactions of this database wait for another one. */
export async function transactionsWaiting(pool: pg.Pool): Promise<number> {
  const { rowCount } = await pool.query(
    "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
  );
  return rowCount ?? 0;
}

/** Waits until it is so. */
export async function until(what: string, isSo: () => Promise<boolean>): Promise<void> {
  const end = performance.now() + LIMIT;
  while (!(await isSo())) {
    if (performance.now() > end) throw new Error(`waited in vain: ${what}`);
    await sleep(20);
  }
}

const broken: string[] = [];

export function say(text: string): void {
  console.log(text);
}

/** What must hold, or the story is not true. */
export function expect(holds: boolean, what: string): void {
  if (holds) return;
  broken.push(what);
  console.log(`  NOT SO: ${what}`);
}

/** Ends the story: 1 if anything was not as told. */
export function verdict(): number {
  if (broken.length > 0) console.log(`\n${broken.length} things were not as told:\n- ${broken.join("\n- ")}`);
  return broken.length > 0 ? 1 : 0;
}

/** Prints rows as a table, the first of them as its head. */
export function table(rows: readonly (readonly string[])[]): void {
  const widths = rows[0]?.map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0))) ?? [];
  for (const row of rows) {
    const cells = row.map((cell, column) =>
      column === 0 ? cell.padEnd(widths[column] ?? 0) : cell.padStart(widths[column] ?? 0),
    );
    say(`  ${cells.join("   ")}`);
  }
}
