/** Sessions: many calls on one stream, for a third of the client's CPU, and less of the server's. */

import {
  create,
  type DescMessage,
  type DescMethodUnary,
  fromBinary,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import {
  type ClientDuplexStream,
  type Client as Connection,
  connectivityState,
  Metadata,
  status as Status,
  type StatusObject,
} from "@grpc/grpc-js";

import type { Clock, Moment } from "./clock.js";
import {
  IdempotencyService,
  type SessionRequest,
  SessionRequestSchema,
  type SessionResponse,
  SessionResponseSchema,
} from "./generated/onced/v1/idempotency_service_pb.js";
import { type Refusal, Refused, refusalIn, rounded, silence } from "./retry.js";

/** How many calls are under way on a connection before it gets a session. */
const MANY = 16;
/** How many calls a session has open at most, and how many messages wait to be sent. */
const MOST = 512;
/** The largest message that a session takes, in bytes. */
const LARGEST = 65_536;
/** How long a session may take to open. Milliseconds, as all times here. */
const OPENING_TIME = 10_000;
/** The server keeps the time of a call. What it has then said is waited for so much longer. */
const MARGIN = 250;
/** How long a session stays without a call. */
const IDLE_TIME = 30_000;
/** How long it stays while its connection has no call either: an open stream keeps the process from ending. */
const QUIET_TIME = 1_000;
/** How long a session that was ended may take to end, until it is broken off. */
const ENDING_TIME = 1_000;
/** A session that is ended sooner than this was brief, and after so many of them in a row none is opened for a while. */
const BRIEF = 1_000;
const MOST_BRIEF = 3;
/** That while; also after one that could not be opened. */
const PAUSE = 60_000;
/** The same after one that could not be opened because its server was away, who may soon be back. */
const SHORT_PAUSE = 1_000;

/** The sessions of one connection: one at a time, while there are many calls. */
export class Sessions {
  readonly #connection: Connection;
  readonly #clock: Clock;
  #underWay = 0;
  /** The one that is open, or is being opened. */
  #current: Session | undefined;
  /** How many in a row were brief. */
  #brief = 0;
  /** Since when none is opened, and for how long. */
  #pausing: { since: Moment; time: number } | undefined;
  #quiet: NodeJS.Timeout | undefined;

  constructor(connection: Connection, clock: Clock) {
    this.#connection = connection;
    this.#clock = clock;
  }

  /** Counts in a call, and tells which session may take it. Opens one in the background where it is time for that. */
  enter(token: string | undefined): Session | undefined {
    this.#underWay += 1;
    clearTimeout(this.#quiet);
    if (this.#current?.isOpen) return this.#current;
    if (this.#current === undefined && this.#underWay >= MANY && this.#mayOpen()) {
      this.#current = new Session(this.#connection, token, this.#clock, (how) => this.#over(how));
    }
    return undefined;
  }

  /** Counts a call out. */
  leave(): void {
    this.#underWay -= 1;
    if (this.#underWay === 0 && this.#current) this.#quiet = setTimeout(() => this.close(), QUIET_TIME);
  }

  close(): void {
    clearTimeout(this.#quiet);
    this.#current?.close();
  }

  #mayOpen(): boolean {
    if (this.#pausing && this.#clock.since(this.#pausing.since) < this.#pausing.time) return false;
    // How a connection fails that cannot be made says nothing of sessions.
    return this.#connection.getChannel().getConnectivityState(false) === connectivityState.READY;
  }

  #over(how: Over): void {
    this.#current = undefined;
    this.#brief = how === "brief" ? this.#brief + 1 : 0;
    if (how === "ended" || (how === "brief" && this.#brief < MOST_BRIEF)) return;
    this.#pausing = { since: this.#clock.now(), time: how === "away" ? SHORT_PAUSE : PAUSE };
    this.#brief = 0;
  }
}

/**
 * How a session came to take no more calls: it could not be opened, or not since its server was away; it was ended soon,
 * or another way.
 */
type Over = "unopened" | "away" | "brief" | "ended";

/** What a call comes to that its session did not answer: it is to be made again, by itself. */
export class Again {
  constructor(
    /** What the server said of the session. None if that just ended: the call may then have been carried out. */
    readonly refusal?: Refusal,
  ) {}
}

/** A call that is not answered. */
interface Open {
  /** Its method, and by that its answer. */
  readonly name: string;
  /** Ends it: with the answer, with Refused, or with Again. */
  end(result: unknown): void;
}

class Session {
  readonly #connection: Connection;
  readonly #stream: ClientDuplexStream<Buffer, SessionResponse>;
  readonly #clock: Clock;
  /** Told once, when this takes no more calls. */
  readonly #over: (how: Over) => void;
  /** The calls that are not answered, by their ids. */
  readonly #calls = new Map<bigint, Open>();
  #lastId = 0n;
  /** How many answers have come. */
  #answers = 0;
  #opened: Moment | undefined;
  #isOver = false;
  /** Ends what takes too long: to open, without a call, to end. */
  #timer: NodeJS.Timeout;

  constructor(connection: Connection, token: string | undefined, clock: Clock, over: (how: Over) => void) {
    this.#connection = connection;
    this.#clock = clock;
    this.#over = over;
    const metadata = new Metadata();
    if (token !== undefined) metadata.set("authorization", token);
    const read = (bytes: Buffer) => fromBinary(SessionResponseSchema, bytes);
    const path = `/${IdempotencyService.typeName}/${IdempotencyService.method.session.name}`;
    this.#stream = connection.makeBidiStreamRequest<Buffer, SessionResponse>(path, (bytes) => bytes, read, metadata);
    this.#timer = setTimeout(() => this.#stream.cancel(), OPENING_TIME);
    this.#stream
      .on("metadata", () => this.#open())
      .on("data", (response: SessionResponse) => this.#answered(response))
      // The status that follows is all the same.
      .on("error", () => {})
      .on("status", ({ code }: StatusObject) => this.#ended(code));
  }

  /** Whether it takes calls now. */
  get isOpen(): boolean {
    // What waits to be sent counts as well: what was taken back has left only a message behind.
    const open = this.#opened !== undefined && !this.#isOver;
    return open && this.#calls.size < MOST && this.#stream.writableLength < MOST;
  }

  /**
   * Sends a call. What comes of it is its answer, or Again; or it fails with Refused. Undefined at once if it was not
   * sent: a unary call is for what is too large, or cannot be written.
   */
  call<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: MessageShape<I>,
    time: number,
    signal: AbortSignal | undefined,
  ): Promise<MessageShape<O> | Again> | undefined {
    const id = this.#lastId + 1n;
    const call = { case: method.localName, value: request } as SessionRequest["call"];
    let bytes: Buffer;
    try {
      bytes = encoded({ id, timeout: durationFromMs(Math.ceil(time)), call });
    } catch {
      return undefined;
    }
    if (bytes.length > LARGEST) return undefined;
    this.#lastId = id;
    clearTimeout(this.#timer);
    const before = this.#answers;
    return new Promise((resolve, reject) => {
      const end = (result: MessageShape<O> | Again | Refused) => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", giveUp);
        this.#calls.delete(id);
        if (this.#calls.size === 0) this.#rest();
        if (result instanceof Refused) reject(result);
        else resolve(result);
      };
      const takeBack = (status: Status, message: string) => {
        this.#stream.write(encoded({ id, call: { case: "cancel", value: {} } }));
        end(new Refused(silence(status, message)));
      };
      const giveUp = () => takeBack(Status.CANCELLED, "the caller gave up");
      const late = () => {
        // Where a gateway answers the pings, but its far side is dead, this is all that shows it.
        if (this.#answers === before) this.close(this.#how());
        takeBack(Status.DEADLINE_EXCEEDED, `no answer within ${rounded(time)}`);
      };
      const timer = setTimeout(late, time + Math.min(MARGIN, time / 4));
      signal?.addEventListener("abort", giveUp, { once: true });
      this.#calls.set(id, { name: method.localName, end: (result) => end(result as MessageShape<O>) });
      this.#stream.write(bytes);
    });
  }

  /** Takes no more calls, and ends with the last one. */
  close(how: Over = "ended"): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#over(how);
    if (this.#opened === undefined) this.#stream.cancel();
    else if (this.#calls.size === 0) this.#rest();
  }

  #open(): void {
    this.#opened = this.#clock.now();
    this.#rest();
  }

  /** There are no calls: it ends in a while if none comes, or at once if it takes none. */
  #rest(): void {
    clearTimeout(this.#timer);
    if (!this.#isOver) {
      this.#timer = setTimeout(() => this.close(), IDLE_TIME);
      return;
    }
    this.#stream.end();
    this.#timer = setTimeout(() => this.#stream.cancel(), ENDING_TIME);
  }

  #answered({ id, answer }: SessionResponse): void {
    this.#answers += 1;
    const call = this.#calls.get(id);
    // There is none that was taken back.
    call?.end(this.#resultOf(call.name, answer));
  }

  #resultOf(name: string, answer: SessionResponse["answer"]): unknown {
    if (answer.case === name) return answer.value;
    if (answer.case !== "error" || answer.value.code === Status.OK) {
      return new Refused(silence(Status.INTERNAL, `the answer to ${name} cannot be read`));
    }
    const refusal = refusalIn(answer.value);
    // Of a unary call the client would have found that by itself: it is no answer of a server.
    if (refusal.status === Status.DEADLINE_EXCEEDED) return new Refused(silence(refusal.status, refusal.message));
    if (isFull(refusal)) return new Again(refusal);
    if (!isOfSession(refusal)) return new Refused(refusal);
    this.close(this.#how());
    return new Again(refusal);
  }

  /** The stream has ended, and what is not answered never will be. */
  #ended(code: Status): void {
    this.close(this.#opened === undefined ? this.#unopened(code) : this.#how());
    for (const call of this.#calls.values()) call.end(new Again());
    clearTimeout(this.#timer);
  }

  #unopened(code: Status): Over {
    // A connection that breaks off does not always end its streams with UNAVAILABLE.
    const isReady = this.#connection.getChannel().getConnectivityState(false) === connectivityState.READY;
    return code === Status.UNAVAILABLE || !isReady ? "away" : "unopened";
  }

  #how(): Over {
    return this.#opened && this.#clock.since(this.#opened) < BRIEF ? "brief" : "ended";
  }
}

/** Whether this is said of the session rather than of the call: by another way the call may fare better. */
function isOfSession({ reason }: Refusal): boolean {
  return reason === "DRAINING" || reason?.startsWith("CREDENTIALS") === true;
}

/** Whether the session has all the calls that its server lets one have: this one was not carried out. */
function isFull({ reason, metadata }: Refusal): boolean {
  return reason === "OVERLOADED" && metadata["limit"] === "max_session_calls";
}

function encoded(request: MessageInitShape<typeof SessionRequestSchema>): Buffer {
  const { buffer, byteOffset, byteLength } = toBinary(SessionRequestSchema, create(SessionRequestSchema, request));
  return Buffer.from(buffer, byteOffset, byteLength);
}
