"""Admission and settlement alone, by pgbench, beside two bare updates on a table of the same shape."""

from __future__ import annotations

import math
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import conninfo, sql

from infra.local.database import create_database, migrate, seed
from infra.local.postgres import binaries
from tests.benchmarks.load import LoadError
from tests.benchmarks.sluice import add_model, check_books, value

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

CUSTOMERS = 1000
_WARM_UP_SECONDS = 1
# A connection plans at its first pair, which no other passes where it holds the row: 40 ms of CPU at least.
_PLANNING_SECONDS = 0.1
# Where others use the machine it takes longer; a run that has not got warm is made again.
_PATIENCE = (1, 3)
SCRIPTS = {"admit + settle": "admit_and_settle.sql", "two bare updates": "two_updates.sql"}
PLACES = {"1,000 customers": CUSTOMERS, "one hot customer": 1}

_DATABASE = "sluice_bench"
_MODEL = "bench"
_PROVIDER = "openai-compatible"
_SETTINGS = (
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "autovacuum",
    "shared_buffers",
    "max_wal_size",
    "checkpoint_timeout",
    "max_connections",
)

# As many keys as customers; the digest of "bench <n>" is what the script computes again.
_CUSTOMERS = """
do $$
declare
    v_customer_id bigint;
begin
    for n in 1 .. {count} loop
        v_customer_id := (
            api.create_customer(p_name => 'Bench ' || n, p_email => n || '@example.org') ->> 'id')::bigint;
        perform api.add_credits(p_customer_id => v_customer_id, p_usd => 1000000);
        perform api.create_key(
            p_customer_id => v_customer_id, p_name => 'bench', p_prefix => 'sk_bench',
            p_secret_hash => encode(sha256(convert_to('bench ' || n, 'UTF8')), 'hex'),
            p_rate_limit => 1000000000);
    end loop;
end
$$;
"""
_BARE = """
create schema bare;
create table bare.accounts (
    like gateway.accounts including all excluding constraints, check (balance_usd - held_usd >= 0)
) with (fillfactor = 50);
insert into bare.accounts (customer_id, balance_usd) select n, 1000000 from generate_series(1, {count}) as n;
grant usage on schema bare to service_role;
grant select, update on bare.accounts to service_role;
"""


def warm_up_seconds(script: str, connections: int) -> int:
    """Return how long the start of a run takes that is not counted: a pool's connections are warm."""
    planning = _PLANNING_SECONDS * connections if script == SCRIPTS["admit + settle"] else 0
    return math.ceil(_WARM_UP_SECONDS + planning)


@dataclass(frozen=True, slots=True)
class Pairs:
    """What a closed loop of connections came to once it was warm. A pair is two transactions."""

    pairs: int
    pairs_per_second: float
    p50_ms: float
    p99_ms: float


