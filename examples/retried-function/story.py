"""Delivers the same orders to naive.py and to function.py, kills and pauses instances, and tells what became of them.

Exits with 1 if function.py breaks a promise, or if naive.py does not fail as told.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from play import INITIAL_STOCK, Placed, Play, Reply, available, see_who_waits, told

FENCED = "the database has seen a newer fencing token"
ENDED = "terminating connection due to idle-in-transaction timeout"
ON_POSTGRES = "DATABASE_URL" in os.environ
problems: list[str] = []


def check(holds: bool, promise: str) -> None:
    """Notes a promise that was broken."""
    if not holds:
        problems.append(promise)


def say(order_id: str, what: str) -> None:
    """Begins the account of an order."""
    print(f"\n {order_id}  {what}")


def heard(who: str, *replies: Reply) -> None:
    """Tells what callers were told."""
    print(f"   {who + ':':<34} {told(list(replies))}")


def stock(order_id: str) -> None:
    """Tells what is in stock."""
    left = available(order_id)
    print(f"   {'stock:':<34} {left}{', nothing was taken' if left == INITIAL_STOCK else ''}")


def five_at_once(play: Play) -> None:
    """Five deliveries in parallel: the first is at work until it is seen what becomes of the others."""
    say("order-1", "is delivered five times at once, to three instances.")
    first = play.begin("order-1", "holds before")
    play.instances["holds before"].wait_held()
    others = [play.begin("order-1", instance) for instance in ("a", "b", "a", "b")]
    play.waited = see_who_waits(others)
    print(f"   {'while the first is at work:':<34} {play.waited} wait for its answer")
    play.instances["holds before"].let_go()
    heard("they hear", *(each.result() for each in [first, *others]))
    stock("order-1")


def killed_before(play: Play) -> None:
    """The crash between the guard and the stock update."""
    say("order-2", "comes to an instance that is killed between the guard and the stock update.")
    heard("the caller hears", play.deliver("order-2", "dies before"))
    play.instances["dies before"].wait_killed()
    heard("it delivers again, twice at once", *play.deliver_all("order-2", ["a", "b"]))
    stock("order-2")


def killed_after(play: Play) -> None:
    """The crash after the stock update, before anybody heard of it."""
    say("order-3", "comes to an instance that is killed when the stock update is committed, before its answer.")
    heard("the caller hears", play.deliver("order-3", "dies after"))
    play.instances["dies after"].wait_killed()
    heard("it delivers again, twice at once", *play.deliver_all("order-3", ["a", "b"]))
    stock("order-3")


def paused(play: Play) -> None:
    """A holder that sleeps through its lock and goes on after another one has taken over."""
    say("order-4", "comes to an instance that is paused between the guard and the stock update.")
    first = play.begin("order-4", "stops before")
    play.instances["stops before"].wait_stopped()
    heard("it is delivered again meanwhile", play.deliver("order-4", "a"))
    stock("order-4")
    play.instances["stops before"].resume()
    heard("the first instance goes on", first.result())
    if play.instances["stops before"].has_logged(FENCED):
        print(f"   {'its log:':<34} {FENCED}")
        play.fenced = True
    heard("it is delivered once more", play.deliver("order-4", "b"))
    stock("order-4")


def refused(play: Play) -> None:
    """An order that cannot be taken, and a stock that is filled up before it is delivered again."""
    more = INITIAL_STOCK + 2
    play.orders["order-5"] = Placed(wanted=0)
    say("order-5", f"is for {more} where {INITIAL_STOCK} are there. Its answer is lost, and the stock filled up.")
    heard("the answer that is lost", play.deliver("order-5", "a", more))
    play.restock("order-5", more)
    heard("it is delivered again", play.deliver("order-5", "b", more))


def paused_inside(play: Play) -> None:
    """A holder that sleeps inside its transaction, where the database has the order locked for it as well."""
    say("order-6", "comes to an instance that is paused right before it commits the stock update.")
    first = play.begin("order-6", "stops inside")
    play.instances["stops inside"].wait_stopped()
    heard("it is delivered again meanwhile", play.deliver("order-6", "a"))
    stock("order-6")
    play.instances["stops inside"].resume()
    heard("the first instance goes on", first.result())
    if play.instances["stops inside"].has_logged(ENDED):
        print(f"   {'its log:':<34} {ENDED}")
    stock("order-6")
    # It is not in the table, since naive.py is not played with it.
    play.cut_off = play.orders.pop("order-6").replies


def mistakes(play: Play) -> None:
    """Requests that are wrong."""
    print("\n          Three requests are wrong.")
    wrong: dict[str, dict[str, object]] = {
        "one without an order_id": {"product": "book-1", "quantity": 1},
        'one with a quantity of "two"': {"order_id": "order-7", "product": "book-1", "quantity": "two"},
        "order-1 again, for 7 instead of 1": {"order_id": "order-1", "product": "book-1", "quantity": 7},
    }
    for who, body in wrong.items():
        play.mistaken.append(play.post(body, "b"))
        heard(who, play.mistaken[-1])


SCENES: list[Callable[[Play], None]] = [five_at_once, killed_before, killed_after, paused, refused]
HEARD = {
    "order-1": [200] * 5,
    "order-2": [0, 200, 200],
    "order-3": [0, 200, 200],
    "order-4": [200, 503, 200],
    "order-5": [409, 409],
}
"""What callers hear of function.py, in the order in which they do."""


def perform(module: str, title: str) -> Play:
    """Plays all of it against one of the two."""
    print(f"\n== {title}")
    with Play(module) as play:
        for scene in SCENES:
            scene(play)
        if module == "function" and ON_POSTGRES:
            paused_inside(play)
        mistakes(play)
        play.close_books()
        return play


def count(orders: dict[str, Placed]) -> dict[str, int]:
    """The figures of the table."""
    answers = {name: [reply for reply in placed.replies if reply.settles] for name, placed in orders.items()}
    untrue = [
        reply for name, replies in answers.items() for reply in replies if reply.status == 200 and not orders[name].took
    ]
    return {
        "orders": len(orders),
        "deliveries": sum(len(placed.replies) for placed in orders.values()),
        "orders lost": sum(placed.took < placed.wanted for placed in orders.values()),
        "orders taken more than once": sum(placed.took > placed.wanted for placed in orders.values()),
        "told that it is processed, and it never was": len(untrue),
        "orders whose callers hear different answers": sum(len(set(replies)) > 1 for replies in answers.values()),
    }


def main() -> None:
    """The whole story."""
    where = "PostgreSQL" if ON_POSTGRES else "SQLite, since PostgreSQL is not at hand or not wanted"
    print(f"The database is {where}.")
    naive = perform("naive", "Without onced: the guard first, then the work (naive.py)")
    good = perform("function", "With onced (function.py)")
    without, within = count(naive.orders), count(good.orders)

    print(f"\n{'':<46} {'without onced':>14} {'with onced':>12}")
    for name, number in without.items():
        print(f"{name:<46} {number:>14} {within[name]:>12}")
    print()

    check(list(without.values()) == [5, 16, 1, 0, 3, 3], "naive.py fails as told")
    check(naive.orders["order-2"].took == 0, "naive.py loses order-2")
    check(list(within.values()) == [5, 16, 0, 0, 0, 0], "function.py takes each order once, and says the same to all")
    for order_id, statuses in HEARD.items():
        check([reply.status for reply in good.orders[order_id].replies] == statuses, f"{order_id} hears {statuses}")
    check((naive.waited, good.waited) == (0, 4), "duplicates wait, and the naive version does not let them")
    check(good.fenced, "the database refuses the instance that was paused")
    if ON_POSTGRES:
        check([reply.status for reply in good.cut_off] == [200, 503], "the database ends a transaction that is paused")
        check(available("order-6") == INITIAL_STOCK - 1, "order-6 is taken once")
    check([reply.status for reply in good.mistaken] == [400, 400, 422], "mistakes are told from duplicates")
    check(good.mistaken[0].text.startswith("order_id:"), "an error names its field")
    if problems:
        sys.exit("\n".join(f"broken: {promise}" for promise in problems))
    print("naive.py fails as told, and function.py keeps its promises.")


main()
