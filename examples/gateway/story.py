"""Sends the same requests to the service itself, and through the proxy, and tells how often accounts were debited.

Exits with 1 if a promise is broken behind the proxy, or if the service alone does not fail as told.
"""

from __future__ import annotations

import sys
import urllib.request
import uuid
from collections.abc import Callable

import on_call
from play import INITIAL_BALANCE, Asked, Play, Reply, told, wait_for_waiting

problems: list[str] = []


def check(holds: bool, promise: str) -> None:
    """Notes a promise that was broken."""
    if not holds:
        problems.append(promise)


def say(account: str, what: str, play: Play) -> None:
    """Begins the account of a payment."""
    play.open_account(account)
    print(f"\n {account:<8} {what}")


def heard(who: str, *replies: Reply) -> None:
    """Tells what a caller was told."""
    print(f"   {who + ':':<36} {told(list(replies))}")


def lost_reply(play: Play) -> None:
    """A caller that hangs up before the answer, and asks again."""
    say("alpha", "pays 10. The caller hangs up after the debit and before the answer, and sends it again.", play)
    gate = play.around.gate("/books", "alpha")
    heard("it hears", play.pay("alpha", hang_up=gate))
    gate.open()
    heard("and then", play.pay("alpha"))


def in_parallel(play: Play) -> None:
    """Repetitions while the first is still at work."""
    say("bravo", "pays 10. While the service is at work the request comes four times more.", play)
    gate = play.around.gate("/books", "bravo")
    replies = [play.begin("bravo")]
    gate.wait_reached()
    replies += [play.begin("bravo") for _ in range(4)]
    if play.proxied:
        waiting = wait_for_waiting(4)
        check(waiting, "duplicates wait while the first is at work")
        print(f"   {'while it is at work:':<36} {'four wait for its answer' if waiting else 'they do not all wait'}")
    gate.open()
    heard("the callers hear", *(reply.result() for reply in replies))


def refused(play: Play) -> None:
    """A refusal, and an account that could pay when the request is repeated."""
    say("charlie", f"pays 150, and has {INITIAL_BALANCE}. Before it is sent again, 100 come in.", play)
    first = play.pay("charlie", 150)
    play.asked["charlie"].refused_first = first.status == 402
    heard("the caller hears", first)
    play.top_up("charlie", 100)
    heard("and then", play.pay("charlie", 150))


def not_now(play: Play) -> None:
    """A 5xx, after which the same request runs."""
    say("delta", "pays 10 while the risk service is away, and again when it is back.", play)
    play.around.risk_is_away = True
    heard("the caller hears", play.pay("delta"))
    play.around.risk_is_away = False
    heard("and then", play.pay("delta"))


def killed_after(play: Play) -> None:
    """A service that is killed between its debit and its answer."""
    say("echo", "pays 10. The service is killed after the debit and before its answer, and started again.", play)
    kill_service(play, "/books", "echo")


def killed_before(play: Play) -> None:
    """A service that is killed before its debit."""
    say("foxtrot", "has paid 10 before, and pays 10. The service is killed before the debit, and started again.", play)
    play.pay_before("foxtrot")
    kill_service(play, "/risk", "foxtrot")


def kill_service(play: Play, place: str, account: str) -> None:
    """Kills the service while it is at a place, and sends the request again."""
    gate = play.around.gate(place, account)
    reply = play.begin(account)
    gate.wait_reached()
    play.service.kill()
    heard("the caller hears", reply.result())
    gate.open()
    play.restart_service()
    again(play, account)


def broken_between(play: Play) -> None:
    """What the request goes through is killed."""
    between = "The proxy is killed" if play.proxied else "The connection breaks"
    say("golf", f"pays 10. {between} after the debit and before the answer.", play)
    gate = play.around.gate("/books", "golf")
    if play.proxy:
        reply = play.begin("golf")
        gate.wait_reached()
        play.proxy.kill()
        heard("the caller hears", reply.result())
        play.restart_proxy()
    else:
        heard("the caller hears", play.pay("golf", hang_up=gate))
    gate.open()
    again(play, "golf")


def again(play: Play, account: str) -> None:
    """Sends a request again, and once more when a person has settled its key."""
    reply = play.pay(account)
    heard("it sends it again", reply)
    if reply.text == "IN_DOUBT":
        play.asked[account].in_doubt = True
        print(f"   {'a person looks:':<36} {on_call.settle(play.asked[account].key)}")
        heard("it sends it again", play.pay(account))


