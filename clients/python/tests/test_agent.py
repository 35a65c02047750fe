"""The agent of the conformance suite, as a process. What it can do is the suite's to test."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from conftest import HANGS


class Agent:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "onced.conformance"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._commands = 0

    def ask(self, do: str, **fields: Any) -> Any:
        self._commands += 1
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"id": self._commands, "do": do, **fields}) + "\n")
        self._process.stdin.flush()
        answer = self.hear()
        assert answer["id"] == self._commands
        return answer.get("ok", answer.get("error"))

    def hear(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def end(self) -> int:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()
            return self._process.wait(HANGS)


def test_it_runs_answers_and_ends_with_its_input(server: str, key: str) -> None:
    agent = Agent()
    assert agent.ask("connect", client="c", servers=server, owner="agent") == {}
    assert agent.ask("connect", client="d", servers="nowhere")["kind"] == "invalid"
    assert agent.ask("run", run="r", client="c", key=key, wait=None) == {}
    started = agent.hear()
    assert (started["event"], started["run"], started["attempt"]) == ("started", "r", "1")
    assert agent.ask("checkpoint", run="r", data="aGFsZg==") == {}
    assert agent.ask("claim", run="r")["lost"] is None
    assert agent.ask("finish", run="r", value={"n": 1}) == {}
    ended = agent.hear()
    assert (ended["result"], ended["value"], ended["ran_here"], ended["owner"]) == ("done", {"n": 1}, True, "agent")
    assert agent.ask("finish", run="r", value=2)["message"]
    assert agent.ask("fingerprint", kind="json", text="{}")["digest"].startswith("44136fa3")
    assert agent.ask("fingerprint", kind="json", text="NaN")["kind"] == "unfit"
    assert agent.ask("counts", client="c") == {"unprotected": 0}
    assert agent.ask("run", run="left", client="c", key=f"{key}-left") == {}
    assert agent.hear()["event"] == "started"
    assert agent.end() == 0
