/**
 * The one place that reads time. A holder counts its lock on this clock, so it must go on while the machine is
 * suspended. Node has no clock that does: its monotonic one stands still, and its wall clock can be set. So a moment
 * is a reading of both, and what elapsed between two is the larger of what each of them says.
 */

/** A reading of both clocks, in milliseconds. Only what elapsed between two means anything. */
export interface Moment {
  readonly monotonic: number;
  readonly wall: number;
}

/** A source of time, injected so that tests can move it. */
export class Clock {
  readonly #read: () => Moment;

  constructor(read: () => Moment = system) {
    this.#read = read;
  }

  now(): Moment {
    return this.#read();
  }

  /** Milliseconds since `earlier`, never less than 0. */
  since(earlier: Moment): number {
    const now = this.now();
    return Math.max(0, now.monotonic - earlier.monotonic, now.wall - earlier.wall);
  }
}

function system(): Moment {
  return { monotonic: performance.now(), wall: Date.now() };
}

/** The longest time of a timer, in milliseconds: 24 days. */
const LONGEST_TIMER = 2 ** 31 - 1;

/** Ends after `ms`, or at once when `signal` is aborted: it never fails. */
export function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  if (ms <= 0 || signal?.aborted) return Promise.resolve();
  return new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", end);
      resolve();
    };
    const timer = setTimeout(end, Math.min(ms, LONGEST_TIMER));
    signal?.addEventListener("abort", end, { once: true });
  });
}
