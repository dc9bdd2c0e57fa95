"""Keys: replaced secrets and their grace, limits that a key shares with its maker, changes within bounds."""

from __future__ import annotations

import itertools
import uuid
from collections import Counter
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.database.engine import call, digest, race, usd

if TYPE_CHECKING:
    from tests.database.engine import Customer, Engine, JSONObject
    from tests.fixtures.database import Connection

SECRET = "select secret_hash from gateway.retired_secrets"


def rotate(
    engine: Engine, key_id: int, grace: int, *, connection: Connection | None = None, **parameters: Any
) -> str:
    """Give a key a new secret; its hash."""
    key_hash = digest(f"secret {uuid.uuid4()}")
    told = call(
        connection or engine.connection,
        "rotate_key",
        **{
            "p_key_id": key_id,
            "p_customer_id": None,
            "p_prefix": "sk_new",
            "p_secret_hash": key_hash,
            "p_grace_seconds": grace,
            **parameters,
        },
    )
    assert "error" not in told, told
    return key_hash


def works(engine: Engine, key_hash: str) -> bool:
    """Whether a secret opens its key: in admission and in management, which must agree."""
    admission = engine.admit(key_hash)
    known = "error" not in engine.call("authenticate_key", p_key_hash=key_hash)
    listed = "error" not in engine.call("list_models", p_key_hash=key_hash)
    assert admission["admitted"] is known is listed, (admission, known, listed)
    if not known:
        assert admission["refusal"] in {"unknown_key", "inactive_key", "expired_key"}
    return known


def end_grace(engine: Engine, key_hash: str) -> None:
    with engine.by_engine():
        changed = engine.run(
            "update gateway.retired_secrets set expires_at = clock_timestamp()"
            " where secret_hash = decode(%s, 'hex')",
            key_hash,
        )
    assert changed == 1


def test_replaced_secret_works_to_the_end_of_its_grace(engine: Engine, customer: Customer) -> None:
    new = rotate(engine, customer.key_id, 3600)
    assert works(engine, new)
    assert works(engine, customer.key_hash)
    ids = {
        engine.call("authenticate_key", p_key_hash=key_hash)["key_id"]
        for key_hash in (new, customer.key_hash)
    }
    assert ids == {customer.key_id}
    end_grace(engine, customer.key_hash)
    assert not works(engine, customer.key_hash)
    assert engine.admit(customer.key_hash)["refusal"] == "unknown_key"
    assert works(engine, new)


def test_grace_ends_when_it_was_said_to(engine: Engine, customer: Customer) -> None:
    rotate(engine, customer.key_id, 86400)
    left = engine.value("select extract(epoch from expires_at - now()) from gateway.retired_secrets")
    assert 86390 < left <= 86401


def test_rotation_without_grace_stops_every_older_secret(engine: Engine, customer: Customer) -> None:
    second = rotate(engine, customer.key_id, 3600)
    third = rotate(engine, customer.key_id, 3600)
    assert [works(engine, key_hash) for key_hash in (customer.key_hash, second, third)] == [True] * 3
    # It says that a secret has leaked, and not which.
    fourth = rotate(engine, customer.key_id, 0)
    assert [works(engine, key_hash) for key_hash in (customer.key_hash, second, third, fourth)] == [
        False,
        False,
        False,
        True,
    ]
    assert engine.query(SECRET) == []


def test_older_secrets_keep_their_own_end(engine: Engine, customer: Customer) -> None:
    second = rotate(engine, customer.key_id, 100)
    rotate(engine, customer.key_id, 7200)
    ends = dict(
        engine.query(
            "select encode(secret_hash, 'hex'), extract(epoch from expires_at - now())"
            " from gateway.retired_secrets"
        )
    )
    assert 0 < ends[customer.key_hash] < 101
    assert 7100 < ends[second] < 7201


