/** Calls of a server of the test, in sessions and outside, for the tests of sessions. */

import assert from "node:assert/strict";
import type { TestContext } from "node:test";
import { create } from "@bufbuild/protobuf";
import { Clock } from "onced";
import {
  BeginRequestSchema,
  type BeginResponse,
  IdempotencyService,
  RenewRequestSchema,
} from "../build/generated/onced/v1/idempotency_service_pb.js";
import { type Answer, type Patience, Transport } from "../build/transport.js";
import { Fake } from "./fake.js";
import { until } from "./support.js";

export const PATIENCE: Patience = { total: 20_000, attempt: 10_000 };
export const { begin, renew } = IdempotencyService.method;

/** A transport to a server of the test, and calls of it. */
class Caller {
  readonly transport: Transport;
  readonly giveUp = new AbortController();
  /** Added to the clock. */
  slept = 0;

  constructor(
    test: TestContext,
    readonly fake: Fake,
    { sessions = true, tokenFile }: { sessions?: boolean; tokenFile?: string } = {},
  ) {
    const clock = new Clock(() => ({ monotonic: performance.now(), wall: Date.now() + this.slept }));
    this.transport = new Transport([fake.address], { tokenFile }, sessions, clock);
    test.after(() => {
      this.giveUp.abort();
      this.transport.close();
    });
  }

  begin(key: string, patience = PATIENCE, signal = this.giveUp.signal): Promise<Answer<BeginResponse>> {
    return this.transport.call("waiting", begin, create(BeginRequestSchema, { key }), patience, signal);
  }

  renew(data: Uint8Array, patience = PATIENCE): Promise<unknown> {
    const request = create(RenewRequestSchema, { key: "k", checkpoint: { sequence: 1n, data } });
    return this.transport.call("holding", renew, request, patience, this.giveUp.signal);
  }

  /** Has so many calls under way that are never answered. They come in before this is done. */
  async crowd(size: number): Promise<void> {
    const { fake } = this;
    const before = fake.refuse;
    fake.refuse = (call) => (call.request.key === "crowd" ? "held" : before(call));
    const came = fake.unary.length;
    for (let i = 0; i < size; i += 1) this.begin("crowd", { total: 100_000, attempt: 100_000 }).catch(() => {});
    await until(() => fake.unary.length === came + size, "the crowd is there");
  }

  /** Has a session, beside 16 unary calls. */
  async inSession(): Promise<Fake["streams"][number]> {
    await this.begin("first");
    await this.crowd(16);
    await this.reopen();
    const stream = this.fake.streams.at(-1);
    assert.ok(stream);
    return stream;
  }

  /** Waits until calls are carried in a session. */
  async reopen(): Promise<void> {
    const { carried } = this.fake;
    const before = carried.length;
    const carries = () => carried.length > before;
    await until(() => this.begin("probe").then(carries), "a session carries calls");
    carried.length = 0;
  }
}

export async function calling(test: TestContext, options: { sessions?: boolean; tokenFile?: string } = {}) {
  const fake = await Fake.start(test);
  return { fake, caller: new Caller(test, fake, options) };
}

/** The keys of the unary calls that are not for the crowd. */
export function alone(fake: Fake): string[] {
  return fake.unary.map(({ request }) => request.key).filter((key) => !/crowd|probe|first/.test(key));
}

export function fencing({ message: { result } }: Answer<BeginResponse>): bigint | undefined {
  return result.case === "claim" ? result.value.fencingToken : undefined;
}
