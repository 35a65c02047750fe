"""The Idempotency-Key header, with Starlette and FastAPI under uvicorn, over real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import grpc
import httpx
import pytest
import uvicorn
from conftest import HANGS, Direct, Faults, Server, lose, refuse
from fastapi import FastAPI
from fastapi import Response as FastResponse
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

import onced
from onced import asgi, http


class Shop:
    """An application, and what it saw and did."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.go = threading.Event()
        self.finished: list[str] = []
        self.background: list[str] = []
        self.streamed: list[str] = []

    async def handle(self, request: Request) -> Response:
        """Answers as its path says."""
        do = request.path_params["do"]
        self.calls.append(do)
        count = self.calls.count(do)
        body = await request.body()
        handlers: dict[str, Callable[[], Any]] = {
            "echo": lambda: JSONResponse({"count": count, "body": body.decode()}, 201, {"Location": "/orders/7"}),
            "raise": self.fail,
            "large": lambda: PlainTextResponse("x" * (2 << 20)),
            "events": lambda: StreamingResponse(self.forever(), media_type="text/event-stream"),
            "endless": self.endless,
            "background": lambda: PlainTextResponse("soon", background=BackgroundTask(self.later)),
            "many": self.many,
            "not-text": lambda: Response(headers={"location": "/é"}),
            "empty": lambda: Response(status_code=204),
            "claim": lambda: JSONResponse(claim_told()),
        }
        if do == "slow":
            await asyncio.to_thread(self.go.wait, HANGS)
            self.finished.append(do)
            return JSONResponse({"count": count})
        if do.startswith("say-"):
            _, said, status = do.split("-")
            asgi.decide(said.replace("doubt", "in_doubt"))
            return PlainTextResponse(f"{said} {count}", int(status))
        if do.isdigit():
            return PlainTextResponse(f"{do} {count}", int(do))
        answer: Response = handlers[do]()
        return answer

    def fail(self) -> Response:
        raise RuntimeError("the card reader is away")

    def many(self) -> Response:
        response = StreamingResponse(iter([b"a", b"b", b"\x00\xff"]), media_type="application/x-parts")
        for link in ("</a>; rel=next", "</b>; rel=prev"):
            response.headers.append("Link", link)
        response.headers["ETag"] = '"7"'
        response.headers["X-Custom"] = "kept"
        response.headers["X-Other"] = "not kept"
        return response

    async def later(self) -> None:
        await asyncio.sleep(0.05)
        self.background.append("done")

    def endless(self) -> Response:
        return StreamingResponse(self.forever(b"x" * 65536), media_type="text/plain")

    async def forever(self, part: bytes = b"data: x\n\n") -> AsyncIterator[bytes]:
        while True:
            self.streamed.append("x")
            yield part
            await asyncio.sleep(0.01)


def claim_told() -> dict[str, Any]:
    claim = onced.AsyncClaim.current()
    return {"token": claim.token, "namespace": claim.namespace, "key": claim.key}


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serves an application; its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="critical", lifespan="on", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    end = time.monotonic() + HANGS
    while not server.started:
        assert time.monotonic() < end
        time.sleep(0.01)
    host, port = listener.getsockname()
    yield f"http://{host}:{port}"
    server.should_exit = True
    thread.join(HANGS)
    assert not thread.is_alive()
    listener.close()


@contextmanager
def shop_of(onced_address: str, shop: Shop, **options: Any) -> Iterator[httpx.Client]:
    client = onced.AsyncClient(onced_address, **options.pop("settings", {}))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        assert await client.close(HANGS)

    app = Starlette(
        routes=[Route("/{do}", shop.handle, methods=["POST", "GET", "PATCH"])],
        middleware=[Middleware(asgi.OnceMiddleware, client=client, **options)],
        lifespan=lifespan,
    )
    with serving(app) as url, httpx.Client(base_url=url, timeout=HANGS) as browser:
        yield browser


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
def browser(server: str, shop: Shop) -> Iterator[httpx.Client]:
    with shop_of(server, shop, wait=0, stored_headers=["X-Custom"]) as browser:
        yield browser


def post(
    browser: httpx.Client, path: str, key: str | None, content: bytes = b"", account: str | None = None
) -> httpx.Response:
    headers = {"Idempotency-Key": key, "X-Account": account}
    present = {name: value for name, value in headers.items() if value is not None}
    return browser.post(path, content=content, headers=present)


