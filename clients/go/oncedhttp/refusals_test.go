package oncedhttp_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"onced.dev/go/onced"
	"onced.dev/go/onced/internal/testserver"
	"onced.dev/go/onced/oncedhttp"
)

func TestWithoutOncedNothingRunsUnlessThatWasSaid(t *testing.T) {
	gone := testserver.Start(t)
	gone.Kill()
	h := open(t, gone.Address, func(http.ResponseWriter, *http.Request) {})
	refused(t, h.post(t, key(t), "x"), 503, "UNAVAILABLE")
	h.ran(t, 0)
	h = open(t, gone.Address, func(w http.ResponseWriter, r *http.Request) {
		if onced.ClaimFrom(r.Context()).Protected() {
			t.Error("it is protected")
		}
		_, _ = w.Write([]byte("done"))
	}, oncedhttp.With(onced.FailOpen(50*time.Millisecond)))
	if a := h.post(t, key(t), "x"); a.StatusCode != 200 || a.body != "done" {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
}

func TestTheClaimOfAHandlerNamesItsKeyAsOncedHasIt(t *testing.T) {
	for name, options := range map[string][]oncedhttp.Option{
		key(t): nil,
		"822b33ad87c148a0a20a5ba7cd5ebcaa:" + key(t): {oncedhttp.ScopeHeader("X-Account")},
	} {
		h := open(t, server.Address, func(w http.ResponseWriter, r *http.Request) {
			claim := onced.ClaimFrom(r.Context())
			_, _ = io.WriteString(w, claim.Namespace()+" "+claim.Key())
		}, append(options, oncedhttp.With(onced.Namespace("shop")))...)
		if a := h.post(t, key(t), "x", "X-Account", "acme"); a.body != "shop "+name {
			t.Error(a.body)
		}
	}
}

func TestWhatOncedRefusesIsNotTheCallersToKnow(t *testing.T) {
	h := open(t, server.Address, func(http.ResponseWriter, *http.Request) {}, oncedhttp.With(onced.Namespace("Not A Namespace")))
	a := h.post(t, key(t), "x")
	refused(t, a, 500, "REFUSED")
	if strings.Contains(a.body, "Not A Namespace") {
		t.Error(a.body)
	}
	h.ran(t, 0)
}

func TestAnOutcomeThatIsNoAnswerIsRefused(t *testing.T) {
	client := onced.MustNew(server.Address)
	if _, err := onced.Run(t.Context(), client, key(t), func(context.Context, *onced.Claim) (int, error) { return 1, nil }); err != nil {
		t.Fatal(err)
	}
	h := open(t, server.Address, func(http.ResponseWriter, *http.Request) {})
	refused(t, h.post(t, key(t), "x"), 500, "REFUSED")
	h.ran(t, 0)
	if err := client.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestARequestThatDoesNotArriveWholeDoesNotRun(t *testing.T) {
	h := open(t, server.Address, func(http.ResponseWriter, *http.Request) {})
	connection, err := net.Dial("tcp", h.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	if _, err := fmt.Fprintf(connection, "POST /orders HTTP/1.1\r\nHost: h\r\nIdempotency-Key: %s\r\nContent-Length: 9\r\n\r\nx", key(t)); err != nil {
		t.Fatal(err)
	}
	if err := connection.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	response, err := http.ReadResponse(bufio.NewReader(connection), nil)
	if err == nil {
		response.Body.Close()
		if response.StatusCode != http.StatusBadRequest {
			t.Errorf("it is answered by %d", response.StatusCode)
		}
	} else if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
	h.ran(t, 0)
}
