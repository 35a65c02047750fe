/** Who registers: sends the form, and again with the same key until there is an answer. */

import { setTimeout as sleep } from "node:timers/promises";

export interface Answer {
  readonly status: number;
  readonly body: { id?: string; code?: string; detail?: string };
  readonly replayed: boolean;
  /** How often the request was sent. */
  readonly sent: number;
}

/** What is sent: the same bytes each time. */
export interface Registration {
  readonly site: string;
  readonly body: string;
  /** Made when the form is shown, not when it is sent: a second click is a repetition as well. */
  readonly key: string;
}

/** How long an answer is waited for, in ms: longer than the service waits before it gives up itself. */
const PATIENCE = Number(process.env["PATIENCE"] ?? 30) * 1_000;
const ATTEMPTS = 6;

/** Registers at the first of `hosts` that answers. Each attempt goes to the next one. */
export async function register(hosts: readonly string[], registration: Registration): Promise<Answer> {
  const { site, body, key } = registration;
  const headers = { "Content-Type": "application/json", "X-Site": site, "Idempotency-Key": key };
  for (let sent = 1; ; sent += 1) {
    const url = `${hosts[(sent - 1) % hosts.length]}/users`;
    try {
      const response = await fetch(url, { method: "POST", headers, body, signal: AbortSignal.timeout(PATIENCE) });
      const answer = (await response.json()) as Answer["body"];
      const again = response.status >= 500 || response.headers.has("Retry-After");
      if (!again || sent === ATTEMPTS) {
        const replayed = response.headers.has("Idempotent-Replayed");
        return { status: response.status, body: answer, replayed, sent };
      }
    } catch (error) {
      // No answer: it may have happened, and it may not. That is what the key is for.
      if (sent === ATTEMPTS) throw error;
    }
    await sleep(100 * sent);
  }
}