def is_problem(answer: httpx.Response, code: str, status: int) -> None:
    assert answer.headers["content-type"] == "application/problem+json"
    told = answer.json()
    assert (told["code"], told["status"], answer.status_code) == (code, status, status)
    assert told["title"]
    assert told["detail"]
    assert answer.headers.get("retry-after") == ("1" if http.PROBLEMS[code][2] else None)


def test_a_repetition_gets_the_same_answer(browser: httpx.Client, shop: Shop, key: str) -> None:
    first = post(browser, "/echo?a=1", key, b'{"n":1}')
    again = post(browser, "/echo?a=1", f'"{key}"', b'{"n":1}')
    assert (first.status_code, first.json()) == (201, {"count": 1, "body": '{"n":1}'})
    assert (again.status_code, again.content) == (201, first.content)
    assert again.headers["location"] == first.headers["location"] == "/orders/7"
    assert again.headers["content-type"] == first.headers["content-type"]
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    assert shop.calls == ["echo"]


def test_what_is_stored(browser: httpx.Client, direct: Direct, key: str) -> None:
    first, again = post(browser, "/many", key), post(browser, "/many", key)
    assert first.content == again.content == b"ab\x00\xff"
    assert again.headers.get_list("link") == ["</a>; rel=next", "</b>; rel=prev"]
    assert (again.headers["etag"], again.headers["x-custom"]) == ('"7"', "kept")
    assert "x-other" in first.headers
    assert "x-other" not in again.headers
    outcome = direct.lookup(key).completed.outcome
    assert (outcome.response, outcome.content_type) == (b"ab\x00\xff", "application/x-parts")
    assert dict(outcome.metadata) == {
        "http.status": "200",
        "http.header.etag": '"7"',
        "http.header.link": "</a>; rel=next\n</b>; rel=prev",
        "http.header.x-custom": "kept",
    }
    empty = [post(browser, "/empty", f"{key}-empty") for _ in range(2)]
    assert [(answer.status_code, answer.content) for answer in empty] == [(204, b"")] * 2
    assert "content-length" not in empty[1].headers


def test_requests_without_a_good_key_are_refused(browser: httpx.Client, shop: Shop, key: str) -> None:
    is_problem(post(browser, "/echo", None), "IDEMPOTENCY_KEY_MISSING", 400)
    for bad in ('"open', "x" * 513, "\x7f"):
        is_problem(post(browser, "/echo", bad), "IDEMPOTENCY_KEY_INVALID", 400)
    twice = [("Idempotency-Key", key), ("Idempotency-Key", key)]
    is_problem(browser.post("/echo", headers=twice), "IDEMPOTENCY_KEY_INVALID", 400)
    assert shop.calls == []
    assert browser.get("/echo").status_code == 201


def test_a_request_that_is_too_large_is_refused(browser: httpx.Client, shop: Shop, key: str) -> None:
    is_problem(post(browser, "/echo", key, b"x" * ((1 << 20) + 1)), "REQUEST_TOO_LARGE", 413)
    parts = (b"x" * 65536 for _ in range(17))
    chunked = browser.post("/echo", content=parts, headers={"Idempotency-Key": key})
    is_problem(chunked, "REQUEST_TOO_LARGE", 413)
    assert shop.calls == []


def test_a_key_that_was_used_for_another_request_is_refused(browser: httpx.Client, key: str) -> None:
    post(browser, "/echo", key, b"1")
    is_problem(post(browser, "/echo", key, b"2"), "FINGERPRINT_MISMATCH", 422)
    is_problem(post(browser, "/echo?x", key, b"1"), "FINGERPRINT_MISMATCH", 422)
    is_problem(post(browser, "/claim", key, b"1"), "FINGERPRINT_MISMATCH", 422)


def test_what_becomes_of_a_key_by_status(browser: httpx.Client, direct: Direct, key: str) -> None:
    for status in (200, 303, 400, 404, 422):
        answers = [post(browser, f"/{status}", f"{key}-{status}").text for _ in range(2)]
        assert answers == [f"{status} 1"] * 2
    for status in (401, 408, 425, 429, 500, 503):
        answers = [post(browser, f"/{status}", f"{key}-{status}").text for _ in range(2)]
        assert answers == [f"{status} 1", f"{status} 2"]
        assert direct.state(f"{key}-{status}") == "available"


