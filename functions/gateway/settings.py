"""What the operator sets, read from environment variables once, by whoever starts the process."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import tempfile
from collections.abc import Mapping  # noqa: TC003 - pydantic reads it
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from gateway import __version__

MASTER_KEY_BYTES = 32
MIN_JWT_SECRET_BYTES = 32
"""What HS256 asks for (RFC 7518, 3.2)."""
MAX_BODY_BYTES = 6 * 1024 * 1024
"""What Lambda takes in one request."""

_DAEMON_ADDRESS = re.compile(r"[^\s:]+:\d{1,5}|(?=.*\budp:)(?:(?:tcp|udp):[^\s:]+:\d{1,5}\s?){1,2}")
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class SettingsError(ValueError):
    """A setting is missing or bad. The message names the variables and shows no value."""


def _origins(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return tuple(part.strip().rstrip("/") for part in value.split(",") if part.strip())


def _check_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    for origin in origins:
        parts = urlsplit(origin)
        if origin != "*" and (f"{parts.scheme}://{parts.netloc}" != origin or not parts.netloc):
            raise ValueError("must be origins such as https://app.example.com, separated by commas, or *")
    return origins


def _master_keys(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        named = json.loads(value)
        return {name: base64.b64decode(key, validate=True) for name, key in named.items()}
    except (ValueError, TypeError, AttributeError, binascii.Error):
        # Without its cause: a decoder's error may quote what it read.
        raise ValueError("must be a JSON object of key id to 32 bytes in base64") from None


def _check_master_keys(keys: Mapping[str, bytes]) -> Mapping[str, bytes]:
    for name, key in keys.items():
        if len(key) != MASTER_KEY_BYTES:
            raise ValueError(f"must hold keys of exactly {MASTER_KEY_BYTES} bytes")
        if not name.isascii() or not name.replace("-", "").replace("_", "").isalnum() or len(name) > 64:  # noqa: PLR2004
            raise ValueError("must name its keys by letters, digits, - and _, at most 64")
    return MappingProxyType(dict(keys))


def _check_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("must be an http or https URL without a query")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not hold credentials")
    return url.rstrip("/")


def _check_jwt_secret(secret: SecretStr) -> SecretStr:
    if len(secret.get_secret_value().encode()) < MIN_JWT_SECRET_BYTES:
        raise ValueError(f"must have at least {MIN_JWT_SECRET_BYTES} bytes")
    return secret


def _check_publishable_key(key: SecretStr) -> SecretStr:
    """Let only that key through which every visitor may see: an sb_publishable_ one, or an anon token."""
    text = key.get_secret_value()
    if not text.startswith("sb_publishable_") and _role_of_token(text) != "anon":
        raise ValueError("must be the project's publishable (or anon) key: it is shown to every visitor")
    return key


def _role_of_token(token: str) -> Any:
    try:
        claims = token.split(".")[1]
        return json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["role"]
    except (ValueError, LookupError, TypeError):
        return None


def _check_daemon_address(value: str | None) -> str | None:
    if value is not None and not _DAEMON_ADDRESS.fullmatch(value):
        raise ValueError("must be host:port, or tcp:host:port udp:host:port")
    return value


def _check_header_text(value: str | None) -> str | None:
    if value is not None and not (value.isascii() and value.isprintable()):
        raise ValueError("must be printable ASCII, as it goes into a header")
    return value or None


_TOPIC_ARN = re.compile(r"arn:aws[a-z-]*:sns:[a-z0-9-]+:\d{12}:[A-Za-z0-9_-]{1,256}", re.ASCII)


def _check_topic_arn(arn: str | None) -> str | None:
    """Let a standard topic's ARN through: the events of a FIFO topic would need an order."""
    if arn is not None and not _TOPIC_ARN.fullmatch(arn):
        raise ValueError("must be the ARN of a standard SNS topic")
    return arn


STRIPE_URL = "https://api.stripe.com"
_STRIPE_KEY = re.compile(r"(?:sk|rk)_(?:test|live)_[A-Za-z0-9_]{8,250}", re.ASCII)
_STRIPE_WEBHOOK_SECRET = re.compile(r"whsec_[!-~]{16,250}", re.ASCII)


