"""The books after a soak, held to themselves and to what the clients were told."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.benchmarks.soak.load import Ledger
    from tests.fixtures.gateway import RunningGateway

# Of each customer, whatever differs: the log's sums, the rollups', the ledger's, and what was paid in.
_DIFFERENT = """
select r.customer_id
from (
    select customer_id, count(*) as requests, sum(cost_usd) as cost, sum(charge_usd) as charge,
        sum(collected_usd) as collected, sum(uncollected_usd) as uncollected,
        sum(coalesce(input_tokens, 0)) as input, sum(coalesce(output_tokens, 0)) as output
    from gateway.requests
    where state <> 'refused'
    group by 1
) as r
full join (
    select customer_id, sum(requests) as requests, sum(cost_usd) as cost, sum(charge_usd) as charge,
        sum(uncollected_usd) as uncollected, sum(input_tokens) as input, sum(output_tokens) as output
    from gateway.usage_rollups
    group by 1
) as u using (customer_id)
full join (
    select customer_id, coalesce(-sum(amount_usd) filter (where request_id is not null), 0) as collected,
        sum(amount_usd) as balance
    from gateway.ledger_entries
    group by 1
) as l using (customer_id)
full join gateway.accounts as a using (customer_id)
where (
        coalesce(r.requests, 0), coalesce(r.cost, 0), coalesce(r.charge, 0), coalesce(r.uncollected, 0),
        coalesce(r.input, 0), coalesce(r.output, 0)
    ) is distinct from (
        coalesce(u.requests, 0), coalesce(u.cost, 0), coalesce(u.charge, 0), coalesce(u.uncollected, 0),
        coalesce(u.input, 0), coalesce(u.output, 0)
    )
    or coalesce(r.collected, 0) <> coalesce(l.collected, 0)
    or coalesce(l.balance, 0) is distinct from a.balance_usd
    or a.held_usd is distinct from 0
"""
# A request that costs something has one entry of just that; one that costs nothing has none.
_MISBOOKED = """
select count(*)
from gateway.requests as r
full join (
    select request_id, count(*) as entries, -sum(amount_usd) as total
    from gateway.ledger_entries
    where request_id is not null
    group by 1
) as e on e.request_id = r.id
where coalesce(e.entries, 0) <> (coalesce(r.collected_usd, 0) <> 0)::integer
    or coalesce(e.total, 0) is distinct from coalesce(r.collected_usd, 0)
    or r.id is null
"""
_UNENDED = """
select count(*) from gateway.requests
where state not in ('settled', 'refused') or state = 'settled' and (settled_at is null or outcome is null)
"""


class Books(Protocol):
    """Who can look into them: a world of tests/e2e."""

    @property
    def operator(self) -> RunningGateway: ...

    def rows(self, query: str, *parameters: Any) -> Sequence[tuple[Any, ...]]: ...

    def kept_settlements(self) -> Sequence[Any]: ...


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that has to hold, and what was found."""

    what: str
    ok: bool
    found: str


def check(world: Books, ledger: Ledger) -> Iterator[Check]:
    """Yield what the books say. To be called when nothing is held any more."""
    told = world.operator.call("check_ledger", p_full=True)
    yield Check(
        "the ledger check is ok",
        bool(told["ok"]) and told["orphan_holds"] == 0 and told["misbooked_requests"] == 0,
        f"ok {told['ok']}, {told['orphan_holds']} orphan holds, {told['misbooked_requests']} misbooked",
    )
    [(unended,)] = world.rows(_UNENDED)
    [(admitted,)] = world.rows("select count(*) from gateway.requests where state <> 'refused'")
    yield Check(
        "every admitted request was settled", unended == 0 < admitted, f"{unended} of {admitted} were not"
    )
    [(misbooked,)] = world.rows(_MISBOOKED)
    yield Check("and is booked once, as it was charged", misbooked == 0, f"{misbooked} are not")
    [(held,)] = world.rows("select coalesce(sum(held_usd), 0) from gateway.accounts")
    yield Check("nothing is held", held == 0, f"{held} USD")
    [(least,)] = world.rows("select min(balance_usd) from gateway.accounts")
    yield Check("nobody is overdrawn", least >= 0, f"the least balance is {least} USD")
    different = [row[0] for row in world.rows(_DIFFERENT)]
    yield Check(
        "rollups, log, ledger and balance agree for each customer",
        not different,
        "they do" if not different else f"not for customers {different}",
    )
    kept = len(world.kept_settlements())
    yield Check("no settlement waits to be replayed", kept == 0, f"{kept} wait")
    yield from _as_told(world, ledger)


def _as_told(world: Books, ledger: Ledger) -> Iterator[Check]:
    """Yield whether the clients were told what the books have."""
    rows = {
        row[0]: row[1:]
        for row in world.rows(
            "select id, state, outcome, charge_usd from gateway.requests where state <> 'refused'"
        )
    }
    served = {name: told for name, told in ledger.told.items() if told.status == 200}
    missing = [name for name in served if name not in rows]
    yield Check("each answer is in the books", not missing, f"{len(served)} answers, {len(missing)} are not")
    charged = {name: told.charge_usd for name, told in served.items() if told.charge_usd is not None}
    wrong = [name for name, charge in charged.items() if name in rows and rows[name][2] != charge]
    yield Check(
        "each client was told what it was charged",
        not wrong and bool(charged),
        f"{len(charged)} were told, {len(wrong)} something else: {wrong[:3]}",
    )
    left = [name for name, told in served.items() if told.left and name in rows]
    outcomes = sorted({rows[name][1] for name in left})
    yield Check(
        "each stream that was left has ended, cancelled or whole",
        bool(left) and set(outcomes) <= {"cancelled", "succeeded"},
        f"{len(left)} were left: {', '.join(outcomes)}",
    )
    refused = [
        name
        for name, told in ledger.told.items()
        if told.status in {401, 402, 404, 409, 422} and rows.get(name, (None, None, Decimal(0)))[2] != 0
    ]
    yield Check("no refusal is charged", not refused, f"{len(refused)} are: {refused[:3]}")