def test_what_a_handler_says_outranks_its_status(browser: httpx.Client, direct: Direct, key: str) -> None:
    for said, state in {"store-500": "completed", "retry-200": "available", "doubt-200": "in_doubt"}.items():
        answer = post(browser, f"/say-{said}", f"{key}-{said}")
        assert answer.text == f"{said.split('-')[0]} 1"
        assert direct.state(f"{key}-{said}") == state
    is_problem(post(browser, "/say-doubt-200", f"{key}-doubt-200"), "IN_DOUBT", 409)
    assert post(browser, "/say-store-500", f"{key}-store-500").headers["idempotent-replayed"] == "true"


def test_a_handler_that_raises_goes_by_the_rule(server: str, shop: Shop, direct: Direct, key: str) -> None:
    for rule, state in {"retry": "available", "in_doubt": "in_doubt"}.items():
        with shop_of(server, shop, on_failure=rule) as browser:
            for path in ("raise", "503"):
                assert post(browser, f"/{path}", f"{key}-{rule}-{path}").status_code >= 500
                assert direct.state(f"{key}-{rule}-{path}") == state
            assert post(browser, "/429", f"{key}-{rule}-429").status_code == 429
            assert direct.state(f"{key}-{rule}-429") == "available"


def test_an_answer_that_cannot_be_stored_is_refused_and_the_key_is_in_doubt(
    browser: httpx.Client, shop: Shop, direct: Direct, key: str
) -> None:
    for path in ("large", "endless", "events", "not-text"):
        is_problem(post(browser, f"/{path}", f"{key}-{path}"), "RESPONSE_NOT_STORABLE", 500)
        assert direct.state(f"{key}-{path}") == "in_doubt"
        assert not shop.streamed or path == "endless"
        shop.streamed.clear()


def test_a_duplicate_is_told_that_the_first_is_at_it(browser: httpx.Client, shop: Shop, key: str) -> None:
    first = threading.Thread(target=lambda: post(browser, "/slow", key))
    first.start()
    while not shop.calls:
        time.sleep(0.01)
    is_problem(post(browser, "/slow", key), "REQUEST_IN_PROGRESS", 409)
    shop.go.set()
    first.join(HANGS)
    assert post(browser, "/slow", key).headers["idempotent-replayed"] == "true"


def test_a_duplicate_waits(server: str, shop: Shop, key: str) -> None:
    answers: list[httpx.Response] = []
    with shop_of(server, shop) as browser:
        threads = [threading.Thread(target=lambda: answers.append(post(browser, "/slow", key))) for _ in range(3)]
        for thread in threads:
            thread.start()
        while not shop.calls:
            time.sleep(0.01)
        shop.go.set()
        for thread in threads:
            thread.join(HANGS)
    assert [answer.json() for answer in answers] == [{"count": 1}] * 3
    assert sorted(answer.headers.get("idempotent-replayed", "") for answer in answers) == ["", "true", "true"]


def test_a_handler_does_not_stop_when_its_caller_hangs_up(
    browser: httpx.Client, shop: Shop, direct: Direct, key: str
) -> None:
    host, port = browser.base_url.host, browser.base_url.port
    assert port is not None
    with socket.create_connection((host, port)) as caller:
        head = f"POST /slow HTTP/1.1\r\nHost: {host}\r\nIdempotency-Key: {key}\r\nContent-Length: 0\r\n\r\n"
        caller.sendall(head.encode())
        while not shop.calls:
            time.sleep(0.01)
    time.sleep(0.2)
    assert direct.state(key) == "in_progress"
    is_problem(post(browser, "/slow", key), "REQUEST_IN_PROGRESS", 409)
    shop.go.set()
    while not shop.finished:
        time.sleep(0.01)
    assert direct.lookup(key, wait=HANGS).HasField("completed")
    assert post(browser, "/slow", key).json() == {"count": 1}


