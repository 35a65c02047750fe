"""The database: PostgreSQL if DATABASE_URL says where, else a file of SQLite."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, Protocol

import psycopg
from typing_extensions import LiteralString

# A transaction here is a few statements, with nothing in between. One that hangs keeps its order locked in the
# database, whoever has taken over in onced: so the database ends it. It is idle if its instance is paused, or gone with
# its host.
POSTGRES_LIMITS = "-c idle_in_transaction_session_timeout=3s -c statement_timeout=10s"


class Execute(Protocol):
    """Runs one statement, and gives the rows that it returns."""

    def __call__(self, statement: LiteralString, *values: object) -> list[tuple[Any, ...]]: ...


@contextmanager
def transaction() -> Iterator[Execute]:
    """One transaction, on a connection of its own: committed at the end, rolled back if anything is raised."""
    if "DATABASE_URL" in os.environ:
        with psycopg.connect(os.environ["DATABASE_URL"], connect_timeout=5, options=POSTGRES_LIMITS) as postgres:

            def execute(statement: LiteralString, *values: object) -> list[tuple[Any, ...]]:
                cursor = postgres.execute(statement, values)
                return cursor.fetchall() if cursor.description else []

            yield execute
        return
    # SQLite has no such limits. Whoever is paused inside holds up all others, who give up after the timeout.
    with closing(sqlite3.connect(os.environ["SQLITE_FILE"], timeout=10, isolation_level=None)) as sqlite, sqlite:
        # Takes the lock that writers need at once: one that reads first may be refused it later.
        sqlite.execute("BEGIN IMMEDIATE")
        yield lambda statement, *values: sqlite.execute(statement.replace("%s", "?"), values).fetchall()
