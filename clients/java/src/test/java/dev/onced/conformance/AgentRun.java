package dev.onced.conformance;

import static dev.onced.conformance.Agent.JSON;
import static dev.onced.conformance.Agent.text;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.NullNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.onced.client.Claim;
import dev.onced.client.ClaimLostException;
import dev.onced.client.Codec;
import dev.onced.client.Done;
import dev.onced.client.FailedException;
import dev.onced.client.Failure;
import dev.onced.client.FinalException;
import dev.onced.client.InDoubtException;
import dev.onced.client.InProgressException;
import dev.onced.client.Lost;
import dev.onced.client.NotBegunException;
import dev.onced.client.NotStoredException;
import dev.onced.client.OnFailure;
import dev.onced.client.OnLapse;
import dev.onced.client.Once;
import dev.onced.client.OncedException;
import dev.onced.client.UnreadableException;
import dev.onced.client.Work;
import io.grpc.Status;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.time.Duration;
import java.util.Locale;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.function.Supplier;

/** A run whose work waits for what the driver says. */
final class AgentRun {
    /** A panic that the driver asked for. */
    private static final class Panic extends Error {
        private static final long serialVersionUID = 1L;

        Panic(String message) {
            super(message);
        }
    }

    /** Whether runs are of the form that blocks a thread, and giving up interrupts it. */
    private static final boolean BLOCKS = System.getenv("ONCED_AGENT_BLOCKS") != null;

    private final Agent agent;
    private final String name;
    private final BlockingQueue<JsonNode> finish = new LinkedBlockingQueue<>();
    private volatile Claim claim;
    private volatile boolean over;
    private CompletableFuture<?> run;
    /** The thread that runs, if one does. */
    private Thread thread;

    AgentRun(Agent agent, String name) {
        this.agent = agent;
        this.name = name;
    }

    void start(Once once, JsonNode command) throws IOException {
        if (command.has("namespace")) {
            once.namespace(text(command, "namespace"));
        }
        if (command.has("fingerprint")) {
            once.fingerprint(command.get("fingerprint").binaryValue());
        }
        if (command.has("lock_ttl")) {
            once.lockTtl(millis(command, "lock_ttl"));
        }
        if (command.path("wait").isNull()) {
            once.waitWithoutEnd();
        } else if (command.has("wait")) {
            once.waitFor(millis(command, "wait"));
        }
        if (command.has("retention")) {
            once.retention(millis(command, "retention"));
        }
        if (command.has("on_lapse")) {
            once.onLapse(OnLapse.valueOf(text(command, "on_lapse").toUpperCase(Locale.ROOT)));
        }
        if (command.has("on_failure")) {
            once.onFailure(OnFailure.valueOf(text(command, "on_failure").toUpperCase(Locale.ROOT)));
        }
        if (command.has("owner")) {
            once.owner(text(command, "owner"));
        }
        if (command.has("fail_open")) {
            once.failOpenAfter(millis(command, "fail_open"));
        }
        switch (command.path("codec").asText("json")) {
            case "json" -> start(once, Codec.json(JsonNode.class), value -> value, value -> value);
            case "bytes" -> start(once, Codec.bytes(), AgentRun::bytes, value -> JSON.getNodeFactory().binaryNode(value));
            case "text" -> start(once, Codec.text(), JsonNode::asText, value -> JSON.getNodeFactory().textNode(value));
            default -> throw new Agent.Unfit("unknown", "there is no such codec");
        }
    }

    private static Duration millis(JsonNode command, String field) {
        return Duration.ofMillis(command.get(field).asLong());
    }

    private static byte[] bytes(JsonNode value) {
        try {
            return value.binaryValue();
        } catch (IOException garbled) {
            throw new UncheckedIOException(garbled);
        }
    }

    private interface Step<A, B> {
        B apply(A value);
    }

    private <T> void start(Once once, Codec<T> codec, Step<JsonNode, T> from, Step<T, JsonNode> to) {
        Work<T> work = given -> {
            begun(given);
            JsonNode end = awaitFinish();
            over = true;
            return from.apply(value(end));
        };
        CompletableFuture<Done<T>> started = BLOCKS ? blocking(() -> once.run(codec, work)) : once.runAsync(codec, work);
        run = started;
        started.whenComplete((done, error) -> {
            ObjectNode ended = event("ended");
            if (error == null) {
                ended(ended, done, done.value() == null ? NullNode.instance : to.apply(done.value()));
            } else {
                failed(ended, error);
            }
            agent.say(ended);
        });
    }

    private <T> CompletableFuture<T> blocking(Supplier<T> call) {
        var ended = new CompletableFuture<T>();
        thread = new Thread(() -> {
            try {
                ended.complete(call.get());
            } catch (Throwable thrown) {
                ended.completeExceptionally(thrown);
            }
        });
        thread.setDaemon(true);
        thread.start();
        return ended;
    }

