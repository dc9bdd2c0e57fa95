"""Watches the books from a connection of its own while a storm goes on."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fixtures.database import Database

_LOOKS_A_ROUND = 20
# A volatile function of PL/pgSQL sees what others have committed anew with each statement of its own. One
# statement is one snapshot, so that the two sides of each sum are of the same moment.
_LOOK = """
create function pg_temp.look(p_looks integer, out least_free numeric, out disagreements integer)
language plpgsql volatile as $$
declare
    v_free numeric;
    v_wrong integer;
begin
    disagreements := 0;
    for i in 1 .. p_looks loop
        select min(a.balance_usd - a.held_usd),
            count(*) filter (
                where a.balance_usd <> coalesce(l.total, 0) or a.held_usd <> coalesce(r.total, 0)
            )
        into v_free, v_wrong
        from gateway.accounts as a
        left join (
            select customer_id, sum(amount_usd) as total from gateway.ledger_entries group by customer_id
        ) as l using (customer_id)
        left join (
            select customer_id, sum(hold_usd) as total
            from gateway.requests
            where state = 'held'
            group by customer_id
        ) as r using (customer_id);
        least_free := least(least_free, v_free);
        disagreements := disagreements + v_wrong;
    end loop;
end
$$
"""


@dataclass(slots=True)
class Watch:
    """What was seen: of every account, at every look."""

    looks: int = 0
    least_free_usd: Decimal = Decimal("Infinity")
    """The least of balance - held."""
    disagreements: int = 0
    """Accounts whose balance was not the sum of its ledger, or whose held was not the sum of its holds."""


@contextlib.contextmanager
def watched(database: Database) -> Iterator[Watch]:
    """Look as often as the database answers, until the block ends."""
    watch = Watch()
    done = threading.Event()
    failures: list[BaseException] = []

    def look() -> None:
        try:
            with database.connect() as connection:
                connection.execute(_LOOK.encode())
                while not done.is_set():
                    row = connection.execute(
                        "select least_free, disagreements from pg_temp.look(%s)", [_LOOKS_A_ROUND]
                    ).fetchone()
                    assert row is not None
                    watch.looks += _LOOKS_A_ROUND
                    watch.least_free_usd = min(watch.least_free_usd, row[0])
                    watch.disagreements += row[1]
        except BaseException as error:  # noqa: BLE001 - a watch that died has seen nothing
            failures.append(error)

    thread = threading.Thread(target=look, name="watch")
    thread.start()
    try:
        yield watch
    finally:
        done.set()
        thread.join()
    assert not failures, failures
