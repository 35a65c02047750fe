/** The {@code Idempotency-Key} header for servlets: {@link dev.onced.client.servlet.IdempotencyFilter}. */
package dev.onced.client.servlet;
