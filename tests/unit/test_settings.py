from __future__ import annotations

import base64
import json
import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

import gateway
from gateway.settings import Settings, SettingsError


def _key(byte: int, size: int = 32) -> str:
    return base64.b64encode(bytes([byte]) * size).decode()


def _claims(**claims: str) -> str:
    return base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")


ENVIRON = {
    "SUPABASE_URL": "https://abc.supabase.co/",
    "SUPABASE_KEY": "sb_secret_0123456789abcdef",
    "SLUICE_MASTER_KEYS": json.dumps({"2026-b": _key(2), "2026-a": _key(1)}),
}


def test_defaults() -> None:
    settings = Settings.from_environment(ENVIRON)
    assert settings.rest_url == "https://abc.supabase.co/rest/v1"
    assert settings.supabase_key.get_secret_value() == "sb_secret_0123456789abcdef"
    assert list(settings.master_keys.items()) == [("2026-b", bytes([2]) * 32), ("2026-a", bytes([1]) * 32)]
    assert (settings.allow_private_urls, settings.allowed_origins) == (False, ())
    assert (settings.request_timeout_seconds, settings.connect_timeout_seconds) == (840, 5)
    assert (settings.keep_alive_seconds, settings.max_body_bytes) == (15, 6 * 1024 * 1024)
    assert settings.log_level == "INFO"


def test_every_variable_is_read() -> None:
    settings = Settings.from_environment(
        ENVIRON
        | {
            "SLUICE_REST_URL": "http://127.0.0.1:3000/",
            "SLUICE_ALLOW_PRIVATE_URLS": "true",
            "SLUICE_SPOOL_DIR": "/var/spool/x",
            "SLUICE_REQUEST_TIMEOUT_SECONDS": "60",
            "SLUICE_CONNECT_TIMEOUT_SECONDS": "2.5",
            "SLUICE_KEEP_ALIVE_SECONDS": "1",
            "SLUICE_MAX_BODY_BYTES": "1000",
            "SLUICE_ALLOWED_ORIGINS": "https://a.example, http://localhost:3000/ ,",
            "SLUICE_LOG_LEVEL": "debug",
            "OPENROUTER_SITE_URL": "https://site.example",
            "OPENROUTER_SITE_NAME": "Site",
        }
    )
    assert settings.rest_url == "http://127.0.0.1:3000"
    assert settings.allow_private_urls is True
    assert settings.spool_dir == Path("/var/spool/x")
    assert settings.request_timeout_seconds == 60
    assert settings.connect_timeout_seconds == 2.5
    assert settings.keep_alive_seconds == 1
    assert settings.max_body_bytes == 1000
    assert settings.allowed_origins == ("https://a.example", "http://localhost:3000")
    assert settings.log_level == "DEBUG"
    assert (settings.openrouter_site_url, settings.openrouter_site_name) == ("https://site.example", "Site")


def test_the_process_environment_is_read_at_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLUICE_KEEP_ALIVE_SECONDS", "7")
    assert Settings.from_environment().keep_alive_seconds == 7
    monkeypatch.setenv("SLUICE_KEEP_ALIVE_SECONDS", "8")
    assert Settings.from_environment().keep_alive_seconds == 8


