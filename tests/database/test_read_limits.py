"""What read_limits tells is what admission decides: of every subject, metric and window, up to the edge."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest

if TYPE_CHECKING:
    from tests.database.engine import Customer, Engine, JSONObject

SMALLEST = {"p_input_tokens_bound": 1, "p_max_output_tokens": 0}
WINDOWS = ("minute", "hour", "day", "month")


DEFAULT = {"limit": 60, "used": 0, "mark": None}
"""The system's, which has no soft mark."""


def soft(most: int | str) -> int | str:
    """The soft mark that a limit gets by itself: 80 percent of it."""
    if isinstance(most, int):
        return most * 4 // 5
    exact = (Decimal(most) * Decimal("0.8")).quantize(Decimal("1e-10"))
    return f"{exact.normalize():f}"


def limit(engine: Engine, subject: dict[str, Any], **limits: Any) -> None:
    told = engine.call("set_limits", **subject, p_rate_limits=limits)
    assert "error" not in told, told


def world(engine: Engine, usd: str = "10", **prices: str) -> tuple[Customer, str, int]:
    """A customer, and a model with a service of its own."""
    customer = engine.customer(usd)
    name = f"model-{customer.id}"
    engine.model(name, prices or None)
    return customer, name, engine.service([name])


def read(engine: Engine, customer: Customer, model: str | None = None) -> JSONObject:
    told: JSONObject = engine.call(
        "read_limits", p_customer_id=customer.id, p_key_id=customer.key_id, p_model=model
    )
    return told


def decide(engine: Engine, customer: Customer, model: str, **request: Any) -> JSONObject:
    """What admission says of a request, which then has not happened."""
    with engine.connection.transaction(force_rollback=True):
        return engine.admit(customer.key_hash, p_models=[model], **request)


def assert_agrees(engine: Engine, customer: Customer, model: str) -> JSONObject | None:
    """The refusal that both tell, None where both would let the smallest request pass."""
    told, decided = read(engine, customer, model), decide(engine, customer, model, **SMALLEST)
    refusal: JSONObject | None = told["refusal"]
    assert decided["admitted"] is (refusal is None), (refusal, decided)
    if refusal is not None:
        for name in ("refusal", "subject", "metric", "per", "limit", "never", "needed_usd"):
            assert refusal.get(name) == decided.get(name)
        if refusal["refusal"] not in {"rate_limit_exceeded", "insufficient_credits"}:
            return refusal  # admission has looked at no window
    for metric in ("requests", "tokens"):
        windows = [w for name, w in told["limits"].items() if name.startswith(metric)]
        header = decided["rate_limits"][metric]
        assert (header is None) is (not windows)
        if windows:
            # admission tells what is left after the request that it admits
            taken = 1 if decided["admitted"] else 0
            assert header["remaining"] == min(max(w["limit"] - w["used"] - taken, 0) for w in windows)
    return refusal


@pytest.mark.parametrize("per", WINDOWS)
@pytest.mark.parametrize("subject", ["key", "key and model", "each model", "customer", "service", "maker"])
@pytest.mark.parametrize(
    ("metric", "most", "left"),
    [
        ("requests", 2, 0),
        ("tokens", 3000, 0),
        ("tokens", 3001, 1),
        ("spend_usd", "0.0126", 0),
        ("spend_usd", "0.0126020999", 0),
        ("spend_usd", "0.0126021", 1),
    ],
)
def test_it_turns_where_admission_turns(  # noqa: PLR0917 - a table
    shared_engine: Engine, subject: str, per: str, metric: str, most: int | str, left: int
) -> None:
    engine = shared_engine
    engine.into_a_fresh_minute(2)
    customer, model, service = world(engine)
    subjects: dict[str, dict[str, Any]] = {
        "key": {"p_key_id": customer.key_id},
        "key and model": {"p_key_id": customer.key_id, "p_model": model},
        "each model": {"p_key_id": customer.key_id, "p_each_model": True},
        "customer": {"p_customer_id": customer.id},
        "service": {"p_service_id": service},
        "maker": {"p_key_id": engine.key(customer.id)[0]},
    }
    if subject == "maker":
        engine.run(
            "update gateway.api_keys set maker_key_ids = array[%s::bigint] where id = %s",
            subjects["maker"]["p_key_id"],
            customer.key_id,
        )
    if subject == "service" and metric == "spend_usd":
        # its cost: without the commission
        most = {"0.0126": "0.012", "0.0126020999": "0.0120019999", "0.0126021": "0.012002"}[str(most)]
    limit(engine, subjects[subject], **{f"{metric}_per_{per}": most})
    for _ in range(2):
        assert assert_agrees(engine, customer, model) is None
        engine.admitted(customer.key_hash, p_models=[model])
    refusal = assert_agrees(engine, customer, model)
    assert (refusal is None) is bool(left)
    name = f"{metric}_per_{per}"
    told = read(engine, customer, model)["limits"]
    if subject == "service":
        default = {"limit": 60, "used": 2, "mark": None}
        assert told.get(name) == (default if name == "requests_per_minute" else None)
    else:
        used = {"requests": 2, "tokens": 3000, "spend_usd": "0.0126"}[metric]
        assert told[name] == {"limit": most, "used": used, "mark": soft(most)}


