/** The one place that sends calls: which server, which connection, how often. */

import { type DescMessage, type DescMethodUnary, fromBinary, type MessageShape, toBinary } from "@bufbuild/protobuf";
import {
  type ChannelCredentials,
  type ChannelOptions,
  Client as Connection,
  connectivityState,
  credentials,
  Metadata,
  type ServiceError,
  status as Status,
} from "@grpc/grpc-js";

import { type Access, adviceFor, Bearer, isLoopback, isUnknownHost, tlsCredentials } from "./access.js";
import { type Clock, type Moment, sleep } from "./clock.js";
import { CallError, InvalidError } from "./errors.js";
import { pause, type Refusal, Refused, refusalOf, rounded, silence, worthRepeating } from "./retry.js";
import { Again, Sessions } from "./session.js";

/** How long a connection may take to come up, in milliseconds. */
const CONNECT_TIME = 3_000;
/** How often each server is tried before an outage is believed, by a client that none has ever answered. */
const THOROUGH_ROUNDS = 3;

const OPTIONS: ChannelOptions = {
  // By default channels to one server share a connection. Those of holders must not, see Lane.
  "grpc.use_local_subchannel_pool": 1,
  // What is tried again, and where, is decided here.
  "grpc.enable_retries": 0,
  "grpc.service_config_disable_resolution": 1,
  "grpc.enable_http_proxy": 0,
  "grpc.keepalive_time_ms": 10_000,
  "grpc.keepalive_timeout_ms": 5_000,
  // Calls fail at once between two attempts to connect, so these come as often as the calls do.
  "grpc.initial_reconnect_backoff_ms": 50,
  "grpc.max_reconnect_backoff_ms": 1_000,
  "grpc.dns_min_time_between_resolutions_ms": 1_000,
  "grpc.primary_user_agent": "onced-typescript",
};

/**
 * The connection that a call takes: Begin and Lookup wait, while Complete, Renew and Release hold. Holders have their
 * own, so that no crowd of waiting calls can hold up the holder they wait for.
 */
export type Lane = "waiting" | "holding";

/** How long a call is tried, in milliseconds: in all, and one attempt before the next server is tried. */
export interface Patience {
  readonly total: number;
  readonly attempt: number;
  /**
   * If no server has ever answered, each is tried a few times until a connection to it has come to something, even
   * beyond that: for who would take for an outage what is set up wrong.
   */
  readonly thorough?: boolean;
}

/** An answer, and when the attempt that got it was sent: a holder counts its lock from there. */
export interface Answer<A> {
  readonly message: A;
  readonly sent: Moment;
}

/** What a failed call leaves behind, beyond what its error says. */
export interface Aftermath {
  /** An attempt may have been carried out, though nobody heard of it. */
  readonly unsettled: boolean;
  /** No server has answered with anything but UNAVAILABLE, and nothing is set up wrong: this is an outage. */
  readonly outage: boolean;
}

/** Thrown in place of a {@link CallError} inside the library. `error` is none if the caller gave up. */
export class CallFailed extends Error {
  constructor(
    readonly aftermath: Aftermath,
    readonly error: CallError | undefined,
  ) {
    super(error?.message ?? "the caller gave up");
  }
}

/** What one call has met so far. */
class Trial {
  attempts = 0;
  unsettled = false;
  /** The longest time that a server of this round asked for. */
  pushback = 0;
  /** A server answered with something else than UNAVAILABLE. */
  answered = false;
  /** No server was ever reached, and one has a name that nobody knows: more likely a wrong address than an outage. */
  astray = false;
  /** What the last server said that said anything: it tells more than that the time was up. */
  said: Refusal | undefined;
  /** What the last attempt showed. */
  token: string | undefined;

  constructor(
    readonly begun: Moment,
    readonly patience: Patience,
    readonly signal: AbortSignal | undefined,
  ) {}

  /** Notes what onced refused an attempt with. */
  heard(refusal: Refusal): void {
    this.answered ||= refusal.status !== Status.UNAVAILABLE;
    this.unsettled ||= refusal.metadata["write"] === "unknown";
  }

  fail(error: CallError | undefined, mistaken = false): CallFailed {
    const outage = error?.unavailable === true && !this.answered && !this.astray && !mistaken;
    return new CallFailed({ unsettled: this.unsettled, outage }, error);
  }
}