def test_all_that_is_missing_is_named_at_once_and_empty_is_missing() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({"SUPABASE_KEY": " "})
    assert str(caught.value) == "SUPABASE_URL (or SLUICE_REST_URL) is not set; SUPABASE_KEY is not set"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SLUICE_REST_URL", "ftp://hunter2"),
        ("SLUICE_REST_URL", "https://user:hunter2@x.example"),
        ("SLUICE_REST_URL", "http://hunter2.example"),
        ("SLUICE_MASTER_KEYS", "hunter2"),
        ("SLUICE_MASTER_KEYS", '["hunter2"]'),
        ("SLUICE_MASTER_KEYS", '{"a": "hunter2"}'),
        ("SLUICE_MASTER_KEYS", '{"a": 7}'),
        ("SLUICE_MASTER_KEYS", json.dumps({"a": _key(7, 31)})),
        ("SLUICE_MASTER_KEYS", json.dumps({"a.b": _key(7)})),
        ("SLUICE_ALLOW_PRIVATE_URLS", "hunter2"),
        ("SLUICE_REQUEST_TIMEOUT_SECONDS", "901"),
        ("SLUICE_REQUEST_TIMEOUT_SECONDS", "0"),
        ("SLUICE_CONNECT_TIMEOUT_SECONDS", "nan"),
        ("SLUICE_KEEP_ALIVE_SECONDS", "inf"),
        ("SLUICE_MAX_BODY_BYTES", "hunter2"),
        ("SLUICE_ALLOWED_ORIGINS", "https://a.example/hunter2"),
        ("SLUICE_ALLOWED_ORIGINS", "hunter2"),
        ("SLUICE_LOG_LEVEL", "hunter2"),
        ("OPENROUTER_SITE_NAME", "hunter2\nx: y"),
    ],
)
def test_a_bad_setting_names_its_variable_and_not_its_value(variable: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment(ENVIRON | {variable: value})
    assert variable in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_plain_http_to_a_named_host_needs_the_local_stacks_setting() -> None:
    environ = ENVIRON | {"SUPABASE_URL": "http://host.docker.internal:54321"}
    with pytest.raises(SettingsError, match="https"):
        Settings.from_environment(environ)
    settings = Settings.from_environment(environ | {"SLUICE_ALLOW_PRIVATE_URLS": "true"})
    assert settings.rest_url == "http://host.docker.internal:54321/rest/v1"


def test_no_representation_shows_a_secret() -> None:
    settings = Settings.from_environment(ENVIRON)
    for shown in (repr(settings), str(settings), f"{settings}"):
        assert "0123456789abcdef" not in shown
        assert "\\x01" not in shown
        assert "\\x02" not in shown


def test_settings_cannot_be_changed() -> None:
    settings = Settings.from_environment(ENVIRON)
    with pytest.raises(ValidationError):
        settings.rest_url = "https://other.example"
    with pytest.raises(TypeError):
        settings.master_keys["x"] = b""  # type: ignore[index]


def test_the_version_is_the_projects() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert gateway.__version__ == project["version"]


def test_the_projects_tokens_are_taken_unless_another_issuer_is_named() -> None:
    settings = Settings.from_environment(ENVIRON)
    assert settings.auth_issuer == "https://abc.supabase.co/auth/v1"
    assert settings.auth_jwks_url == "https://abc.supabase.co/auth/v1/.well-known/jwks.json"
    assert settings.auth_jwt_secret is None
    own_domain = Settings.from_environment(
        ENVIRON | {"SLUICE_AUTH_ISSUER": "https://auth.example.com/auth/v1"}
    )
    assert own_domain.auth_issuer == "https://auth.example.com/auth/v1"
    assert own_domain.auth_jwks_url == "https://auth.example.com/auth/v1/.well-known/jwks.json"
    apart = Settings.from_environment(
        ENVIRON
        | {
            "SLUICE_AUTH_ISSUER": "https://a.example/auth/v1",
            "SLUICE_AUTH_JWKS_URL": "https://b.example/keys.json",
            "SLUICE_AUTH_JWT_SECRET": "s" * 32,
        }
    )
    assert apart.auth_jwks_url == "https://b.example/keys.json"
    assert apart.auth_jwt_secret is not None
    assert "sss" not in repr(apart)


def test_without_a_project_no_token_is_taken() -> None:
    environ = {"SLUICE_REST_URL": "http://127.0.0.1:3000", "SUPABASE_KEY": "key"}
    settings = Settings.from_environment(environ)
    assert (settings.auth_issuer, settings.auth_jwks_url, settings.auth_jwt_secret) == (None, None, None)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SLUICE_AUTH_ISSUER", "http://auth.example.com/auth/v1"),
        ("SLUICE_AUTH_ISSUER", "auth.example.com"),
        ("SLUICE_AUTH_JWKS_URL", "http://auth.example.com/keys.json"),
        ("SLUICE_AUTH_JWKS_URL", "https://user:pass@auth.example.com/keys.json"),
        ("SLUICE_AUTH_JWKS_URL", "file:///etc/keys.json"),
        ("SLUICE_AUTH_JWT_SECRET", "s" * 31),
    ],
)
def test_bad_setting_of_tokens_is_named_and_not_shown(variable: str, value: str) -> None:
    with pytest.raises(SettingsError) as refused:
        Settings.from_environment(ENVIRON | {variable: value})
    assert variable in str(refused.value)
    assert value not in str(refused.value)


