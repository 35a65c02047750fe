package dev.onced.client.servlet;

import dev.onced.client.Claim;
import dev.onced.client.ClaimLostException;
import dev.onced.client.Done;
import dev.onced.client.FailedException;
import dev.onced.client.Failure;
import dev.onced.client.InDoubtException;
import dev.onced.client.InProgressException;
import dev.onced.client.NotBegunException;
import dev.onced.client.NotStoredException;
import dev.onced.client.Once;
import dev.onced.client.OncedException;
import dev.onced.client.UnstorableException;
import dev.onced.client.Verdict;
import jakarta.servlet.FilterChain;
import jakarta.servlet.ServletException;
import jakarta.servlet.http.HttpServletResponse;
import java.io.IOException;
import java.util.Set;
import java.util.function.Supplier;

/** One request with a key. */
final class Exchange {
    private static final System.Logger LOG = System.getLogger(IdempotencyFilter.class.getName());

    private final BufferedRequest request;
    private final HttpServletResponse response;
    private final FilterChain chain;
    /** Of the answer, those that are stored. */
    private final Set<String> headers;

    private final long responseBytes;
    /** Once the handler runs under a claim. */
    private CapturedResponse captured;

    Exchange(
            BufferedRequest request,
            HttpServletResponse response,
            FilterChain chain,
            Set<String> headers,
            long responseBytes) {
        this.request = request;
        this.response = response;
        this.chain = chain;
        this.headers = headers;
        this.responseBytes = responseBytes;
    }

    void run(Once once) throws IOException, ServletException {
        try {
            Done<Answer> done = once.run(Answer.CODEC, this::handle);
            if (!done.ranHere()) {
                response.setHeader("Idempotent-Replayed", "true");
            }
            if (done.isProtected()) {
                done.value().send(response);
            }
        } catch (NotStoredException done) {
            LOG.log(System.Logger.Level.WARNING, "an answer may not be stored", done);
            ((Answer) done.value()).send(response);
        } catch (FailedException failed) {
            failed(failed);
        } catch (OncedException refused) {
            refused(refused);
        }
    }

    private Answer handle(Claim claim) throws Exception {
        request.setAttribute(IdempotencyFilter.CLAIM, claim);
        if (!claim.isProtected()) {
            chain.doFilter(request, response);
            return null;
        }
        // The encoded outcome is larger by a little; whether all of it fits is looked at again.
        long limit = Math.min(responseBytes, claim.maxOutcomeBytes());
        Supplier<Verdict> verdict = () -> (Verdict) request.getAttribute(IdempotencyFilter.VERDICT);
        captured = new CapturedResponse(response, limit, verdict);
        try {
            chain.doFilter(request, captured);
        } catch (Exception thrown) {
            if (captured.unstorable() == null && request.elsewhere() == null) {
                throw byVerdict(verdict.get(), thrown);
            }
            LOG.log(System.Logger.Level.DEBUG, "a handler was stopped", thrown);
        }
        if (request.elsewhere() != null) {
            // Whatever it answered or threw: what it has begun may go on.
            throw Failure.inDoubt(new Unstored(request.elsewhere()));
        }
        Answer answer = captured.isStored() ? captured.answer(headers) : null;
        if (answer != null) {
            return answer;
        } else if (captured.unstorable() != null) {
            throw Failure.inDoubt(new Unstored("the answer cannot be stored: " + captured.unstorable()));
        }
        var status = new Unstored("the answer was " + captured.getStatus());
        throw verdict.get() == null && CapturedResponse.isUnseen(captured.getStatus())
                ? Failure.retry(status)
                : byVerdict(verdict.get(), status);
    }

    private static Exception byVerdict(Verdict verdict, Exception thrown) {
        return verdict == Verdict.RETRY
                ? Failure.retry(thrown)
                : verdict == Verdict.IN_DOUBT ? Failure.inDoubt(thrown) : thrown;
    }

    private void failed(FailedException failed) throws IOException, ServletException {
        Throwable cause = failed.getCause();
        if (!failed.isReleased() && captured != null) {
            LOG.log(System.Logger.Level.WARNING, "a claim may not be given back", failed);
        }
        boolean unstorable = captured != null && (captured.unstorable() != null || request.elsewhere() != null);
        if (cause instanceof UnstorableException || unstorable) {
            LOG.log(System.Logger.Level.ERROR, "a request was carried out, and its key is in doubt", failed);
            problem(Problem.RESPONSE_NOT_STORABLE, cause.getMessage());
        } else if (cause instanceof Unstored) {
            captured.passOn();
        } else {
            rethrow(cause);
        }
    }

    /** As the handler threw it. */
    private static void rethrow(Throwable thrown) throws IOException, ServletException {
        if (thrown instanceof IOException io) {
            throw io;
        } else if (thrown instanceof ServletException servlet) {
            throw servlet;
        } else if (thrown instanceof RuntimeException unchecked) {
            throw unchecked;
        }
        throw new ServletException(thrown);
    }

    private void refused(OncedException refused) throws IOException {
        if (refused instanceof InProgressException) {
            problem(Problem.REQUEST_IN_PROGRESS, "ask again in a moment");
        } else if (refused instanceof ClaimLostException) {
            problem(Problem.CLAIM_LOST, "ask again in a moment");
        } else if (refused instanceof InDoubtException) {
            problem(Problem.IN_DOUBT, refused.getMessage());
        } else if ("FINGERPRINT_MISMATCH".equals(refused.reason())) {
            problem(Problem.FINGERPRINT_MISMATCH, "take another key for another request");
        } else if (refused instanceof NotBegunException notBegun && notBegun.isUnavailable()) {
            LOG.log(System.Logger.Level.WARNING, "onced cannot be asked", refused);
            problem(Problem.UNAVAILABLE, "ask again in a moment");
        } else {
            LOG.log(System.Logger.Level.ERROR, "onced refused a request", refused);
            problem(Problem.REFUSED, "the log of the service says why");
        }
    }

    /** In place of what the handler has answered, if it has. */
    private void problem(Problem problem, String detail) throws IOException {
        if (captured != null && !response.isCommitted()) {
            response.reset();
        }
        problem.send(response, detail);
    }

    /** Of a handler that answered what is not stored. */
    private static final class Unstored extends Exception {
        private static final long serialVersionUID = 1L;

        Unstored(String message) {
            super(message, null, false, false);
        }
    }
}
