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
from tests.benchmarks.contenders import PROVIDER_KEY, Contender, started
from tests.benchmarks.fixed_answer import PLAIN_MODEL, STREAM_MODEL
from tests.benchmarks.load import Endpoint, LoadError
from tests.benchmarks.upstream import PATH, PLAIN, STREAM

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.benchmarks.upstream import Upstream

OURS = "Sluice"

_PROVIDER = "openai-compatible"
_SETTLE_SECONDS = 20.0


@contextlib.contextmanager
def sluice(upstream: Upstream, directory: Path) -> Iterator[Contender]:
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
            key = _seed(connection, data_dir, upstream)
        chat, headers = f"http://{HOST}:{port}/v1{PATH}", {"authorization": f"Bearer {key}"}
        started_by_it = cpu.children(pid)
        yield Contender(
            OURS,
            _commit(),
            Endpoint(chat, headers, stream=False),
            Endpoint(chat, headers, stream=True),
            {
                "own": cpu.Watched(pid, with_children=False),
                "PostgREST": cpu.Watched(started_by_it["postgrest"]),
                "PostgreSQL": cpu.Watched(started_by_it["postgres"]),
            },
            lambda: check_books(url),
        )


def sluice_database_url(directory: Path) -> str:
    """Return the superuser's URL of the database that `sluice` runs on."""
    return database_url({"DATA_DIR": str(directory / "sluice")})


def _seed(connection: psycopg.Connection[Any], data_dir: Path, upstream: Upstream) -> str:
    """Add a model and a service for each of the upstream's answers, and a customer; return the key."""
    state = StackState.read(data_dir)
    assert state is not None
    for model, prefix in ((PLAIN_MODEL, PLAIN), (STREAM_MODEL, STREAM)):
        add_model(connection, model)
        service_id, base_url = call(connection, "reserve_service_id"), upstream.url + prefix
        call(
            connection,
            "create_service",
            p_id=service_id,
            p_name=f"nginx for {model}",
            p_provider=_PROVIDER,
            p_base_url=base_url,
            p_provider_key=service_keys.seal(
                PROVIDER_KEY,
                master_keys={name: base64.b64decode(each) for name, each in state.master_keys.items()},
                service_id=service_id,
                provider=_PROVIDER,
                base_url=base_url,
            ),
            p_enabled_models=[model],
        )
    key = auth.new_key()
    add_customer(connection, "bench", key_hash=auth.key_hash(key), prefix=auth.key_prefix(key))
    return key


def add_model(connection: psycopg.Connection[Any], name: str) -> None:
    """Add a priced model that any OpenAI-compatible service may offer."""
    prices = {"input": "0.50", "cached_input": "0.05", "output": "1.50"}
    offer = {"provider": _PROVIDER, "upstream_model": name, "prices": prices}
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