class Bench:
    """A database of the bench's own on the server at `url`, the superuser's."""

    def __init__(self, url: str) -> None:
        self._parameters: Mapping[str, Any] = {**conninfo.conninfo_to_dict(url), "dbname": _DATABASE}
        self._url = conninfo.make_conninfo("", **self._parameters)
        self._admin_url = url
        self._paid = 0

    def prepare(self) -> dict[str, str]:
        """Make the database and its customers; return the server's version and the settings that matter."""
        create_database(self._admin_url, _DATABASE)
        migrate(self._url)
        seed(self._url)
        with psycopg.connect(self._url, autocommit=True) as connection:
            add_model(connection, _MODEL)
            service_id = value(connection, "select api.reserve_service_id()")
            connection.execute(
                "select api.create_service(p_id => %s, p_name => 'bench', p_provider => %s,"
                " p_base_url => 'http://127.0.0.1:9/v1', p_enabled_models => %s)",
                [service_id, _PROVIDER, [_MODEL]],
            )
            count = sql.Literal(CUSTOMERS)
            connection.execute(sql.SQL(_CUSTOMERS).format(count=count))
            connection.execute(sql.SQL(_BARE).format(count=count))
            connection.execute("vacuum analyze")
            connection.execute("checkpoint")
            shown = {name: str(value(connection, f"show {name}")) for name in ("server_version", *_SETTINGS)}
        shown["version"] = shown.pop("server_version")
        return shown

    def run(self, script: str, *, customers: int, connections: int, seconds: int) -> Pairs:
        """Run one script. Raises LoadError where a transaction fails."""
        for patience in _PATIENCE:
            whole = warm_up_seconds(script, connections) * patience + seconds
            pairs = self._run(script, customers=customers, connections=connections, seconds=whole)
            warm_at = _warm_at(pairs)
            warm = [pair for pair in pairs if pair.ended - pair.took_ms / 1e3 >= warm_at]
            if len(warm) > connections:
                cuts = quantiles((pair.took_ms for pair in warm), n=100, method="inclusive")
                per_second = len(warm) / (max(pair.ended for pair in warm) - warm_at)
                return Pairs(len(warm), per_second, cuts[49], cuts[98])
        raise LoadError(
            f"{connections} connections did not get warm: the machine has too little time for them"
        )

    def _run(self, script: str, *, customers: int, connections: int, seconds: int) -> list[_Pair]:
        """Run pgbench for so many seconds and return all pairs that it made."""
        with tempfile.TemporaryDirectory(prefix="sluice-pgbench-") as directory:
            command = [
                *(str(binaries() / "pgbench"), "--no-vacuum", "--protocol=prepared"),
                *(f"--file={_path(script)}", f"--define=customers={customers}"),
                *(f"--client={connections}", f"--time={seconds}"),
                *("--log", f"--log-prefix={directory}/log"),
            ]
            try:
                ran = subprocess.run(
                    command,
                    env=self._environment(),
                    capture_output=True,
                    text=True,
                    timeout=seconds + 60,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise LoadError("pgbench did not end") from error
            pairs = list(_pairs(Path(directory)))
        if ran.returncode != 0 or not pairs:
            raise LoadError(f"pgbench failed: {(ran.stderr or ran.stdout)[-600:].strip()}")
        if script == SCRIPTS["admit + settle"]:
            self._paid += len(pairs)
        return pairs

    def check(self) -> int:
        """Return how many pairs were paid. Raises LoadError unless exactly so many are in the books."""
        settled = check_books(self._url)
        if settled != self._paid:
            raise LoadError(f"pgbench counts {self._paid} pairs, the books {settled}")
        return settled

    def _environment(self) -> dict[str, str]:
        given = self._parameters
        return {
            "PATH": os.environ.get("PATH", ""),
            "PGHOST": given["host"],
            "PGPORT": str(given["port"]),
            "PGUSER": given["user"],
            "PGPASSWORD": given["password"],
            "PGDATABASE": given["dbname"],
            # As the role that the gateway has.
            "PGOPTIONS": "-c role=service_role",
        }


def _path(script: str) -> Path:
    return Path(__file__).with_name(script)


@dataclass(frozen=True, slots=True)
class _Pair:
    client: int
    ended: float
    """In seconds, by the clock."""
    took_ms: float


def _pairs(directory: Path) -> Iterator[_Pair]:
    """Yield the pairs as pgbench's log has them."""
    for log in directory.iterdir():
        with log.open(encoding="ascii") as lines:
            for line in lines:
                client, _number, took, _script, second, microsecond = line.split()
                yield _Pair(int(client), int(second) + int(microsecond) / 1e6, int(took) / 1e3)


def _warm_at(pairs: Sequence[_Pair]) -> float:
    """Return when every connection had ended its first pair, and a second had passed."""
    first: dict[int, float] = {}
    for pair in pairs:
        first[pair.client] = min(first.get(pair.client, math.inf), pair.ended)
    began = min((pair.ended - pair.took_ms / 1e3 for pair in pairs), default=0)
    return max(began + _WARM_UP_SECONDS, *first.values(), 0)