def mistakes(play: Play) -> list[Reply]:
    """Requests that are wrong, and one that needs no key."""
    print("\n          Requests that are wrong, and one that needs no key.")
    other, key = play.asked["alpha"].key, str(uuid.uuid4())
    wrong: list[tuple[str, dict[str, object], str | None]] = [
        ("one without a key", {"reference": key, "account": "alpha", "amount": 10}, None),
        ("one with the key of another one", {"reference": other, "account": "alpha", "amount": 99}, other),
        ('one with an amount of "ten"', {"reference": key, "account": "alpha", "amount": "ten"}, key),
        ("and that again", {"reference": key, "account": "alpha", "amount": "ten"}, key),
    ]
    replies = []
    for who, body, its_key in wrong:
        replies.append(play.send(body, its_key))
        heard(who, replies[-1])
    assert play.proxy
    with urllib.request.urlopen(f"{play.proxy.url}/accounts/alpha", timeout=30) as answer:
        print(f"   {'a GET needs no key:':<36} {answer.status} {answer.read().decode()}")
    return replies


SCENES: list[Callable[[Play], None]] = [
    lost_reply,
    in_parallel,
    refused,
    not_now,
    killed_after,
    killed_before,
    broken_between,
]


def perform(title: str, proxied: bool) -> tuple[dict[str, Asked], list[Reply]]:
    """Plays all of it."""
    print(f"\n== {title}")
    play = Play(proxied)
    try:
        for scene in SCENES:
            scene(play)
        replies = mistakes(play) if proxied else []
        play.note_debits()
        return play.asked, replies
    finally:
        play.close()


def count(asked: dict[str, Asked]) -> dict[str, int]:
    """The figures of the table."""
    return {
        "payments": len(asked),
        "requests, with all repetitions": sum(len(each.replies) for each in asked.values()),
        "debits": sum(each.debits for each in asked.values()),
        "payments debited more than once": sum(each.debits > 1 for each in asked.values()),
        "payments debited after a refusal": sum(each.refused_first and each.debits > 0 for each in asked.values()),
        "payments that a person had to look at": sum(each.in_doubt for each in asked.values()),
    }


def check_answers(asked: dict[str, Asked], replies: list[Reply]) -> None:
    """What is promised of each request through the proxy."""
    heard_of = {account: [(reply.status, reply.replayed) for reply in each.replies] for account, each in asked.items()}
    check(heard_of["alpha"] == [(0, False), (201, True)], "a lost 201 is replayed")
    check(sorted(heard_of["bravo"]) == [(201, False)] + [(201, True)] * 4, "duplicates wait and get the answer")
    check(len({reply.text for reply in asked["bravo"].replies}) == 1, "duplicates get the same answer")
    check(heard_of["charlie"] == [(402, False), (402, True)], "a 402 is replayed")
    check(heard_of["delta"] == [(503, False), (201, False)], "a 503 frees the key")
    check(heard_of["echo"] == [(502, False), (409, False), (201, True)], "a killed service leaves the key in doubt")
    check(heard_of["foxtrot"] == [(502, False), (409, False), (201, False)], "what was not done runs when settled")
    check(heard_of["golf"] == [(0, False), (409, False), (201, True)], "a killed proxy leaves the key in doubt")
    check([str(reply) for reply in replies] == MISTAKES, "mistakes are told from duplicates")


MISTAKES = [
    "400 IDEMPOTENCY_KEY_MISSING",
    "422 FINGERPRINT_MISMATCH",
    "400 amount: is a whole number from 1 to 1000000",
    "400 amount: is a whole number from 1 to 1000000, replayed",
]


def main() -> None:
    """The whole story."""
    alone, _ = perform("Without onced: the service itself", proxied=False)
    behind, replies = perform("With onced: through the proxy", proxied=True)
    without, within = count(alone), count(behind)

    print(f"\n{'':<40} {'without onced':>14} {'with onced':>12}")
    for name, number in without.items():
        print(f"{name:<40} {number:>14} {within[name]:>12}")
    print()

    check(list(without.values()) == [7, 17, 14, 4, 1, 0], "the service alone fails as told")
    check(list(within.values()) == [7, 20, 6, 0, 0, 3], "each payment is debited once, or refused")
    check_answers(behind, replies)
    if problems:
        sys.exit("\n".join(f"broken: {promise}" for promise in problems))
    print("The service alone fails as told, and behind the proxy all promises are kept.")


main()
