"""What the local stack puts into its database, so that there is something to call.

An admin key, a demo customer with a key and credits, the simulator's models, and a service for every provider
whose key is in the environment. All of it goes through the functions of schema api, as the gateway's own
calls do. Running it again changes nothing that is there already.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from gateway import auth, service_keys
from gateway.providers.registry import find_provider
from infra.local.catalogue import load_catalogue
from infra.local.processes import StackError

if TYPE_CHECKING:
    from collections.abc import Mapping

    Connection = psycopg.Connection[tuple[Any, ...]]

ACTOR = "local stack"
DEMO_EMAIL = "demo@sluice.example"
DEMO_USD = Decimal(5)
LOCAL_MODELS = "local-models"
LOCAL_PREFIX = "local/"
# USD per million tokens: round enough to check a bill in one's head.
SIMULATOR_PRICES = {"input": "0.50", "cached_input": "0.05", "output": "1.50"}
SIMULATOR_MODELS = (
    "echo",
    "long",
    "slow",
    "drip",
    "hang",
    "cut",
    "cut-clean",
    "no-usage",
    "malformed",
    "error-in-stream",
    "reasoning",
    "cached",
    "tools-parallel",
    "status-429",
    "status-500",
)


@dataclass(frozen=True, slots=True)
class SimulatedModel:
    """A model of the simulator: its name here, what it is called there, and what it costs."""

    name: str
    upstream: str
    prices: Mapping[str, str] = field(default_factory=lambda: SIMULATOR_PRICES)
    inputs: tuple[str, ...] = ("text", "image")
    outputs: tuple[str, ...] = ("text",)


@dataclass(frozen=True, slots=True)
class SimulatedService:
    """One of the simulator's wires, as a service; `path` is where it begins."""

    name: str
    provider: str
    path: str
    models: tuple[SimulatedModel, ...]


SIMULATED_SERVICES = (
    SimulatedService(
        "simulator",
        "openai-compatible",
        "/v1",
        (
            *(SimulatedModel(f"sim/{model}", model) for model in SIMULATOR_MODELS),
            SimulatedModel(
                "sim/image",
                "echo",
                prices={"input": "5", "image_input": "8", "image_output": "30", "output": "5"},
                outputs=("image",),
            ),
            SimulatedModel(
                "sim/embedding",
                "echo",
                prices={"input": "0.02", "output": "0"},
                inputs=("text",),
                outputs=("embedding",),
            ),
        ),
    ),
    SimulatedService(
        "simulator-anthropic",
        "anthropic",
        "/anthropic/v1",
        (
            SimulatedModel(
                "sim/claude",
                "echo",
                prices=SIMULATOR_PRICES | {"cache_write": "0.625"},
                inputs=("text", "image", "file"),
            ),
        ),
    ),
    SimulatedService(
        "simulator-gemini",
        "gemini",
        "/gemini/v1beta",
        (SimulatedModel("sim/gemini", "echo", inputs=("text", "image", "audio", "video", "file")),),
    ),
)
PROVIDER_VARIABLES = {
    "OPENAI_API_KEY": "openai",
    "ANTHROPIC_API_KEY": "anthropic",
    "GEMINI_API_KEY": "gemini",
    "DEEPSEEK_API_KEY": "deepseek",
    "OPENROUTER_API_KEY": "openrouter",
    "GROQ_API_KEY": "groq",
    "MISTRAL_API_KEY": "mistral",
    "TOGETHER_API_KEY": "together",
    "XAI_API_KEY": "xai",
    "HF_TOKEN": "huggingface",
}
_CATALOGUE_LIMIT = 100_000
_LAST_SHOWN = 4


class ApiError(StackError):
    """A function of schema api refused; `code` is its word for why."""

    def __init__(self, function: str, code: str) -> None:
        super().__init__(f"api.{function} refused: {code}")
        self.code = code