def test_what_stops_the_key_stops_its_replaced_secrets(engine: Engine, customer: Customer) -> None:
    new = rotate(engine, customer.key_id, 3600)

    def state(name: str) -> None:
        engine.call("set_key_state", p_key_id=customer.key_id, p_customer_id=None, p_state=name)

    state("inactive")
    assert not works(engine, customer.key_hash)
    assert not works(engine, new)
    state("active")
    assert works(engine, customer.key_hash)
    engine.run("update gateway.api_keys set expires_at = now() where id = %s", customer.key_id)
    assert not works(engine, customer.key_hash)
    engine.run("update gateway.api_keys set expires_at = null where id = %s", customer.key_id)
    assert works(engine, customer.key_hash)
    state("revoked")
    assert not works(engine, customer.key_hash)
    told = engine.call(
        "rotate_key",
        p_key_id=customer.key_id,
        p_customer_id=None,
        p_prefix="sk_new",
        p_secret_hash=digest("x"),
    )
    assert told == {"error": "revoked_key"}


def test_key_is_named_by_a_replaced_secret_too(engine: Engine, customer: Customer) -> None:
    rotate(engine, customer.key_id, 3600)
    engine.call("add_credits", p_key_hash=customer.key_hash, p_usd=1)
    assert engine.account(customer.id) == (11, 0)
    limits = engine.call("set_limits", p_key_hash=customer.key_hash, p_rate_limits={"requests_per_day": 7})
    assert limits["rate_limits"] == {"requests_per_day": 7}
    # Whoever finds a leaked one can revoke by it.
    told = engine.call(
        "set_key_state",
        p_key_id=None,
        p_customer_id=customer.id,
        p_state="revoked",
        p_key_hash=customer.key_hash,
    )
    assert told["id"] == customer.key_id
    assert not works(engine, customer.key_hash)


def test_calls_go_on_while_the_secret_is_replaced_again_and_again(engine: Engine) -> None:
    """The old secret is unknown at no moment: it leaves one table in the step that it enters the other."""
    customer = engine.customer("1000", requests_per_minute=10**9)
    rotations, calls = 40, 60

    def work(connection: Connection, number: int) -> list[str | None]:
        if number == 0:
            for _ in range(rotations):
                rotate(engine, customer.key_id, 3600, connection=connection)
            return []
        told = [engine.admit(customer.key_hash, connection=connection).get("refusal") for _ in range(calls)]
        known = [
            call(connection, "authenticate_key", p_key_hash=customer.key_hash).get("error")
            for _ in range(calls)
        ]
        return told + known

    outcomes = Counter(itertools.chain.from_iterable(race(engine.database, 8, work)))
    assert outcomes == {None: 7 * 2 * calls}
    assert engine.value("select count(*) from gateway.retired_secrets") == rotations


@pytest.mark.parametrize(("grace", "working"), [(3600, 13), (0, 1)])
def test_rotations_at_once_leave_one_secret_that_is_current(
    engine: Engine, customer: Customer, grace: int, working: int
) -> None:
    handed_out = race(
        engine.database,
        12,
        lambda connection, _: rotate(engine, customer.key_id, grace, connection=connection),
    )
    secrets = [customer.key_hash, *handed_out]
    assert sum(works(engine, key_hash) for key_hash in secrets) == working
    current = engine.value(
        "select encode(secret_hash, 'hex') from gateway.api_keys where id = %s", customer.key_id
    )
    assert current in handed_out


def test_secrets_whose_grace_is_over_are_forgotten(engine: Engine, customer: Customer) -> None:
    second = rotate(engine, customer.key_id, 3600)
    third = rotate(engine, customer.key_id, 3600)
    rotate(engine, customer.key_id, 3600)
    assert engine.call("forget_retired_secrets") == 0
    end_grace(engine, customer.key_hash)
    end_grace(engine, second)
    assert engine.call("forget_retired_secrets", p_limit=1) == 1
    assert engine.call("forget_retired_secrets") == 1
    assert engine.query("select encode(secret_hash, 'hex') from gateway.retired_secrets") == [(third,)]


