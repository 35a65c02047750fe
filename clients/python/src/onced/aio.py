"""The client for asyncio."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Generic, ParamSpec, TypeVar, cast, overload

from typing_extensions import Self, Unpack

from onced.aio_io import LoopIo, lasting
from onced.claim import BaseClaim, Held
from onced.clock import Seconds, seconds
from onced.codecs import JSON, Codec
from onced.core import Done, Ended, GiveBack, closed, done, final, judge, make_core, not_begun, replay, unprotected
from onced.errors import CallError, FinalError, Lost, SetupError
from onced.options import Options, Plan, Settings, SharedOptions
from onced.process import Home
from onced.transport import Answer
from onced.v1 import idempotency_service_pb2 as v1

log = logging.getLogger("onced")

GRACE = 2.0
"""How long a cancelled run still waits for its Complete or its Release, in seconds. Both go on after that."""

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")

_current: ContextVar[AsyncClaim] = ContextVar("onced.AsyncClaim")


class AsyncClaim(BaseClaim):
    """The right to run the work of a key, as the work gets it."""

    def __init__(
        self,
        request: v1.BeginRequest,
        held: Held | None,
        total: float,
        home: Home,
        on_lost: Callable[[], object] = lambda: None,
    ) -> None:
        super().__init__(request, held, home)
        self._total = total
        self._told = asyncio.Event()
        self._on_lost = on_lost
        if held:
            # Whichever thread looks at the clock first.
            loop = asyncio.get_running_loop()
            held.tell = lambda: loop.call_soon_threadsafe(self._tell)
            if held.look():
                held.tell()

    def _tell(self) -> None:
        self._told.set()
        self._on_lost()

    @staticmethod
    def current() -> AsyncClaim:
        """The claim of the work that this is called in. `LookupError` outside of any."""
        return _current.get()

    async def wait_lost(self) -> Lost | None:
        """Waits until the claim is lost, and says why. A run that failed open has none to lose, and waits for ever."""
        if self._held:
            self._home.check()  # Nobody there is told.
        await self._told.wait()
        return self.lost

    async def save_checkpoint(self, data: bytes) -> None:
        """Saves where the work is, at most 64 KiB, for whoever takes over. Renews the lock as well.

        Raises `ClaimLostError`: stop the work; or `CallError`: it is not saved, and the work may go on.
        """
        if self._held:
            self._home.check()  # Before anything is locked: what was locked at a fork stays so.
            await self._held.save(data, self._total)


class _Keeper:
    """The tasks that renew a claim, and that watch its lock."""

    def __init__(self, held: Held) -> None:
        self._tasks = [lasting(held.keep(asyncio.sleep)), lasting(held.guard(asyncio.sleep))]

    def stop(self) -> None:
        for task in self._tasks:
            task.stop()


class _Life:
    """What is under way in a client, and whether it is closed."""

    def __init__(self) -> None:
        self.home = Home()
        self.active = 0
        self.is_closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: asyncio.Future[None] | None = None
        self._idle: asyncio.Event | None = None

    def closing(self) -> asyncio.Future[None]:
        """Is done once the client is closed."""
        assert self._closing is not None
        return self._closing

    @contextmanager
    def run(self) -> Iterator[None]:
        """Counts a run. Once the client is closed none begins."""
        self.home.check()
        self.bind()
        if self.is_closed:
            raise closed()
        self.enter()
        try:
            yield
        finally:
            self.leave()

    def bind(self) -> None:
        """Connections belong to the loop of their first use."""
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop, self._closing, self._idle = loop, loop.create_future(), asyncio.Event()
        elif self._loop is not loop:
            raise SetupError("this client belongs to another event loop: make one in each")

    def enter(self) -> None:
        self.active += 1

    def leave(self) -> None:
        self.active -= 1
        if self.active == 0 and self._idle:
            self._idle.set()

    def close(self) -> None:
        self.is_closed = True
        if self._closing and not self._closing.done():
            self._closing.set_result(None)

    async def idle(self) -> None:
        """Waits until nothing is under way."""
        while self.active and self._idle:
            self._idle.clear()
            await self._idle.wait()


class AsyncOnce(Generic[T]):
    """A run of some work for a key, to be made with `AsyncClient.once`."""

    def __init__(self, client: AsyncClient, plan: Plan, codec: Codec[T], cancel_on_lost: bool) -> None:
        self._client = client
        self._core = client._core
        self._plan = plan
        self._codec = codec
        self._cancel_on_lost = cancel_on_lost

    async def run(self, work: Callable[[AsyncClaim], Awaitable[T]]) -> Done[T]:
        """Runs `work` in a task of its own if the key is the caller's, and stores what it returns.

        Otherwise returns what is stored. Raises one of the errors of this package, which tells whether the work ran and
        what became of the key. Cancelling this cancels the work, and waits for it: its claim is given back when it has
        stopped, or it is completed if it returns all the same; then the cancellation goes on.
        """
        with self._client._life.run():
            plan = self._plan.fresh()
            answer = await self._begin(plan)
            if answer is None:
                return await self._unprotected(plan, work)
            if not answer.message.HasField("claim"):
                return replay(answer.message, self._codec)
            held = Held(self._core.transport, plan.request, answer.message.claim, answer.sent)
            return await self._hold(plan, held, work)

    async def _begin(self, plan: Plan) -> Answer[v1.BeginResponse] | None:
        closing = self._client._life.closing()
        begin = asyncio.ensure_future(self._core.begin(plan))
        both: set[asyncio.Future[Any]] = {begin, closing}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not begin.done():
                raise closed()
            return begin.result()
        except CallError as error:
            if error.unsettled:
                self._abandon(plan, begin)
            raise not_begun(error) from error
        except BaseException:
            self._abandon(plan, begin)
            raise

    def _abandon(self, plan: Plan, begin: asyncio.Future[Any]) -> None:
        """A Begin may have been given a claim that nobody heard of."""

        async def ask() -> None:
            if not begin.done():
                await asyncio.wait({begin})
            await self._core.give_back(plan.request)

        begin.cancel()
        self._client._detach(ask)

    async def _hold(self, plan: Plan, held: Held, work: Callable[[AsyncClaim], Awaitable[T]]) -> Done[T]:
        task = asyncio.get_running_loop().create_task(self._work(plan, held, work))
        keeper = _Keeper(held)
        completing: asyncio.Task[Any] | None = None
        try:
            gave_up = await _outlast(task)
            ended = _ended(task)
            verdict = judge(plan, self._codec, held.max_outcome_bytes, ended)
            if isinstance(verdict, GiveBack):
                keeper.stop()
                return await self._give_back(held, verdict, gave_up)
            if held.look() == "taken_over":
                raise gave_up or held.lost_error() from ended.error
            completing = self._client._detach(lambda: self._core.complete(held, verdict, ended.value))
            # The lock lives until the Complete is answered, whether or not anybody still waits for that.
            completing.add_done_callback(lambda _: keeper.stop())
            gave_up = await _outlive(completing, gave_up)
        finally:
            if completing is None:
                keeper.stop()
        if gave_up:
            raise gave_up
        completed = completing.result()
        if isinstance(ended.error, FinalError):
            raise final(verdict.error, completed, ran_here=True) from ended.error
        return done(completed, ended.value, ran_here=True)  # type: ignore[arg-type]

    async def _work(self, plan: Plan, held: Held, work: Callable[[AsyncClaim], Awaitable[T]]) -> T:
        task = asyncio.current_task()
        assert task is not None
        on_lost = task.cancel if self._cancel_on_lost else lambda: None
        claim = AsyncClaim(plan.request, held, self._core.timeout, self._client._life.home, on_lost)
        _current.set(claim)
        return await _carry_out(work, claim)

    async def _give_back(self, held: Held, given: GiveBack, gave_up: asyncio.CancelledError | None) -> Done[T]:
        was_lost = held.look()
        releasing = self._client._detach(lambda: self._core.fail(held, given))
        gave_up = await _outlive(releasing, gave_up)
        if gave_up:
            raise gave_up
        cancelled = isinstance(given.error, asyncio.CancelledError)
        if not isinstance(given.error, Exception) and not (cancelled and was_lost):
            raise given.error  # A cancellation goes on, unless it was ours, because the claim was lost.
        raise releasing.result() from given.error

    async def _unprotected(self, plan: Plan, work: Callable[[AsyncClaim], Awaitable[T]]) -> Done[T]:
        self._client._unprotected += 1
        claim = AsyncClaim(plan.request, None, 0.0, self._client._life.home)
        token = _current.set(claim)
        try:
            ended: Ended[T] = Ended(value=await _carry_out(work, claim))
        except Exception as error:
            ended = Ended(error=error)
        finally:
            _current.reset(token)
        return unprotected(plan, ended)


async def _carry_out(work: Callable[[AsyncClaim], Awaitable[T]], claim: AsyncClaim) -> T:
    result: Any = work(claim)
    # A function that is not async has run by now, and its key must not be freed for that.
    value: T = await result if inspect.isawaitable(result) else result
    return value


async def _outlast(task: asyncio.Task[Any], *, cancelled: bool = False) -> asyncio.CancelledError | None:
    """Waits until a task has ended. A cancellation is handed on to it, and returned."""
    gave_up, handed_on = None, 0
    while True:
        # A loop that ends has cancelled the task as well; once more would cut short how it cleans up.
        if cancelled and _times_cancelled(task) <= handed_on:
            task.cancel()
            handed_on += 1
        if task.done():
            return gave_up
        try:
            await asyncio.wait({task})
            cancelled = False
        except asyncio.CancelledError as error:
            gave_up, cancelled = error, True


def _times_cancelled(task: asyncio.Task[Any]) -> int:
    """How often a task was cancelled, as far as Python tells (3.11)."""
    if sys.version_info >= (3, 11):
        return task.cancelling()
    else:  # noqa: RET505 - so that mypy knows the version
        return 0


async def _outlive(job: asyncio.Future[Any], gave_up: asyncio.CancelledError | None) -> asyncio.CancelledError | None:
    """Waits until a job that outlives its caller has ended; not for long once the caller was cancelled."""
    if gave_up is None:
        try:
            await asyncio.wait({job})
            return None
        except asyncio.CancelledError as error:
            gave_up = error
    try:
        await asyncio.wait({job}, timeout=GRACE)
    except asyncio.CancelledError as error:
        gave_up = error
    return gave_up


def _ended(task: asyncio.Future[T]) -> Ended[T]:
    try:
        return Ended(value=task.result())
    except BaseException as error:
        return Ended(error=error)


class AsyncClient:
    """A client of one or several servers that share a store, in one event loop. It connects at first use.

    `servers` is `HOST:PORT`, `http://HOST:PORT` or, by TLS, `https://HOST:PORT`; several with commas between. Without
    any it is `ONCED_SERVER` of the environment, else `127.0.0.1:7411`. For the settings see `Settings`. It may be made
    before there is a loop.

    Raises `SetupError` if something of that cannot be used. A client that was used must not be used in a process that
    was forked after that.
    """

    def __init__(self, servers: str | None = None, **settings: Unpack[Settings]) -> None:
        self._life = _Life()
        self._io = LoopIo(self._life.home, settings.get("sessions", False))
        self._core = make_core(servers, settings, self._io)
        self._unprotected = 0
        # The loop itself keeps no task alive.
        self._detached: set[asyncio.Task[Any]] = set()

    @overload
    def once(self, key: str, *, cancel_on_lost: bool = True, **options: Unpack[Options]) -> AsyncOnce[Any]: ...
    @overload
    def once(
        self, key: str, *, codec: Codec[T], cancel_on_lost: bool = True, **options: Unpack[Options]
    ) -> AsyncOnce[T]: ...
    def once(
        self, key: str, *, codec: Codec[Any] = JSON, cancel_on_lost: bool = True, **options: Unpack[Options]
    ) -> AsyncOnce[Any]:
        """Work that is to run once for `key`. For the options see `Options`; `codec` is how its value is stored.

        `cancel_on_lost`: cancels the work when its claim is lost. Otherwise look at `lost`, or wait for `wait_lost`.
        """
        return AsyncOnce(self, Plan.of(key, self._core.owner, options), codec, cancel_on_lost)

    def idempotent(
        self,
        *,
        key: Callable[..., str],
        fingerprint: Callable[..., bytes] | None = None,
        codec: Codec[Any] = JSON,
        cancel_on_lost: bool = True,
        **options: Unpack[SharedOptions],
    ) -> Callable[[Callable[P, Awaitable[R]]], Callable[P, Coroutine[Any, Any, R]]]:
        """Makes each call of an async function run once for the key that `key` makes of its arguments.

        `fingerprint` makes a digest of them. What is returned goes through the codec in duplicates alone, so that JSON
        gives them a list for a tuple, say. The function finds its claim by `AsyncClaim.current()`.
        """

        def decorate(function: Callable[P, Awaitable[R]]) -> Callable[P, Coroutine[Any, Any, R]]:
            if not inspect.iscoroutinefunction(function):
                name = getattr(function, "__name__", repr(function))
                raise TypeError(f"{name} is not async: decorate it with a Client")

            @functools.wraps(function)
            async def once(*args: P.args, **kwargs: P.kwargs) -> R:
                chosen = cast(Options, {**options})
                if fingerprint:
                    chosen["fingerprint"] = fingerprint(*args, **kwargs)
                run = self.once(key(*args, **kwargs), codec=codec, cancel_on_lost=cancel_on_lost, **chosen)
                value: R = (await run.run(lambda _: function(*args, **kwargs))).value
                return value

            return once

        return decorate

    @property
    def unprotected_runs(self) -> int:
        """How many runs failed open."""
        return self._unprotected

    async def close(self, patience: Seconds | None = None) -> bool:
        """Ends no work and drops no outcome: waits for both, up to `patience` (the client's timeout, unless told).

        No run begins any more, and those that wait for somebody else's work end with `NotBegunError`. True if all has
        ended; if not, the connections stay until it has. In a forked process there is nothing to end.
        """
        if self._life.home.is_left:
            return True
        self._life.bind()
        self._life.close()
        ending = asyncio.ensure_future(self._end())
        self._detached.add(ending)
        ending.add_done_callback(self._detached.discard)
        await asyncio.wait({ending}, timeout=self._core.timeout if patience is None else seconds(patience))
        if not ending.done():
            log.warning("the client is closed, and work goes on: its connections stay until that has ended")
        return ending.done()

    async def _end(self) -> None:
        await self._life.idle()
        await self._io.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _detach(self, job: Callable[[], Coroutine[Any, Any, R]]) -> asyncio.Task[R]:
        """Runs a job to its end, whatever becomes of the caller."""

        def ended(task: asyncio.Task[R]) -> None:
            self._life.leave()
            self._detached.discard(task)
            if not task.cancelled():
                task.exception()  # Told to the caller, if there still is one.

        self._life.enter()
        task = lasting(job())
        self._detached.add(task)
        task.add_done_callback(ended)
        return task