    private void begun(Claim given) {
        claim = given;
        ObjectNode started = event("started");
        started.put("token", Long.toUnsignedString(given.token()));
        started.put("attempt", Long.toUnsignedString(given.attempt()));
        started.put("checkpoint", given.checkpoint());
        started.put("protected", given.isProtected());
        agent.say(started);
        given.whenLost().thenAccept(why -> agent.say(event("lost").put("why", name(why))));
    }

    /** The work does not stop by itself when its claim is lost. */
    private JsonNode awaitFinish() {
        while (true) {
            try {
                return finish.take();
            } catch (InterruptedException told) {
                // The event of the loss says it.
            }
        }
    }

    private static JsonNode value(JsonNode end) throws Failure {
        if (end.has("panic")) {
            throw new Panic(text(end, "panic"));
        } else if (end.has("final")) {
            JsonNode last = end.get("final");
            throw Failure.permanent(
                    Status.fromCodeValue(last.get("code").asInt()).getCode(), text(last, "message"));
        } else if (end.has("fail")) {
            var cause = new IllegalStateException(end.path("message").asText("it failed"));
            throw switch (text(end, "fail")) {
                case "retry" -> Failure.retry(cause);
                case "in_doubt" -> Failure.inDoubt(cause);
                default -> cause;
            };
        }
        return end.path("value").isMissingNode() ? NullNode.instance : end.get("value");
    }

    void finish(JsonNode command) {
        if (claim == null || over) {
            throw new Agent.Unfit("over", "no work of this run goes on");
        }
        finish.add(command);
    }

    Claim claim() {
        if (claim == null) {
            throw new Agent.Unfit("unknown", "the run has no claim yet");
        }
        return claim;
    }

    void cancel() {
        if (thread == null) {
            run.cancel(true);
        } else {
            thread.interrupt();
        }
    }

    void tell(ObjectNode ok) {
        Claim held = claim();
        Lost lost = held.lost();
        ok.put("token", Long.toUnsignedString(held.token()));
        ok.put("attempt", Long.toUnsignedString(held.attempt()));
        ok.put("left", held.lockLeft().toMillis());
        ok.put("lost", lost == null ? null : name(lost));
        ok.put("protected", held.isProtected());
    }

    private ObjectNode event(String what) {
        return JSON.createObjectNode().put("event", what).put("run", name);
    }

    private static void ended(ObjectNode ended, Done<?> done, JsonNode value) {
        ended.put("result", "done");
        ended.set("value", value);
        ended.put("ran_here", done.ranHere());
        ended.put("protected", done.isProtected());
        ended.put("owner", done.owner());
        ended.put("attempt", Long.toUnsignedString(done.attempt()));
        ended.put("token", Long.toUnsignedString(done.token()));
    }

    private static void failed(ObjectNode ended, Throwable error) {
        ended.put("result", result(error));
        ended.put("message", String.valueOf(error.getMessage()));
        if (!(error instanceof OncedException known)) {
            return;
        }
        if (known.reason() != null) {
            ended.put("reason", known.reason());
        }
        if (known.owner() != null) {
            ended.put("owner", known.owner());
        }
        if (known.attempt() != 0) {
            ended.put("attempt", Long.toUnsignedString(known.attempt()));
        }
        if (known.token() != 0) {
            ended.put("token", Long.toUnsignedString(known.token()));
        }
        if (known instanceof FailedException failed) {
            ended.put("rule", failed.rule().name().toLowerCase(Locale.ROOT));
            ended.put("released", failed.isReleased());
            ended.put("lost", failed.lost() == null ? null : name(failed.lost()));
        } else if (known instanceof ClaimLostException lost) {
            ended.put("lost", name(lost.lost()));
        } else if (known instanceof FinalException last) {
            ended.put("code", last.code().value());
            ended.put("ran_here", last.ranHere());
        }
    }

    private static String result(Throwable error) {
        if (error instanceof NotBegunException) {
            return "not_begun";
        } else if (error instanceof InProgressException) {
            return "in_progress";
        } else if (error instanceof InDoubtException) {
            return "in_doubt";
        } else if (error instanceof FailedException) {
            return "failed";
        } else if (error instanceof ClaimLostException) {
            return "claim_lost";
        } else if (error instanceof NotStoredException) {
            return "not_stored";
        } else if (error instanceof FinalException) {
            return "final";
        } else if (error instanceof UnreadableException) {
            return "unreadable";
        } else if (error instanceof Panic) {
            return "panic";
        }
        return "cancelled";
    }

    private static String name(Lost lost) {
        return lost.name().toLowerCase(Locale.ROOT);
    }
}
