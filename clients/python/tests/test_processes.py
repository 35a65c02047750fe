"""What becomes of runs when their process is interrupted, ends, or forks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from conftest import HANGS, Direct, Faults, hold
from test_sync import eventually


def run(code: str, *arguments: str) -> str:
    """What a process prints."""
    environment = {**os.environ, "GRPC_VERBOSITY": "NONE"}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=HANGS, env=environment).stdout


LEFT = """
import sys, threading
import onced

client = onced.Client(sys.argv[1])
started = threading.Event()

def work(claim):
    started.set()
    threading.Event().wait(60)

threading.Thread(target=lambda: client.once(sys.argv[2]).run(work), daemon=True).start()
assert started.wait(30)
"""


def test_work_in_a_daemon_thread_keeps_no_process_alive(server: str, key: str) -> None:
    run(LEFT, server, key)


INTERRUPTED = """
import os, signal, sys, threading
import onced

# Whoever runs the tests may have told them, and so their children, to ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
client = onced.Client(sys.argv[1])

def work(claim):
    print("started", flush=True)
    threading.Event().wait(60)

try:
    client.once(sys.argv[2], lock_ttl=120, on_failure=sys.argv[3]).run(work)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize(("rule", "state"), [("retry", "available"), ("in_doubt", "in_doubt")])
def test_an_interrupt_gives_the_key_back_and_goes_on(
    server: str, direct: Direct, key: str, rule: str, state: str
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, server, key, rule], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
        assert process.wait(HANGS) == 0
    assert direct.state(key) == state


def test_an_interrupt_drops_no_complete(faults: Faults, direct: Direct, key: str) -> None:
    """The process lives until its outcome is stored."""
    code = INTERRUPTED.replace("threading.Event().wait(60)", "return 7")
    faults.plan("Complete", hold())
    process = subprocess.Popen(
        [sys.executable, "-c", code, faults.address, key, "retry"], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        eventually(lambda: "Complete" in faults.seen)
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
        assert process.poll() is None
        faults.clear()
        assert process.wait(HANGS) == 0
    assert direct.state(key) == "completed"
    assert "Release" not in faults.seen


FORKED = """
import asyncio, os, sys
import onced

servers, key, kind, when = sys.argv[1:]

def run(client, key):
    if kind == "threads":
        return client.once(key).run(lambda claim: claim.attempt).value

    async def once():
        async def work(claim):
            return claim.attempt
        return (await client.once(key).run(work)).value
    return asyncio.run(once())

client = onced.Client(servers) if kind == "threads" else onced.AsyncClient(servers)
if when == "used":
    run(client, key)
child = os.fork()
if child == 0:
    try:
        print(run(client, key + "-child"), flush=True)
    except onced.SetupError as error:
        print("refused:", error, flush=True)
    if when == "used":
        closed = client.close()
        assert closed if kind == "threads" else asyncio.run(closed)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("kind", ["threads", "asyncio"])
def test_a_client_that_was_used_says_so_after_a_fork(server: str, key: str, kind: str) -> None:
    assert run(FORKED, server, key, kind, "used").startswith("refused: this client was used before")
    assert run(FORKED, server, f"{key}-unused", kind, "unused") == "1\n"


FORKED_BY_WORK = """
import os, signal, sys
import onced

client = onced.Client(sys.argv[1])

def work(claim):
    claim._held._mutex.acquire()  # As the keeper may have it at the fork.
    child = os.fork()
    if child:
        claim._held._mutex.release()
        assert os.waitpid(child, 0)[1] == 0
        return "done by the parent"
    signal.alarm(20)  # It is not to outlive the test if it hangs.
    assert 0 < claim.lock_left() <= 120 and claim.lost is None and "lost=None" in repr(claim)
    claim._held._ends = 0
    assert claim.lock_left() == 0 and claim.lost == "lock_ended" and repr(client)
    try:
        claim.save_checkpoint(b"x")
    except onced.SetupError:
        print("saved nothing", flush=True)
    if sys.argv[3] == "fails":
        raise ValueError("no")
    return "done by the child"

try:
    with client:
        print(client.once(sys.argv[2], lock_ttl=120).run(work).value, flush=True)
except onced.SetupError as error:
    print("refused:", error, flush=True)
"""


@pytest.mark.parametrize("how", ["returns", "fails"])
def test_a_process_that_work_forked_settles_nothing(faults: Faults, direct: Direct, key: str, how: str) -> None:
    lines = run(FORKED_BY_WORK, faults.address, key, how).splitlines()
    assert lines[0] == "saved nothing"
    assert lines[1].startswith("refused: this client was used before")
    assert lines[2:] == ["done by the parent"]
    assert direct.lookup(key).completed.outcome.response == b'"done by the parent"'
    assert faults.seen == ["Begin", "Complete"]


FORKED_MEANWHILE = """
import os, sys, threading
import onced

client = onced.Client(sys.argv[1])
started, go = threading.Event(), threading.Event()

def work(claim):
    started.set()
    go.wait(30)

thread = threading.Thread(target=lambda: client.once(sys.argv[2]).run(work))
thread.start()
started.wait(30)
child = os.fork()
if child == 0:
    sys.exit(0 if client.close(60) else 1)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
go.set()
thread.join()
print(code, client.close())
"""


def test_a_forked_process_waits_for_no_work_of_its_parent(server: str, direct: Direct, key: str) -> None:
    assert run(FORKED_MEANWHILE, server, key) == "0 True\n"
    assert direct.state(key) == "completed"


FORKED_WITH_SESSIONS = """
import os, signal, sys, time
import onced, onced.session

onced.session.MANY = 1
client = onced.Client(sys.argv[1], sessions=True)

def standing():
    return [line._current for line in client._io._lines.values() if line._current and line._current.opened]

def work(claim):
    sessions = standing()
    for session in sessions:
        session._mutex.acquire()  # As another thread may have it at the fork.
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # It is not to outlive the test if it hangs.
        try:
            client.once(sys.argv[2] + "-child").run(lambda _: 1)
        except onced.SetupError:
            print("refused", repr(client) != "", claim.lost, client.close(), flush=True)
        os._exit(0)
    for session in sessions:
        session._mutex.release()
    assert os.waitpid(child, 0)[1] == 0
    return len(sessions)

client.once(sys.argv[2] + "-first").run(lambda _: 1)
end = time.monotonic() + 20
while len(standing()) < 2 and time.monotonic() < end:
    time.sleep(0.01)
print(client.once(sys.argv[2]).run(work).value, client.once(sys.argv[2] + "-more").run(lambda _: 2).value, flush=True)
"""


def test_a_process_forked_with_open_sessions_leaves_them_alone(server: str, direct: Direct, key: str) -> None:
    """And its parent goes on with them. Nor do they keep a process alive whose client was not closed."""
    assert run(FORKED_WITH_SESSIONS, server, key).splitlines() == ["refused True None True", "2 2"]
    assert direct.state(f"{key}-more") == "completed"
    assert direct.state(f"{key}-child") == "absent"
