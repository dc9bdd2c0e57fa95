"""Ourselves, as `make dev` serves us: one worker, the embedded PostgreSQL at its defaults, PostgREST."""

from __future__ import annotations

import base64
import contextlib
import os
import subprocess
import sys
import time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.types.json import Jsonb

from gateway import auth, service_keys
from infra.local import paths
from infra.local.processes import HOST, free_port
from infra.local.seeding import call
from infra.local.stack import database_url
from infra.local.state import StackState
from tests.benchmarks import cpu
from tests.benchmarks.contenders import MANY_CUSTOMERS, PROVIDER_KEY, Contender, started
from tests.benchmarks.fixed_answer import PLAIN_MODEL, STREAM_MODEL
from tests.benchmarks.load import Endpoint, LoadError
from tests.benchmarks.paced import PROMPT_TOKENS
from tests.benchmarks.streams import PACES
from tests.benchmarks.upstream import PATH, PLAIN, STREAM

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.benchmarks.paced import Pace
    from tests.benchmarks.upstream import Upstream

OURS = "Sluice"

_PROVIDER = "openai-compatible"
_PRICES = {"input": "0.50", "cached_input": "0.05", "output": "1.50"}
"""USD per million tokens."""
_SETTLE_SECONDS = 20.0


@contextlib.contextmanager
def sluice(upstream: Upstream, paced_url: str, directory: Path) -> Iterator[Contender]:
    """`make dev` on a database of its own, with nginx as a service and a customer who can pay."""
    data_dir = directory / "sluice"
    data_dir.mkdir()
    port = free_port()
    environment = {
        **{name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ},
        "PYTHONPATH": os.pathsep.join([str(paths.FUNCTIONS), str(paths.REPOSITORY)]),
        "DATA_DIR": str(data_dir),
        "PORT": str(port),
    }
    command = [sys.executable, "-m", "infra.cli", "dev"]
    with started(
        command, directory / "sluice.log", environment, f"http://{HOST}:{port}/models/simple"
    ) as pid:
        url = database_url({"DATA_DIR": str(data_dir)})
        with psycopg.connect(url) as connection:
            key, *others = _seed(connection, data_dir, upstream, paced_url)
        chat, headers = f"http://{HOST}:{port}/v1{PATH}", {"authorization": f"Bearer {key}"}
        started_by_it = cpu.children(pid)
        yield Contender(
            OURS,
            _commit(),
            Endpoint(chat, headers, stream=False),
            Endpoint(chat, headers, stream=True),
            Endpoint(chat, headers, stream=True),
            {
                "own": cpu.Watched(pid, with_children=False),
                "PostgREST": cpu.Watched(started_by_it["postgrest"]),
                "PostgreSQL": cpu.Watched(started_by_it["postgres"]),
            },
            lambda: check_books(url),
            lambda pace, count: check_streams(url, pace, count),
            Endpoint(chat, headers, stream=False, keys=(key, *others)),
        )


def sluice_database_url(directory: Path) -> str:
    """Return the superuser's URL of the database that `sluice` runs on."""
    return database_url({"DATA_DIR": str(directory / "sluice")})


def _seed(
    connection: psycopg.Connection[Any], data_dir: Path, upstream: Upstream, paced_url: str
) -> list[str]:
    """Add a model and a service for each of the upstreams' answers, and customers; return their keys."""
    state = StackState.read(data_dir)
    assert state is not None
    for models, base_url in (
        ([PLAIN_MODEL], upstream.url + PLAIN),
        ([STREAM_MODEL], upstream.url + STREAM),
        ([pace.model for pace in PACES], paced_url),
    ):
        for model in models:
            add_model(connection, model)
        service_id = call(connection, "reserve_service_id")
        call(
            connection,
            "create_service",
            p_id=service_id,
            p_name=f"bench for {models[0]}",
            p_provider=_PROVIDER,
            p_base_url=base_url,
            p_provider_key=service_keys.seal(
                PROVIDER_KEY,
                master_keys={name: base64.b64decode(each) for name, each in state.master_keys.items()},
                service_id=service_id,
                provider=_PROVIDER,
                base_url=base_url,
            ),
            p_enabled_models=models,
        )
    keys = [auth.new_key() for _ in range(MANY_CUSTOMERS)]
    for number, key in enumerate(keys):
        name = f"bench-{number}"
        add_customer(connection, name, key_hash=auth.key_hash(key), prefix=auth.key_prefix(key))
    return keys


