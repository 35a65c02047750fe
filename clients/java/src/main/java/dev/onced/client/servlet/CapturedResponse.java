package dev.onced.client.servlet;

import dev.onced.client.Verdict;
import jakarta.servlet.ServletOutputStream;
import jakarta.servlet.WriteListener;
import jakarta.servlet.http.HttpServletResponse;
import jakarta.servlet.http.HttpServletResponseWrapper;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.OutputStreamWriter;
import java.io.PrintWriter;
import java.nio.charset.CharacterCodingException;
import java.util.Locale;
import java.util.Set;
import java.util.function.Supplier;

/** A response that is kept until it is stored. One that is not to be stored, and is too large to be kept, passes. */
final class CapturedResponse extends HttpServletResponseWrapper {
    private final HttpServletResponse real;
    private final long limit;
    /** What the handler has said so far; none if nothing. */
    private final Supplier<Verdict> verdict;

    private final Stream stream = new Stream();
    private final ByteArrayOutputStream kept = new ByteArrayOutputStream();
    private PrintWriter writer;
    /** Whether it goes straight to the caller. */
    private boolean passing;
    /** Whether the handler has ended it. */
    private boolean closed;
    /** The error that the container is to answer with, if the handler asked for one. */
    private String errorText;

    private boolean error;
    /** Why it cannot be stored, though it is to be. */
    private String unstorable;

    CapturedResponse(HttpServletResponse real, long limit, Supplier<Verdict> verdict) {
        super(real);
        this.real = real;
        this.limit = limit;
        this.verdict = verdict;
    }

    /** Whether an answer of this status is the one of all repetitions. */
    static boolean isStored(int status, Verdict verdict) {
        if (verdict != null) {
            return verdict == Verdict.STORE;
        }
        return status < 500 && !isUnseen(status);
    }

    /** Whether the status says that the request was not looked at. */
    static boolean isUnseen(int status) {
        return status == 401 || status == 408 || status == 425 || status == 429;
    }

    boolean isStored() {
        return isStored(getStatus(), verdict.get());
    }

    /** The whole of it, once the handler has ended. Why it cannot be stored, it says by {@link #unstorable}. */
    Answer answer(Set<String> headers) {
        finish();
        checkKind();
        if (unstorable == null && passing) {
            unstorable = "it was handed out before it was known to be stored";
        }
        try {
            return unstorable == null ? Answer.of(real, getStatus(), headers, kept.toByteArray()) : null;
        } catch (CharacterCodingException notText) {
            unstorable = "a header that is to be stored is not UTF-8";
            return null;
        }
    }

    String unstorable() {
        return unstorable;
    }

    /** Hands out what is not stored. */
    void passOn() throws IOException {
        finish();
        if (passing) {
            return;
        }
        if (error) {
            real.sendError(getStatus(), errorText);
        } else {
            Answer.sendBody(real, kept.toByteArray());
        }
    }

    private void finish() {
        if (writer != null) {
            writer.flush();
        }
    }

    private void checkKind() {
        String type = getContentType();
        if (getStatus() < 200) {
            unstorable = "its status is " + getStatus() + ", and more is to follow";
        } else if (type != null && type.toLowerCase(Locale.ROOT).startsWith("text/event-stream")) {
            unstorable = "it is a stream of events";
        }
    }

    private void write(byte[] bytes, int offset, int length) throws IOException {
        if (passing) {
            real.getOutputStream().write(bytes, offset, length);
            return;
        }
        if (closed || unstorable != null) {
            return;
        }
        checkStream();
        if (length <= limit - kept.size()) {
            kept.write(bytes, offset, length);
        } else if (isStored()) {
            // The handler runs to its end, and nobody gets to see this.
            unstorable = "it has more than " + limit + " bytes";
            kept.reset();
        } else {
            passing = true;
            kept.writeTo(real.getOutputStream());
            kept.reset();
            real.getOutputStream().write(bytes, offset, length);
        }
    }

    /** A stream would not end by itself: its handler is told as if its caller had hung up. */
    private void checkStream() throws IOException {
        if (isStored()) {
            checkKind();
            if (unstorable != null) {
                throw new IOException("the answer cannot be stored: " + unstorable);
            }
        }
    }

    @Override
    public ServletOutputStream getOutputStream() {
        return stream;
    }

    @Override
    public PrintWriter getWriter() throws IOException {
        if (writer == null) {
            // Said, so that a replay says it too.
            super.setCharacterEncoding(getCharacterEncoding());
            writer = new PrintWriter(new OutputStreamWriter(stream, getCharacterEncoding()));
        }
        return writer;
    }

    @Override
    public void flushBuffer() throws IOException {
        finish();
        if (passing) {
            super.flushBuffer();
        } else if (!closed) {
            checkStream();
        }
    }

    @Override
    public boolean isCommitted() {
        return closed || super.isCommitted();
    }

    @Override
    public void reset() {
        super.reset();
        resetBuffer();
        error = false;
    }

    @Override
    public void resetBuffer() {
        super.resetBuffer();
        finish();
        kept.reset();
    }

    @Override
    public void sendError(int status, String text) {
        resetBuffer();
        setStatus(status);
        errorText = text;
        error = true;
        closed = true;
    }

    @Override
    public void sendError(int status) {
        sendError(status, null);
    }

    @Override
    public void sendRedirect(String location) {
        sendRedirect(location, SC_FOUND, true);
    }

    /**
     * Of later versions of the API.
     *
     * @param location where to
     * @param status the status
     * @param clear whether what was written is dropped
     */
    public void sendRedirect(String location, int status, boolean clear) {
        if (clear) {
            resetBuffer();
        }
        setStatus(status);
        setHeader("Location", location);
        closed = true;
    }

    @Override
    public void setBufferSize(int size) {
        // It is kept as a whole.
    }

    @Override
    public void setContentLength(int length) {
        // It is known once the handler has ended.
    }

    @Override
    public void setContentLengthLong(long length) {
        // It is known once the handler has ended.
    }

    @Override
    public void setHeader(String name, String value) {
        if (!isLength(name)) {
            super.setHeader(name, value);
        }
    }

    @Override
    public void addHeader(String name, String value) {
        if (!isLength(name)) {
            super.addHeader(name, value);
        }
    }

    @Override
    public void setIntHeader(String name, int value) {
        if (!isLength(name)) {
            super.setIntHeader(name, value);
        }
    }

    @Override
    public void addIntHeader(String name, int value) {
        if (!isLength(name)) {
            super.addIntHeader(name, value);
        }
    }

    private static boolean isLength(String name) {
        return name.equalsIgnoreCase("Content-Length");
    }

    private final class Stream extends ServletOutputStream {
        @Override
        public void write(int b) throws IOException {
            write(new byte[] {(byte) b}, 0, 1);
        }

        @Override
        public void write(byte[] bytes, int offset, int length) throws IOException {
            CapturedResponse.this.write(bytes, offset, length);
        }

        @Override
        public void flush() throws IOException {
            if (passing) {
                real.getOutputStream().flush();
            } else if (!closed) {
                checkStream();
            }
        }

        @Override
        public boolean isReady() {
            return true;
        }

        @Override
        public void setWriteListener(WriteListener listener) {
            throw new IllegalStateException("an answer that is stored is written by a thread that waits");
        }
    }
}
