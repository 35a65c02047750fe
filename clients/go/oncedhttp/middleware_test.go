package oncedhttp_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"onced.dev/go/onced"
	"onced.dev/go/onced/internal/testserver"
	"onced.dev/go/onced/oncedhttp"
)

// Whatever hangs fails after so long.
const hangs = 30 * time.Second

var server *testserver.Server

func TestMain(m *testing.M) {
	var err error
	if server, err = testserver.Launch("--defaults-max-outcome-bytes", "64KiB"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	server.Kill()
	os.Exit(code)
}

// A house is a server of HTTP in which a handler runs once for a key, and counts how often it does.
type house struct {
	*httptest.Server
	runs atomic.Int64
}

func open(t *testing.T, servers string, handler http.HandlerFunc, options ...oncedhttp.Option) *house {
	t.Helper()
	client, err := onced.New(servers, onced.WithTimeout(2*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	h := &house{}
	counted := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.runs.Add(1)
		handler(w, r)
	})
	h.Server = httptest.NewServer(oncedhttp.Middleware(client, options...)(counted))
	t.Cleanup(func() {
		h.Close()
		ctx, cancel := context.WithTimeout(context.Background(), hangs)
		defer cancel()
		if err := client.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return h
}

type answer struct {
	*http.Response
	body string
}

func (h *house) request(t *testing.T, method, path, key, body string, headers ...string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, h.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if key != "" {
		r.Header.Set("Idempotency-Key", key)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	return r
}

func (h *house) post(t *testing.T, key, body string, headers ...string) answer {
	t.Helper()
	return h.send(t, h.request(t, http.MethodPost, "/orders", key, body, headers...))
}

func (h *house) send(t *testing.T, r *http.Request) answer {
	t.Helper()
	// A client of net/http repeats what has an Idempotency-Key when its connection breaks: not here.
	transport := &http.Transport{DisableKeepAlives: true}
	response, err := transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{response, string(body)}
}

// refused checks that an answer is a problem of that code.
func refused(t *testing.T, a answer, status int, code string) {
	t.Helper()
	var problem struct {
		Title, Detail, Code string
		Status              int
	}
	if err := json.Unmarshal([]byte(a.body), &problem); err != nil {
		t.Errorf("%d %q: %v", a.StatusCode, a.body, err)
		return
	}
	if a.StatusCode != status || problem.Status != status || problem.Code != code || problem.Title == "" || problem.Detail == "" {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
	if a.Header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("it is %s", a.Header.Get("Content-Type"))
	}
	retry := map[string]string{"REQUEST_IN_PROGRESS": "1", "CLAIM_LOST": "1", "UNAVAILABLE": "1"}[code]
	if a.Header.Get("Retry-After") != retry {
		t.Errorf("Retry-After: %s", a.Header.Get("Retry-After"))
	}
}

func (h *house) ran(t *testing.T, want int64) {
	t.Helper()
	if ran := h.runs.Load(); ran != want {
		t.Errorf("the handler ran %d times, and not %d", ran, want)
	}
}

func key(t *testing.T) string { return strings.ReplaceAll(t.Name(), "/", " ") }

func TestARepetitionGetsTheSameAnswer(t *testing.T) {
	h := open(t, server.Address, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.ContentLength != int64(len(body)) {
			t.Errorf("%d, %v", r.ContentLength, err)
		}
		w.Header().Set("Location", "/orders/17")
		w.Header().Add("Link", "<a>")
		w.Header().Add("Link", "<b>")
		w.Header().Set("X-Price", "10")
		w.Header().Set("Set-Cookie", "a=b")
		w.WriteHeader(http.StatusCreated)
		_, _ = fmt.Fprintf(w, "made of %s", body)
	}, oncedhttp.StoreHeaders("x-price"))
	first := h.post(t, key(t), "17")
	again := h.post(t, `"`+key(t)+`"`, "17")
	for _, a := range []answer{first, again} {
		if a.StatusCode != 201 || a.body != "made of 17" || a.Header.Get("Location") != "/orders/17" || a.Header.Get("X-Price") != "10" {
			t.Errorf("%+v", a)
		}
		if links := a.Header.Values("Link"); len(links) != 2 || links[1] != "<b>" {
			t.Errorf("the links are %q", links)
		}
		if a.Header.Get("Content-Type") != "text/plain; charset=utf-8" {
			t.Errorf("it is %q", a.Header.Get("Content-Type"))
		}
	}
	if first.Header.Get("Idempotent-Replayed") != "" || again.Header.Get("Idempotent-Replayed") != "true" {
		t.Error("which of them is a replay?")
	}
	if first.Header.Get("Set-Cookie") == "" || again.Header.Get("Set-Cookie") != "" {
		t.Error("a cookie is for one caller")
	}
	h.ran(t, 1)
}

func TestAnAnswerWithoutTypeOrBodyIsReplayedSo(t *testing.T) {
	for name, handler := range map[string]http.HandlerFunc{
		"204":   func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) },
		"empty": func(http.ResponseWriter, *http.Request) {},
		"untyped": func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Content-Type"] = nil
			_, _ = w.Write([]byte("<p>"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := open(t, server.Address, handler)
			first, again := h.post(t, key(t), ""), h.post(t, key(t), "")
			if first.StatusCode != again.StatusCode || first.body != again.body || first.Header.Get("Content-Type") != again.Header.Get("Content-Type") || first.Header.Get("Content-Length") != again.Header.Get("Content-Length") {
				t.Errorf("%+v\n%+v", first, again)
			}
			h.ran(t, 1)
		})
	}
}

func TestRequestsWithoutAUsableKeyAreRefused(t *testing.T) {
	h := open(t, server.Address, func(http.ResponseWriter, *http.Request) {})
	refused(t, h.post(t, "", "x"), 400, "IDEMPOTENCY_KEY_MISSING")
	refused(t, h.post(t, `"open`, "x"), 400, "IDEMPOTENCY_KEY_INVALID")
	refused(t, h.post(t, "a", "x", "Idempotency-Key", "b"), 400, "IDEMPOTENCY_KEY_INVALID")
	h.ran(t, 0)
	if a := h.send(t, h.request(t, http.MethodGet, "/orders", "", "")); a.StatusCode != 200 {
		t.Errorf("a GET is answered by %d", a.StatusCode)
	}
	h.ran(t, 1)
	h = open(t, server.Address, func(http.ResponseWriter, *http.Request) {}, oncedhttp.Optional())
	h.post(t, "", "x")
	h.post(t, "", "x")
	h.ran(t, 2)
}

func TestMethodsAreNamedInAnyCase(t *testing.T) {
	h := open(t, server.Address, func(http.ResponseWriter, *http.Request) {}, oncedhttp.Methods("put"))
	for range 2 {
		h.send(t, h.request(t, http.MethodPut, "/orders", key(t), "x"))
	}
	h.ran(t, 1)
}

func TestAKeyBelongsToItsScope(t *testing.T) {
	h := open(t, server.Address, func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte(r.Header.Get("X-Account")))
	}, oncedhttp.ScopeHeader("X-Account"))
	for _, account := range []string{"acme", "other", "acme"} {
		if a := h.post(t, key(t), "x", "X-Account", account); a.body != account {
			t.Errorf("%s got the answer of %s", account, a.body)
		}
	}
	refused(t, h.post(t, key(t), "x"), 400, "SCOPE_MISSING")
	refused(t, h.post(t, key(t), "x", "X-Account", "acme", "X-Account", "other"), 400, "SCOPE_MISSING")
	refused(t, h.post(t, key(t), "x", "X-Account", "café"), 400, "SCOPE_MISSING")
	refused(t, h.post(t, key(t), "x", "X-Account", "ac\tme"), 400, "SCOPE_MISSING")
	h.ran(t, 2)
}

