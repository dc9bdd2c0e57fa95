"""The table of providers: what a start pays for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FUNCTIONS = Path(__file__).parents[2] / "functions"


def test_a_start_imports_no_wire_but_openais() -> None:
    script = (
        "import sys, gateway.providers.registry as registry\n"
        "late = ('anthropic', 'gemini', 'text_completions', 'plain_prompt', 'chat_request')\n"
        "found = [name for name in sys.modules if any(part in name for part in late)]\n"
        "assert not found, found\n"
        "for provider in registry.PROVIDERS:\n"
        "    for wire in (provider.wire, provider.messages, provider.images, provider.embeddings):\n"
        "        assert wire is None or isinstance(wire.name, str), wire\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(FUNCTIONS)},
        capture_output=True,
        check=False,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