export class Transport {
  readonly #servers: readonly Server[];
  readonly #bearer: Bearer | undefined;
  readonly #clock: Clock;
  /** The server that calls go to: the last one that answered. */
  #current: number;
  /** Whether any server has ever answered. */
  #reached = false;
  /** What is set up wrong, until a server answers: a connection does not always end with the same words. */
  #mistake: Refusal | undefined;

  constructor(servers: readonly string[], access: Access, sessions: boolean, clock: Clock) {
    if (servers.length === 0) throw new InvalidError("name at least one server, such as 127.0.0.1:7411");
    const overTls = servers.some((server) => server.startsWith("https://"));
    if (!overTls && (access.caFile ?? access.certFile ?? access.keyFile) !== undefined) {
      throw new InvalidError("certificates are for TLS, and no server is called by it: write https://HOST:PORT");
    }
    const secure = overTls ? tlsCredentials(access) : undefined;
    this.#servers = servers.map((server) => new Server(server, access, secure, sessions ? clock : undefined));
    const hasToken = (access.token ?? access.tokenFile) !== undefined;
    this.#bearer = hasToken ? new Bearer(access, clock) : undefined;
    this.#clock = clock;
    // Each client starts elsewhere, so that a fleet of them spreads over the servers.
    this.#current = Math.floor(Math.random() * servers.length);
  }

  /** How many servers there are. */
  get servers(): number {
    return this.#servers.length;
  }

