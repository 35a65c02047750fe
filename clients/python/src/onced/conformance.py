"""The agent of the conformance suite: `python -m onced.conformance`.

It reads commands as JSON, one a line, and runs them with an `AsyncClient`; `clients/README.md` of the repository says
what they are.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from onced import fingerprint
from onced.aio import AsyncClaim, AsyncClient
from onced.codecs import BYTES, JSON, TEXT, Codec
from onced.errors import ClaimLostError, Failure, FinalError, NotBegunError, OncedError, WorkFailedError
from onced.options import Options, Settings

CODECS: dict[str, Codec[Any]] = {"json": JSON, "bytes": BYTES, "text": TEXT}
LOOK = 0.02
"""How often to look whether a claim was lost, in seconds."""

Command = dict[str, Any]
Answer = dict[str, Any]


class Panic(BaseException):
    """Work that ends as nothing that is expected of it."""


def say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


class Run:
    """A run, and the work of it, which waits to be told how to end."""

    def __init__(self, name: str, codec: str) -> None:
        self.name = name
        self.bytes = codec == "bytes"
        self.claim: AsyncClaim | None = None
        self.end: asyncio.Future[Command] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[None] | None = None
        self.stopped = False

    def tell(self, event: str, **fields: Any) -> None:
        say({"event": event, "run": self.name, **fields})

    async def work(self, claim: AsyncClaim) -> Any:
        self.claim = claim
        checkpoint = None if claim.checkpoint is None else base64.b64encode(claim.checkpoint).decode()
        self.tell(
            "started",
            token=str(claim.token),
            attempt=str(claim.attempt),
            checkpoint=checkpoint,
            protected=claim.protected,
        )
        watching = asyncio.ensure_future(self.watch(claim))
        try:
            return self.finish(await self.end)
        finally:
            self.stopped = True
            watching.cancel()

    async def watch(self, claim: AsyncClaim) -> None:
        """Tells each reason why the claim is lost: one that ended by the clock may come to be taken over."""
        told = None
        while True:
            if claim.lost != told:
                told = claim.lost
                self.tell("lost", why=told)
            await asyncio.sleep(LOOK)

    def finish(self, end: Command) -> Any:
        if "panic" in end:
            raise Panic(end["panic"])
        if "final" in end:
            raise FinalError(end["final"]["code"], end["final"]["message"])
        if end.get("fail") in ("retry", "in_doubt"):
            raise Failure(end["message"], end["fail"])
        if "fail" in end:
            raise RuntimeError(end["message"])
        return base64.b64decode(end["value"]) if self.bytes else end["value"]

    async def run(self, client: AsyncClient, key: str, codec: str, options: Options) -> None:
        try:
            run = client.once(key, codec=CODECS[codec], cancel_on_lost=False, **options)
            done = await run.run(self.work)
        except OncedError as error:
            self.tell("ended", **told(error))
        except Panic:
            pass  # It goes on, and nobody is told.
        else:
            self.tell(
                "ended",
                result="done",
                value=base64.b64encode(done.value).decode() if self.bytes else done.value,
                ran_here=done.ran_here,
                owner=done.owner,
                attempt=str(done.attempt),
                token=str(done.token),
                protected=done.protected,
            )


def told(error: OncedError) -> dict[str, Any]:
    """An error, as an event has it."""
    fields: dict[str, Any] = {"result": error.kind, "message": str(error)}
    if not isinstance(error, (FinalError, NotBegunError, WorkFailedError, ClaimLostError)) and error.kind == "call":
        fields["result"] = "not_begun"
    for name in ("reason", "owner", "rule", "released", "lost", "code", "ran_here"):
        if (value := getattr(error, name, None)) is not None:
            fields[name] = value
    for name in ("attempt", "token"):
        if (value := getattr(error, name)) is not None:
            fields[name] = str(value)
    return fields


def in_seconds(command: Command, *names: str) -> dict[str, Any]:
    """The times of a command that it has: milliseconds there, seconds here."""
    return {name: None if command[name] is None else command[name] / 1000 for name in names if name in command}


class Agent:
    """What was connected, and what runs."""

    def __init__(self) -> None:
        self.clients: dict[str, AsyncClient] = {}
        self.runs: dict[str, Run] = {}

    async def connect(self, command: Command) -> Answer:
        names = {"ca": "ca_file", "cert": "cert_file", "key": "key_file"}
        settings = {"sessions": True} | {
            names.get(name, name): command[name]
            for name in ("ca", "cert", "key", "token", "token_file", "owner")
            if command.get(name) is not None
        }
        settings |= in_seconds(command, "timeout")
        self.clients[command["client"]] = AsyncClient(command["servers"], **Settings(**settings))  # type: ignore[typeddict-item]
        return {}

    async def run(self, command: Command) -> Answer:
        options = {
            name: command[name]
            for name in ("namespace", "on_lapse", "on_failure", "owner")
            if command.get(name) is not None
        }
        options |= in_seconds(command, "lock_ttl", "wait", "retention", "fail_open")
        if command.get("fingerprint") is not None:
            options["fingerprint"] = base64.b64decode(command["fingerprint"])
        codec = command.get("codec", "json")
        run = self.runs[command["run"]] = Run(command["run"], codec)
        client = self.clients[command["client"]]
        running = run.run(client, command["key"], codec, Options(**options))  # type: ignore[typeddict-item]
        run.task = asyncio.ensure_future(running)
        return {}

    async def finish(self, command: Command) -> Answer:
        run = self.runs[command["run"]]
        if run.claim is None or run.stopped or run.end.done():
            raise OncedError("the work of this run does not wait for its end")
        run.end.set_result(command)
        return {}

    async def checkpoint(self, command: Command) -> Answer:
        await self.claim_of(command).save_checkpoint(base64.b64decode(command["data"]))
        return {}

    async def claim(self, command: Command) -> Answer:
        claim = self.claim_of(command)
        return {
            "token": str(claim.token),
            "attempt": str(claim.attempt),
            "left": int(claim.lock_left() * 1000),
            "lost": claim.lost,
            "protected": claim.protected,
        }

    def claim_of(self, command: Command) -> AsyncClaim:
        claim = self.runs[command["run"]].claim
        if claim is None:
            raise OncedError("the work of this run has not begun")
        return claim

    async def cancel(self, command: Command) -> Answer:
        task = self.runs[command["run"]].task
        assert task is not None
        task.cancel()
        return {}

    async def fingerprint(self, command: Command) -> Answer:
        kind = command["kind"]
        if kind == "bytes":
            digest = fingerprint.of_bytes(base64.b64decode(command["data"]))
        elif kind == "json":
            digest = fingerprint.of_json_text(command["text"])
        else:
            digest = fingerprint.of_json_text_fields(command["text"], command["pointers"])
        return {"digest": digest.hex()}

    async def counts(self, command: Command) -> Answer:
        return {"unprotected": self.clients[command["client"]].unprotected_runs}

    async def close(self, command: Command) -> Answer:
        await self.clients[command["client"]].close(command["patience"] / 1000)
        return {}

    async def carry_out(self, command: Command) -> None:
        commands: dict[str, Callable[[Command], Awaitable[Answer]]] = {
            "connect": self.connect,
            "run": self.run,
            "finish": self.finish,
            "checkpoint": self.checkpoint,
            "claim": self.claim,
            "cancel": self.cancel,
            "fingerprint": self.fingerprint,
            "counts": self.counts,
            "close": self.close,
        }
        try:
            answer = await commands[command["do"]](command)
        except OncedError as error:
            say({"id": command["id"], "error": {"kind": error.kind, "message": str(error)}})
        except Exception as error:
            say({"id": command["id"], "error": {"kind": "fault", "message": repr(error)}})
        else:
            say({"id": command["id"], "ok": answer})


async def serve() -> None:
    """Carries out commands until there are no more of them."""
    agent, loop = Agent(), asyncio.get_running_loop()
    carried_out = set()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        task = asyncio.ensure_future(agent.carry_out(json.loads(line)))
        carried_out.add(task)
        task.add_done_callback(carried_out.discard)
    sys.stdout.flush()
    # It ends with its input, and what runs then is left as by a process that died.
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(serve())