func TestAKeyUsedForAnotherRequestIsRefused(t *testing.T) {
	h := open(t, server.Address, func(http.ResponseWriter, *http.Request) {})
	h.post(t, key(t), "one")
	refused(t, h.post(t, key(t), "two"), 422, "FINGERPRINT_MISMATCH")
	refused(t, h.send(t, h.request(t, http.MethodPost, "/orders?", key(t), "one")), 422, "FINGERPRINT_MISMATCH")
	refused(t, h.send(t, h.request(t, http.MethodPatch, "/orders", key(t), "one")), 422, "FINGERPRINT_MISMATCH")
	h.ran(t, 1)
}

func TestARequestThatIsTooLargeIsRefused(t *testing.T) {
	h := open(t, server.Address, func(http.ResponseWriter, *http.Request) {}, oncedhttp.MaxRequestBytes(10))
	refused(t, h.post(t, key(t), "12345678901"), 413, "REQUEST_TOO_LARGE")
	chunked := h.request(t, http.MethodPost, "/orders", key(t), "12345678901")
	chunked.ContentLength, chunked.Body = -1, io.NopCloser(strings.NewReader("12345678901"))
	refused(t, h.send(t, chunked), 413, "REQUEST_TOO_LARGE")
	h.ran(t, 0)
	if a := h.post(t, key(t), "1234567890"); a.StatusCode != 200 {
		t.Errorf("%+v", a)
	}
}

