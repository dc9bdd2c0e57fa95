"""`make dev` as a person meets it: it starts, answers the curl that it prints, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from decimal import Decimal
from typing import TYPE_CHECKING

import openai
import psycopg
import pytest

from gateway import auth
from infra.local.processes import HOST, free_port, port_is_free
from infra.local.stack import database_url
from tests.e2e.dev import DEV, PATIENCE, REPOSITORY, Dev, environment, started

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def wait_until_free(ports: tuple[int, ...], patience: float = 15.0) -> None:
    deadline = time.monotonic() + patience
    while not all(port_is_free(port) for port in ports):
        assert time.monotonic() < deadline, "something still listens"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    with started(tmp_path_factory.mktemp("dev") / "data") as running:
        yield running


def test_it_says_where_it_is_and_with_which_keys(dev: Dev) -> None:
    assert f"Sluice is ready on {dev.url}\n" in dev.output
    assert auth.is_key(dev.admin_key)
    assert auth.is_key(dev.demo_key)


def test_the_pasted_curl_answers_and_is_charged_to_the_last_digit(dev: Dev) -> None:
    before, _held = dev.balance()
    pasted = subprocess.run(
        ["bash", "-c", dev.curl],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
        env={**os.environ},
    )
    answer = json.loads(pasted.stdout)
    assert answer["choices"][0]["message"]["content"] == "You said: Hello"
    after, held = dev.balance()
    assert held == 0
    usage = answer["usage"]
    # USD per million tokens, 5 % commission: exact at ten decimals, so nothing is rounded
    cost = (usage["prompt_tokens"] * 50 + usage["completion_tokens"] * 150) * 105
    assert before - after == cost * Decimal("1e-10")


@pytest.mark.parametrize("model", ["sim/echo", "sim/claude", "sim/gemini"])
def test_the_official_sdk_streams_from_each_wire(dev: Dev, model: str) -> None:
    with openai.OpenAI(base_url=f"{dev.url}/v1", api_key=dev.demo_key, max_retries=0) as client:
        stream = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "Hello"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        == "You said: Hello"
    )
    assert chunks[-1].usage is not None


def test_a_second_stack_on_the_same_data_is_refused(dev: Dev) -> None:
    second = subprocess.run(
        DEV,
        env=environment(dev.data_dir, free_port()),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert second.returncode == 1
    assert f"another `make dev` runs on {dev.data_dir}" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_port_in_use_is_said_before_anything_is_started(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = subprocess.run(
            DEV,
            env=environment(tmp_path / "data", port),
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    assert refused.returncode == 1
    assert f"port {port} is in use" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "data" / "postgres").exists()


def test_the_admin_key_of_the_command_line_is_an_admins(dev: Dev) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "infra.cli", "admin-key"],
        env=environment(dev.data_dir, free_port()),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    key = made.stdout.strip()
    assert auth.is_key(key)
    with psycopg.connect(database_url({"DATA_DIR": str(dev.data_dir)})) as connection:
        row = connection.execute(
            "select api.authenticate_key(%s) -> 'scopes'", [auth.key_hash(key)]
        ).fetchone()
    assert row == (["admin"],)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_however_it_ends_nothing_is_left_and_the_next_goes_on(tmp_path: Path, how: signal.Signals) -> None:
    data_dir = tmp_path / "data"
    chosen = auth.new_key()
    with started(data_dir, ADMIN_KEY=chosen) as first:
        assert first.admin_key == chosen
        ports = first.ports()
        first.process.send_signal(how)
        first.process.wait(PATIENCE)
        assert first.process.returncode == (-how if how is signal.SIGKILL else 0)
        said = data_dir.with_name("data.err").read_text(encoding="utf-8")
        assert "Traceback" not in said
        wait_until_free(ports)
    with started(data_dir) as second:
        assert second.demo_key == first.demo_key
        assert second.ports() == ports
        assert second.balance() == (Decimal(5), Decimal(0))


@pytest.mark.slow
def test_it_does_not_outlive_a_make_that_was_killed(tmp_path: Path) -> None:
    # `; true` keeps the shell, which stands for make, from replacing itself
    command = ["bash", "-c", f"{DEV[0]} -m infra.cli dev; true"]
    with started(tmp_path / "data", command, MAKELEVEL="1") as running:
        ports = (*running.ports(), int(running.url.rpartition(":")[2]))
        running.process.kill()
        wait_until_free(ports)