async def test_a_server_that_cancels_the_request_does_not_stop_the_handler(
    server: str, direct: Direct, key: str
) -> None:
    """As some servers, and middleware around this one, do when a caller hangs up."""
    go, ended = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        hang_up = asyncio.ensure_future(receive())
        await go.wait()
        assert not hang_up.done()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"whole"})
        assert (await hang_up)["type"] == "http.disconnect"
        ended.set()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(_: Any) -> None:
        raise OSError("the caller hung up")

    async with onced.AsyncClient(server) as client:
        middleware = asgi.OnceMiddleware(app, client)
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/",
            "query_string": b"",
            "headers": [(b"idempotency-key", key.encode())],
        }
        request = asyncio.ensure_future(middleware(scope, receive, send))
        while await asyncio.to_thread(direct.state, key) != "in_progress":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert await asyncio.to_thread(direct.state, key) == "in_progress"
        go.set()
        await asyncio.wait_for(ended.wait(), HANGS)
        found = await asyncio.to_thread(direct.lookup, key, HANGS)
        assert found.completed.outcome.response == b"whole"


START = {"type": "http.response.start", "status": 200, "headers": []}
WHOLE = {"type": "http.response.body", "body": b"whole"}


async def ask(middleware: asgi.OnceMiddleware, key: str) -> list[Any]:
    """Makes a request without a server; what was sent."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"idempotency-key", key.encode())]
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": headers}
    await middleware(scope, receive, send)
    return sent


async def test_a_whole_answer_is_stored_even_if_a_cancellation_comes_with_it(
    server: str, direct: Direct, key: str
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(WHOLE)
        for task in middleware._running:
            task.cancel()

    async with onced.AsyncClient(server) as client:
        middleware = asgi.OnceMiddleware(app, client)
        with pytest.raises(asyncio.CancelledError):
            await ask(middleware, key)
    assert direct.state(key) == "completed"


async def test_a_key_is_freed_once_its_handler_has_stopped(server: str, direct: Direct, key: str) -> None:
    go = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({**START, "status": 503})
        await send(WHOLE)
        await go.wait()

    async with onced.AsyncClient(server) as client:
        request = asyncio.ensure_future(ask(asgi.OnceMiddleware(app, client), key))
        while await asyncio.to_thread(direct.state, key) != "in_progress":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        assert await asyncio.to_thread(direct.state, key) == "in_progress"
        go.set()
        assert (await request)[0]["status"] == 503
    assert direct.state(key) == "available"


async def test_an_answer_without_an_end_is_ended(server: str, direct: Direct, key: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        while True:
            with suppress(OSError):  # It does not even stop when its caller hangs up.
                await send({**WHOLE, "more_body": True})
            await asyncio.sleep(0.01)

    async with onced.AsyncClient(server) as client:
        sent = await asyncio.wait_for(ask(asgi.OnceMiddleware(app, client, max_response_bytes=100), key), HANGS)
    assert sent[0]["status"] == 500
    assert direct.state(key) == "in_doubt"


def test_a_handler_goes_on_when_its_lock_has_ended(faults: Faults, shop: Shop, direct: Direct, key: str) -> None:
    """It may have given its work to a thread, which nobody can stop."""
    faults.plan("Renew", refuse(grpc.StatusCode.UNAVAILABLE), times=1000)
    answers: list[httpx.Response] = []
    with shop_of(faults.address, shop, lock_ttl=2) as browser:
        request = threading.Thread(target=lambda: answers.append(post(browser, "/slow", key)))
        request.start()
        time.sleep(3.0)
        assert "Release" not in faults.seen
        shop.go.set()
        request.join(HANGS)
    assert answers[0].json() == {"count": 1}
    assert direct.state(key) == "completed"


def test_settings_are_checked_when_it_is_made() -> None:
    client = onced.AsyncClient("127.0.0.1:1")
    wrong: list[dict[str, Any]] = [{"methods": "POST"}, {"on_failure": "shrug"}, {"wait": -1}, {"lockttl": 1}]
    for options in wrong:
        with pytest.raises((onced.SetupError, TypeError)):
            asgi.OnceMiddleware(None, client, **options)  # type: ignore[arg-type]


def test_background_tasks_come_after_the_answer(browser: httpx.Client, shop: Shop, key: str) -> None:
    assert post(browser, "/background", key).text == "soon"
    assert post(browser, "/background", key).text == "soon"
    while not shop.background:
        time.sleep(0.01)
    assert shop.background == ["done"]


def test_an_answer_that_is_not_known_to_be_stored_is_handed_out(faults: Faults, shop: Shop, key: str) -> None:
    faults.plan("Complete", lose(), times=1000)
    with shop_of(faults.address, shop, lock_ttl=2, settings={"timeout": 0.5}) as browser:
        assert post(browser, "/echo", key, b"x").json() == {"count": 1, "body": "x"}


def test_scopes_tell_tenants_apart(server: str, shop: Shop, direct: Direct, key: str) -> None:
    with shop_of(server, shop, scope="X-Account") as browser:
        is_problem(post(browser, "/echo", key), "SCOPE_MISSING", 400)
        is_problem(post(browser, "/echo", "x" * 480, account="acme"), "IDEMPOTENCY_KEY_INVALID", 400)
        is_problem(post(browser, "/echo", key, account="\x7f"), "SCOPE_MISSING", 400)
        twice = [("Idempotency-Key", key), ("X-Account", "a"), ("X-Account", "b")]
        is_problem(browser.post("/echo", headers=twice), "SCOPE_MISSING", 400)
        answers = [post(browser, "/echo", key, account=account).json()["count"] for account in ("a", "b", "a")]
        assert answers == [1, 2, 1]
        scoped = http.scoped_key("a", key)
        assert direct.state(scoped) == "completed"
        assert post(browser, "/claim", f"{key}-2", account="a").json()["key"] == http.scoped_key("a", f"{key}-2")
    with shop_of(server, shop, scope=lambda scope: scope["query_string"].decode()) as browser:
        is_problem(post(browser, "/echo", key), "SCOPE_MISSING", 400)
        assert post(browser, "/echo?tenant", key).json()["count"] == 3


def test_the_key_may_be_optional_and_other_methods_taken(server: str, shop: Shop, key: str) -> None:
    with shop_of(server, shop, required=False, methods=["get"]) as browser:
        assert [browser.get("/echo").json()["count"] for _ in range(2)] == [1, 2]
        assert [browser.get("/echo", headers={"Idempotency-Key": key}).json()["count"] for _ in range(2)] == [3, 3]
        assert [post(browser, "/echo", key).json()["count"] for _ in range(2)] == [4, 5]


def test_without_onced_nothing_runs_unless_that_is_allowed(own_server: Server, shop: Shop, key: str) -> None:
    own_server.kill()
    with shop_of(own_server.address, shop, wait=0, settings={"timeout": 0.5}) as browser:
        is_problem(post(browser, "/echo", key), "UNAVAILABLE", 503)
        assert shop.calls == []
    with shop_of(own_server.address, shop, fail_open=0.3) as browser:
        assert [post(browser, "/echo", key).json()["count"] for _ in range(2)] == [1, 2]
        assert post(browser, "/large", key).status_code == 200
        assert post(browser, "/503", key).status_code == 503


def test_what_onced_refuses_is_in_the_log(server: str, shop: Shop, key: str, caplog: pytest.LogCaptureFixture) -> None:
    with shop_of(server, shop, namespace="NOT VALID") as browser:
        is_problem(post(browser, "/echo", key), "REFUSED", 500)
    assert "NAMESPACE_INVALID" in caplog.text


def test_an_outcome_that_is_no_answer_of_http(server: str, browser: httpx.Client, key: str) -> None:
    body = b"{}"
    with onced.Client(server) as client:
        client.once(key, fingerprint=http.fingerprint("POST", b"/echo", body)).run(lambda _: 1)
    is_problem(post(browser, "/echo", key, body), "REFUSED", 500)


def test_fastapi(server: str, key: str) -> None:
    client = onced.AsyncClient(server)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await client.close()

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(asgi.OnceMiddleware, client=client)
    calls: list[int] = []

    @app.post("/orders")
    def order(amount: int, response: FastResponse) -> dict[str, int]:
        """Runs in a thread, as FastAPI has it for functions that are not async."""
        calls.append(amount)
        response.headers["ETag"] = f'"{onced.AsyncClaim.current().token}"'
        return {"charged": amount}

    with serving(app) as url, httpx.Client(base_url=url, timeout=HANGS) as browser:
        first, again = (post(browser, "/orders?amount=7", key) for _ in range(2))
        assert first.json() == again.json() == {"charged": 7}
        assert first.headers["etag"] == again.headers["etag"]
        assert again.headers["idempotent-replayed"] == "true"
        assert post(browser, "/orders?amount=x", f"{key}-bad").status_code == 422
        assert json.loads(post(browser, "/orders?amount=x", f"{key}-bad").content)["detail"]
    assert calls == [7]
