"""`make dev LOCAL_MODELS=…`: a model of one's own is loaded, sold and paid for, or what lacks is said."""

from __future__ import annotations

import re
import subprocess
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import openai
import pytest

from infra.local.processes import free_port
from tests.e2e.dev import DEV, PATIENCE, REPOSITORY, environment, started
from tests.fixtures.local_models import environment as local_environment
from tests.fixtures.local_models import reference

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.dev import Dev
    from tests.fixtures.local_models import Reference

__all__ = ["reference"]

KEY = "sk-local-models-of-the-readme"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, reference: Reference) -> Path:
    return reference.build(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Dev]:
    with started(tmp_path_factory.mktemp("local") / "data", LOCAL_MODELS=f"tiny={model}") as running:
        yield running


def ask(dev: Dev, name: str, **more: Any) -> tuple[str | None, int, int]:
    """A chat; its text, and the tokens of prompt and answer."""
    with openai.OpenAI(base_url=f"{dev.url}/v1", api_key=dev.demo_key, max_retries=0) as client:
        told = client.chat.completions.create(
            model=name, messages=[{"role": "user", "content": "Hello"}], **more
        )
    assert told.usage is not None
    return told.choices[0].message.content, told.usage.prompt_tokens, told.usage.completion_tokens


@pytest.mark.slow
def test_model_of_ones_own_is_sold_beside_the_others(dev: Dev, model: Path, reference: Reference) -> None:
    right = reference.greedy(model, reference.encode(model, "Hello"), 20)
    assert "local-models" in dev.output
    before, _ = dev.balance()
    text, *first = ask(dev, "local/tiny", max_tokens=20, temperature=0)
    assert (text, first[1]) == (right["text"], len(right["tokens"]))
    # The model's maximum is its whole context: one who names no bound gets as much as fits.
    _, *second = ask(dev, "local/tiny", seed=1)
    assert sum(second) <= 256
    # The demo's prices, and 5 %.
    charge = sum(sent * 50 + made * 150 for sent, made in (first, second)) * 105 * Decimal("1e-10")
    assert dev.balance() == (before - charge, Decimal(0))


@pytest.mark.slow
def test_the_guides_commands_serve_and_sell_a_model(dev: Dev, model: Path, reference: Reference) -> None:
    """As they stand there, but for the weights, which can't be fetched here, and the port."""
    guide = (REPOSITORY / "infra" / "docs" / "local-models.md").read_text(encoding="utf-8")
    setup = (REPOSITORY / "infra" / "docs" / "setup.md").read_text(encoding="utf-8")
    [command] = re.findall(r"```sh\n(PYTHONPATH=.*gateway\.local_models)\n```", guide)
    [calls] = re.findall(r"```sh\n(# what a token of it costs.*?)```", guide, re.DOTALL)
    [api] = re.findall(r"^api\(\) .*$", setup, re.MULTILINE)
    port = str(free_port())
    variables = {**local_environment(), "LOCAL_KEY": KEY, "SLUICE_LOCAL_MODELS_PORT": port}
    with subprocess.Popen(
        [
            "bash",
            "-c",
            "exec env " + command.replace("SLUICE_LOCAL_MODELS=gpt2", f"SLUICE_LOCAL_MODELS=gpt2={model}"),
        ],
        cwd=REPOSITORY,
        env=variables,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == f"Local models on http://127.0.0.1:{port}/v1\n"
            script = f"{api}\n{calls}".replace("8002", port)
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", script],
                env={**variables, "URL": dev.url, "ADMIN_KEY": dev.admin_key},
                capture_output=True,
                text=True,
                check=True,
                timeout=PATIENCE,
            )
            assert '"error"' not in done.stdout, done.stdout
            before, _ = dev.balance()
            text, sent, made = ask(dev, "my-gpt2", max_tokens=10, temperature=0)
            assert text == reference.greedy(model, reference.encode(model, "Hello"), 10)["text"]
            # 0.10 and 0.20 USD per million, and 5 %.
            assert before - dev.balance()[0] == (sent * 10 + made * 20) * 105 * Decimal("1e-10")
        finally:
            server.terminate()


def test_weights_that_can_not_be_had_are_said_in_a_line(tmp_path: Path) -> None:
    refused = subprocess.run(
        DEV,
        env=environment(
            tmp_path / "data", free_port(), LOCAL_MODELS="gpt2", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path)
        ),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert refused.returncode == 1
    assert "the local models can't be served: openai-community/gpt2 can't be loaded" in refused.stderr
    assert "network" in refused.stderr
    assert "Traceback" not in refused.stderr