def add_model(connection: psycopg.Connection[Any], name: str) -> None:
    """Add a priced model that any OpenAI-compatible service may offer."""
    offer = {"provider": _PROVIDER, "upstream_model": name, "prices": _PRICES}
    call(
        connection,
        "create_model",
        p_name=name,
        p_offers=Jsonb([offer]),
        p_context_length=128_000,
        p_max_output_tokens=16_384,
    )


def add_customer(connection: psycopg.Connection[Any], name: str, *, key_hash: str, prefix: str) -> None:
    """Add a customer whom no limit and no lack of money stops, as every customer with its counter row."""
    customer = call(connection, "create_customer", p_name=name, p_email=f"{name}@example.org")
    call(connection, "add_credits", p_customer_id=customer["id"], p_usd=Decimal(1_000_000))
    call(
        connection,
        "create_key",
        p_customer_id=customer["id"],
        p_name="bench",
        p_prefix=prefix,
        p_secret_hash=key_hash,
        p_rate_limit=1_000_000_000,
    )


def check_books(url: str) -> int:
    """Wait until nothing is held; return how many requests were settled and charged.

    Raises LoadError where something stays held, the ledger doesn't add up or a request was refused.
    """
    deadline = time.monotonic() + _SETTLE_SECONDS
    with psycopg.connect(url, autocommit=True) as connection:
        while value(connection, "select count(*) from gateway.requests where state = 'held'"):
            if time.monotonic() > deadline:
                raise LoadError("requests stay held")
            time.sleep(0.1)
        told = call(connection, "check_ledger")
        if not told["ok"] or told["orphan_holds"]:
            raise LoadError(f"the ledger does not add up: {told}")
        if refused := value(connection, "select coalesce(sum(refusals), 0) from gateway.refusal_rollups"):
            raise LoadError(f"{refused} requests were refused")
        return int(
            value(
                connection, "select count(*) from gateway.requests where state = 'settled' and charge_usd > 0"
            )
        )


def check_streams(url: str, pace: Pace, count: int) -> None:
    """Raise LoadError unless so many streams are charged, each once and for its chunks."""
    check_books(url)
    million = Decimal(1_000_000)
    cost = (PROMPT_TOKENS * Decimal(_PRICES["input"]) + pace.chunks * Decimal(_PRICES["output"])) / million
    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute(
            "select r.state, r.outcome, r.input_tokens, r.output_tokens, r.usage_estimated, r.cost_usd,"
            " r.charge_usd = gateway.round_up_usd(r.cost_usd * (1 + r.commission_percent / 100))"
            " and r.charge_usd = r.collected_usd and r.charge_usd = -e.amount_usd, count(*)"
            " from gateway.requests as r left join gateway.ledger_entries as e on e.request_id = r.id"
            " where r.requested_model = %s group by 1, 2, 3, 4, 5, 6, 7",
            [pace.model],
        ).fetchall()
    expected = [("settled", "succeeded", PROMPT_TOKENS, pace.chunks, False, cost, True, count)]
    if found != expected:
        raise LoadError(f"the books have {found} of {pace.model}, and {expected} was streamed")


def value(connection: psycopg.Connection[Any], query: str) -> Any:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def _commit() -> str:
    command = ["git", "-C", str(paths.REPOSITORY), "describe", "--always", "--dirty"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10).stdout.strip()
    except OSError:
        told = ""
    return told or "no commit"