@pytest.mark.parametrize("key", ["sb_publishable_AbC123", f"eyJ0.{_claims(role='anon')}.x"])
def test_a_publishable_key_may_be_shown(key: str) -> None:
    settings = Settings.from_environment(ENVIRON | {"SUPABASE_PUBLISHABLE_KEY": key})
    assert settings.auth_publishable_key is not None
    assert settings.auth_publishable_key.get_secret_value() == key
    assert key not in repr(settings)


@pytest.mark.parametrize(
    "key",
    [
        "sb_secret_AbC123",
        f"eyJ0.{_claims(role='service_role')}.x",
        f"eyJ0.{_claims()}.x",
        "eyJ0.%%%.x",
        "anything",
    ],
)
def test_no_other_key_is_shown_to_every_visitor(key: str) -> None:
    with pytest.raises(
        SettingsError, match="SUPABASE_PUBLISHABLE_KEY must be the project's publishable"
    ) as told:
        Settings.from_environment(ENVIRON | {"SUPABASE_PUBLISHABLE_KEY": key})
    assert key not in str(told.value)


STRIPE = {
    "SLUICE_STRIPE_SECRET_KEY": "sk_test_0123456789abcdef",
    "SLUICE_STRIPE_WEBHOOK_SECRET": "whsec_0123456789abcdef, whsec_fedcba9876543210",
    "SLUICE_PUBLIC_URL": "https://llm.example.com/",
}


def test_credits_are_sold_where_all_of_stripe_is_set() -> None:
    whole = Settings.from_environment({**ENVIRON, **STRIPE})
    assert (whole.sells_credits, len(whole.stripe_webhook_secrets)) == (True, 2)
    assert whole.public_url == "https://llm.example.com"
    assert "0123456789abcdef" not in repr(whole)
    for name in STRIPE:
        lacking = {other: value for other, value in STRIPE.items() if other != name}
        assert not Settings.from_environment({**ENVIRON, **lacking}).sells_credits


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"SLUICE_STRIPE_SECRET_KEY": "pk_test_0123456789abcdef"}, "SLUICE_STRIPE_SECRET_KEY"),
        ({"SLUICE_STRIPE_WEBHOOK_SECRET": "whsec_0123456789abcdef,oops"}, "SLUICE_STRIPE_WEBHOOK_SECRET"),
        ({"SLUICE_STRIPE_URL": "https://stripe.example.com"}, "SLUICE_STRIPE_URL"),
        ({"SLUICE_STRIPE_URL": "http://api.stripe.com"}, "SLUICE_STRIPE_URL"),
        ({"SLUICE_STRIPE_URL": "http://127.0.0.1@evil.example"}, "SLUICE_STRIPE_URL"),
        # a stand-in is told no key that moves real money
        (
            {
                "SLUICE_STRIPE_URL": "http://127.0.0.1:9",
                "SLUICE_STRIPE_SECRET_KEY": "sk_live_0123456789abcdef",
            },
            "SLUICE_STRIPE_SECRET_KEY",
        ),
    ],
)
def test_bad_settings_of_stripe_are_named_and_not_shown(changes: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=named) as caught:
        Settings.from_environment({**ENVIRON, **STRIPE, **changes})
    assert not any(value in str(caught.value) for value in changes.values())


def test_a_stand_in_of_stripe_is_on_this_machine() -> None:
    made = Settings.from_environment({**ENVIRON, **STRIPE, "SLUICE_STRIPE_URL": "http://127.0.0.1:12111"})
    assert made.stripe_url == "http://127.0.0.1:12111"
