/** A server in this process that carries nothing out: tests say what it answers, in sessions and outside. */

import type { TestContext } from "node:test";
import { create, type DescMethod, fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { anyPack, durationFromMs } from "@bufbuild/protobuf/wkt";
import * as grpc from "@grpc/grpc-js";

import { ErrorInfoSchema } from "../build/generated/details_pb.js";
import { StatusSchema } from "../build/generated/google/rpc/status_pb.js";
import {
  BeginResponseSchema,
  CompleteResponseSchema,
  IdempotencyService,
  ReleaseResponseSchema,
  RenewResponseSchema,
  type SessionRequest,
  type SessionResponse,
  SessionResponseSchema,
} from "../build/generated/onced/v1/idempotency_service_pb.js";

/** A session, as the server has it. */
export type Stream = grpc.ServerDuplexStream<SessionRequest, SessionResponse>;
/** How the caller has left one. */
type Left = "half-closed" | "broken off" | undefined;
type Name = "begin" | "complete" | "renew" | "release";

/** A unary call that came. */
export interface Seen {
  readonly name: Name;
  readonly request: { key: string; requestId?: string; wait?: { seconds: bigint } };
  readonly token: string | undefined;
}

const NAMES: readonly Name[] = ["begin", "complete", "renew", "release"];
const LOCK_TTL = durationFromMs(30_000);
/** What is answered where a test does not care. */
const ANSWERS = {
  begin: create(BeginResponseSchema, {
    result: { case: "claim", value: { fencingToken: 7n, attempt: 1n, lockTtl: LOCK_TTL, maxOutcomeBytes: 1_048_576n } },
  }),
  complete: create(CompleteResponseSchema, { completed: { owner: "me", attempt: 1n, fencingToken: 7n } }),
  renew: create(RenewResponseSchema, { lockExpiresIn: LOCK_TTL }),
  release: create(ReleaseResponseSchema),
};

export class Fake {
  /** The unary calls that came. */
  readonly unary: Seen[] = [];
  /** What came in sessions. */
  readonly carried: SessionRequest[] = [];
  /** The sessions that were opened, with what the caller showed. */
  readonly streams: (Stream & { left: Left })[] = [];
  /** What a unary call is refused with; `held`: it has no answer. */
  refuse: (call: Seen) => grpc.ServiceError | "held" | undefined = () => undefined;
  /** A session is opened. */
  open: (stream: Stream) => void = (stream) => stream.sendMetadata(new grpc.Metadata());
  /** A call came in a session. */
  carry: (call: SessionRequest, stream: Stream) => void = (call, stream) => answer(stream, call);
  address = "";
  #server = new grpc.Server();

  static async start(test: TestContext): Promise<Fake> {
    const fake = new Fake();
    await fake.listen();
    test.after(() => fake.#server.forceShutdown());
    return fake;
  }

  /** Listens; again, at the same address, after `kill`. */
  async listen(): Promise<void> {
    this.#server = new grpc.Server();
    this.#serve();
    const insecure = grpc.ServerCredentials.createInsecure();
    const port = await new Promise<number>((resolve, reject) => {
      const bound = (error: Error | null, at: number) => (error ? reject(error) : resolve(at));
      this.#server.bindAsync(this.address || "127.0.0.1:0", insecure, bound);
    });
    this.address = `127.0.0.1:${port}`;
  }

  /** Breaks off all connections. */
  kill(): void {
    this.#server.forceShutdown();
  }

  #serve(): void {
    const { method } = IdempotencyService;
    const service = Object.fromEntries([...NAMES, "session" as const].map((name) => [name, definition(method[name])]));
    const unary = (name: Name) => (call: grpc.ServerUnaryCall<Seen["request"], unknown>, done: Done) => {
      const [token] = call.metadata.get("authorization");
      const seen = { name, request: call.request, token: token?.toString() };
      this.unary.push(seen);
      const refusal = this.refuse(seen);
      if (refusal !== "held") done(refusal ?? null, ANSWERS[name]);
    };
    const session = (stream: Stream) => {
      const opened = Object.assign(stream, { left: undefined as Left });
      this.streams.push(opened);
      stream.on("error", () => {});
      stream.on("cancelled", () => {
        opened.left ??= "broken off";
      });
      stream.on("data", (call: SessionRequest) => {
        this.carried.push(call);
        if (call.call.case !== "cancel") this.carry(call, stream);
      });
      stream.on("end", () => {
        opened.left = "half-closed";
        stream.end();
      });
      this.open(stream);
    };
    const handlers = Object.fromEntries(NAMES.map((name) => [name, unary(name)]));
    this.#server.addService(service, { ...handlers, session } as grpc.UntypedServiceImplementation);
  }
}

type Done = (error: grpc.ServiceError | null, answer: unknown) => void;

function definition(method: DescMethod): grpc.MethodDefinition<unknown, unknown> {
  const isStream = method.methodKind !== "unary";
  return {
    path: `/${method.parent.typeName}/${method.name}`,
    requestStream: isStream,
    responseStream: isStream,
    requestSerialize: (message) => Buffer.from(toBinary(method.input, message as never)),
    requestDeserialize: (bytes) => fromBinary(method.input, bytes),
    responseSerialize: (message) => Buffer.from(toBinary(method.output, message as never)),
    responseDeserialize: (bytes) => fromBinary(method.output, bytes),
  };
}

/** Answers a call of a session; as usual, unless told otherwise. */
export function answer(
  stream: Stream,
  { id, call }: SessionRequest,
  said: NonNullable<MessageInitShape<typeof SessionResponseSchema>["answer"]> = usual(call),
): void {
  stream.write(create(SessionResponseSchema, { id, answer: said }));
}

function usual(call: SessionRequest["call"]): SessionResponse["answer"] {
  const name = call.case as Name;
  return { case: name, value: ANSWERS[name] } as SessionResponse["answer"];
}

/** What onced refuses a call with. */
export function status(code: number, reason: string, limit?: string): MessageInitShape<typeof StatusSchema> {
  const metadata: Record<string, string> = limit === undefined ? {} : { limit };
  const info = anyPack(ErrorInfoSchema, create(ErrorInfoSchema, { reason, domain: "onced.dev", metadata }));
  const details = [{ ...info, typeUrl: "type.googleapis.com/google.rpc.ErrorInfo" }];
  return { code, message: `refused by the test: ${reason}`, details };
}

/** The same, of a unary call or of a stream. */
export function refusal(code: number, reason: string): grpc.ServiceError {
  const metadata = new grpc.Metadata();
  const packed = toBinary(StatusSchema, create(StatusSchema, status(code, reason)));
  metadata.set("grpc-status-details-bin", Buffer.from(packed));
  return Object.assign(new Error(reason), { code, details: "refused by the test", metadata });
}