def test_a_current_secret_costs_no_look_at_the_replaced_ones(engine: Engine, customer: Customer) -> None:
    rotate(engine, customer.key_id, 3600)
    new = rotate(engine, customer.key_id, 3600)

    def counted() -> int:
        return int(
            engine.value(
                "select coalesce(sum(seq_scan + idx_scan), 0) from pg_stat_xact_user_tables"
                " where relname = 'retired_secrets'"
            )
        )

    def looks(key_hash: str) -> int:
        # In one transaction: what earlier ones did may be counted in it, too.
        with engine.connection.transaction():
            before = counted()
            engine.admit(key_hash)
            return counted() - before

    assert looks(new) == 0
    assert looks(customer.key_hash) > 0


def test_nobody_adds_a_secret_by_hand(engine: Engine, customer: Customer) -> None:
    rotate(engine, customer.key_id, 3600)
    for statement in (
        "insert into gateway.retired_secrets select sha256('mine'), id, 'infinity' from gateway.api_keys",
        "update gateway.retired_secrets set expires_at = 'infinity'",
        "truncate gateway.retired_secrets",
    ):
        with pytest.raises(psycopg.errors.RestrictViolation):
            engine.run(statement)
    # To end one at once is what an operator may want.
    assert engine.run("delete from gateway.retired_secrets") == 1
    assert not works(engine, customer.key_hash)


# Limits that are shared with the maker


def limited(engine: Engine, key_id: int, **parameters: Any) -> None:
    told = engine.call("set_limits", p_key_id=key_id, **parameters)
    assert "error" not in told, told


def child(engine: Engine, maker_id: int, customer_id: int, **parameters: Any) -> tuple[int, str]:
    return engine.key(customer_id, p_maker_key_id=maker_id, p_bounded=True, **parameters)


@pytest.fixture
def maker(engine: Engine) -> Customer:
    """A customer whose key has scope keys, out of the default's way."""
    customer = engine.customer("100", requests_per_minute=1000)
    engine.run("update gateway.api_keys set scopes = '{chat,usage,keys}' where id = %s", customer.key_id)
    return customer


@pytest.mark.parametrize(
    ("limits", "parameters"),
    [
        ({"requests_per_day": 5}, {}),
        ({"tokens_per_day": 7500}, {}),
        ({"spend_usd_per_day": "0.0315"}, {}),
        ({"requests_per_day": 5}, {"p_model": "echo"}),
        ({"requests_per_day": 5}, {"p_each_model": True}),
        ({"tokens_per_hour": 7500}, {"p_each_model": True}),
    ],
)
def test_keys_that_a_limited_key_makes_share_its_limit(
    engine: Engine, maker: Customer, limits: JSONObject, parameters: JSONObject
) -> None:
    engine.into_a_fresh_minute(8)
    limited(engine, maker.key_id, p_rate_limits=limits, **parameters)
    first_id, first = child(engine, maker.key_id, maker.id, p_scopes=["chat", "keys"])
    grandchild = child(engine, first_id, maker.id, p_scopes=["chat"])[1]
    second = child(engine, maker.key_id, maker.id, p_scopes=["chat"])[1]
    keys = [maker.key_hash, first, grandchild, second]

    def work(connection: Connection, number: int) -> int:
        return sum(bool(engine.admit(keys[number % 4], connection=connection)["admitted"]) for _ in range(4))

    assert sum(race(engine.database, 8, work)) == 5
    told = engine.refused(second)
    assert (told["refusal"], told["subject"]) == ("rate_limit_exceeded", "key")


def test_settlement_gives_back_to_the_makers_limit_too(engine: Engine, maker: Customer) -> None:
    limited(engine, maker.key_id, p_rate_limits={"tokens_per_day": 10_000})
    key_id, key_hash = child(engine, maker.key_id, maker.id)
    admission = engine.admitted(key_hash)
    assert engine.counter("key", maker.key_id, "day") == (1, 1500, usd("0.0063"))
    assert engine.counter("key", key_id, "day") == (1, 1500, usd("0.0063"))
    engine.settle(admission)
    assert engine.counter("key", maker.key_id, "day") == (1, 150, usd("0.00063"))
    assert engine.counter("key", key_id, "day") == (1, 150, usd("0.00063"))
    engine.assert_books_agree()