def test_it_agrees_whatever_the_limits_and_the_requests_are(shared_engine: Engine) -> None:
    engine = shared_engine
    chance = random.Random(5)  # noqa: S311 - the same cases at every run
    refused: set[str] = set()
    for _ in range(12):
        engine.into_a_fresh_minute(3)
        customer, model, service = world(engine, usd=str(chance.choice([1, "0.02", "0.003"])))
        subjects: tuple[dict[str, Any], ...] = (
            {"p_key_id": customer.key_id},
            {"p_key_id": customer.key_id, "p_model": model},
            {"p_key_id": customer.key_id, "p_each_model": True},
            {"p_customer_id": customer.id},
            {"p_service_id": service},
        )
        for subject in chance.sample(subjects, 3):
            metric, most = chance.choice(
                [
                    ("requests", chance.randint(2, 6)),
                    ("tokens", chance.randint(500, 4000)),
                    ("spend_usd", f"0.{chance.randint(10, 200):04}"),
                ]
            )
            limit(engine, subject, **{f"{metric}_per_{chance.choice(WINDOWS)}": most})
        for _ in range(8):
            refusal = assert_agrees(engine, customer, model)
            if refusal is not None:
                refused.add(refusal.get("metric") or refusal["refusal"])
                break
            # without a bound of its own the answer may take all that the limits and the balance leave
            admission = engine.admit(
                customer.key_hash,
                p_models=[model],
                p_input_tokens_bound=chance.randint(1, 400),
                p_max_output_tokens=chance.choice([None, chance.randint(0, 400)]),
            )
            if admission["admitted"] and chance.random() < 0.3:
                engine.settle(admission)
    assert refused >= {"requests", "tokens"}


def test_the_default_shows_and_the_most_used_model_counts(shared_engine: Engine) -> None:
    engine = shared_engine
    engine.into_a_fresh_minute()
    customer, model, _ = world(engine)
    told = read(engine, customer)
    assert told["limits"] == {"requests_per_minute": DEFAULT}
    limit(engine, {"p_key_id": customer.key_id, "p_model": model}, requests_per_minute=2)
    # a model that nobody uses says nothing of the others
    assert read(engine, customer)["limits"] == {"requests_per_minute": DEFAULT}
    engine.admitted(customer.key_hash)
    engine.admitted(customer.key_hash, p_models=[model])
    assert read(engine, customer)["limits"] == {"requests_per_minute": {"limit": 2, "used": 1, "mark": 1}}
    assert read(engine, customer, "echo")["limits"] == {"requests_per_minute": DEFAULT | {"used": 1}}
    assert read(engine, customer)["refusal"] is None
    engine.admitted(customer.key_hash, p_models=[model])
    refusal = read(engine, customer)["refusal"]
    assert (refusal["refusal"], refusal["limit"], refusal["of_model"]) == ("rate_limit_exceeded", "2", model)
    assert read(engine, customer, "echo")["refusal"] is None
    # the next minute is a new one
    engine.run(
        "update gateway.limit_counters set window_start = window_start - interval '1 minute'"
        " where subject_id = %s",
        customer.key_id,
    )
    told = read(engine, customer)
    assert (told["limits"], told["refusal"]) == ({"requests_per_minute": DEFAULT}, None)
    engine.settings(default_requests_per_minute=None)
    assert read(engine, customer)["limits"] == {}


