"""The client for threads."""

from __future__ import annotations

import functools
import inspect
import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Generic, ParamSpec, TypeVar, cast, overload

import grpc
from typing_extensions import Self, Unpack

from onced.claim import TICK, BaseClaim, Held
from onced.clock import Seconds, seconds
from onced.codecs import JSON, Codec
from onced.core import (
    Done,
    Ended,
    GiveBack,
    closed,
    done,
    final,
    judge,
    make_core,
    not_begun,
    replay,
    unprotected,
)
from onced.errors import CallError, ClaimLostError, FinalError, Lost, SetupError, WorkFailedError
from onced.options import Options, Plan, Settings, SharedOptions
from onced.transport import OPTIONS, A, Answer, Lane, Metadata, Method, Q, Server, blocking
from onced.v1 import idempotency_service_pb2 as v1
from onced.v1.idempotency_service_pb2_grpc import IdempotencyServiceStub
from onced.v1.record_pb2 import Completed, Outcome

log = logging.getLogger("onced")

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")

_current: ContextVar[Claim] = ContextVar("onced.Claim")


class Claim(BaseClaim):
    """The right to run the work of a key, as the work gets it. Any thread may use it."""

    def __init__(self, held: Held | None, total: float) -> None:
        super().__init__(held)
        self._total = total
        self._told = threading.Event()
        if held:
            held.tell = self._told.set
            if held.look():
                held.tell()

    @staticmethod
    def current() -> Claim:
        """The claim of the work that this is called in. `LookupError` outside of any."""
        return _current.get()

    def wait_lost(self, timeout: Seconds | None = None) -> Lost | None:
        """Waits until the claim is lost, for `timeout` at most; why, or None if it is not lost."""
        if self._held is None:
            threading.Event().wait(None if timeout is None else seconds(timeout))
            return None
        clock = self._held.transport.clock
        end = None if timeout is None else clock() + seconds(timeout)
        while not self.lost:
            left = TICK if end is None else end - clock()
            if left <= 0:
                break
            self._told.wait(min(left, self.lock_left(), TICK))
        return self.lost

    def save_checkpoint(self, data: bytes) -> None:
        """Saves where the work is, at most 64 KiB, for whoever takes over. Renews the lock as well.

        Raises `ClaimLostError`: stop the work; or `CallError`: it is not saved, and the work may go on.
        """
        if self._held:
            blocking(self._held.save(data, self._total))