def test_limit_that_the_maker_is_given_later_binds_what_it_has_made(engine: Engine, maker: Customer) -> None:
    _, key_hash = child(engine, maker.key_id, maker.id)
    engine.admitted(key_hash)
    limited(engine, maker.key_id, p_rate_limits={"requests_per_month": 2})
    engine.admitted(key_hash)
    engine.admitted(maker.key_hash)
    for secret in (key_hash, maker.key_hash):
        assert engine.refused(secret)["per"] == "month"
    # Revoking the maker does not lift what it was bound by.
    engine.call("set_key_state", p_key_id=maker.key_id, p_customer_id=None, p_state="revoked")
    assert engine.refused(key_hash)["per"] == "month"


def test_default_limit_is_for_each_key_by_itself(engine: Engine) -> None:
    engine.into_a_fresh_minute(10)
    customer = engine.customer("100")
    engine.run("update gateway.api_keys set scopes = '{chat,keys}' where id = %s", customer.key_id)
    _, key_hash = child(engine, customer.key_id, customer.id, p_scopes=["chat"])
    for secret in (customer.key_hash, key_hash):
        for _ in range(60):
            engine.admitted(secret, p_max_output_tokens=16)
        assert engine.refused(secret)["per"] == "minute"


def test_what_a_client_is_told_counts_the_makers_limit(engine: Engine, maker: Customer) -> None:
    limited(engine, maker.key_id, p_rate_limits={"requests_per_day": 9})
    _, key_hash = child(engine, maker.key_id, maker.id)
    engine.admitted(maker.key_hash)
    told = engine.admitted(key_hash)
    assert (told["rate_limits"]["requests"]["limit"], told["rate_limits"]["requests"]["remaining"]) == (9, 7)


def test_line_of_makers_has_an_end(engine: Engine, maker: Customer) -> None:
    key_id = maker.key_id
    for _ in range(8):
        key_id, _ = child(engine, key_id, maker.id, p_scopes=["chat", "keys"])
    told = engine.call(
        "create_key",
        p_customer_id=maker.id,
        p_name="ninth",
        p_prefix="sk_test",
        p_secret_hash=digest("ninth"),
        p_scopes=["chat"],
        p_maker_key_id=key_id,
        p_bounded=True,
    )
    assert told == {"error": "too_many_makers"}


def meanwhile(engine: Engine, function: str, change: JSONObject, **parameters: Any) -> JSONObject:
    """What `function` tells whose caller is changed while it waits: by `change`, of update_key or a state."""
    done = Event()
    told: list[JSONObject] = []

    def work() -> None:
        with engine.database.connect() as connection:
            told.append(call(connection, function, **parameters))
        done.set()

    with engine.database.connect(autocommit=False) as changing:
        call(changing, change.pop("function"), **change)
        thread = Thread(target=work)
        thread.start()
        while not engine.value(
            "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like %s",
            f"%{function}%",
        ):
            assert not done.wait(0.01)
        changing.commit()
    thread.join()
    return told[0]


def making(maker: Customer) -> JSONObject:
    return {
        "p_customer_id": maker.id,
        "p_name": "late",
        "p_prefix": "sk_test",
        "p_secret_hash": digest("late"),
        "p_scopes": ["chat", "usage"],
        "p_maker_key_id": maker.key_id,
        "p_bounded": True,
    }


def test_key_is_made_within_what_its_maker_is_at_that_moment(engine: Engine, maker: Customer) -> None:
    """A key that is being narrowed can't hand out what it is about to lose."""
    narrowed = {
        "function": "update_key",
        "p_key_id": maker.key_id,
        "p_customer_id": None,
        "p_changes": {"scopes": ["chat", "keys"]},
    }
    told = meanwhile(engine, "create_key", narrowed, **making(maker))
    assert told == {"error": "exceeds_maker", "field": "scopes"}


