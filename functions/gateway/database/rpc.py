"""One typed call for each SQL function. What they promise stands in sql/functions, above each body."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.database.client import DatabaseClient

JSONObject = dict[str, Any]

LONG_SECONDS = 25.0
"""For functions that read much: a little less than API Gateway waits for an answer."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A route that the request may take."""

    route_id: int
    service_id: int
    service_name: str
    provider: str
    base_url: str | None
    provider_key: str | None = field(repr=False)
    """Sealed."""
    model: str
    upstream_model: str
    max_output_tokens: int
    """Bound of each choice."""


@dataclass(frozen=True, slots=True)
class RateLimit:
    """The tightest window of a metric."""

    limit: int
    remaining: int
    reset_seconds: int


@dataclass(frozen=True, slots=True)
class RateLimits:
    requests: RateLimit | None = None
    tokens: RateLimit | None = None

    @classmethod
    def read(cls, told: Mapping[str, Any] | None) -> Self:
        named = {name: RateLimit(**limit) for name, limit in (told or {}).items() if limit}
        return cls(**named)


@dataclass(frozen=True, slots=True)
class Admission:
    """An admitted request: its hold is running, and it has to be settled."""

    request_id: str
    admitted_at: str
    key_id: int
    key_prefix: str
    customer_id: int
    hold_usd: str
    rate_limits: RateLimits
    warnings: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    unsupported_parameters: str = "refuse"
    """What becomes of a parameter that a provider can't be told: refuse, or drop."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refused request: it has consumed nothing. `details` are as api.admit_request gives them."""

    code: str
    rate_limits: RateLimits
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Settlement:
    """What api.settle_request is told. `usage` None: nothing is charged."""

    request_id: str
    admitted_at: str
    outcome: str
    status: int
    latency_ms: int
    route_id: int | None = None
    usage: Mapping[str, int] | None = None
    usage_estimated: bool = False
    error_code: str | None = None
    finish_reason: str | None = None
    time_to_first_token_ms: int | None = None
    provider_request_id: str | None = None
    provider_cost_usd: str | None = None
    failed_routes: tuple[Mapping[str, Any], ...] = ()

    def as_json(self) -> JSONObject:
        """Return the document that crosses the wire, and that is kept where it can't."""
        document = {name: getattr(self, name) for name in self.__slots__}
        document["failed_routes"] = list(self.failed_routes) or None
        return document


@dataclass(frozen=True, slots=True)
class Settled:
    """What a settlement came to. Money is exact decimal text, in USD."""

    request_id: str
    billing_mode: str
    tokens_charged: int
    cost_usd: str
    charge_usd: str
    uncollected_usd: str
    credits_charged: float
    balance_after_usd: str
    credits_after: float
    already: bool


