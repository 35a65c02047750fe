/** Idempotency keys for gRPC servers: {@link dev.onced.client.grpc.IdempotencyInterceptor}. */
package dev.onced.client.grpc;
