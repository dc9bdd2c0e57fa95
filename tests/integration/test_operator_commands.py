"""The operator's command line against a served gateway and its database."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from infra.cli import app
from infra.local.state import StackState
from infra.operator.api import OperatorError
from infra.operator.doctor import examine
from tests.fixtures.gateway import RunningGateway, gateway, module_gateway

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from typer.testing import Result

    from tests.fixtures.database import Database

    Run = Callable[..., Result]

__all__ = ["gateway", "module_gateway"]


@pytest.fixture(scope="module")
def environment(module_gateway: RunningGateway, module_database: Database) -> dict[str, str]:
    settings = module_gateway.settings
    return {
        "SLUICE_URL": module_gateway.url,
        "SLUICE_ADMIN_KEY": module_gateway.admin_key(),
        "DATABASE_URL": module_database.url,
        "SLUICE_REST_URL": settings.rest_url,
        "SUPABASE_KEY": settings.supabase_key.get_secret_value(),
        "SLUICE_MASTER_KEYS": '{"one": "MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE="}',
        "COLUMNS": "200",
    }


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    def invoke(*arguments: str, **options: Any) -> Result:
        result = CliRunner().invoke(app, arguments, env=environment, **options)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


def test_users_credits_and_keys(run: Run, gateway: RunningGateway) -> None:
    made = run("users", "add", "Ada Lovelace", "--email", "ada@example.org", "--credits", "50000")
    key = made.output.split()[-1]
    assert key.startswith("sk_")
    assert "ada@example.org" in run("users", "list", "--search", "lovelace").output
    rows = json.loads(run("users", "list", "--search", "ada@example.org", "--json").output)
    assert [row["credits"] for row in rows] == [50000]

    assert "100,000" in run("credits", "add", "ada@example.org", "1", "--reference", "invoice-1").output
    again = run("credits", "add", "ada@example.org", "1", "--reference", "invoice-1")
    assert "booked before" in again.output
    run("credits", "add", "ada@example.org", "--", "-0.5")
    assert "75,000" in run("credits", "show", "ADA@example.org").output

    second = run("keys", "create", "ada@example.org", "--name", "second", "--scope", "usage").output.strip()
    listed = json.loads(run("keys", "list", "--user", "ada@example.org", "--json").output)
    key_id = next(row["id"] for row in listed if row["name"] == "second")
    client = gateway.http()

    def status(secret: str) -> int:
        return client.get("/user/balance", headers={"authorization": f"Bearer {secret}"}).status_code

    rotated = run("keys", "rotate", str(key_id)).output.strip()
    assert (status(second), status(rotated)) == (401, 200)
    assert "is off" in run("keys", "toggle", str(key_id)).output
    assert status(rotated) == 401
    assert "second" in run("keys", "list", "--user", "ada@example.org").output
    run("keys", "revoke", str(key_id), "--yes")

    run("users", "suspend", "ada@example.org")
    assert status(key) == 403
    run("users", "resume", "ada@example.org")
    assert status(key) == 200
    customer_id = str(rows[0]["id"])
    assert run("users", "erase", customer_id, input="n\n").exit_code == 1
    assert status(key) == 200
    run("users", "erase", customer_id, "--yes")
    assert status(key) in {401, 403}
    assert "Lovelace" not in run("users", "list").output


def test_usage_as_a_table_and_a_line(run: Run, gateway: RunningGateway) -> None:
    customer = gateway.customer()
    model = gateway.model("echo")
    for _ in range(3):
        gateway.openai(customer).chat.completions.create(
            model=model, messages=[{"role": "user", "content": "Hello"}]
        )
    series = run("usage", "--user", str(customer.id)).output
    assert "requests" in series
    assert "█" in series
    grouped = run("usage", "--user", str(customer.id), "--by", "model").output
    assert model in grouped
    told = json.loads(run("usage", "--user", str(customer.id), "--json").output)
    assert sum(row["requests"] for row in told["data"]) == 3


def test_prices_are_compared_then_brought_in(run: Run, tmp_path: Path) -> None:
    header = (
        "model,provider,upstream_model,context_length,max_output_tokens,input_modalities,output_modalities,"
        "input,output,source,source_date"
    )
    line = "cli/{},openai-compatible,cli-{},1000,100,text,text,{},2,https://example.org/prices,2026-11-21"
    path = tmp_path / "prices.csv"
    path.write_text("\n".join([header, *(line.format(n, n, 1) for n in range(600))]) + "\n")
    assert "600 new models" in run("prices", "import", str(path), "--dry-run").output
    assert "cli/" not in run("prices", "list", "--model", "cli/1").output
    assert "600 lines are in force" in run("prices", "import", str(path), "--yes").output
    assert "600 unchanged" in run("prices", "import", str(path)).output

    path.write_text(path.read_text().replace(line.format(7, 7, 1), line.format(7, 7, 3)))
    told = run("prices", "import", str(path), "--dry-run").output
    assert "1 changed prices" in told
    assert "cli/7" in told

    path.write_text(path.read_text().replace(line.format(500, 500, 1), line.format(500, 500, "one")))
    with pytest.raises(OperatorError, match="502"):
        run("prices", "import", str(path), "--dry-run")


def test_tiers_are_brought_in_wherever_they_stand_and_listed(run: Run, tmp_path: Path) -> None:
    header = "input,output,model,provider,above_input_tokens"
    lines = [f"1,2,tier/{number},openai-compatible," for number in range(400)]
    # the tier of the first stands last, and the last one's first
    path = tmp_path / "prices.csv"
    tiers = [f"{4 + number},9,tier/{number},openai-compatible,200000" for number in (399, 0)]
    path.write_text("\n".join([header, tiers[0], *lines, tiers[1]]) + "\n")
    assert "400 new models" in run("prices", "import", str(path), "--dry-run").output
    assert "400 lines are in force" in run("prices", "import", str(path), "--yes").output
    listed = run("prices", "list", "--model", "tier/0").output
    assert "> 200,000" in listed
    path.write_text(path.read_text().replace(tiers[1], tiers[1].replace("4,9", "5,9")))
    told = run("prices", "import", str(path), "--dry-run").output
    assert "1 changed prices" in told
    assert "input_above_200000" in told
    path.write_text(path.read_text().replace("\n" + lines[0], "", 1))
    with pytest.raises(OperatorError, match=r"line 402, above_input_tokens: is a tier of an offer"):
        run("prices", "import", str(path), "--dry-run")


def test_the_doctor_finds_nothing_on_a_sound_gateway(run: Run, gateway: RunningGateway) -> None:
    gateway.model("echo")
    told = run("doctor")
    assert told.exit_code == 0, told.output
    assert "✗" not in told.output
    for subject in (
        "PostgreSQL",
        "clock",
        "up to date",
        "roles",
        "maintenance",
        "REST API",
        "books",
        "answers in",
    ):
        assert subject in told.output, told.output


def test_the_doctor_finds_what_is_wrong_and_says_how_to_mend_it(
    run: Run, gateway: RunningGateway, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.connection.execute("grant usage on schema gateway to anon")
    gateway.connection.execute("grant select on gateway.customers to anon")
    gateway.connection.execute(
        "delete from supabase_migrations.schema_migrations where version = '20261121120000'"
    )
    gateway.service(gateway.model("echo"), base_url="http://127.0.0.1:9/v1")
    monkeypatch.setitem(environment, "SUPABASE_KEY", "wrong")
    try:
        told = run("doctor")
    finally:
        gateway.connection.execute("revoke all on gateway.customers from anon")
        gateway.connection.execute("revoke usage on schema gateway from anon")
    assert told.exit_code == 1
    for finding in ("not applied", "open to roles", "SUPABASE_KEY is refused", "connect"):
        assert finding in told.output, told.output
    assert told.output.count("→") >= 4


def test_the_doctor_finds_events_that_were_given_up(
    gateway: RunningGateway, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said() -> list[tuple[bool | None, str]]:
        return [
            (finding.good, finding.message) for finding in examine(environment) if finding.subject == "alerts"
        ]

    monkeypatch.setattr("infra.operator.doctor._exposed_schemas", lambda _: iter(()))
    monkeypatch.setattr("infra.operator.doctor._with_gateway", lambda _: iter(()))
    connection = gateway.connection
    claim = "select api.claim_topic_deliveries(%s, 1, 60)"
    assert said() == [(None, "no webhook and no SNS topic is set: nobody is told of events")]
    try:
        connection.execute(claim, ["arn:aws:sns:eu-central-1:123456789012:alerts"])
        connection.execute("select gateway.raise_event('ledger.ok', 'ledger', '{}')")
        assert said() == [(True, "the SNS topic has taken all but 1 that wait")]
        connection.execute("update gateway.topic_deliveries set next_attempt_at = null")
        assert said() == [(False, "1 events were given up that the SNS topic did not take")]
    finally:
        connection.execute(claim, [None])
        connection.execute("delete from gateway.events")


def test_the_doctor_says_what_it_could_not_look_at(tmp_path: Path) -> None:
    told = CliRunner().invoke(
        app, ["doctor"], env={"DATA_DIR": str(tmp_path), "DATABASE_URL": "", "SLUICE_URL": ""}
    )
    assert told.exit_code == 0, told.output
    assert "make dev" in told.output


def test_what_can_be_put_right_ends_in_one_line(tmp_path: Path) -> None:
    StackState.create().write(tmp_path)
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-m", "infra.cli", "users", "list"],
        env={
            **kept,
            "DATA_DIR": str(tmp_path),
            "PORT": "9",
            "PYTHONPATH": os.pathsep.join(["functions", "."]),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("sluice: the gateway at http://127.0.0.1:9 does not answer")
    assert done.stderr.count("\n") == 1


def test_a_statement_is_shown_and_written_as_csv(run: Run, gateway: RunningGateway) -> None:
    customer = gateway.customer("12.5")
    month = gateway.connection.execute("select to_char(now(), 'YYYY-MM')").fetchone()
    assert month is not None
    shown = run("statements", str(customer.id), month[0]).output
    assert "paid in 12.5" in shown
    assert "So far: 12.5 USD." in shown
    told = json.loads(run("statements", str(customer.id), month[0], "--json").output)
    assert (told["customer_id"], told["closing_balance_usd"]) == (customer.id, "12.5")
    lines = run("statements", str(customer.id), month[0], "--csv").output.splitlines()
    assert lines[0].startswith("section,at,what,")
    assert lines[-1].startswith("closing_balance,")
    with pytest.raises(OperatorError, match="a month is written as"):
        run("statements", str(customer.id), "../../x")


def test_payments_are_listed_and_a_replay_says_what_is_not_set_up(run: Run) -> None:
    assert "No payments." in run("payments", "list").output
    with pytest.raises(OperatorError, match="not set up here"):
        run("payments", "replay")


def test_the_doctor_says_whether_stripe_is_set_up(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(**more: str) -> list[tuple[bool | None, str]]:
        found = examine({**environment, **more})
        return [(finding.good, finding.message) for finding in found if finding.subject == "Stripe"]

    monkeypatch.setattr("infra.operator.doctor._with_database", lambda _: iter(()))
    monkeypatch.setattr("infra.operator.doctor._exposed_schemas", lambda _: iter(()))
    monkeypatch.setattr("infra.operator.doctor._with_gateway", lambda _: iter(()))
    secret = {"SLUICE_STRIPE_SECRET_KEY": "sk_test_0123456789abcdef"}
    ((good, message),) = said()
    assert (good, "not configured" in message) == (None, True)
    ((good, message),) = said(**secret)
    assert (good, "SLUICE_STRIPE_WEBHOOK_SECRET" in message) == (False, True)
    whole = {
        "SLUICE_STRIPE_WEBHOOK_SECRET": "whsec_0123456789abcdef",
        "SLUICE_PUBLIC_URL": "https://a.example",
    }
    assert said(**secret, **whole) == [(True, "configured, in test mode")]