func TestWhatBecomesOfAnAnswerGoesByItsStatusUnlessTheHandlerSaysSo(t *testing.T) {
	inDoubt := oncedhttp.With(onced.OnFailure(onced.InDoubt))
	for name, test := range map[string]struct {
		status  int
		say     func(context.Context)
		options []oncedhttp.Option
		// What a repetition gets: the same again (replayed), the handler once more, or a refusal.
		again string
	}{
		"200":               {200, nil, nil, "replay"},
		"302":               {302, nil, nil, "replay"},
		"404":               {404, nil, nil, "replay"},
		"401":               {401, nil, []oncedhttp.Option{inDoubt}, "run"},
		"408":               {408, nil, []oncedhttp.Option{inDoubt}, "run"},
		"425":               {425, nil, []oncedhttp.Option{inDoubt}, "run"},
		"429":               {429, nil, []oncedhttp.Option{inDoubt}, "run"},
		"500":               {500, nil, nil, "run"},
		"503 by the rule":   {503, nil, []oncedhttp.Option{inDoubt}, "in doubt"},
		"503 to be stored":  {503, oncedhttp.Store, []oncedhttp.Option{inDoubt}, "replay"},
		"429 to be stored":  {429, oncedhttp.Store, nil, "replay"},
		"200 to be retried": {200, func(ctx context.Context) { oncedhttp.Release(ctx, onced.Retry) }, nil, "run"},
		"400 in doubt":      {400, func(ctx context.Context) { oncedhttp.Release(ctx, onced.InDoubt) }, nil, "in doubt"},
		"500 to be retried": {500, func(ctx context.Context) { oncedhttp.Release(ctx, onced.Retry) }, []oncedhttp.Option{inDoubt}, "run"},
	} {
		t.Run(name, func(t *testing.T) {
			h := open(t, server.Address, func(w http.ResponseWriter, r *http.Request) {
				if test.say != nil {
					test.say(r.Context())
				}
				w.WriteHeader(test.status)
				_, _ = w.Write([]byte("answered"))
			}, test.options...)
			if a := h.post(t, key(t), "x"); a.StatusCode != test.status || a.body != "answered" {
				t.Errorf("%d %s", a.StatusCode, a.body)
			}
			a := h.post(t, key(t), "x")
			switch test.again {
			case "in doubt":
				refused(t, a, 409, "IN_DOUBT")
				h.ran(t, 1)
			case "run":
				h.ran(t, 2)
			default:
				h.ran(t, 1)
			}
			if replayed := a.Header.Get("Idempotent-Replayed") == "true"; replayed != (test.again == "replay") {
				t.Errorf("it is a replay: %v", replayed)
			}
		})
	}
}

func TestAnAnswerThatCannotBeStoredIsRefusedAndItsKeyInDoubt(t *testing.T) {
	large := strings.Repeat("x", 70_000)
	for name, handler := range map[string]http.HandlerFunc{
		"too large": func(w http.ResponseWriter, r *http.Request) {
			if _, err := io.WriteString(w, large); err == nil {
				t.Error("it was taken")
			}
			select {
			case <-r.Context().Done(): // It would go on for nothing.
			case <-time.After(hangs):
				t.Error("it was not told")
			}
		},
		"too large, and given up then": func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, large)
			oncedhttp.Release(r.Context(), onced.Retry)
		},
		"too large by its headers": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Link", strings.Repeat("x", 40_000))
			_, _ = io.WriteString(w, strings.Repeat("x", 30_000))
		},
		"events": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			w.(http.Flusher).Flush()
			select {
			case <-r.Context().Done(): // It would go on for ever.
			case <-time.After(hangs):
				t.Error("it was not told")
			}
		},
		"an upgrade": func(w http.ResponseWriter, _ *http.Request) {
			if _, _, err := w.(http.Hijacker).Hijack(); err == nil {
				t.Error("it was upgraded")
			}
		},
		"an upgrade, then a refusal": func(w http.ResponseWriter, _ *http.Request) {
			_, _, _ = w.(http.Hijacker).Hijack()
			http.Error(w, "not upgraded", http.StatusBadRequest)
		},
		"1xx":            func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusEarlyHints) },
		"no UTF-8":       func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Location", "/\xff") },
		"type, no UTF-8": func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Type", "a/\xff") },
	} {
		t.Run(name, func(t *testing.T) {
			h := open(t, server.Address, handler)
			refused(t, h.post(t, key(t), "x"), 500, "RESPONSE_NOT_STORABLE")
			refused(t, h.post(t, key(t), "x"), 409, "IN_DOUBT")
			h.ran(t, 1)
		})
	}
}

func TestAnAnswerThatIsNotToBeStoredPassesHoweverLarge(t *testing.T) {
	large := strings.Repeat("x", 300_000)
	h := open(t, server.Address, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Why", "broken")
		w.WriteHeader(http.StatusBadGateway)
		for part := range 3 {
			if _, err := io.WriteString(w, large[part*100_000:(part+1)*100_000]); err != nil {
				t.Error(err)
			}
		}
	}, oncedhttp.MaxResponseBytes(1000))
	for range 2 {
		if a := h.post(t, key(t), "x"); a.StatusCode != 502 || a.body != large || a.Header.Get("X-Why") != "broken" {
			t.Errorf("%d, %d bytes", a.StatusCode, len(a.body))
		}
	}
	h.ran(t, 2)
}

