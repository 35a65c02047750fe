"""The client for threads."""

from __future__ import annotations

import functools
import inspect
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from queue import Empty, SimpleQueue
from types import CoroutineType, TracebackType
from typing import Any, Generic, ParamSpec, TypeVar, cast, overload

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
from onced.errors import CallError, ClaimLostError, Failure, FinalError, Lost, WorkFailedError
from onced.options import Options, Plan, Settings, SharedOptions
from onced.process import Home
from onced.sync_io import ThreadIo
from onced.transport import Answer, blocking
from onced.v1 import idempotency_service_pb2 as v1
from onced.v1.record_pb2 import Completed, Outcome

log = logging.getLogger("onced")

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")

Verdicts = SimpleQueue[tuple[Outcome | GiveBack, object]]
"""What becomes of a key, and the value of its outcome."""

_current: ContextVar[Claim] = ContextVar("onced.Claim")


class Claim(BaseClaim):
    """The right to run the work of a key, as the work gets it. Any thread may use it."""

    def __init__(self, request: v1.BeginRequest, held: Held | None, total: float, home: Home) -> None:
        super().__init__(request, held, home)
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
        self._home.check()  # Before anything is locked: what was locked at a fork stays so.
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
            self._home.check()
            blocking(self._held.save(data, self._total))


class Keeper:
    """The thread that renews a claim."""

    def __init__(self, held: Held) -> None:
        self._stopped = threading.Event()
        # It ends with the run, and must not keep a process alive whose work was left to die.
        self._thread = threading.Thread(target=self._keep, args=(held,), name="onced-keeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

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
        self.home = Home()
        self.closing = threading.Event()
        self._changed = threading.Condition()
        self._active = 0
        self._last: Callable[[], None] | None = None

    @contextmanager
    def run(self) -> Iterator[None]:
        """Counts a run. Once the client is closed none begins."""
        self.home.check()
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
        if self.home.is_left:
            return
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
        goes on. If it comes when the work has ended, what that made is stored, or the key is in doubt.
        """
        with self._client._life.run():
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
        claim = Claim(plan.request, held, self._core.timeout, self._client._life.home)
        keeper = Keeper(held)
        verdicts: Verdicts = SimpleQueue()
        try:
            keeper.start()
            # It is there before the work, so that an interrupt after it finds no gap in which nobody settles the key.
            worker = threading.current_thread()
            settling = self._client._start(lambda: self._settle(held, keeper, *_await_verdict(verdicts, worker)))
        except BaseException as error:  # No thread is to be had, or an interrupt; nothing has run.
            keeper.stop()
            verdicts.put((GiveBack("retry", error), None))
            self._client._detach(lambda: self._settle_now(held, keeper, verdicts))
            raise
        try:
            ended = self._work(work, claim)
            verdict = judge(plan, self._codec, held.max_outcome_bytes, ended)
            verdicts.put((verdict, ended.value))
        finally:
            # Of the first alone is heard. If it is this one the work has, or may have, ended, and an interrupt came.
            verdicts.put((GiveBack("in_doubt", Interrupted("interrupted when the work had ended")), None))
        if ended.error is not None and not isinstance(ended.error, Exception):
            raise ended.error
        # A process that the work forked, and that came out of it: the key is for the one that claimed it to settle.
        self._client._life.home.check()
        settled = settling.result()
        if isinstance(settled, Exception):
            raise settled from (verdict.error if isinstance(verdict, GiveBack) else ended.error)
        if isinstance(ended.error, FinalError) and not isinstance(verdict, GiveBack):
            raise final(verdict.error, settled, ran_here=True) from ended.error
        return done(settled, ended.value, ran_here=True)  # type: ignore[arg-type]

    def _settle(
        self, held: Held, keeper: Keeper, verdict: Outcome | GiveBack, value: object
    ) -> Completed | WorkFailedError | ClaimLostError:
        try:
            if isinstance(verdict, GiveBack):
                keeper.stop()
                return blocking(self._core.fail(held, verdict))
            if held.look() == "taken_over":
                return held.lost_error()
            # The lock lives until the Complete is answered, whether or not anybody still waits for that.
            return blocking(self._core.complete(held, verdict, value))
        finally:
            keeper.stop()

    def _settle_now(self, held: Held, keeper: Keeper, verdicts: Verdicts) -> None:
        with suppress(Empty):  # The thread that waits for it is there, and was faster.
            self._settle(held, keeper, *verdicts.get_nowait())

    def _work(self, work: Callable[[Claim], T], claim: Claim) -> Ended[T]:
        token = _current.set(claim)
        try:
            return Ended(value=_carry_out(work, claim))
        except Exception as error:
            return Ended(error=error)
        except BaseException as interrupt:
            if not _in_work(interrupt):
                raise
            return Ended(error=interrupt)
        finally:
            _current.reset(token)

    def _unprotected(self, plan: Plan, work: Callable[[Claim], T]) -> Done[T]:
        self._client._count_unprotected()
        claim = Claim(plan.request, None, 0.0, self._client._life.home)
        token = _current.set(claim)
        try:
            ended: Ended[T] = Ended(value=_carry_out(work, claim))
        except Exception as error:
            ended = Ended(error=error)
        finally:
            _current.reset(token)
        return unprotected(plan, ended)


def _await_verdict(verdicts: Verdicts, worker: threading.Thread) -> tuple[Outcome | GiveBack, object]:
    """Waits for what a worker has to say; not for work that was left to die with its process."""
    while worker.is_alive() and (not worker.daemon or threading.main_thread().is_alive()):
        with suppress(Empty):
            return verdicts.get(timeout=TICK)
    raise _Stopped


class Interrupted(Exception):
    """An interrupt came after the work and before its outcome was on its way."""


def _carry_out(work: Callable[[Claim], T], claim: Claim) -> T:
    value = work(claim)
    # Nothing here may call a function in Python unless it is one: see `_in_work`.
    if isinstance(value, CoroutineType) and inspect.getcoroutinestate(value) == inspect.CORO_CREATED:
        value.close()
        raise Failure("the work is async, and has not run: give it to an AsyncClient", "retry")
    return value


def _in_work(interrupt: BaseException) -> bool:
    """Whether an interrupt came while the work was running, and not right before or after it."""
    trace, depth = interrupt.__traceback__, 0
    while trace is not None:
        trace, depth = trace.tb_next, depth + 1
    return depth > 2  # Those of `_work` and `_carry_out` are ours.


class Client:
    """A client of one or several servers that share a store. Any thread may use it; it connects at first use.

    `servers` is `HOST:PORT`, `http://HOST:PORT` or, by TLS, `https://HOST:PORT`; several with commas between. Without
    any it is `ONCED_SERVER` of the environment, else `127.0.0.1:7411`. For the settings see `Settings`.

    Raises `SetupError` if something of that cannot be used. A client that was used must not be used in a process that
    was forked after that.
    """

    def __init__(self, servers: str | None = None, **settings: Unpack[Settings]) -> None:
        self._life = _Life()
        self._io = ThreadIo(self._life.home, self._life.closing, settings.get("sessions", False))
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
        ended; if not, the connections stay until it has. In a forked process there is nothing to end.
        """
        if self._life.home.is_left:
            return True
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
        try:
            return self._start(job)
        except RuntimeError:  # No thread is to be had.
            future: Future[R] = Future()
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)
            return future

    def _start(self, job: Callable[[], R]) -> Future[R]:
        """The same; raises `RuntimeError` if no thread is to be had."""
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
        except RuntimeError:
            self._life.leave()
            raise
        return future

    def _count_unprotected(self) -> None:
        with self._mutex:
            self._unprotected += 1