def test_of_windows_of_one_name_the_one_with_the_least_left_shows(shared_engine: Engine) -> None:
    engine = shared_engine
    engine.into_a_fresh_minute()
    customer, model, _ = world(engine)
    other = engine.key(customer.id)[1]
    limit(engine, {"p_key_id": customer.key_id}, requests_per_day=5)
    limit(engine, {"p_customer_id": customer.id}, requests_per_day=6, spend_usd_per_month="0.5")
    assert read(engine, customer)["limits"]["requests_per_day"] == {"limit": 5, "used": 0, "mark": 4}
    for _ in range(3):
        engine.settle(engine.admitted(other, p_models=[model]))
    told = read(engine, customer)["limits"]
    assert told["requests_per_day"] == {"limit": 6, "used": 3, "mark": 4}
    # three times 100 tokens at 2 and 50 at 8 USD per million, and 5 %
    assert told["spend_usd_per_month"] == {"limit": "0.5", "used": "0.00189", "mark": "0.4"}
    of_customer = engine.call("read_limits", p_customer_id=customer.id)
    # the default is for each key and model
    assert of_customer["limits"] == {name: told[name] for name in ("requests_per_day", "spend_usd_per_month")}


@pytest.mark.parametrize(
    "zone", ["UTC", "Asia/Kolkata", "Asia/Kathmandu", "America/New_York", "Pacific/Kiritimati"]
)
def test_windows_end_by_the_customers_clock(shared_engine: Engine, zone: str) -> None:
    engine = shared_engine
    customer, _, _ = world(engine)
    engine.run("update gateway.customers set time_zone = %s where id = %s", zone, customer.id)
    engine.into_a_fresh_minute(1)
    told = read(engine, customer)
    assert told["time_zone"] == zone
    now = datetime.now(UTC).astimezone(ZoneInfo(zone))
    minute = now.replace(second=0, microsecond=0)
    day = minute.replace(hour=0, minute=0)
    month = day.replace(day=1)
    expected = {
        "minute": minute + timedelta(minutes=1),
        "hour": minute.replace(minute=0) + timedelta(hours=1),
        "day": day + timedelta(days=1),
        "month": (month + timedelta(days=32)).replace(day=1),
    }
    assert {name: datetime.fromisoformat(at) for name, at in told["reset_times"].items()} == expected


def test_money_is_asked_for_unless_the_model_is_free(shared_engine: Engine) -> None:
    engine = shared_engine
    customer, model, _ = world(engine, usd="0.000002")
    free, free_model, _ = world(engine, input="0", output="0")
    assert read(engine, customer)["refusal"] is None
    refusal = assert_agrees(engine, customer, model)
    assert refusal is not None
    assert (refusal["refusal"], refusal["needed_usd"]) == ("insufficient_credits", "0.0000021")
    poor = engine.customer(None)
    assert read(engine, poor)["refusal"]["refusal"] == "insufficient_credits"
    assert assert_agrees(engine, poor, free_model) is None
    engine.settings(billing_mode="flat")
    refusal = assert_agrees(engine, poor, free_model)
    assert refusal is not None
    assert refusal["needed_usd"] == "0.00002"
    assert read(engine, free)["refusal"] is None


def test_a_busy_service_is_gone_round(shared_engine: Engine) -> None:
    engine = shared_engine
    engine.into_a_fresh_minute()
    customer, model, service = world(engine)
    limit(engine, {"p_service_id": service}, requests_per_minute=0)
    refusal = assert_agrees(engine, customer, model)
    assert refusal is not None
    assert refusal["subject"] == "service"
    engine.service([model])
    assert assert_agrees(engine, customer, model) is None


@pytest.mark.parametrize(
    "refusal",
    ["model_not_found", "model_not_allowed", "model_not_served", "model_not_priced", "scope_missing"],
)
def test_what_no_limit_refuses(shared_engine: Engine, refusal: str) -> None:
    engine = shared_engine
    customer, model, service = world(engine)
    if refusal == "model_not_found":
        model = "none-such"
    elif refusal == "model_not_allowed":
        engine.run("update gateway.api_keys set allowed_models = '{}' where id = %s", customer.key_id)
    elif refusal == "model_not_served":
        engine.call("delete_service", p_id=service)
    elif refusal == "model_not_priced":
        model = f"unpriced-{customer.id}"
        engine.model(model, {})
        engine.service([model])
    else:
        engine.run("update gateway.api_keys set scopes = '{usage}' where id = %s", customer.key_id)
    told = assert_agrees(engine, customer, model)
    assert told is not None
    assert told["refusal"] == refusal


def test_another_customers_key_is_unknown(shared_engine: Engine) -> None:
    engine = shared_engine
    customer, stranger = engine.customer(), engine.customer()
    assert engine.call("read_limits", p_customer_id=customer.id, p_key_id=stranger.key_id) is None
    assert engine.call("read_limits", p_customer_id=10**9) is None
    assert engine.call("read_limits", p_customer_id=customer.id)["limits"] == {}