def _check_stripe_key(key: SecretStr) -> SecretStr:
    if not _STRIPE_KEY.fullmatch(key.get_secret_value()):
        raise ValueError("must be a secret (sk_) or restricted (rk_) key of Stripe's")
    return key


def _secrets(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return tuple(SecretStr(part.strip()) for part in value.split(",") if part.strip())


def _check_stripe_webhook_secrets(secrets: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
    for secret in secrets:
        if not _STRIPE_WEBHOOK_SECRET.fullmatch(secret.get_secret_value()):
            raise ValueError("must be signing secrets of Stripe's (whsec_), separated by commas")
    return secrets


def _check_stripe_url(url: str) -> str:
    """Let another address through on this machine alone: a payment must not be made up elsewhere."""
    if url != STRIPE_URL and urlsplit(url).hostname not in _LOOPBACK:
        raise ValueError(f"must be {STRIPE_URL}, or a stand-in on the loopback")
    return url


_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}", re.ASCII)


def otlp_headers(text: str) -> dict[str, str]:
    """Return the headers that one of OpenTelemetry's variables holds: `name=value`, separated by commas.

    A value may be percent-encoded, as the specification has it. Raises ValueError, which shows none.
    """
    headers = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, equals, value = part.partition("=")
        value = unquote(value.strip())
        if not equals or not _HEADER_NAME.fullmatch(name.strip()):
            raise ValueError("must be headers as name=value, separated by commas")
        if not (value.isascii() and value.isprintable()):
            raise ValueError("must hold values of printable ASCII")
        headers[name.strip().lower()] = value
    return headers


def _check_otlp_headers(headers: SecretStr) -> SecretStr:
    otlp_headers(headers.get_secret_value())
    return headers


Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
HeaderText = Annotated[str | None, AfterValidator(_check_header_text)]


class Settings(BaseModel):
    """The settings of one process; `from_environment` makes them, and no representation shows a secret."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    allow_private_urls: bool = False
    """Lets the database and services live at http URLs and private addresses. For the local stack."""
    rest_url: Annotated[str, AfterValidator(_check_url)]
    """The base URL of PostgREST, without a slash at its end."""
    supabase_key: Annotated[SecretStr, Field(min_length=1)]
    """An sb_secret_ key, or the older service_role token."""
    auth_issuer: Annotated[str, AfterValidator(_check_url)] | None = None
    """The issuer of the access tokens that are taken, as they name it; None: no token is."""
    auth_jwks_url: Annotated[str, AfterValidator(_check_url)] | None = None
    """Where the issuer's public keys are."""
    auth_jwt_secret: Annotated[SecretStr, AfterValidator(_check_jwt_secret)] | None = None
    """The secret of a project that still signs its tokens by HS256. None: no such token is taken."""
    auth_publishable_key: Annotated[SecretStr, AfterValidator(_check_publishable_key)] | None = None
    """The project's key for browsers, which the dashboard signs people in by. None: no sign-in by mail."""
    master_keys: Annotated[
        Mapping[str, bytes], BeforeValidator(_master_keys), AfterValidator(_check_master_keys)
    ] = Field(default_factory=lambda: MappingProxyType({}), repr=False)
    """Key id → 32 bytes. Provider keys are sealed under the first and opened under any."""
    spool_dir: Path = Field(default_factory=lambda: Path(tempfile.gettempdir()) / "sluice-spool")
    """Where settlements that can't reach the database wait."""
    spool_queue_url: str | None = None
    """The SQS queue where they wait on Lambda, whose disk does not last."""
    alert_topic_arn: Annotated[str | None, AfterValidator(_check_topic_arn)] = None
    """The SNS topic that events are published to beside the webhook. Read by maintenance alone."""
    request_timeout_seconds: Annotated[Seconds, Field(le=900)] = 840.0
    connect_timeout_seconds: Seconds = 5.0
    keep_alive_seconds: Seconds = 15.0
    """The longest silence in a stream."""
    max_body_bytes: Annotated[int, Field(gt=0)] = MAX_BODY_BYTES
    allowed_origins: Annotated[
        tuple[str, ...], BeforeValidator(_origins), AfterValidator(_check_origins)
    ] = ()
    """Origins that browsers may call from; `*` for any, none by default."""
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
        BeforeValidator(lambda value: value.upper() if isinstance(value, str) else value),
    ] = "INFO"
    metrics_namespace: str | None = None
    """CloudWatch's namespace for the metrics of settlements; None for none."""
    xray_daemon_address: Annotated[str | None, AfterValidator(_check_daemon_address)] = None
    """Where Lambda's X-Ray daemon takes subsegments; None for no traces."""
    stripe_url: Annotated[str, AfterValidator(_check_url), AfterValidator(_check_stripe_url)] = STRIPE_URL
    """Stripe's API; in tests, a stand-in for it."""
    stripe_secret_key: Annotated[SecretStr, AfterValidator(_check_stripe_key)] | None = None
    """None: nothing is sold, and the routes say so."""
    stripe_webhook_secrets: Annotated[
        tuple[SecretStr, ...], BeforeValidator(_secrets), AfterValidator(_check_stripe_webhook_secrets)
    ] = ()
    """What Stripe signs its events with: any of these, while one replaces another."""
    public_url: Annotated[str, AfterValidator(_check_url)] | None = None
    """Where people reach this gateway: Stripe sends them back there."""
    otlp_traces_endpoint: Annotated[str, AfterValidator(_check_url)] | None = None
    """Where spans go, by OTLP over HTTP; None for none. The whole URL."""
    otlp_metrics_endpoint: Annotated[str, AfterValidator(_check_url)] | None = None
    """Where OpenTelemetry's metrics go; None for none."""
    otlp_traces_headers: Annotated[SecretStr, AfterValidator(_check_otlp_headers)] = SecretStr("")
    otlp_metrics_headers: Annotated[SecretStr, AfterValidator(_check_otlp_headers)] = SecretStr("")
    """What the collectors know us by."""
    otlp_protocol: Literal["http/protobuf"] = "http/protobuf"
    otlp_timeout_milliseconds: Annotated[float, Field(gt=0, le=10_000)] = 1500
    """How long one export may take. On Lambda that is after the answer, and 2 s at most."""
    traceparent_to: Literal["all", "own", "none"] = "all"
    """Which providers are told the trace: all, those that the operator runs, or none."""
    function_name: str | None = None
    """Lambda's; None elsewhere. There the process is frozen between requests."""
    openrouter_site_url: HeaderText = None
    openrouter_site_name: HeaderText = None
    version: str = __version__

    @field_validator("stripe_secret_key")
    @classmethod
    def _no_real_money_for_a_stand_in(cls, key: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        stands_in = info.data.get("stripe_url") != STRIPE_URL
        if key is not None and stands_in and "_live_" in key.get_secret_value():
            raise ValueError("must be a test key where SLUICE_STRIPE_URL is a stand-in")
        return key

    @property
    def sells_credits(self) -> bool:
        """Whether a top-up can be paid for and be credited."""
        return bool(self.stripe_secret_key and self.stripe_webhook_secrets and self.public_url)

    @field_validator("rest_url", "auth_issuer", "auth_jwks_url")
    @classmethod
    def _encrypted_unless_local(cls, url: str | None, info: ValidationInfo) -> str | None:
        parts = urlsplit(url or "")
        if (
            parts.scheme == "http"
            and parts.hostname not in _LOOPBACK
            and not info.data.get("allow_private_urls")
        ):
            raise ValueError("must be https, as what opens the whole database travels over it")
        return url

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read the settings from `environ`, by default the process's own. An empty variable is not set.

        Raises SettingsError, which names every variable that is missing or bad.
        """
        environ = os.environ if environ is None else environ
        given = {
            field: environ[variable].strip()
            for variable, field in _VARIABLES.items()
            if environ.get(variable, "").strip()
        }
        project = environ.get("SUPABASE_URL", "").strip().rstrip("/")
        if "rest_url" not in given and project:
            given["rest_url"] = f"{project}/rest/v1"
        if "auth_issuer" not in given and project:
            given["auth_issuer"] = f"{project}/auth/v1"
        if "auth_jwks_url" not in given and "auth_issuer" in given:
            given["auth_jwks_url"] = f"{given['auth_issuer'].rstrip('/')}/.well-known/jwks.json"
        given |= _telemetry(environ)
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            faults = dict.fromkeys(
                f"{_variable_of(str(fault['loc'][0]))} {_fault(fault['type'], fault['msg'])}"
                for fault in error.errors(include_url=False, include_input=False, include_context=False)
            )
        raise SettingsError("; ".join(faults))


def _telemetry(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the settings that OpenTelemetry's own variables make: a signal's own go before those for all.

    https://opentelemetry.io/docs/specs/otel/protocol/exporter/
    """

    def told(name: str) -> str:
        return environ.get(name, "").strip()

    given: dict[str, str] = {}
    if told("OTEL_SDK_DISABLED").lower() == "true":
        return given
    for signal in ("traces", "metrics"):
        own = f"OTEL_EXPORTER_OTLP_{signal.upper()}"
        base = told("OTEL_EXPORTER_OTLP_ENDPOINT").rstrip("/")
        endpoint = told(f"{own}_ENDPOINT") or (f"{base}/v1/{signal}" if base else "")
        if not endpoint or told(f"OTEL_{signal.upper()}_EXPORTER").lower() == "none":
            continue
        given[f"otlp_{signal}_endpoint"] = endpoint
        given[f"otlp_{signal}_headers"] = told(f"{own}_HEADERS") or told("OTEL_EXPORTER_OTLP_HEADERS")
        given["otlp_protocol"] = (
            told(f"{own}_PROTOCOL") or told("OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
        )
    if given and (timeout := told("OTEL_EXPORTER_OTLP_TIMEOUT")):
        given["otlp_timeout_milliseconds"] = timeout
    return given


_VARIABLES = {
    "SLUICE_REST_URL": "rest_url",
    "SUPABASE_KEY": "supabase_key",
    "SLUICE_AUTH_ISSUER": "auth_issuer",
    "SLUICE_AUTH_JWKS_URL": "auth_jwks_url",
    "SLUICE_AUTH_JWT_SECRET": "auth_jwt_secret",
    "SUPABASE_PUBLISHABLE_KEY": "auth_publishable_key",
    "SLUICE_MASTER_KEYS": "master_keys",
    "SLUICE_ALLOW_PRIVATE_URLS": "allow_private_urls",
    "SLUICE_SPOOL_DIR": "spool_dir",
    "SLUICE_SPOOL_QUEUE_URL": "spool_queue_url",
    "SLUICE_ALERT_TOPIC_ARN": "alert_topic_arn",
    "SLUICE_REQUEST_TIMEOUT_SECONDS": "request_timeout_seconds",
    "SLUICE_CONNECT_TIMEOUT_SECONDS": "connect_timeout_seconds",
    "SLUICE_KEEP_ALIVE_SECONDS": "keep_alive_seconds",
    "SLUICE_MAX_BODY_BYTES": "max_body_bytes",
    "SLUICE_ALLOWED_ORIGINS": "allowed_origins",
    "SLUICE_LOG_LEVEL": "log_level",
    "POWERTOOLS_METRICS_NAMESPACE": "metrics_namespace",
    "AWS_XRAY_DAEMON_ADDRESS": "xray_daemon_address",
    "SLUICE_STRIPE_URL": "stripe_url",
    "SLUICE_STRIPE_SECRET_KEY": "stripe_secret_key",
    "SLUICE_STRIPE_WEBHOOK_SECRET": "stripe_webhook_secrets",
    "SLUICE_PUBLIC_URL": "public_url",
    "SLUICE_TRACEPARENT_TO": "traceparent_to",
    "AWS_LAMBDA_FUNCTION_NAME": "function_name",
    "OPENROUTER_SITE_URL": "openrouter_site_url",
    "OPENROUTER_SITE_NAME": "openrouter_site_name",
}


def _variable_of(field: str) -> str:
    if field == "rest_url":
        return "SUPABASE_URL (or SLUICE_REST_URL)"
    if field.startswith("otlp_"):
        _, *signal, what = field.upper().removesuffix("_MILLISECONDS").split("_")
        own = "_".join(["OTEL_EXPORTER_OTLP", *signal, what])
        return f"OTEL_EXPORTER_OTLP_{what} (or {own})" if signal else own
    return next(variable for variable, name in _VARIABLES.items() if name == field)


def _fault(kind: str, message: str) -> str:
    if kind == "missing":
        return "is not set"
    return message.removeprefix("Value error, ") if kind == "value_error" else f"is bad: {message}"
