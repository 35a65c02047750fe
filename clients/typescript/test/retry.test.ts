import assert from "node:assert/strict";
import { test } from "node:test";
import { create, toBinary } from "@bufbuild/protobuf";
import { anyPack, durationFromMs } from "@bufbuild/protobuf/wkt";
import { Metadata, type ServiceError, status } from "@grpc/grpc-js";
import { ErrorInfoSchema, RetryInfoSchema } from "../build/generated/details_pb.js";
import { StatusSchema } from "../build/generated/google/rpc/status_pb.js";
import { jittered, pause, refusalOf, worthRepeating } from "../build/retry.js";

interface Told {
  reason?: string;
  domain?: string;
  retryMs?: number;
  pushback?: string;
  text?: string;
}

function refused(code: status, { reason, domain = "onced.dev", retryMs, pushback, text = "no" }: Told = {}) {
  const packed = [];
  if (reason)
    packed.push({ name: "ErrorInfo", any: anyPack(ErrorInfoSchema, create(ErrorInfoSchema, { reason, domain })) });
  if (retryMs !== undefined) {
    const info = create(RetryInfoSchema, { retryDelay: durationFromMs(retryMs) });
    packed.push({ name: "RetryInfo", any: anyPack(RetryInfoSchema, info) });
  }
  const details = packed.map(({ name, any }) => ({ ...any, typeUrl: `type.googleapis.com/google.rpc.${name}` }));
  const metadata = new Metadata();
  const bytes = toBinary(StatusSchema, create(StatusSchema, { code, message: text, details }));
  metadata.set("grpc-status-details-bin", Buffer.from(bytes));
  if (pushback !== undefined) metadata.set("grpc-retry-pushback-ms", pushback);
  return refusalOf(Object.assign(new Error(text), { code, details: text, metadata }) as ServiceError);
}

test("only what may pass is repeated", () => {
  const again = [
    refused(status.UNAVAILABLE, { reason: "STORE_UNAVAILABLE" }),
    refused(status.DEADLINE_EXCEEDED, { reason: "DEADLINE_EXCEEDED" }),
    refused(status.UNAVAILABLE),
    refused(status.CANCELLED),
    refused(status.UNKNOWN),
    refused(status.INTERNAL, { text: "Received RST_STREAM with code 2 (Internal server error)" }),
  ];
  for (const refusal of again) assert.ok(worthRepeating(refusal), JSON.stringify(refusal));
  const final = [
    refused(status.ABORTED, { reason: "CLAIM_LOST" }),
    refused(status.INTERNAL, { reason: "INTERNAL" }),
    refused(status.CANCELLED, { reason: "CANCELLED" }),
    refused(status.UNKNOWN, { reason: "INTERNAL" }),
    refused(status.RESOURCE_EXHAUSTED, { reason: "STORE_FULL" }),
    refused(status.PERMISSION_DENIED),
  ];
  for (const refusal of final) assert.ok(!worthRepeating(refusal), JSON.stringify(refusal));
});

test("a reason is that of onced alone", () => {
  assert.equal(refused(status.ABORTED, { reason: "CLAIM_LOST" }).reason, "CLAIM_LOST");
  assert.equal(refused(status.ABORTED, { reason: "CLAIM_LOST", domain: "example.com" }).reason, undefined);
});

test("pushback is read from metadata or RetryInfo, and one that is no number forbids to ask again", () => {
  assert.equal(refused(status.UNAVAILABLE, { reason: "OVERLOADED", pushback: "250", retryMs: 9 }).pushback, 250);
  assert.equal(refused(status.UNAVAILABLE, { retryMs: 3_000 }).pushback, 3_000);
  assert.equal(refused(status.UNAVAILABLE).pushback, 0);
  for (const pushback of ["-1", "soon", ""]) {
    const refusal = refused(status.UNAVAILABLE, { pushback });
    assert.equal(refusal.pushback, "never");
    assert.ok(!worthRepeating(refusal));
  }
});

test("details that cannot be read leave the code", () => {
  const metadata = new Metadata();
  metadata.set("grpc-status-details-bin", Buffer.from([0xff]));
  const error = Object.assign(new Error("no"), { code: status.UNAVAILABLE, details: "", metadata }) as ServiceError;
  const refusal = refusalOf(error);
  assert.deepEqual([refusal.status, refusal.reason, refusal.message], [14, undefined, "status UNAVAILABLE"]);
});

test("other servers are tried at once, and rounds wait longer, up to a cap", () => {
  assert.equal(pause(1, 3, 5_000), 0);
  assert.equal(pause(2, 3, 5_000), 0);
  for (let attempts = 1; attempts < 100; attempts += 1) {
    const wait = pause(attempts, 1, 0);
    assert.ok(wait >= 25 && wait <= 2_000, `${attempts}: ${wait}`);
  }
  assert.ok(pause(90, 1, 0) >= 1_000);
});

test("a pushback is kept, with an eighth on top at most", () => {
  for (let round = 0; round < 100; round += 1) {
    const wait = pause(3, 3, 4_000);
    assert.ok(wait >= 4_250 && wait <= 4_500, `${wait}`);
    const time = jittered(100);
    assert.ok(time >= 50 && time <= 100, `${time}`);
  }
});