def call(connection: Connection, function: str, **parameters: object) -> Any:
    """Call a function of schema api by its parameters' names; ApiError for an answer that is an error."""
    arguments = sql.SQL(", ").join(
        sql.SQL("{} => {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in parameters
    )
    query = sql.SQL("select api.{}({})").format(sql.Identifier(function), arguments)
    row = connection.execute(query, parameters).fetchone()
    answer = None if row is None else row[0]
    if isinstance(answer, dict) and "error" in answer:
        raise ApiError(function, answer["error"])
    return answer


def ensure_key(
    connection: Connection, key: str, *, customer_id: int | None, name: str, scopes: list[str]
) -> bool:
    """Store the hash of `key` unless the database knows it; whether it was stored."""
    try:
        call(connection, "authenticate_key", p_key_hash=auth.key_hash(key))
    except ApiError as refusal:
        if refusal.code != "unknown_key":
            return False
        call(
            connection,
            "create_key",
            p_customer_id=customer_id,
            p_name=name,
            p_prefix=auth.key_prefix(key),
            p_secret_hash=auth.key_hash(key),
            p_scopes=scopes,
            p_actor=ACTOR,
        )
        return True
    return False


def create_admin_key(url: str, key: str, name: str) -> bool:
    """Give the operator an admin key over a direct connection; only its hash is stored. Whether it is new."""
    with psycopg.connect(url) as connection:
        return ensure_key(connection, key, customer_id=None, name=name, scopes=["admin"])


@dataclass(frozen=True, slots=True)
class ServedModels:
    """The models that run beside the stack."""

    url: str
    key: str = field(repr=False)
    context_lengths: Mapping[str, int]
    """Name → tokens of prompt and answer together."""


@dataclass(frozen=True, slots=True)
class Seeds:
    """What the stack puts into its database."""

    admin_key: str
    demo_key: str
    simulator_url: str
    """Where the simulator listens; each of its wires has a path there."""
    simulator_key: str
    master_keys: Mapping[str, bytes]
    provider_keys: Mapping[str, str]
    """Provider name → its key, found in the environment."""
    local_models: ServedModels | None = None


def provider_keys(environ: Mapping[str, str]) -> dict[str, str]:
    """Return provider → key for every key in the environment whose provider the gateway knows."""
    return {
        provider: environ[variable].strip()
        for variable, provider in PROVIDER_VARIABLES.items()
        if environ.get(variable, "").strip() and find_provider(provider) is not None
    }


def seed_stack(url: str, seeds: Seeds) -> list[str]:
    """Put `seeds` into the database at `url`, in one transaction; return the names of the services."""
    with psycopg.connect(url) as connection:
        ensure_key(connection, seeds.admin_key, customer_id=None, name="local admin", scopes=["admin"])
        _seed_demo_customer(connection, seeds.demo_key)
        for simulated in SIMULATED_SERVICES:
            created = [
                _ensure_simulated_model(connection, simulated.provider, model) for model in simulated.models
            ]
            _ensure_service(
                connection,
                simulated.name,
                simulated.provider,
                base_url=f"{seeds.simulator_url}{simulated.path}",
                key=seeds.simulator_key,
                master_keys=seeds.master_keys,
                models=[model.name for model in simulated.models],
                models_changed=any(created),
            )
        load_catalogue(connection, actor=ACTOR)
        catalogue = call(connection, "list_catalogue", p_limit=_CATALOGUE_LIMIT)
        for provider, key in seeds.provider_keys.items():
            sold = [
                model["name"]
                for model in catalogue
                if any(offer["provider"] == provider for offer in model["offers"])
            ]
            _ensure_service(
                connection,
                provider,
                provider,
                base_url=None,
                key=key,
                master_keys=seeds.master_keys,
                models=sold,
                models_changed=False,
            )
        served = [] if seeds.local_models is None else [LOCAL_MODELS]
        if seeds.local_models is not None:
            _seed_local_models(connection, seeds.local_models, seeds.master_keys)
    return [*(simulated.name for simulated in SIMULATED_SERVICES), *seeds.provider_keys, *served]


def _seed_local_models(
    connection: Connection, served: ServedModels, master_keys: Mapping[str, bytes]
) -> None:
    """Sell each as local/<name>; an admin's own price for it stays."""
    names = {f"{LOCAL_PREFIX}{name}": name for name in served.context_lengths}
    for sold, name in names.items():
        context_length = served.context_lengths[name]
        try:
            call(
                connection,
                "create_model",
                p_name=sold,
                p_offers=Jsonb(
                    [{"provider": "local", "upstream_model": name, "prices": dict(SIMULATOR_PRICES)}]
                ),
                p_display_name=f"Local: {name}",
                p_input_modalities=["text"],
                p_output_modalities=["text"],
                p_context_length=context_length,
                p_max_output_tokens=context_length,
                p_actor=ACTOR,
            )
        except ApiError as refusal:
            if refusal.code != "name_taken":
                raise
    _ensure_service(
        connection,
        LOCAL_MODELS,
        "local",
        base_url=served.url,
        key=served.key,
        master_keys=master_keys,
        models=list(names),
        models_changed=True,
    )


def _seed_demo_customer(connection: Connection, key: str) -> None:
    try:
        call(
            connection,
            "create_customer",
            p_name="Demo",
            p_email=DEMO_EMAIL,
            p_username="demo",
            p_actor=ACTOR,
        )
    except ApiError as refusal:
        if refusal.code not in {"email_taken", "username_taken"}:
            raise
        if _customer_of(connection, key) is not None:
            return
    # The same reference is credited once, so a stack that was interrupted here goes on.
    credited = call(
        connection,
        "add_credits",
        p_email=DEMO_EMAIL,
        p_usd=DEMO_USD,
        p_reference="first credits of the demo",
        p_actor=ACTOR,
    )
    scopes = ["chat", "usage", "keys", "billing"]
    ensure_key(connection, key, customer_id=credited["customer_id"], name="demo", scopes=scopes)


def _customer_of(connection: Connection, key: str) -> int | None:
    try:
        known = call(connection, "authenticate_key", p_key_hash=auth.key_hash(key))
    except ApiError as refusal:
        return None if refusal.code == "unknown_key" else 0
    return int(known["customer_id"])


def _ensure_simulated_model(connection: Connection, provider: str, model: SimulatedModel) -> bool:
    offer = {"provider": provider, "upstream_model": model.upstream, "prices": dict(model.prices)}
    try:
        call(
            connection,
            "create_model",
            p_name=model.name,
            p_offers=Jsonb([offer]),
            p_display_name=f"Simulator: {model.name.removeprefix('sim/')}",
            p_input_modalities=list(model.inputs),
            p_output_modalities=list(model.outputs),
            p_context_length=128_000,
            p_max_output_tokens=16_384,
            p_actor=ACTOR,
        )
    except ApiError as refusal:
        if refusal.code == "name_taken":
            return False
        raise
    return True


def _ensure_service(
    connection: Connection,
    name: str,
    provider: str,
    *,
    base_url: str | None,
    key: str,
    master_keys: Mapping[str, bytes],
    models: list[str],
    models_changed: bool,
) -> None:
    """Add the service, or bring its key and address up to date; what an admin changed otherwise stays."""
    entry = find_provider(provider)
    default_url = entry.base_url if entry else None
    row = connection.execute(
        "select id, base_url, provider_key from gateway.services where name = %s and deleted_at is null",
        [name],
    ).fetchone()
    service_id = call(connection, "reserve_service_id") if row is None else row[0]
    # A service that an admin has moved keeps its address; the simulator's follows its port.
    address = base_url or (row[1] if row else None)
    origin_url = address or default_url
    if origin_url is None:
        raise StackError(f"the provider {provider} has no base URL")

    def sealed() -> str:
        return service_keys.seal(
            key, master_keys=master_keys, service_id=service_id, provider=provider, base_url=origin_url
        )

    if row is None:
        call(
            connection,
            "create_service",
            p_id=service_id,
            p_name=name,
            p_provider=provider,
            p_base_url=base_url,
            p_provider_key=sealed(),
            p_provider_key_last4=key[-_LAST_SHOWN:],
            p_enabled_models=models,
            p_actor=ACTOR,
        )
        return
    changes: dict[str, Any] = {"enabled_models": models} if models_changed else {}
    if row[1] != address or not _opens_to(
        row[2], key, master_keys=master_keys, service_id=service_id, provider=provider, base_url=origin_url
    ):
        changes |= {
            "base_url": address,
            "provider_key": sealed(),
            "provider_key_last4": key[-_LAST_SHOWN:],
        }
    if changes:
        call(connection, "update_service", p_id=service_id, p_changes=Jsonb(changes), p_actor=ACTOR)


def _opens_to(sealed: str | None, key: str, **binding: Any) -> bool:
    if sealed is None:
        return False
    try:
        return service_keys.open_sealed(sealed, **binding) == key
    except service_keys.ServiceKeyError:
        return False
