/** The client: where runs begin, and what they share. */

import { setMaxListeners } from "node:events";
import { hostname, userInfo } from "node:os";

import type { Access } from "./access.js";
import { Clock, sleep } from "./clock.js";
import { type Codec, json } from "./codecs.js";
import { InvalidError } from "./errors.js";
import { type Host, Once, type RunOptions } from "./once.js";
import { type OutcomeCodec, outcomesBy } from "./outcomes.js";
import { Transport } from "./transport.js";

/** How long a call is tried, beyond the wait it asks for, unless told otherwise. Milliseconds. */
const DEFAULT_TIMEOUT = 30_000;

/** Settings of a {@link Client}. */
export interface ClientOptions extends Access {
  /** How long a call is tried, beyond the wait it asks for, in milliseconds. Default: 30 s. */
  timeout?: number | undefined;
  /** Who asks, shown to duplicates and operators. Default: `user@host:pid`. */
  owner?: string | undefined;
  /** Carries calls on streams while there are many, which costs less than calls of their own. Default: yes. */
  sessions?: boolean | undefined;
  /** The clock that locks are counted on; for tests. */
  clock?: Clock | undefined;
}

/** Settings of a run, and how its values are stored. */
export interface OnceOptions<C = unknown> extends RunOptions {
  /** How values become outcomes, and outcomes values. Default: JSON. */
  codec?: Codec<C> | undefined;
}

/**
 * A client of one or several servers that share a store. It connects when it is first used. Calls go to the server that
 * answered last; when it fails, the next one is tried, until the call's time is up.
 */
export class Client implements AsyncDisposable {
  readonly #host: Host;
  readonly #closing = new AbortController();
  readonly #tasks = new Set<Promise<void>>();
  #idle: Promise<void> | undefined;
  #unprotected = 0;

  /**
   * @param servers `HOST:PORT`, `http://HOST:PORT` or, by TLS, `https://HOST:PORT`; several with commas between, or as
   * an array. Default: the environment variable `ONCED_SERVER`, else `127.0.0.1:7411`.
   * @throws InvalidError if an address or a file cannot be used. Whether a server is there shows at the first call.
   */
  constructor(servers?: string | readonly string[], options: ClientOptions = {}) {
    const { timeout = DEFAULT_TIMEOUT, owner = defaultOwner(), sessions = true, clock = new Clock() } = options;
    // Each run follows it, and any number is no leak.
    setMaxListeners(0, this.#closing.signal);
    if (!(timeout > 0 && Number.isFinite(timeout))) {
      throw new InvalidError(`timeout is a time in milliseconds, and cannot be ${timeout}`);
    }
    this.#host = {
      transport: new Transport(addresses(servers), options, sessions, clock),
      clock,
      timeout,
      owner,
      closing: this.#closing.signal,
      keepFor: (task) => this.#keepFor(task),
      failedOpen: () => {
        this.#unprotected += 1;
      },
    };
  }

  /**
   * A function to be run once for `key`, 1 to 512 bytes: call `run` of what this returns.
   *
   * @throws InvalidError if an option cannot be used.
   */
  once<C = unknown>(key: string, options: OnceOptions<C> = {}): Once<C> {
    // Without a codec, C is unknown, as are the values of JSON.
    const codec = options.codec ?? (json as Codec<C>);
    return new Once(this.#host, key, options, outcomesBy(codec));
  }

  /** How many runs failed open, and did their work without a claim. */
  get unprotected(): number {
    return this.#unprotected;
  }

  /**
   * Closes the client: no run begins any more, and those that wait for their key are given up. Work that runs is not
   * ended, and what it returns is stored: this waits for both, for `patience` milliseconds at most, and tells whether
   * all has ended. If not, the connections go once it has. Default: the client's timeout.
   */
  async close(patience: number = this.#host.timeout): Promise<boolean> {
    this.#closing.abort();
    this.#idle ??= this.#untilIdle();
    const enough = new AbortController();
    const late = sleep(patience, enough.signal).then(() => false);
    const ended = await Promise.race([this.#idle.then(() => true), late]);
    enough.abort();
    return ended;
  }

  /** As `close()`. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** @internal */
  onceBy<C>(key: string, options: RunOptions, codec: OutcomeCodec<C>): Once<C> {
    return new Once(this.#host, key, options, codec);
  }

  async #untilIdle(): Promise<void> {
    while (this.#tasks.size > 0) await Promise.all(this.#tasks);
    this.#host.transport.close();
  }

  #keepFor(task: Promise<unknown>): void {
    const ignore = () => {};
    const ended = task.then(ignore, ignore).then(() => {
      this.#tasks.delete(ended);
    });
    this.#tasks.add(ended);
  }
}

function addresses(servers: string | readonly string[] | undefined): string[] {
  const given = servers ?? (process.env["ONCED_SERVER"] || "127.0.0.1:7411");
  const list = typeof given === "string" ? given.split(",") : given;
  return list.map((server) => server.trim()).filter((server) => server !== "");
}

/** User, host and process id of this process, such as `deploy@web-3:4711`. */
function defaultOwner(): string {
  let user = process.env["USER"] ?? "";
  try {
    user ||= userInfo().username;
  } catch {
    // A user without a name, as in some containers.
  }
  const place = user ? `${user}@${hostname()}` : hostname();
  return `${place.replaceAll(/\p{Cc}/gu, "").slice(0, 64)}:${process.pid}`;
}
