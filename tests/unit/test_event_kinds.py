"""The document has every kind of event that the SQL raises, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from gateway.openapi.events import EVENTS

FUNCTIONS = Path(__file__).resolve().parents[2] / "sql" / "functions"
_RAISED = re.compile(r"(?:raise_(?:health_)?event\(|v_raised :=)[^;]{0,120}")
_KIND = re.compile(r"'([a-z_]+\.[a-z_]+)'")


def test_every_event_is_documented() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(FUNCTIONS.glob("*.sql")))
    raised = {kind for call in _RAISED.findall(text) for kind in _KIND.findall(call)}
    # Of the ping the database knows nothing.
    assert raised | {"webhook.test"} == set(EVENTS)