  /** Sends a call until it is answered, refused, out of time, or taken back by `signal`. Fails with CallFailed. */
  async call<I extends DescMessage, O extends DescMessage>(
    lane: Lane,
    method: DescMethodUnary<I, O>,
    request: MessageShape<I>,
    patience: Patience,
    signal?: AbortSignal,
  ): Promise<Answer<MessageShape<O>>> {
    const trial = new Trial(this.#clock.now(), patience, signal);
    for (;;) {
      if (signal?.aborted) throw trial.fail(undefined);
      const index = this.#current;
      try {
        const answer = await this.#attempt(trial, index, lane, method, request);
        this.#answered();
        return answer;
      } catch (error) {
        const refusal = this.#met(trial, index, error);
        const { token } = trial;
        const unknown = refusal.status === Status.UNAUTHENTICATED && token !== undefined;
        // A file is changed a few times at most, so nobody goes round here for long.
        if (unknown && this.#bearer?.renewed(token)) continue;
        await this.#pause(trial, index, refusal);
      }
    }
  }

  /** Sends a call once: in a session if one takes it, and as a unary call where that comes to nothing. */
  async #attempt<I extends DescMessage, O extends DescMessage>(
    trial: Trial,
    index: number,
    lane: Lane,
    method: DescMethodUnary<I, O>,
    request: MessageShape<I>,
  ): Promise<Answer<MessageShape<O>>> {
    const { patience, signal } = trial;
    const server = this.#server(index);
    let sent = this.#clock.now();
    let time = Math.max(1, Math.min(patience.attempt, this.#left(trial)));
    trial.token = this.#bearer?.header();
    const { sessions } = server.line(lane);
    const session = sessions?.enter(trial.token);
    try {
      const answering = session?.call(method, request, time, signal);
      if (answering) {
        const message = await answering;
        if (!(message instanceof Again)) return { message, sent };
        if (message.refusal) trial.heard(message.refusal);
        else trial.unsettled = true;
        time = Math.max(1, time - this.#clock.since(sent));
        sent = this.#clock.now();
        trial.token = this.#bearer?.header();
      }
      const connecting = this.#isThorough(trial) ? CONNECT_TIME : Math.min(CONNECT_TIME, time);
      const message = await server.send(lane, method, request, { time, connecting, token: trial.token, signal });
      return { message, sent };
    } finally {
      sessions?.leave();
    }
  }

  /** Ends all connections, once their calls have ended. */
  close(): void {
    for (const server of this.#servers) server.close();
  }

  /** Notes how an attempt ended. */
  #met(trial: Trial, index: number, error: unknown): Refusal {
    const server = this.#server(index);
    const unsent = error instanceof Unsent;
    const bare = error instanceof Refused ? error.refusal : refusalOf(error as ServiceError);
    const advice = server.adviceFor(bare);
    const text = plain(bare.message);
    const refusal = { ...bare, message: advice ? `${server.name}: ${text}; ${advice}` : text };
    trial.attempts += 1;
    if (refusal.pushback !== "never") trial.pushback = Math.max(trial.pushback, refusal.pushback);
    if (refusal.reason !== undefined) {
      this.#answered();
      trial.said = refusal;
      trial.heard(refusal);
    } else {
      if (advice) this.#mistake = refusal;
      trial.answered ||= refusal.foreign;
      trial.astray ||= !this.#reached && isUnknownHost(bare.message);
      trial.unsettled ||= !unsent && !isUnconnected(bare);
    }
    return refusal;
  }

  /** Moves on from a server, and waits for the next attempt. Fails if that would not help, or there is no time. */
  async #pause(trial: Trial, index: number, refusal: Refusal): Promise<void> {
    if (trial.signal?.aborted) throw trial.fail(undefined);
    const count = this.#servers.length;
    const mistake = this.#mistake;
    // A client that was answered before sits a mistake out: certificates are renewed, servers replaced.
    if (mistake && !this.#reached && trial.attempts >= count) throw trial.fail(refused(mistake));
    if (!worthRepeating(refusal)) {
      trial.answered = true;
      throw trial.fail(refused(refusal));
    }
    // If another call has moved on already, its choice stands.
    if (this.#current === index) this.#current = (index + 1) % count;
    const wait = pause(trial.attempts, count, trial.pushback);
    // There is no doubt about the set-up where a server has asked for time.
    const doubtful = this.#isThorough(trial) && trial.pushback === 0 && trial.attempts < THOROUGH_ROUNDS * count;
    if (trial.attempts % count === 0) trial.pushback = 0;
    const left = this.#left(trial);
    if (wait >= left && !doubtful) {
      throw trial.fail(mistake && !this.#reached ? refused(mistake) : this.#outOfTime(trial, refusal), !!mistake);
    }
    await sleep(wait, trial.signal);
  }

  #outOfTime(trial: Trial, last: Refusal): CallError {
    const servers = this.#servers.map((server) => server.name).join(", ");
    const tried = rounded(this.#clock.since(trial.begun));
    const { said } = trial;
    if (said === undefined) {
      return new CallError(`no answer from ${servers} in ${tried}; last: ${last.message}`, last, true);
    }
    const text = said === last ? shown(last) : `${last.message}; before that: ${shown(said)}`;
    return new CallError(`${servers} answered, but could not do it in ${tried}; last: ${text}`, said, true);
  }

  #answered(): void {
    this.#reached = true;
    this.#mistake = undefined;
  }

  #isThorough(trial: Trial): boolean {
    return trial.patience.thorough === true && !this.#reached;
  }

  #left(trial: Trial): number {
    return trial.patience.total - this.#clock.since(trial.begun);
  }

  #server(index: number): Server {
    const server = this.#servers[index];
    if (server === undefined) throw new RangeError(`there is no server ${index}`);
    return server;
  }
}

/** An attempt that never reached a server. */
class Unsent extends Refused {}

/** A connection, and its sessions if it may have any. */
interface Line {
  readonly connection: Connection;
  readonly sessions: Sessions | undefined;
}

/** How a call is sent once: how long it may take, and its connection to come up; what it shows, and who takes it back. */
interface Sending {
  readonly time: number;
  readonly connecting: number;
  readonly token: string | undefined;
  readonly signal: AbortSignal | undefined;
}

/** One server, and the connections to it. */
class Server {
  readonly name: string;
  readonly #tls: boolean;
  readonly #target: string;
  readonly #credentials: ChannelCredentials;
  /** The clock of its sessions, if it may have any. */
  readonly #clock: Clock | undefined;
  /** Made at first use: a client can be made before there is a server. */
  readonly #lines = new Map<Lane, Line>();

  constructor(name: string, access: Access, secure: ChannelCredentials | undefined, clock: Clock | undefined) {
    const { scheme, host, port } = parsed(name);
    this.name = name;
    this.#tls = scheme === "https";
    this.#target = `${host}:${port}`;
    this.#credentials = this.#tls && secure ? secure : credentials.createInsecure();
    this.#clock = clock;
    const hasToken = (access.token ?? access.tokenFile) !== undefined;
    if (!this.#tls && hasToken && !access.allowTokenInPlaintext && !isLoopback(host)) {
      throw new InvalidError(
        `a token would go to ${name} for all to read: write https://, or say allowTokenInPlaintext`,
      );
    }
  }

  /** The connection that calls of this lane take. */
  line(lane: Lane): Line {
    let line = this.#lines.get(lane);
    if (line === undefined) {
      const connection = new Connection(this.#target, this.#credentials, OPTIONS);
      line = { connection, sessions: this.#clock && new Sessions(connection, this.#clock) };
      this.#lines.set(lane, line);
    }
    return line;
  }

  /** Sends a unary call once. Fails with a ServiceError, or with Unsent. */
  send<I extends DescMessage, O extends DescMessage>(
    lane: Lane,
    method: DescMethodUnary<I, O>,
    request: MessageShape<I>,
    { time, connecting, token, signal }: Sending,
  ): Promise<MessageShape<O>> {
    const { connection } = this.line(lane);
    const metadata = new Metadata();
    if (token !== undefined) metadata.set("authorization", token);
    return new Promise((resolve, reject) => {
      let ended = false;
      let unsent: Unsent | undefined;
      const call = connection.makeUnaryRequest<MessageShape<I>, MessageShape<O>>(
        `/${method.parent.typeName}/${method.name}`,
        (message) => Buffer.from(toBinary(method.input, message)),
        (bytes) => fromBinary(method.output, bytes),
        request,
        metadata,
        { deadline: Date.now() + Math.max(time, connecting) },
        (error, answer) => {
          ended = true;
          signal?.removeEventListener("abort", cancel);
          if (error === null && answer !== undefined) resolve(answer);
          else reject(unsent ?? error);
        },
      );
      const cancel = () => call.cancel();
      signal?.addEventListener("abort", cancel, { once: true });
      if (signal?.aborted) cancel();
      if (connection.getChannel().getConnectivityState(true) === connectivityState.READY) return;
      connection.waitForReady(Date.now() + connecting, (late) => {
        if (!late || ended) return;
        unsent = new Unsent(silence(Status.UNAVAILABLE, `no connection to ${this.name} within ${rounded(connecting)}`));
        // What hangs would hang for as long again; the next attempt is to dial anew.
        if (this.#lines.get(lane)?.connection === connection) this.#lines.delete(lane);
        connection.close();
        call.cancel();
      });
    });
  }

  /** What to do about a refusal, if somebody has set it up so, and it is the same next time. */
  adviceFor(refusal: Refusal): string | undefined {
    return refusal.reason === undefined ? adviceFor(refusal.message, this.#tls) : undefined;
  }

  close(): void {
    for (const { connection, sessions } of this.#lines.values()) {
      sessions?.close();
      connection.close();
    }
    this.#lines.clear();
  }
}

/** How addresses are written. */
const FORMS = "write HOST:PORT, http://HOST:PORT, or https://HOST:PORT for TLS";

function parsed(server: string): { scheme: string; host: string; port: number } {
  const invalid = (why: string) => new InvalidError(`"${server}" is no address of a server: ${why}`);
  const parts = /^(?:(https?):\/\/)?(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::(\d{1,5}))?\/?$/.exec(server);
  if (parts === null) throw invalid(FORMS);
  const [, scheme = "http", host = "", port] = parts;
  if (port === undefined) throw invalid("the port is missing; onced listens on 7411 by default");
  if (Number(port) < 1 || Number(port) > 65_535) throw invalid("its port is none");
  return { scheme, host, port: Number(port) };
}

/** Whether an attempt ended before there was a connection to send it on. */
function isUnconnected(refusal: Refusal): boolean {
  return (
    refusal.status === Status.UNAVAILABLE &&
    /^(No connection established|Name resolution failed|Channel closed before call started)/.test(refusal.message)
  );
}

/** The text of a failed connection without what the transport, and OpenSSL, wrap around it. */
function plain(message: string): string {
  const cause =
    /^No connection established\. Last error: (?:Error(?: \[\w+\])?: )?(.*?)\s*(?:\(\S+Z\))?\. Resolution note: ?/s;
  const text = cause.exec(message)?.[1] ?? message;
  return text.replace(/^[0-9A-F]+:error:[0-9A-F]+:SSL routines:\w*:([^:]+):.*$/s, "TLS: $1");
}

function refused(refusal: Refusal): CallError {
  return new CallError(shown(refusal), refusal, false);
}

function shown(refusal: Refusal): string {
  return refusal.reason === undefined ? refusal.message : `${refusal.message} (${refusal.reason})`;
}
