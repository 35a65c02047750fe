"""The Idempotency-Key header for ASGI applications: FastAPI, Starlette, and others."""

from __future__ import annotations

import asyncio
import logging
import urllib.parse
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, NoReturn, cast

from typing_extensions import Unpack

from onced.aio import GRACE, AsyncClaim, AsyncClient, _outlast
from onced.errors import Failure, NotStoredError, OncedError, Rule, SetupError, WorkFailedError
from onced.http import (
    DEFAULT_WAIT,
    MAX_REQUEST_BYTES,
    PRINTABLE,
    STORED_HEADERS,
    Header,
    HttpCodec,
    Problem,
    Response,
    Said,
    fate,
    fingerprint,
    parse_key,
    problem_of,
    scoped_key,
    unstorable,
)
from onced.options import Options, Plan, SharedOptions

log = logging.getLogger("onced")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_current: ContextVar[_Exchange] = ContextVar("onced.asgi")


def decide(said: Said) -> None:
    """Called in a handler: what becomes of its answer, whatever its status. To be said before it answers.

    `"store"`: every duplicate gets it. `"retry"`: the key is free again. `"in_doubt"`: nobody runs the key until an
    operator has resolved it. Does nothing for a request without a key.
    """
    exchange = _current.get(None)
    if exchange:
        exchange.said = said


class OnceMiddleware:
    """Runs each request with an Idempotency-Key once, and gives its answer to every repetition.

    `client` is an `AsyncClient` of the loop that serves. `methods` are those whose requests take a key; if it is
    `required`, those without one are refused. `scope` says whose key it is: a function of the ASGI scope, or the name
    of a header; never `Authorization`, which changes between retries. `stored_headers` are stored besides the usual
    ones. A larger request than `max_request_bytes`, or a larger answer than `max_response_bytes` or than a claim
    allows, is refused. Of the `SharedOptions`, `wait` is 10 s unless told otherwise, and `on_failure` is the rule for
    answers of 5xx and for handlers that raise.

    A handler finds its claim by `AsyncClaim.current()`. It does not stop when its caller hangs up. With
    `cancel_on_lost` it is cancelled when its claim is lost: not for handlers that run in threads, as those of FastAPI
    do that are not async. A thread goes on, and the key would be free meanwhile.
    """

    def __init__(
        self,
        app: App,
        client: AsyncClient,
        *,
        methods: Iterable[str] = ("POST", "PATCH"),
        required: bool = True,
        scope: Callable[[Scope], str | None] | str | None = None,
        stored_headers: Iterable[str] = (),
        max_request_bytes: int = MAX_REQUEST_BYTES,
        max_response_bytes: int | None = None,
        cancel_on_lost: bool = False,
        **options: Unpack[SharedOptions],
    ) -> None:
        self._app = app
        self._client = client
        if isinstance(methods, str):
            raise SetupError(f"methods are several, such as ['POST'], and not {methods!r}")
        self._methods = frozenset(method.upper() for method in methods)
        self._required = required
        self._scope = scope
        self._stored = STORED_HEADERS | {name.lower() for name in stored_headers}
        self._max_request_bytes = max_request_bytes
        self._max_response_bytes = max_response_bytes
        self._cancel_on_lost = cancel_on_lost
        self._options = SharedOptions(**{"wait": DEFAULT_WAIT, **options})
        Plan.of("", "", cast(Options, self._options))  # What is wrong with them is said now.
        # The loop itself keeps no task alive.
        self._running: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or whatever else ASGI has, which passes."""
        if scope["type"] != "http" or scope["method"] not in self._methods:
            await self._app(scope, receive, send)
            return
        try:
            key = self._key(scope)
            if key is None:
                await self._app(scope, receive, send)
                return
            body = await self._body(scope, receive)
        except Problem as problem:
            await _answer(send, problem.status, problem.headers(), problem.body())
            return
        if body is None:
            return  # Its caller is gone, and nothing has run.
        rule = self._options.get("on_failure", "retry")
        exchange = _Exchange(self._app, scope, body, send, rule, self._stored, self._max_response_bytes)
        running = asyncio.ensure_future(self._run(key, exchange))
        self._running.add(running)
        running.add_done_callback(self._ended)
        # A server that cancels this since its caller hung up does not end the handler.
        await asyncio.shield(running)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and task.exception():
            log.debug("a handler failed: %s", task.exception())

    def _key(self, scope: Scope) -> str | None:
        """The key in onced; None if the request has none, and needs none."""
        values = [value for name, value in scope["headers"] if name.lower() == b"idempotency-key"]
        key = parse_key(values, scoped=self._scope is not None)
        if key is None:
            if self._required:
                raise Problem("IDEMPOTENCY_KEY_MISSING", "name the request by a key of its own, such as a UUID")
            return None
        if self._scope is None:
            return key
        if isinstance(self._scope, str):
            told = _headers(scope, self._scope)
            whose = told[0].strip() if len(told) == 1 and PRINTABLE.fullmatch(told[0].strip()) else None
        else:
            whose = self._scope(scope)
        if not whose:
            raise Problem("SCOPE_MISSING", "the request does not say whose key it is, or not in one way")
        return scoped_key(whose, key)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body of a request; None if its caller hangs up before it is there."""
        too_large = Problem("REQUEST_TOO_LARGE", f"a request with a key has {self._max_request_bytes} bytes at most")
        told = "".join(_headers(scope, "content-length")[:1])
        if told.isascii() and told.isdigit() and len(told) < 20 and int(told) > self._max_request_bytes:
            raise too_large
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self._max_request_bytes:
                raise too_large
            if not message.get("more_body", False):
                return bytes(body)

    async def _run(self, key: str, exchange: _Exchange) -> None:
        chosen = cast(Options, {**self._options})
        chosen["fingerprint"] = exchange.fingerprint()
        run = self._client.once(key, codec=HttpCodec(self._stored), cancel_on_lost=self._cancel_on_lost, **chosen)
        try:
            done = await run.run(exchange.work)
        except NotStoredError as error:
            # The work was done, so its answer is handed out all the same.
            log.error("the answer to a request with an idempotency key is not known to be stored: %s", error)
            await exchange.finish(error.value)
        except WorkFailedError as error:
            await exchange.fail(error)
        except OncedError as error:
            await exchange.refuse(error)
        else:
            await (exchange.finish(done.value) if done.ran_here else exchange.replay(done.value))
        await exchange.ended()