class Database:
    """The SQL functions of schema `api`. Each method raises DatabaseError and DatabaseAwayError."""

    def __init__(self, client: DatabaseClient) -> None:
        self._client = client

    async def _call(self, function: str, **parameters: Any) -> Any:
        return await self._client.call(function, {f"p_{name}": value for name, value in parameters.items()})

    async def admit_request(
        self,
        *,
        key_hash: str,
        request_id: str,
        models: Sequence[str],
        endpoint: str,
        lease_seconds: int,
        input_tokens_bound: int | None,
        max_output_tokens: int | None = None,
        choices: int = 1,
        streamed: bool = False,
        model_id: int | None = None,
        provider: str | None = None,
        username: str | None = None,
        media_output: bool = False,
        idempotency_key: str | None = None,
        body_hash: str | None = None,
        output: str = "text",
        media_input: bool | None = None,
        output_bounds: Mapping[str, int] | None = None,
        cache_write_1h: bool = False,
    ) -> Admission | Refusal:
        told = await self._call(
            "admit_request",
            key_hash=key_hash,
            request_id=request_id,
            models=list(models),
            endpoint=endpoint,
            lease_seconds=lease_seconds,
            input_tokens_bound=input_tokens_bound,
            max_output_tokens=max_output_tokens,
            choices=choices,
            streamed=streamed,
            model_id=model_id,
            provider=provider,
            username=username,
            media_output=media_output,
            idempotency_key=idempotency_key,
            body_hash=body_hash,
            output=output,
            media_input=media_input,
            output_bounds=output_bounds,
            cache_write_1h=cache_write_1h,
        )
        rate_limits = RateLimits.read(told.get("rate_limits"))
        if not told["admitted"]:
            return Refusal(code=told["refusal"], rate_limits=rate_limits, details=told)
        return Admission(
            request_id=told["request_id"],
            admitted_at=told["admitted_at"],
            key_id=told["key_id"],
            key_prefix=told["key_prefix"],
            customer_id=told["customer_id"],
            hold_usd=told["hold_usd"],
            rate_limits=rate_limits,
            warnings=tuple(told["warnings"]),
            candidates=tuple(Candidate(**candidate) for candidate in told["candidates"]),
            unsupported_parameters=told["unsupported_parameters"],
        )

    async def settle_request(self, settlement: Mapping[str, Any]) -> Settled | None:
        """Settle by a settlement's document. None where the database knows no such request."""
        told = await self._call("settle_request", settlement=settlement)
        if told.pop("status") != "settled":
            return None
        return Settled(**told)

    async def expire_holds(self, *, limit: int = 500) -> JSONObject:
        return await self._object("expire_holds", limit=limit)

    async def create_request_partitions(self, *, months: int = 3) -> list[str]:
        made: list[str] = await self._call("create_request_partitions", months=months)
        return made

    async def forget_idempotency_keys(self, *, limit: int = 10_000) -> int:
        forgotten: int = await self._call("forget_idempotency_keys", limit=limit)
        return forgotten

    async def check_ledger(self, *, full: bool = False, seconds: float = LONG_SECONDS) -> JSONObject:
        return await self._long("check_ledger", seconds, full=full)

    async def close_ledger(self, *, seconds: float = LONG_SECONDS) -> JSONObject:
        return await self._long("close_ledger", seconds)

    async def drop_request_partitions(self, *, seconds: float = LONG_SECONDS) -> JSONObject:
        return await self._long("drop_request_partitions", seconds)

    async def check_health(self) -> JSONObject:
        return await self._object("check_health")

    async def authenticate_key(self, key_hash: str) -> JSONObject:
        return await self._object("authenticate_key", key_hash=key_hash)

    async def authenticate_user(self, user_id: str, *, is_admin: bool, link: bool = False) -> JSONObject:
        return await self._object("authenticate_user", user_id=user_id, is_admin=is_admin, link=link)

    async def list_models(self, *, key_hash: str | None = None, name: str | None = None) -> JSONObject:
        return await self._object("list_models", key_hash=key_hash, name=name)

    async def read_request(
        self, request_id: str, *, customer_id: int | None, key_id: int | None = None
    ) -> JSONObject | None:
        found: JSONObject | None = await self._call(
            "read_request", request_id=request_id, customer_id=customer_id, key_id=key_id
        )
        return found

    # Customers, their money and their keys. Money goes in as exact decimal text.

    async def create_customer(
        self, *, name: str, email: str, company: str | None, username: str | None, actor: str
    ) -> JSONObject:
        return await self._object(
            "create_customer", name=name, email=email, company=company, username=username, actor=actor
        )

    async def create_user(
        self,
        *,
        name: str,
        prefix: str,
        secret_hash: str,
        email: str | None,
        company: str | None,
        credit_count: str | None,
        rate_limits: Mapping[str, Any] | None,
        actor: str,
    ) -> JSONObject:
        return await self._object(
            "create_user",
            name=name,
            prefix=prefix,
            secret_hash=secret_hash,
            email=email,
            company=company,
            credits=credit_count,
            rate_limits=rate_limits,
            actor=actor,
        )

    async def find_customer(self, *, email: str | None = None, username: str | None = None) -> int | None:
        found: int | None = await self._call("find_customer", email=email, username=username)
        return found

    async def add_credits(
        self,
        *,
        actor: str,
        customer_id: int | None = None,
        key_hash: str | None = None,
        email: str | None = None,
        usd: str | None = None,
        credit_count: str | None = None,
        reference: str | None = None,
        note: str | None = None,
    ) -> JSONObject:
        return await self._object(
            "add_credits",
            customer_id=customer_id,
            key_hash=key_hash,
            email=email,
            usd=usd,
            credits=credit_count,
            reference=reference,
            note=note,
            actor=actor,
        )

    async def read_balance(self, customer_id: int) -> JSONObject | None:
        found: JSONObject | None = await self._call("read_balance", customer_id=customer_id)
        return found

    async def list_balances(self, *, limit: int, after: int) -> list[JSONObject]:
        return await self._objects("list_balances", limit=limit, after=after)

    async def create_key(
        self,
        *,
        customer_id: int | None,
        name: str,
        prefix: str,
        secret_hash: str,
        scopes: Sequence[str],
        allowed_models: Sequence[int | str] | None,
        allowed_services: Sequence[int] | None,
        expires_at: str | None,
        rate_limit: int | None,
        limits: Mapping[str, Any] | None,
        model_limits: Mapping[str, Any] | None,
        warn: Mapping[str, Any] | None,
        warn_percent: str | None,
        bounded: bool,
        maker_key_id: int | None,
        actor: str,
    ) -> JSONObject:
        """`allowed_models` are ids and names. `bounded`: whoever makes it is no admin."""
        ids = (
            None if allowed_models is None else [model for model in allowed_models if isinstance(model, int)]
        )
        names = [model for model in allowed_models or () if isinstance(model, str)]
        return await self._object(
            "create_key",
            customer_id=customer_id,
            name=name,
            prefix=prefix,
            secret_hash=secret_hash,
            scopes=list(scopes),
            allowed_models=ids,
            allowed_model_names=names or None,
            allowed_services=None if allowed_services is None else list(allowed_services),
            expires_at=expires_at,
            rate_limit=rate_limit,
            limits=limits,
            model_limits=model_limits,
            warn=warn,
            warn_percent=warn_percent,
            bounded=bounded,
            maker_key_id=maker_key_id,
            actor=actor,
        )

    async def update_key(
        self,
        key_id: int,
        changes: Mapping[str, Any],
        *,
        customer_id: int | None,
        caller_key_id: int | None,
        actor: str,
    ) -> JSONObject:
        return await self._object(
            "update_key",
            key_id=key_id,
            customer_id=customer_id,
            changes=changes,
            caller_key_id=caller_key_id,
            actor=actor,
        )

    async def rotate_key(
        self,
        key_id: int,
        *,
        customer_id: int | None,
        caller_key_id: int | None,
        prefix: str,
        secret_hash: str,
        grace_seconds: int,
        actor: str,
    ) -> JSONObject:
        return await self._object(
            "rotate_key",
            key_id=key_id,
            customer_id=customer_id,
            prefix=prefix,
            secret_hash=secret_hash,
            grace_seconds=grace_seconds,
            caller_key_id=caller_key_id,
            actor=actor,
        )

    async def forget_retired_secrets(self, *, limit: int = 10_000) -> int:
        forgotten: int = await self._call("forget_retired_secrets", limit=limit)
        return forgotten

    async def list_keys(
        self,
        *,
        customer_id: int | None,
        limit: int = 1,
        after: int = 0,
        key_id: int | None = None,
        active: bool | None = None,
    ) -> list[JSONObject]:
        return await self._objects(
            "list_keys", limit=limit, after=after, customer_id=customer_id, id=key_id, active=active
        )

    async def set_key_state(
        self,
        *,
        customer_id: int | None,
        state: str,
        actor: str,
        key_id: int | None = None,
        key_hash: str | None = None,
        caller_key_id: int | None = None,
    ) -> JSONObject:
        return await self._object(
            "set_key_state",
            key_id=key_id,
            customer_id=customer_id,
            state=state,
            actor=actor,
            key_hash=key_hash,
            caller_key_id=caller_key_id,
        )

    async def set_limits(
        self,
        *,
        rate_limits: Mapping[str, Any],
        warn: Mapping[str, Any],
        warn_percent: str,
        actor: str,
        key_id: int | None = None,
        key_hash: str | None = None,
        customer_id: int | None = None,
        service_id: int | None = None,
        service_name: str | None = None,
        model: str | None = None,
        each_model: bool = False,
    ) -> JSONObject:
        return await self._object(
            "set_limits",
            key_id=key_id,
            customer_id=customer_id,
            service_id=service_id,
            key_hash=key_hash,
            model=model,
            each_model=each_model,
            rate_limits=rate_limits,
            warn=warn,
            warn_percent=warn_percent,
            actor=actor,
            service_name=service_name,
        )

    # Services, the catalogue and the settings

    async def reserve_service_id(self) -> int:
        reserved: int = await self._call("reserve_service_id")
        return reserved

    async def create_service(
        self,
        *,
        service_id: int,
        name: str,
        provider: str,
        base_url: str | None,
        provider_key: str | None,
        provider_key_last4: str | None,
        routes: Sequence[str | Mapping[str, Any]],
        priority: int,
        active: bool,
        limits: Mapping[str, Any] | None,
        actor: str,
    ) -> JSONObject:
        """`provider_key` is sealed already. `routes` are models by name, or objects that say more of them."""
        return await self._object(
            "create_service",
            id=service_id,
            name=name,
            provider=provider,
            base_url=base_url,
            provider_key=provider_key,
            provider_key_last4=provider_key_last4,
            routes=list(routes),
            priority=priority,
            active=active,
            limits=limits,
            actor=actor,
        )

    async def update_service(self, service_id: int, changes: Mapping[str, Any], *, actor: str) -> JSONObject:
        return await self._object("update_service", id=service_id, changes=changes, actor=actor)

    async def delete_service(self, service_id: int, *, actor: str) -> bool:
        deleted: bool = await self._call("delete_service", id=service_id, actor=actor)
        return deleted

    async def list_services(
        self, *, limit: int = 1, after: int = 0, service_id: int | None = None
    ) -> list[JSONObject]:
        return await self._objects("list_services", limit=limit, after=after, id=service_id)

    async def create_model(
        self,
        *,
        name: str,
        offers: Sequence[Mapping[str, Any]],
        display_name: str | None,
        context_length: int | None,
        max_output_tokens: int | None,
        input_modalities: Sequence[str],
        output_modalities: Sequence[str],
        actor: str,
    ) -> JSONObject:
        return await self._object(
            "create_model",
            name=name,
            offers=list(offers),
            display_name=display_name,
            context_length=context_length,
            max_output_tokens=max_output_tokens,
            input_modalities=list(input_modalities),
            output_modalities=list(output_modalities),
            actor=actor,
        )

    async def list_catalogue(
        self,
        *,
        limit: int,
        after: int = 0,
        model_id: int | None = None,
        query: str | None = None,
        active: bool | None = None,
    ) -> list[JSONObject]:
        return await self._objects(
            "list_catalogue", limit=limit, after=after, id=model_id, query=query, active=active
        )

    async def update_model(self, model_id: int, changes: Mapping[str, Any], *, actor: str) -> JSONObject:
        return await self._object("update_model", id=model_id, changes=changes, actor=actor)

    async def read_connection(self, service_id: int) -> JSONObject | None:
        """Return what it takes to call a service, its key sealed."""
        found: JSONObject | None = await self._call("read_connection", id=service_id)
        return found

    async def create_price(
        self,
        *,
        model: str,
        provider: str,
        prices: Mapping[str, Any],
        upstream_model: str | None,
        service_id: int | None,
        effective_from: str | None,
        actor: str,
    ) -> JSONObject:
        return await self._object(
            "create_price",
            model=model,
            provider=provider,
            prices=prices,
            upstream_model=upstream_model,
            service_id=service_id,
            effective_from=effective_from,
            actor=actor,
        )

    async def list_prices(self, *, limit: int, before: int | None, model: str | None) -> list[JSONObject]:
        return await self._objects("list_prices", limit=limit, before=before, model=model)

    # Price lists.

    async def import_prices(
        self, lines: Sequence[Mapping[str, Any]], *, dry_run: bool, effective_from: str | None, actor: str
    ) -> JSONObject:
        return await self._long(
            "import_prices",
            LONG_SECONDS,
            lines=list(lines),
            dry_run=dry_run,
            effective_from=effective_from,
            actor=actor,
        )

    # The settings.

    async def change_settings(self, changes: Mapping[str, Any], *, actor: str) -> JSONObject:
        """Return all settings, as they are after the changes."""
        return await self._object("change_settings", changes=changes, actor=actor)

    # What was used, and what may still be

    async def read_monitor(self, customer_id: int, *, key_id: int | None = None) -> JSONObject | None:
        found: JSONObject | None = await self._call("read_monitor", customer_id=customer_id, key_id=key_id)
        return found

    async def read_totals(self, customer_id: int) -> JSONObject | None:
        found: JSONObject | None = await self._call("read_totals", customer_id=customer_id)
        return found

    async def read_limits(
        self, customer_id: int, *, key_id: int | None, model: str | None = None
    ) -> JSONObject | None:
        found: JSONObject | None = await self._call(
            "read_limits", customer_id=customer_id, key_id=key_id, model=model
        )
        return found

    async def list_requests(
        self,
        *,
        limit: int,
        customer_id: int | None,
        show_cost: bool,
        before: tuple[str, str] | None = None,
        start: str | None = None,
        end: str | None = None,
        model: str | None = None,
        status: str | None = None,
        key_id: int | None = None,
        provider: str | None = None,
        errors: bool = False,
    ) -> JSONObject:
        """`before`: the time and the id of the last row of the page before."""
        before_at, before_id = before or (None, None)
        return await self._object(
            "list_requests",
            limit=limit,
            customer_id=customer_id,
            show_cost=show_cost,
            before_at=before_at,
            before_id=before_id,
            **{"from": start},
            to=end,
            model=model,
            status=status,
            key_id=key_id,
            provider=provider,
            errors=errors,
        )

    async def read_time_series(
        self,
        *,
        customer_id: int | None,
        key_id: int | None,
        start: str | None,
        end: str | None,
        interval: str,
        group_by: str | None,
        time_zone: str | None,
        show_cost: bool,
    ) -> JSONObject:
        """`start` and `end` are times, or dates in the time zone."""
        return await self._object(
            "read_time_series",
            customer_id=customer_id,
            key_id=key_id,
            **{"from": start},
            to=end,
            interval=interval,
            group_by=group_by,
            time_zone=time_zone,
            show_cost=show_cost,
        )

    async def read_key(self, customer_id: int, key_id: int) -> JSONObject | None:
        found: JSONObject | None = await self._call("read_key", customer_id=customer_id, key_id=key_id)
        return found

    async def read_credits(self, customer_id: int) -> JSONObject | None:
        found: JSONObject | None = await self._call("read_credits", customer_id=customer_id)
        return found

    # The operator's desk: customers as people, the audit log

    async def list_customers(
        self,
        *,
        limit: int = 1,
        after: int = 0,
        customer_id: int | None = None,
        query: str | None = None,
        active: bool | None = None,
    ) -> list[JSONObject]:
        return await self._objects(
            "list_customers", limit=limit, after=after, id=customer_id, query=query, active=active
        )

    async def update_customer(
        self, customer_id: int, changes: Mapping[str, Any], *, actor: str
    ) -> JSONObject:
        return await self._object("update_customer", id=customer_id, changes=changes, actor=actor)

    async def erase_customer(self, customer_id: int, *, actor: str) -> JSONObject:
        return await self._object("erase_customer", id=customer_id, actor=actor)

    async def list_audit(
        self,
        *,
        limit: int,
        before: int | None = None,
        entity: str | None = None,
        entity_id: str | None = None,
        by: str | None = None,
        start: str | None = None,
        end: str | None = None,
    ) -> list[JSONObject]:
        """`by` is the actor; from `start` to before `end`."""
        return await self._client.call(  # type: ignore[no-any-return]
            "list_audit",
            {
                "p_limit": limit,
                "p_before": before,
                "p_entity": entity,
                "p_entity_id": entity_id,
                "p_actor": by,
                "p_from": start,
                "p_to": end,
            },
        )

    # Payments and statements

    async def record_payment_event(self, event: Mapping[str, Any], *, actor: str) -> JSONObject:
        return await self._object("record_payment_event", event=dict(event), actor=actor)

    async def read_billing(self, customer_id: int) -> JSONObject | None:
        found: JSONObject | None = await self._call("read_billing", customer_id=customer_id)
        return found

    async def list_payments(
        self, *, limit: int, before: int | None, customer_id: int | None, admin: bool
    ) -> list[JSONObject]:
        return await self._objects(
            "list_payments", limit=limit, before=before, customer_id=customer_id, admin=admin
        )

    async def read_statement(self, customer_id: int, month: str) -> JSONObject:
        """`month` is YYYY-MM."""
        return await self._long("read_statement", LONG_SECONDS, customer_id=customer_id, month=month)

    async def list_statements(
        self, customer_id: int, *, limit: int, before: int | None
    ) -> list[JSONObject] | None:
        """`before` is a month as the number YYYYMM."""
        found: list[JSONObject] | None = await self._call(
            "list_statements", customer_id=customer_id, limit=limit, before=before
        )
        return found

    # Analytics

    async def close_usage(self, *, limit: int = 10_000) -> JSONObject:
        return await self._object("close_usage", limit=limit)

    # How services do

    async def read_service_health(self) -> list[JSONObject]:
        return await self._objects("read_service_health")

    async def compare_provider_costs(self, *, seconds: float = LONG_SECONDS) -> int:
        compared: int = await self._client.call_long("compare_provider_costs", {}, seconds=seconds)
        return compared

    async def read_admin_monitor(self) -> JSONObject:
        return await self._object("read_admin_monitor")

    async def list_top_customers(self, *, start: str, end: str, limit: int) -> list[JSONObject]:
        """From the day `start` to before the day `end`, of UTC."""
        return await self._client.call(  # type: ignore[no-any-return]
            "list_top_customers", {"p_from": start, "p_to": end, "p_limit": limit}
        )

    async def _long(self, function: str, seconds: float, **parameters: Any) -> JSONObject:
        told: JSONObject = await self._client.call_long(
            function, {f"p_{name}": value for name, value in parameters.items()}, seconds=seconds
        )
        return told

    # Soft marks that were crossed, and the outbox

    async def list_crossings(
        self, *, customer_id: int | None, limit: int = 20, key_id: int | None = None
    ) -> list[JSONObject]:
        return await self._objects("list_crossings", customer_id=customer_id, limit=limit, key_id=key_id)

    async def read_deliveries(self, *, limit: int = 20) -> JSONObject:
        return await self._object("read_deliveries", limit=limit)

    async def read_webhook(self) -> JSONObject:
        return await self._object("read_webhook")

    async def claim_deliveries(self, *, limit: int, lease_seconds: int) -> JSONObject:
        return await self._object("claim_deliveries", limit=limit, lease_seconds=lease_seconds)

    async def finish_delivery(
        self, event_id: str, *, attempt: int, delivered: bool, status: int | None, error: str | None
    ) -> JSONObject:
        return await self._object(
            "finish_delivery",
            event_id=event_id,
            attempt=attempt,
            delivered=delivered,
            status=status,
            error=error,
        )

    async def claim_topic_deliveries(
        self, topic_arn: str | None, *, limit: int, lease_seconds: int
    ) -> JSONObject:
        return await self._object(
            "claim_topic_deliveries", topic_arn=topic_arn, limit=limit, lease_seconds=lease_seconds
        )

    async def finish_topic_delivery(
        self, event_id: str, *, attempt: int, delivered: bool, status: int | None, error: str | None
    ) -> JSONObject:
        return await self._object(
            "finish_topic_delivery",
            event_id=event_id,
            attempt=attempt,
            delivered=delivered,
            status=status,
            error=error,
        )

    async def claim_ledger_check(self, *, every_seconds: int) -> bool:
        due: bool = await self._call("claim_ledger_check", every_seconds=every_seconds)
        return due

    async def watch_ledger(self, *, seconds: float = LONG_SECONDS) -> JSONObject:
        return await self._long("watch_ledger", seconds)

    async def list_events(
        self, *, limit: int, before: str | None = None, state: str | None = None, kind: str | None = None
    ) -> list[JSONObject]:
        """`before` is an event's UUID."""
        return await self._objects("list_events", limit=limit, before=before, state=state, kind=kind)

    async def resend_event(self, event_id: str) -> JSONObject:
        return await self._object("resend_event", event_id=event_id)

    async def forget_events(self, *, limit: int = 10_000) -> int:
        forgotten: int = await self._call("forget_events", limit=limit)
        return forgotten

    async def _objects(self, function: str, **parameters: Any) -> list[JSONObject]:
        told: list[JSONObject] = await self._call(function, **parameters)
        return told

    async def _object(self, function: str, **parameters: Any) -> JSONObject:
        told: JSONObject = await self._call(function, **parameters)
        return told