@pytest.mark.parametrize("function", ["create_key", "rotate_key", "update_key"])
def test_key_that_is_being_revoked_leaves_none_behind(engine: Engine, maker: Customer, function: str) -> None:
    other, other_hash = child(engine, maker.key_id, maker.id)
    named = {"p_key_id": other, "p_customer_id": maker.id, "p_caller_key_id": maker.key_id}
    parameters = {
        "create_key": making(maker),
        "rotate_key": {**named, "p_prefix": "sk_new", "p_secret_hash": digest("new")},
        "update_key": {**named, "p_changes": {"name": "late"}},
    }[function]
    revoked = {
        "function": "set_key_state",
        "p_key_id": maker.key_id,
        "p_customer_id": None,
        "p_state": "revoked",
    }
    assert meanwhile(engine, function, revoked, **parameters) == {"error": "stopped_caller"}
    assert engine.value("select count(*) from gateway.api_keys where name = 'late'") == 0
    assert works(engine, other_hash)


def test_keys_that_change_each_other_do_not_lock_up(engine: Engine, maker: Customer) -> None:
    others = [engine.key(maker.id, p_scopes=["chat", "usage", "keys"])[0] for _ in range(3)]
    keys = [maker.key_id, *others]

    def work(connection: Connection, number: int) -> int:
        done = 0
        for turn in range(15):
            caller, changed = keys[number % 4], keys[(number + turn) % 4]
            told = call(
                connection,
                "update_key",
                p_key_id=changed,
                p_customer_id=maker.id,
                p_changes={"name": f"{number} {turn}"},
                p_caller_key_id=caller,
            )
            done += "error" not in told
            rotate(engine, changed, 60, connection=connection, p_customer_id=maker.id, p_caller_key_id=None)
        return done

    assert race(engine.database, 8, work) == [15] * 8


def test_limit_that_is_lowered_while_its_key_sets_it_stays_low(engine: Engine, maker: Customer) -> None:
    """Whoever sets a key's limit from outside waits for what the key is doing, and has the last word."""
    engine.call("set_limits", p_key_id=maker.key_id, p_rate_limits={"requests_per_day": 1000})
    own = {
        "p_key_id": maker.key_id,
        "p_customer_id": maker.id,
        "p_changes": {"limits": {"requests_per_day": 1000}},
        "p_caller_key_id": maker.key_id,
    }
    done: list[JSONObject] = []

    def lower() -> None:
        with engine.database.connect() as connection:
            done.append(
                call(
                    connection,
                    "set_limits",
                    p_key_id=maker.key_id,
                    p_rate_limits={"requests_per_day": 10},
                )
            )

    lowered = Thread(target=lower)
    with engine.database.connect(autocommit=False) as changing:
        changing.execute("select from gateway.lock_keys(array[%s]::bigint[])", (maker.key_id,))
        lowered.start()
        while not engine.value("select count(*) from pg_locks where not granted"):
            assert lowered.is_alive()
        assert "error" not in call(changing, "update_key", **own)
        changing.commit()
    lowered.join()
    assert [told["rate_limits"]["requests_per_day"] for told in done] == [10]
    assert engine.call("update_key", **own) == {
        "error": "exceeds_maker",
        "field": "limits",
        "limit": "requests_per_day",
    }


def test_last_use_is_found_without_reading_the_history(engine: Engine, customer: Customer) -> None:
    _, other = engine.key(customer.id)
    engine.settle(engine.admitted(customer.key_hash))
    engine.settle(engine.admitted(other))
    with engine.by_engine():
        engine.run(
            "insert into gateway.usage_rollups (bucket, customer_id, key_id, model_id, last_request_at)"
            " select now() - n * interval '15 minutes' - interval '1 hour', k.customer_id, k.id, 1,"
            " now() - n * interval '15 minutes' - interval '1 hour'"
            " from generate_series(1, 20000) as n cross join gateway.api_keys as k"
        )
    engine.run("analyze gateway.usage_rollups")
    at = engine.value("select admitted_at from gateway.requests where key_id = %s", customer.key_id)
    counted = (
        "select coalesce(sum(seq_tup_read + idx_tup_fetch), 0) from pg_stat_xact_user_tables"
        " where relname = 'usage_rollups'"
    )
    with engine.connection.transaction():
        before = engine.value(counted)
        assert engine.value("select gateway.last_used_at(%s)", customer.key_id) == at
        assert engine.value(counted) - before < 10
    unused, _ = engine.key(customer.id)
    assert engine.value("select gateway.last_used_at(%s)", unused) is None