func TestAnAnswerThatIsNotToBeStoredPassesHoweverItBegan(t *testing.T) {
	for name, test := range map[string]struct {
		handler http.HandlerFunc
		status  int
		body    string
	}{
		"an upgrade": {func(w http.ResponseWriter, _ *http.Request) {
			_, _, err := w.(http.Hijacker).Hijack()
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}, 500, "an answer that streams"},
		"1xx": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusEarlyHints)
			http.Error(w, "broken", http.StatusBadGateway)
		}, 502, "broken"},
		"events": {func(w http.ResponseWriter, r *http.Request) {
			oncedhttp.Release(r.Context(), onced.Retry)
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, "data: 1\n\n")
			w.(http.Flusher).Flush()
			if r.Context().Err() != nil {
				t.Error("it was told to end")
			}
		}, 200, "data: 1"},
	} {
		t.Run(name, func(t *testing.T) {
			h := open(t, server.Address, test.handler)
			for range 2 {
				if a := h.post(t, key(t), "x"); a.StatusCode != test.status || !strings.HasPrefix(a.body, test.body) {
					t.Errorf("%d %s", a.StatusCode, a.body)
				}
			}
			h.ran(t, 2)
		})
	}
}

func TestTheHandlerGoesOnWhenItsCallerHangsUpAndItsAnswerIsStored(t *testing.T) {
	started, left, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	h := open(t, server.Address, func(w http.ResponseWriter, r *http.Request) {
		defer close(ended)
		close(started)
		<-left
		time.Sleep(200 * time.Millisecond) // The server has noticed.
		if err := r.Context().Err(); err != nil {
			t.Errorf("it was told: %v", err)
		}
		if claim := onced.ClaimFrom(r.Context()); claim == nil || claim.WhyLost() != 0 {
			t.Errorf("its claim is %v", claim)
		}
		_, _ = w.Write([]byte("charged"))
	})
	connection, err := net.Dial("tcp", h.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_, err = fmt.Fprintf(connection, "POST /orders HTTP/1.1\r\nHost: h\r\nIdempotency-Key: %s\r\nContent-Length: 1\r\n\r\nx", key(t))
	if err != nil {
		t.Fatal(err)
	}
	<-started
	// Meanwhile a repetition is told so.
	waits := open(t, server.Address, func(http.ResponseWriter, *http.Request) {}, oncedhttp.With(onced.Wait(0)))
	refused(t, waits.post(t, key(t), "x"), 409, "REQUEST_IN_PROGRESS")
	_ = connection.Close()
	close(left)
	<-ended
	a := h.post(t, key(t), "x")
	if a.body != "charged" || a.Header.Get("Idempotent-Replayed") != "true" {
		t.Errorf("%+v", a)
	}
	h.ran(t, 1)
	waits.ran(t, 0)
}

func TestAHandlerThatPanicsGoesByTheRuleAndThePanicGoesOn(t *testing.T) {
	for name, test := range map[string]struct {
		panics any
		say    bool
		again  string
	}{
		"a panic":           {"out of range", false, ""},
		"ErrAbortHandler":   {http.ErrAbortHandler, false, ""},
		"a panic, in doubt": {"out of range", true, "IN_DOUBT"},
	} {
		t.Run(name, func(t *testing.T) {
			calls := 0
			caught := make(chan any, 1)
			h := open(t, server.Address, func(_ http.ResponseWriter, r *http.Request) {
				if calls++; calls > 1 {
					return
				}
				if test.say {
					oncedhttp.Release(r.Context(), onced.InDoubt)
				}
				panic(test.panics)
			})
			inner := h.Config.Handler
			h.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer func() {
					if panicked := recover(); panicked != nil {
						caught <- panicked
						panic(http.ErrAbortHandler)
					}
				}()
				inner.ServeHTTP(w, r)
			})
			transport := &http.Transport{DisableKeepAlives: true}
			if response, err := transport.RoundTrip(h.request(t, http.MethodPost, "/orders", key(t), "x")); err == nil {
				response.Body.Close()
				t.Errorf("it was answered: %v", response)
			}
			if panicked := <-caught; panicked != test.panics {
				t.Errorf("it panicked with %v", panicked)
			}
			a := h.post(t, key(t), "x")
			if test.again != "" {
				refused(t, a, 409, test.again)
			} else if a.StatusCode != 200 {
				t.Errorf("%d %s", a.StatusCode, a.body)
			}
		})
	}
}
