from __future__ import annotations

import json

import pytest

from gateway.auth import key_prefix, new_key
from gateway.redaction import redact

SECRETS = [
    "sk_0123456789abcdefghijABCDEFGHIJ0123456789",
    "sk-proj-abc_DEF-0123456789",
    "sk-or-v1-0123456789abcdef",
    "sb_secret_N7UND0UgjKTVK-Uodkm0Hg_xSvEMPvz",
    "gsk_0123456789abcdefABCDEF",
    "xai-0123456789abcdefABCDEF",
    "hf_0123456789abcdefABCDEF",
    "AIzaSyA0123456789abcdefABCDEF0123456789",
    "AKIAIOSFODNN7EXAMPLE",
    "eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoic2VydmljZV9yb2xlIn0.c2lnbmF0dXJl-_0",
    "v1.2026-a.AAAAAAAAAAAAAAAA.bm90LWEtc2VjcmV0LWJ1dC1jbG9zZQ",
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    "around", ["{}", "key={};", "Incorrect API key: '{}'.", '{{"k":"{}"}}', "a\n{}\nb", "a\\n{}\\n"]
)
def test_secrets_are_blanked_wherever_they_stand(secret: str, around: str) -> None:
    shown = redact(around.format(secret))
    assert secret[8:] not in shown
    assert secret.rpartition(".")[2][-12:] not in shown
    assert "[redacted]" in shown
    assert shown.startswith(around.partition("{}")[0].replace("{{", "{"))


def test_bearer_tokens_url_credentials_and_query_keys_are_blanked() -> None:
    assert redact("Authorization: Bearer opaque-token-0123456789") == "Authorization: Bearer [redacted]"
    assert redact("postgresql://app:p%40ss@db.example:5432/x") == "postgresql://[redacted]db.example:5432/x"
    assert redact("GET /v1?alt=sse&key=opaque123&x=1") == "GET /v1?alt=sse&key=[redacted]&x=1"


@pytest.mark.parametrize(
    "text",
    [
        "Send your key as 'Authorization: Bearer sk_…', or in the x-api-key or api-key header.",
        "task-management and risk_assessment of a disk-based desk_top",
        "bearer of bad news; basic information",
        "model claude-sk is not sk-it",
        "https://api.example.com:443/v1 by me@example.com",
    ],
)
def test_prose_is_left_alone(text: str) -> None:
    assert redact(text) == text


def test_a_keys_display_prefix_stays_readable() -> None:
    prefix = key_prefix(new_key())
    assert redact(f"key {prefix} was refused") == f"key {prefix} was refused"


def test_json_text_stays_json() -> None:
    line = json.dumps({"url": "http://host", "email": "me@x.example", "q": "?key=abcdef", "b": SECRETS})
    assert json.loads(redact(line))["email"] == "me@x.example"


def test_long_text_takes_linear_time() -> None:
    # Far beyond any log line; a pattern that backtracks over it would not come back.
    for text in ("a://" * 100_000, "sk" * 200_000, "eyJ" + "a" * 400_000 + ".", ":" * 400_000):
        assert redact(text) is not None
