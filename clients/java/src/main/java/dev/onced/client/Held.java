package dev.onced.client;

import com.google.protobuf.ByteString;
import dev.onced.v1.BeginRequest;
import dev.onced.v1.Checkpoint;
import dev.onced.v1.IdempotencyServiceGrpc;
import dev.onced.v1.RenewRequest;
import dev.onced.v1.RenewResponse;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;

/** A claim in the hands of its holder: kept alive in the background, and watched on the holder's own clock. */
final class Held {
    /**
     * The longest sleep between two looks at the clock. Timers stand still while a machine is suspended and the clock
     * does not, so nothing sleeps much longer than it may be late.
     */
    private static final long TICK = TimeUnit.MILLISECONDS.toNanos(500);

    private static final long SHORTEST_TICK = TimeUnit.MILLISECONDS.toNanos(1);

    private static final System.Logger LOG = System.getLogger(Held.class.getName());

    final BeginRequest request;
    final dev.onced.v1.Claim claim;
    final long ttl;
    /** Ends when the claim is lost, in a thread of the client's. */
    final CompletableFuture<Lost> whenLost = new CompletableFuture<>();

    private final Onced client;
    private final HolderClock clock;

    // All below is guarded by this.
    /** When the lock ends on this machine's clock, at the earliest. */
    private long ends;

    private Lost lost;
    /** How it was lost before the run gave it back. */
    private Lost lostBefore;
    /** Nothing is told to the work any more: its outcome is being stored, or it gave its claim back. */
    private boolean settled;
    /** Whether the lock is being renewed. */
    private boolean kept;

    private Future<?> tick = CompletableFuture.completedFuture(null);
    private boolean renewing;
    private long nextRenewal;
    /** Of the last checkpoint. */
    private long sequence;

    Held(Onced client, Begun begun) {
        this.client = client;
        this.clock = client.transport.clock;
        this.request = begun.request();
        this.claim = begun.response().getClaim();
        this.ttl = Wire.nanos(claim.getLockTtl());
        this.ends = begun.sent() + Wire.nanos(claim.getWaited()) + ttl;
        this.sequence = claim.getCheckpoint().getSequence();
        this.nextRenewal = ends - ttl + Retry.jittered(ttl * 2 / 5);
    }

    long token() {
        return claim.getFencingToken();
    }

    long attempt() {
        return claim.getAttempt();
    }

    /** Renews the lock from now on. */
    synchronized void keep() {
        kept = true;
        tick();
    }

    /** Renews it no more. */
    synchronized void letGo() {
        kept = false;
        tick.cancel(false);
    }

    /** From now on only the answer to a Complete says what became of the claim. */
    synchronized void settle() {
        settled = true;
    }

    /** Tells the work that the claim is being given back: parts of it may still run elsewhere. */
    synchronized void giveBack() {
        letGo();
        lostBefore = lost();
        settled = true;
        if (lost == null) {
            lost = Lost.GIVEN_BACK;
            client.threads.execute(() -> whenLost.complete(Lost.GIVEN_BACK));
        }
    }

    /** How it was lost, if it was. */
    synchronized Lost lost() {
        if (!settled && lost == null && clock.nanos() >= ends) {
            lose(Lost.LOCK_ENDED);
        }
        return lost;
    }

    /** How it was lost before the run gave it back. */
    synchronized Lost lostBefore() {
        return lostBefore;
    }

    synchronized long left() {
        return lost() == null ? Math.max(0, ends - clock.nanos()) : 0;
    }

    private void lose(Lost why) {
        if (settled || lost == Lost.TAKEN_OVER) {
            return;
        }
        lost = why;
        client.threads.execute(() -> whenLost.complete(why));
    }

    /** Looks at the clock, and renews when it is time. After the lock has ended too: nobody may have taken over yet. */
    private synchronized void tick() {
        if (!kept) {
            return;
        }
        lost();
        long now = clock.nanos();
        if (now >= nextRenewal && !renewing) {
            renewing = true;
            renew(new Transport.Patience(ttl / 3, attemptTime()), null).whenComplete(this::renewed);
        }
        long wait = TICK;
        if (lost == null && !settled) {
            wait = Math.min(wait, ends - now);
        }
        if (!renewing) {
            wait = Math.min(wait, nextRenewal - now);
        }
        if (kept) {
            tick = client.timer.schedule(this::tick, Math.max(wait, SHORTEST_TICK), TimeUnit.NANOSECONDS);
        }
    }

    private synchronized void renewed(Transport.Answer<RenewResponse> answer, Throwable error) {
        renewing = false;
        if (error == null) {
            nextRenewal = answer.sent() + Retry.jittered(ttl * 2 / 5);
        } else if (isClaimLost(error)) {
            letGo();
        } else {
            LOG.log(System.Logger.Level.DEBUG, "a renewal failed: {0}", error.getMessage());
            nextRenewal = clock.nanos() + ttl / 20;
        }
    }

    /** Saves a checkpoint. Of two that are under way at once the later call wins. */
    CompletableFuture<Void> save(byte[] data) {
        Checkpoint checkpoint;
        synchronized (this) {
            checkpoint = Checkpoint.newBuilder()
                    .setSequence(++sequence)
                    .setData(ByteString.copyFrom(data))
                    .build();
        }
        return renew(new Transport.Patience(client.timeout, attemptTime()), checkpoint).thenApply(answer -> null);
    }

    private CompletableFuture<Transport.Answer<RenewResponse>> renew(
            Transport.Patience patience, Checkpoint checkpoint) {
        RenewRequest.Builder renew = RenewRequest.newBuilder()
                .setNamespace(request.getNamespace())
                .setKey(request.getKey())
                .setFencingToken(token());
        if (checkpoint != null) {
            renew.setCheckpoint(checkpoint);
        }
        return client.holding(patience, IdempotencyServiceGrpc.getRenewMethod(), renew.build())
                .whenComplete((answer, error) -> {
                    synchronized (this) {
                        if (error == null) {
                            ends = Math.max(ends, answer.sent() + Wire.nanos(answer.message().getLockExpiresIn()));
                        } else if (isClaimLost(error)) {
                            lose(Lost.TAKEN_OVER);
                        }
                    }
                });
    }

    private static boolean isClaimLost(Throwable error) {
        return Futures.unwrapped(error) instanceof CallException refused && refused.isClaimLost();
    }

    /** One attempt of a Renew leaves time for another at another server within the TTL. */
    private long attemptTime() {
        return Math.max(TimeUnit.MILLISECONDS.toNanos(250), Math.min(ttl / 4, TimeUnit.SECONDS.toNanos(10)));
    }
}