class Keeper:
    """The thread that renews a claim."""

    def __init__(self, held: Held) -> None:
        self._stopped = threading.Event()
        # It ends with the run, and must not keep a process alive whose work was left to die.
        threading.Thread(target=self._keep, args=(held,), name="onced-keeper", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def _keep(self, held: Held) -> None:
        with suppress(_Stopped):
            blocking(held.keep(self._rest))

    async def _rest(self, span: float) -> None:
        if self._stopped.wait(span):
            raise _Stopped


class _Stopped(Exception):
    """The run has ended."""


class _Life:
    """What is under way in a client, and whether it is closed."""

    def __init__(self) -> None:
        self.closing = threading.Event()
        self._changed = threading.Condition()
        self._active = 0
        self._last: Callable[[], None] | None = None

    @contextmanager
    def run(self) -> Iterator[None]:
        """Counts a run. Once the client is closed none begins."""
        with self._changed:
            if self.closing.is_set():
                raise closed()
            self._active += 1
        try:
            yield
        finally:
            self.leave()

    def enter(self) -> None:
        """Counts what a run leaves behind."""
        with self._changed:
            self._active += 1

    def leave(self) -> None:
        with self._changed:
            self._active -= 1
            last = self._last if self._active == 0 else None
            self._changed.notify_all()
        if last:
            last()

    def ended(self, patience: float, last: Callable[[], None]) -> bool:
        """Waits until nothing is under way. `last` is called then, or when that comes to be later."""
        with self._changed:
            idle = self._changed.wait_for(lambda: self._active == 0, patience)
            self._last = None if idle else last
        if idle:
            last()
        return idle


class _ThreadIo:
    """Calls that block their thread."""

    def __init__(self, life: _Life) -> None:
        self._life = life
        self._mutex = threading.Lock()
        self._channels: dict[tuple[str, Lane], grpc.Channel] = {}
        self._waiting: set[grpc.Future[Any]] = set()
        self._process: int | None = None

    async def send(self, server: Server, method: Method[Q, A], request: Q, timeout: float, metadata: Metadata) -> A:
        stub = IdempotencyServiceStub(self._channel(server, method.lane))
        call: grpc.Future[A] = getattr(stub, method.name).future(request, timeout=timeout, metadata=metadata)
        try:
            if method.ends_at_close:
                self._waiting.add(call)
                if self._life.closing.is_set():
                    raise closed()
            return call.result()
        except grpc.FutureCancelledError:
            # By `take_back`; or with the connections, whose last calls are renewals that no run needs any more.
            raise (closed() if method.ends_at_close else CallError("this client is closed")) from None
        except BaseException:
            call.cancel()  # An interrupt: the server is to know that nobody waits any more.
            raise
        finally:
            self._waiting.discard(call)

    async def sleep(self, span: float, ends_at_close: bool) -> None:
        if not ends_at_close:
            threading.Event().wait(span)
        elif self._life.closing.wait(span):
            raise closed()

    def take_back(self) -> None:
        """Ends what waits for somebody else's work."""
        for call in list(self._waiting):
            call.cancel()

    def check_process(self) -> None:
        """Connections do not outlive a fork, and neither do the threads that renew."""
        if self._process not in (None, os.getpid()):
            raise SetupError(
                "this client was used before its process was forked: make one in each process, or use it only after"
            )

    def _channel(self, server: Server, lane: Lane) -> grpc.Channel:
        with self._mutex:
            self._process = os.getpid()
            channel = self._channels.get((server.target, lane))
            if channel is None:
                channel = (
                    grpc.insecure_channel(server.target, OPTIONS)
                    if server.credentials is None
                    else grpc.secure_channel(server.target, server.credentials, OPTIONS)
                )
                self._channels[server.target, lane] = channel
            return channel

    def close(self) -> None:
        with self._mutex:
            for channel in self._channels.values():
                channel.close()
            self._channels.clear()


class Once(Generic[T]):
    """A run of some work for a key, to be made with `Client.once`."""

    def __init__(self, client: Client, plan: Plan, codec: Codec[T]) -> None:
        self._client = client
        self._core = client._core
        self._plan = plan
        self._codec = codec

    def run(self, work: Callable[[Claim], T]) -> Done[T]:
        """Runs `work` in this thread if the key is the caller's, and stores what it returns.

        Otherwise returns what is stored. Raises one of the errors of this package, which tells whether the work ran and
        what became of the key. An interrupt (`KeyboardInterrupt`, `SystemExit`) gives the claim back by the rule, and
        goes on.
        """
        with self._client._life.run():
            self._client._io.check_process()
            plan = self._plan.fresh()
            answer = self._begin(plan)
            if answer is None:
                return self._unprotected(plan, work)
            if not answer.message.HasField("claim"):
                return replay(answer.message, self._codec)
            held = Held(self._core.transport, plan.request, answer.message.claim, answer.sent)
            return self._hold(plan, held, work)

    def _begin(self, plan: Plan) -> Answer[v1.BeginResponse] | None:
        try:
            return blocking(self._core.begin(plan))
        except CallError as error:
            if error.unsettled:
                self._abandon(plan)
            raise not_begun(error) from error
        except BaseException:
            self._abandon(plan)
            raise

    def _abandon(self, plan: Plan) -> None:
        """A Begin may have been given a claim that nobody heard of."""
        self._client._detach(lambda: blocking(self._core.give_back(plan.request)))

    def _hold(self, plan: Plan, held: Held, work: Callable[[Claim], T]) -> Done[T]:
        claim = Claim(held, self._core.timeout)
        completing: Future[Completed] | None = None
        try:
            keeper = Keeper(held)
        except BaseException as error:  # No thread is to be had, and nothing has run.
            self._give_back(held, GiveBack("retry", error))
            raise
        try:
            ended = self._work(plan, held, work, claim)
            verdict = judge(plan, self._codec, held.max_outcome_bytes, ended)
            if isinstance(verdict, GiveBack):
                keeper.stop()
                raise self._give_back(held, verdict).result() from verdict.error
            if held.look() == "taken_over":
                raise held.lost_error() from ended.error
            completing = self._complete(held, verdict, ended)
            # The lock lives until the Complete is answered, whether or not this thread still waits for that.
            completing.add_done_callback(lambda _: keeper.stop())
            completed = completing.result()
        finally:
            if completing is None:
                keeper.stop()
        if isinstance(ended.error, FinalError):
            raise final(verdict.error, completed, ran_here=True) from ended.error
        return done(completed, ended.value, ran_here=True)  # type: ignore[arg-type]

    def _work(self, plan: Plan, held: Held, work: Callable[[Claim], T], claim: Claim) -> Ended[T]:
        token = _current.set(claim)
        try:
            return Ended(value=work(claim))
        except Exception as error:
            return Ended(error=error)
        except BaseException as interrupt:
            self._give_back(held, GiveBack(plan.on_failure, interrupt))
            raise
        finally:
            _current.reset(token)

    def _give_back(self, held: Held, given: GiveBack) -> Future[WorkFailedError | ClaimLostError]:
        return self._client._detach(lambda: blocking(self._core.fail(held, given)))

    def _complete(self, held: Held, outcome: Outcome, ended: Ended[T]) -> Future[Completed]:
        return self._client._detach(lambda: blocking(self._core.complete(held, outcome, ended.value)))

    def _unprotected(self, plan: Plan, work: Callable[[Claim], T]) -> Done[T]:
        self._client._count_unprotected()
        claim = Claim(None, 0.0)
        token = _current.set(claim)
        try:
            ended: Ended[T] = Ended(value=work(claim))
        except Exception as error:
            ended = Ended(error=error)
        finally:
            _current.reset(token)
        return unprotected(plan, ended)


class Client:
    """A client of one or several servers that share a store. Any thread may use it; it connects at first use.

    `servers` is `HOST:PORT`, `http://HOST:PORT` or, by TLS, `https://HOST:PORT`; several with commas between. Without
    any it is `ONCED_SERVER` of the environment, else `127.0.0.1:7411`. For the settings see `Settings`.

    Raises `SetupError` if something of that cannot be used. A client that was used must not be used in a process that
    was forked after that.
    """

    def __init__(self, servers: str | None = None, **settings: Unpack[Settings]) -> None:
        self._life = _Life()
        self._io = _ThreadIo(self._life)
        self._core = make_core(servers, settings, self._io)
        self._unprotected = 0
        self._mutex = threading.Lock()

    @overload
    def once(self, key: str, **options: Unpack[Options]) -> Once[Any]: ...
    @overload
    def once(self, key: str, *, codec: Codec[T], **options: Unpack[Options]) -> Once[T]: ...
    def once(self, key: str, *, codec: Codec[Any] = JSON, **options: Unpack[Options]) -> Once[Any]:
        """Work that is to run once for `key`. For the options see `Options`; `codec` is how its value is stored."""
        return Once(self, Plan.of(key, self._core.owner, options), codec)

    def idempotent(
        self,
        *,
        key: Callable[..., str],
        fingerprint: Callable[..., bytes] | None = None,
        codec: Codec[Any] = JSON,
        **options: Unpack[SharedOptions],
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Makes each call of a function run once for the key that `key` makes of its arguments.

        `fingerprint` makes a digest of them. What is returned goes through the codec in duplicates alone, so that JSON
        gives them a list for a tuple, say. The function finds its claim by `Claim.current()`.
        """

        def decorate(function: Callable[P, R]) -> Callable[P, R]:
            if inspect.iscoroutinefunction(function):
                raise TypeError(f"{function.__name__} is async: decorate it with an AsyncClient")

            @functools.wraps(function)
            def once(*args: P.args, **kwargs: P.kwargs) -> R:
                chosen = cast(Options, {**options})
                if fingerprint:
                    chosen["fingerprint"] = fingerprint(*args, **kwargs)
                run = self.once(key(*args, **kwargs), codec=codec, **chosen)
                value: R = run.run(lambda _: function(*args, **kwargs)).value
                return value

            return once

        return decorate

    @property
    def unprotected_runs(self) -> int:
        """How many runs failed open."""
        return self._unprotected

    def close(self, patience: Seconds | None = None) -> bool:
        """Ends no work and drops no outcome: waits for both, up to `patience` (the client's timeout, unless told).

        No run begins any more, and those that wait for somebody else's work end with `NotBegunError`. True if all has
        ended; if not, the connections stay until it has.
        """
        self._life.closing.set()
        self._io.take_back()
        all_ended = self._life.ended(self._core.timeout if patience is None else seconds(patience), self._io.close)
        if not all_ended:
            log.warning("the client is closed, and work goes on: its connections stay until that has ended")
        return all_ended

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _detach(self, job: Callable[[], R]) -> Future[R]:
        """Runs a job to its end, whatever interrupts the caller. A process does not end before it."""
        future: Future[R] = Future()

        def run() -> None:
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)
            finally:
                self._life.leave()

        self._life.enter()
        try:
            threading.Thread(target=run, name="onced-call").start()
        except RuntimeError:  # No thread is to be had.
            run()
        return future

    def _count_unprotected(self) -> None:
        with self._mutex:
            self._unprotected += 1
