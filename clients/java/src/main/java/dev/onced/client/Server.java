package dev.onced.client;

import io.grpc.ConnectivityState;
import io.grpc.ManagedChannel;
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder;
import io.grpc.netty.shaded.io.netty.channel.ChannelOption;
import io.grpc.netty.shaded.io.netty.handler.ssl.SslContext;
import java.net.InetAddress;
import java.net.URI;
import java.net.URISyntaxException;
import java.net.UnknownHostException;
import java.util.Arrays;
import java.util.Locale;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Executor;
import java.util.concurrent.TimeUnit;

/** One server, and the connections to it. */
final class Server {
    /** How long a connection may take to come up. */
    static final long CONNECT_TIMEOUT = TimeUnit.SECONDS.toNanos(3);

    private static final String FORMS = "write HOST:PORT, http://HOST:PORT, or https://HOST:PORT for TLS";

    final String name;
    private final String host;
    private final int port;
    private final SslContext tls;
    private final Executor executor;
    /** By lane. Connected at first use: a client can be made before there is a server. */
    private final ManagedChannel[] channels = new ManagedChannel[Transport.Lane.values().length];
    /** By lane, too. */
    private final Sessions[] sessions = new Sessions[channels.length];

    private boolean closed;

    Server(String name, Access access, Executor executor, Transport transport) {
        URI uri = parse(name);
        this.name = name;
        this.host = uri.getHost();
        this.port = uri.getPort();
        this.executor = executor;
        for (int lane = 0; lane < sessions.length; lane++) {
            int index = lane;
            sessions[lane] = new Sessions(transport, executor, () -> connected(index));
        }
        if (uri.getScheme().equals("https")) {
            tls = access.tls();
        } else if (access.hasToken() && !access.tokenInPlaintext() && !isLoopback(host)) {
            throw invalid(name, "a token would go there for all to read: write https://, or say allowTokenInPlaintext");
        } else {
            tls = null;
        }
    }

    private static URI parse(String server) {
        URI uri;
        try {
            uri = new URI(server.contains("://") ? server : "http://" + server);
        } catch (URISyntaxException garbled) {
            throw invalid(server, FORMS);
        }
        String scheme = uri.getScheme().toLowerCase(Locale.ROOT);
        boolean more = uri.getUserInfo() != null
                || uri.getQuery() != null
                || uri.getFragment() != null
                || !(uri.getPath().isEmpty() || uri.getPath().equals("/"));
        if (!(scheme.equals("http") || scheme.equals("https")) || uri.getHost() == null || more) {
            throw invalid(server, FORMS);
        }
        if (uri.getPort() < 0) {
            throw invalid(server, "the port is missing; onced listens on 7411 by default");
        }
        if (uri.getPort() > 65_535) {
            throw invalid(server, FORMS);
        }
        return uri;
    }

    private static SetUpException invalid(String server, String why) {
        return new SetUpException("\"" + server + "\" is no address of a server: " + why);
    }

    /** Whether a host is this machine, where nobody listens in between. */
    static boolean isLoopback(String host) {
        if (host.equals("localhost")) {
            return true;
        }
        // Only addresses: a name may be resolved to something else when it is called.
        if (!host.startsWith("[") && !host.matches("[0-9]+\\.[0-9]+\\.[0-9]+\\.[0-9]+")) {
            return false;
        }
        try {
            return InetAddress.getByName(host).isLoopbackAddress();
        } catch (UnknownHostException garbled) {
            return false;
        }
    }

    boolean isTls() {
        return tls != null;
    }

    /**
     * The connection of a lane. One that failed is made anew: grpc would wait for up to two minutes before it tries
     * again, and fail all calls until then.
     */
    synchronized ManagedChannel channel(Transport.Lane lane) {
        ManagedChannel channel = channels[lane.ordinal()];
        if (channel != null && channel.getState(false) == ConnectivityState.TRANSIENT_FAILURE && !closed) {
            channel.shutdown();
            channel = null;
        }
        if (channel == null) {
            channel = connect();
            channels[lane.ordinal()] = channel;
            if (closed) {
                channel.shutdownNow();
            }
        }
        return channel;
    }

    private synchronized ManagedChannel connected(int lane) {
        ManagedChannel channel = channels[lane];
        return channel != null && channel.getState(false) == ConnectivityState.READY ? channel : null;
    }

    Sessions sessions(Transport.Lane lane) {
        return sessions[lane.ordinal()];
    }

    /** Gives up a connection that does not come up. */
    synchronized void drop(Transport.Lane lane, ManagedChannel channel) {
        if (channels[lane.ordinal()] == channel && channel.getState(false) == ConnectivityState.CONNECTING) {
            channels[lane.ordinal()] = null;
            channel.shutdownNow();
        }
    }

    /** Ends the sessions well, which takes as long as the server takes to hear of it. */
    CompletableFuture<?> endSessions() {
        return CompletableFuture.allOf(Arrays.stream(sessions)
                .map(Sessions::end)
                .toArray(CompletableFuture[]::new));
    }

    synchronized void close() {
        closed = true;
        for (ManagedChannel channel : channels) {
            if (channel != null) {
                channel.shutdownNow();
            }
        }
    }

    private ManagedChannel connect() {
        String bare = host.startsWith("[") ? host.substring(1, host.length() - 1) : host;
        NettyChannelBuilder builder = NettyChannelBuilder.forAddress(bare, port)
                .executor(executor)
                // What is sent again, and where, is decided in Call alone.
                .disableRetry()
                .withOption(ChannelOption.CONNECT_TIMEOUT_MILLIS, (int) TimeUnit.NANOSECONDS.toMillis(CONNECT_TIMEOUT))
                .keepAliveTime(10, TimeUnit.SECONDS)
                .keepAliveTimeout(5, TimeUnit.SECONDS);
        return tls == null ? builder.usePlaintext().build() : builder.sslContext(tls).build();
    }
}
