package dev.onced.conformance;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.json.JsonMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.onced.client.CallException;
import dev.onced.client.Fingerprint;
import dev.onced.client.Onced;
import dev.onced.client.SetUpException;
import dev.onced.client.UnfitException;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;

/** Does what the conformance driver says, by this library: see "The agent" in clients/README.md. */
public final class Agent {
    static final ObjectMapper JSON = JsonMapper.builder().build();

    private final PrintStream out = new PrintStream(new java.io.FileOutputStream(java.io.FileDescriptor.out), false,
            StandardCharsets.UTF_8);
    private final Map<String, Onced> clients = new ConcurrentHashMap<>();
    private final Map<String, AgentRun> runs = new ConcurrentHashMap<>();

    /** A command that cannot be carried out. */
    static final class Unfit extends RuntimeException {
        private static final long serialVersionUID = 1L;

        final String kind;

        Unfit(String kind, String message) {
            super(message);
            this.kind = kind;
        }
    }

    private Agent() {}

    /**
     * Reads commands until there are no more.
     *
     * @param arguments none
     * @throws IOException if its input fails
     */
    public static void main(String[] arguments) throws IOException {
        var agent = new Agent();
        var in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            JsonNode command = JSON.readTree(line);
            if (isSlow(command)) {
                var thread = new Thread(() -> agent.answer(command), "command");
                thread.setDaemon(true);
                thread.start();
            } else {
                agent.answer(command);
            }
        }
        System.exit(0);
    }

    private static boolean isSlow(JsonNode command) {
        String name = command.path("do").asText();
        return name.equals("checkpoint") || name.equals("close");
    }

    synchronized void say(ObjectNode line) {
        out.println(line);
        out.flush();
    }

    private void answer(JsonNode command) {
        ObjectNode answer = JSON.createObjectNode();
        answer.set("id", command.get("id"));
        try {
            answer.set("ok", carryOut(command));
        } catch (Exception failed) {
            ObjectNode error = answer.putObject("error");
            error.put("kind", kind(failed));
            error.put("message", String.valueOf(failed.getMessage()));
            if (failed instanceof CallException call) {
                error.put("reason", call.reason());
            }
        }
        say(answer);
    }

    private static String kind(Exception failed) {
        if (failed instanceof Unfit unfit) {
            return unfit.kind;
        } else if (failed instanceof UnfitException) {
            return "unfit";
        } else if (failed instanceof SetUpException) {
            return "invalid";
        } else if (failed instanceof CallException call) {
            return call.isUnavailable() ? "unavailable" : "refused";
        }
        return failed.getClass().getSimpleName();
    }

    private ObjectNode carryOut(JsonNode command) throws Exception {
        ObjectNode ok = JSON.createObjectNode();
        switch (command.path("do").asText()) {
            case "connect" -> clients.put(text(command, "client"), connect(command));
            case "run" -> {
                var run = new AgentRun(this, text(command, "run"));
                runs.put(text(command, "run"), run);
                run.start(client(command).once(text(command, "key")), command);
            }
            case "finish" -> run(command).finish(command);
            case "checkpoint" -> run(command).claim().saveCheckpoint(command.get("data").binaryValue());
            case "claim" -> run(command).tell(ok);
            case "cancel" -> run(command).cancel();
            case "fingerprint" -> ok.put("digest", HexFormat.of().formatHex(fingerprint(command)));
            case "counts" -> ok.put("unprotected", client(command).unprotectedRuns());
            case "close" -> client(command).close(Duration.ofMillis(command.get("patience").asLong()));
            default -> throw new Unfit("unknown", "there is no command " + command.path("do"));
        }
        return ok;
    }

    private static Onced connect(JsonNode command) {
        Onced.Builder builder = command.has("servers") ? Onced.builder(text(command, "servers")) : Onced.builder();
        if (command.has("ca")) {
            builder.caFile(Path.of(text(command, "ca")));
        }
        if (command.has("cert")) {
            builder.identityFiles(Path.of(text(command, "cert")), Path.of(text(command, "key")));
        }
        if (command.has("token")) {
            builder.token(text(command, "token"));
        }
        if (command.has("token_file")) {
            builder.tokenFile(Path.of(text(command, "token_file")));
        }
        if (command.has("timeout")) {
            builder.timeout(Duration.ofMillis(command.get("timeout").asLong()));
        }
        if (command.has("owner")) {
            builder.owner(text(command, "owner"));
        }
        return builder.build();
    }

    private static byte[] fingerprint(JsonNode command) throws IOException {
        return switch (text(command, "kind")) {
            case "bytes" -> Fingerprint.ofBytes(command.get("data").binaryValue());
            case "json" -> Fingerprint.ofJsonText(text(command, "text"));
            case "fields" -> {
                List<String> pointers = new ArrayList<>();
                command.get("pointers").forEach(pointer -> pointers.add(pointer.asText()));
                yield Fingerprint.ofFieldsText(text(command, "text"), pointers.toArray(String[]::new));
            }
            default -> throw new Unfit("unknown", "there is no such kind of fingerprint");
        };
    }

    private Onced client(JsonNode command) {
        Onced client = clients.get(text(command, "client"));
        if (client == null) {
            throw new Unfit("unknown", "there is no such client");
        }
        return client;
    }

    private AgentRun run(JsonNode command) {
        AgentRun run = runs.get(text(command, "run"));
        if (run == null) {
            throw new Unfit("unknown", "there is no such run");
        }
        return run;
    }

    static String text(JsonNode command, String field) {
        JsonNode value = command.get(field);
        if (value == null || !value.isTextual()) {
            throw new Unfit("unknown", "the command has no " + field);
        }
        return value.textValue();
    }
}
