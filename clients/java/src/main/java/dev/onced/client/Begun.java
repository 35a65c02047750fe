package dev.onced.client;

import dev.onced.v1.BeginRequest;
import dev.onced.v1.BeginResponse;

/**
 * What a Begin came to.
 *
 * @param request what was asked
 * @param response null if the caller failed open
 * @param sent when the attempt that was answered was sent
 */
record Begun(BeginRequest request, BeginResponse response, long sent) {
    boolean isUnprotected() {
        return response == null;
    }
}