class _Refused(OSError):
    """Ends an application that streams what cannot be stored, as a hang-up would."""


class _Exchange:
    """A request with a key, and what its application answers."""

    def __init__(
        self,
        app: App,
        scope: Scope,
        body: bytes,
        send: Send,
        rule: Rule,
        stored: frozenset[str],
        max_response_bytes: int | None,
    ) -> None:
        self.said: Said | None = None
        self._app = app
        # Nothing but plain bodies comes from an application that knows of no extensions.
        self._scope = {**scope, "extensions": {}}
        self._body: bytes | None = body
        self._send = send
        self._rule: Rule = rule
        self._stored = stored
        self._max_bytes = max_response_bytes
        self._task: asyncio.Task[None] | None = None
        self._whole: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._hung_up = asyncio.Event()
        self._protected = True
        self._fate: Said | None = None
        """What becomes of the answer, once it has begun."""
        self._refusal: str | None = None
        self._ended_early = False
        """Whether the application was told to end before its answer was whole."""
        self._status = 0
        self._headers: list[Header] = []
        self._answer = bytearray()
        self._sized = False
        self._held_back: list[Message] = []

    def fingerprint(self) -> bytes:
        target: bytes = self._scope.get("raw_path") or urllib.parse.quote(self._scope["path"]).encode()
        if self._scope.get("query_string"):
            target += b"?" + self._scope["query_string"]
        return fingerprint(self._scope["method"], target, self._body or b"")

    async def work(self, claim: AsyncClaim) -> Response:
        """Runs the application until its answer is whole. What it does after that is its own affair."""
        _current.set(self)
        self._protected = claim.protected
        if self._max_bytes is None or 0 < claim.max_outcome_bytes < self._max_bytes:
            self._max_bytes = claim.max_outcome_bytes
        self._task = asyncio.ensure_future(self._run())
        gave_up: asyncio.CancelledError | None = None
        try:
            either: set[asyncio.Future[None]] = {self._task, self._whole}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError as error:
            gave_up = error
            if not self._whole.done():
                await _outlast(self._task, cancelled=True)
        if self._refusal is not None:
            # The key is in doubt once the application has stopped, and not while it may still be at it.
            await (self._stop() if self._ended_early else _outlast(self._task))
            raise Failure(f"the answer cannot be stored: {self._refusal}", "in_doubt")
        if not self._whole.done():
            if gave_up:
                raise gave_up
            self._task.result()
            raise RuntimeError("the application ended without a whole answer")
        # An answer that is whole counts, even if a cancellation came with it.
        if self._fate in ("retry", "in_doubt"):
            # A key is free, or in doubt, once the application has stopped, and not while it may still be at it.
            await _outlast(self._task, cancelled=gave_up is not None)
            raise Failure(f"the handler answered {self._status}", self._fate)
        return Response(self._status, self._headers, bytes(self._answer))

    async def _stop(self) -> None:
        """Waits until an application has ended that was told of a hang-up; one that does not end is cancelled."""
        assert self._task is not None
        with suppress(asyncio.CancelledError):
            await asyncio.wait({self._task}, timeout=GRACE)
        await _outlast(self._task, cancelled=not self._task.done())

    async def _run(self) -> None:
        await self._app(self._scope, self._receive, self._receive_answer)

    async def _receive(self) -> Message:
        """What the application hears: the body, and of no hang-up before its answer is whole."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._hung_up.wait()
        return {"type": "http.disconnect"}

    async def _receive_answer(self, message: Message) -> None:
        """What the application sends."""
        if message["type"] == "http.response.start":
            await self._begin(message)
        elif message["type"] == "http.response.body":
            await self._go_on(message.get("body", b""), more=message.get("more_body", False))

    @property
    def _passes(self) -> bool:
        """Whether the answer goes to this caller alone, as it comes."""
        return self._fate is not None and (self._fate != "store" or not self._protected)

    async def _begin(self, message: Message) -> None:
        self._status = message["status"]
        self._headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
        self._fate = fate(self._status, self.said, self._rule)
        if self._passes:
            # Whose length is known has heard all once that much is sent, whatever comes after.
            self._sized = any(name.lower() == b"content-length" for name, _ in self._headers)
            await self._pass_on(message)
            return
        refusal = unstorable(self._status, self._headers, self._stored)
        if refusal is not None:
            self._refuse(refusal)

    def _refuse(self, why: str) -> NoReturn:
        """Ends the application, whose answer cannot be stored, and which may never come to an end by itself."""
        self._refusal = why
        self._ended_early = True
        self._hung_up.set()
        if not self._whole.done():
            self._whole.set_result(None)
        raise _Refused(why)

    async def _go_on(self, body: bytes, *, more: bool) -> None:
        if self._passes:
            await self._pass_on({"type": "http.response.body", "body": body, "more_body": True}, last=not more)
        elif self._refusal is not None:
            raise _Refused(self._refusal)
        elif not self._whole.done():
            self._answer += body
            if self._max_bytes and len(self._answer) > self._max_bytes:
                self._answer.clear()
                too_large = f"it has more than {self._max_bytes} bytes"
                if more:
                    self._refuse(too_large)
                self._refusal = too_large
        if not more:
            self._hung_up.set()
            if not self._whole.done():
                self._whole.set_result(None)

    async def _pass_on(self, message: Message, *, last: bool = False) -> None:
        """Sends a part of an answer that is not stored, but for its end.

        That is held back until the key is free: whoever asks again then is not told that it is not.
        """
        if not last:
            await self._forward(*self._held_back)
            self._held_back.clear()
        if self._sized or last:
            self._held_back.append(message)
        else:
            await self._forward(message)

    async def _forward(self, *messages: Message) -> None:
        try:
            for message in messages:
                await self._send(message)
        except OSError as error:
            # The caller hung up, which is no matter of the handler's.
            log.debug("an answer was not heard: %s", error)

    async def finish(self, response: object) -> None:
        """Sends the answer of the application, as it was."""
        if self._passes:
            await self._forward(*self._held_back, {"type": "http.response.body", "body": b"", "more_body": False})
        elif isinstance(response, Response):
            await _answer(self._send, response.status, response.headers, response.body)

    async def fail(self, error: WorkFailedError) -> None:
        """Sends what becomes of an answer that was not stored, or raises what the application raised."""
        if self._passes and self._whole.done():
            await self.finish(None)
        elif self._refusal is not None or (self._whole.done() and error.rule == "in_doubt"):
            log.error("a request with an idempotency key is in doubt: %s", error)
            problem = Problem("RESPONSE_NOT_STORABLE", "what was asked for was done, and its answer is lost")
            await _answer(self._send, problem.status, problem.headers(), problem.body())
        else:
            raise error.__cause__ or error

    async def refuse(self, error: OncedError) -> None:
        """Says that there is no answer; if one has begun already, it ends with that."""
        if self._passes and self._whole.done():
            await self.finish(None)
        elif self._passes:
            raise error
        else:
            problem = problem_of(error)
            await _answer(self._send, problem.status, problem.headers(), problem.body())

    async def replay(self, response: Response) -> None:
        """Sends the answer of another call."""
        headers = [*response.headers, (b"idempotent-replayed", b"true")]
        await _answer(self._send, response.status, headers, response.body)

    async def ended(self) -> None:
        """Waits for what the application does after its answer; raises what that raises."""
        if self._task:
            try:
                await self._task
            except Exception:
                if self._refusal is None:
                    raise
            except asyncio.CancelledError:
                if not self._task.cancelled():
                    raise


async def _answer(send: Send, status: int, headers: Iterable[Header], body: bytes) -> None:
    all_headers = list(headers)
    if status not in (204, 304) and not any(name.lower() == b"content-length" for name, _ in all_headers):
        all_headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": all_headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _headers(scope: Scope, name: str) -> list[str]:
    values: list[bytes] = [value for known, value in scope["headers"] if known.lower() == name.lower().encode()]
    return [value.decode("latin-1").strip() for value in values]
