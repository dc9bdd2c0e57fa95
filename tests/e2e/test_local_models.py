"""`make dev LOCAL_MODELS=…`: a model of one's own is loaded, sold and paid for, or what lacks is said."""

from __future__ import annotations

import subprocess
from decimal import Decimal
from typing import TYPE_CHECKING

import openai
import pytest

from infra.local.processes import free_port
from tests.e2e.dev import DEV, PATIENCE, REPOSITORY, environment, started
from tests.fixtures.local_models import reference

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.local_models import Reference

__all__ = ["reference"]


@pytest.mark.slow
def test_model_of_ones_own_is_sold_beside_the_others(tmp_path: Path, reference: Reference) -> None:
    model = reference.build(tmp_path / "tiny")
    prompt = reference.encode(model, "Hello")
    right = reference.greedy(model, prompt, 20)
    with started(tmp_path / "data", LOCAL_MODELS=f"tiny={model}") as dev:
        assert "local-models" in dev.output
        with openai.OpenAI(base_url=f"{dev.url}/v1", api_key=dev.demo_key, max_retries=0) as client:
            told = client.chat.completions.create(
                model="local/tiny",
                messages=[{"role": "user", "content": "Hello"}],
                max_tokens=20,
                temperature=0,
            )
            # The model's maximum is its whole context: one who names no bound gets as much as fits.
            whole = client.chat.completions.create(
                model="local/tiny", messages=[{"role": "user", "content": "Hello"}], seed=1
            )
        assert told.choices[0].message.content == right["text"]
        assert told.usage is not None
        assert whole.usage is not None
        assert told.usage.completion_tokens == len(right["tokens"])
        assert whole.usage.total_tokens <= 256
        tokens = [(each.prompt_tokens, each.completion_tokens) for each in (told.usage, whole.usage)]
        # The demo's prices, and 5 %.
        charge = sum(sent * 50 + made * 150 for sent, made in tokens) * 105 * Decimal("1e-10")
        assert dev.balance() == (5 - charge, Decimal(0))


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
