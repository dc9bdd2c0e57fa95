"""The README's commands, run as they stand there against a running `make dev`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.e2e.dev import REPOSITORY, Dev, environment, started

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def blocks(language: str, containing: str) -> list[str]:
    """The README's code blocks of a language that hold a text."""
    found = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    wanted = [block for block in found if containing in block]
    assert wanted, f"the README has no {language} block with {containing!r}"
    return wanted


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    with started(tmp_path_factory.mktemp("readme") / "data") as running:
        yield running


def as_run(block: str, dev: Dev) -> str:
    """The block with this machine's port and keys in place of the README's."""
    return (
        block.replace("http://127.0.0.1:8000", dev.url)
        .replace("sk_…", dev.demo_key)
        .replace("…", "a-key-of-yours")
        .replace(".venv/bin/sluice", f"{sys.executable} -m infra.cli")
    )


def run(script: str, dev: Dev, **more: str) -> str:
    port = dev.url.rpartition(":")[2]
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env={**environment(dev.data_dir, int(port)), "ADMIN_KEY": dev.admin_key, **more},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_its_curl_answers_as_it_shows(dev: Dev) -> None:
    (command,) = blocks("sh", "/v1/chat/completions")
    answer = json.loads(run(as_run(command, dev), dev))
    (shown,) = blocks("json", "gateway_usage")
    expected = json.loads(shown)
    assert answer["choices"][0]["message"].items() >= expected["choices"][0]["message"].items()
    assert answer["usage"].items() >= expected["usage"].items()
    charged = ("tokens_charged", "cost_usd", "charge_usd", "credits_charged")
    for name in charged:
        assert answer["gateway_usage"][name] == expected["gateway_usage"][name]
    assert answer["gateway_usage"].keys() == expected["gateway_usage"].keys()


def test_its_python_runs(dev: Dev, tmp_path: Path) -> None:
    for number, snippet in enumerate(blocks("python", "base_url")):
        path = tmp_path / f"snippet_{number}.py"
        path.write_text(as_run(snippet, dev), encoding="utf-8")
        assert "Hello" in run(f"{sys.executable} -W error::SyntaxWarning {path}", dev).replace("\n", "")


def test_its_calls_of_the_admin_routes_are_accepted(dev: Dev) -> None:
    (script,) = blocks("sh", "api() {")
    # Where a name has to be known to the world's name servers, one that needs none stands in for it.
    script = as_run(script, dev).replace("llm.example.com", "8.8.8.8")
    calls = script.split("\napi ")
    for call in calls[1:]:
        answer = json.loads(run(f"{calls[0]}\napi {call}", dev))
        assert "error" not in answer, (call, answer)


def test_its_command_line_works(dev: Dev, tmp_path: Path) -> None:
    (script,) = blocks("sh", "sluice doctor")
    prices = tmp_path / "prices.csv"
    prices.write_text(
        "model,provider,upstream_model,context_length,max_output_tokens,input_modalities,output_modalities,"
        "input,output,source,source_date\n"
        "readme/model,openai-compatible,m,1000,100,text,text,1,2,https://example.org,2026-11-21\n",
        encoding="utf-8",
    )
    for line in as_run(script, dev).splitlines():
        command = line.partition("   #")[0].replace("prices.csv", f"{prices} --yes")
        # A service that was added above has a key that its provider does not know: the doctor says so.
        tolerated = "doctor" in command
        # Ada exists already, if the calls above came first.
        command = command.replace("ada@", "ada-2@").replace("users add Ada", "users add Ada2")
        run(f"{command} || {'true' if tolerated else 'false'}", dev)
