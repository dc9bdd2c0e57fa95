"""Events on their way to the operator's webhook: over real sockets, PostgREST and PostgreSQL."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from standardwebhooks import Webhook
from starlette.responses import Response

from gateway import openapi, outbox
from gateway.auth import key_hash
from gateway.database.client import DatabaseAwayError
from gateway.database.rpc import Admission, Database
from gateway.http import create_app, new_request_id
from gateway.maintenance import run_once
from gateway.runtime.process import Process
from gateway.schemas.answers.admin import WebhookTest
from gateway.webhook_endpoint import seal_secret
from infra.local.serving import ThreadedServer
from tests.fixtures.management import MASTER_KEYS, URL, Management, assert_error, management

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from starlette.types import Receive, Scope, Send


__all__ = ["management"]

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


@dataclass(slots=True)
class Receiver:
    """A receiver as operators write one: it believes nothing that it can't verify."""

    statuses: list[int] = field(default_factory=list)
    """What it answers, in turn; 204 from then on."""
    messages: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most_at_once: int = 0
    gate: asyncio.Barrier | None = None
    """Where it waits for as many as are to be under way at once."""
    url: str = ""
    _under_way: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self._under_way += 1
        self.most_at_once = max(self.most_at_once, self._under_way)
        if self.gate is not None:
            await self.gate.wait()
        self._under_way -= 1
        self.paths.append(scope["path"])
        self.headers.append(headers)
        self.messages.append(Webhook(SECRET).verify(body, headers))
        status = self.statuses.pop(0) if self.statuses else 204
        location = {"location": "/elsewhere"} if status in {301, 302, 307, 308} else None
        await Response(status_code=status, headers=location)(scope, receive, send)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    with ThreadedServer(made) as server:
        made.url = server.url
        yield made


@pytest.fixture
async def local(management: Management, receiver: Receiver) -> AsyncIterator[Management]:
    """A gateway that may call this machine, with the receiver as its webhook and an empty outbox."""
    process = Process.start(management.process.settings.model_copy(update={"allow_private_urls": True}))
    app = create_app(openapi.every_operation(process), logger=process.logger)
    management.connection.execute("delete from gateway.events")
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url=URL, event_hooks=management.client.event_hooks
    ) as client:
        made = dataclasses.replace(management, process=process, client=client)
        changes = {"webhook_url": f"{receiver.url}/hooks", "webhook_secret": SECRET}
        assert SECRET not in json.dumps(await made.ok("PATCH", "/admin/settings", changes))
        yield made
    await process.aclose()


def raise_event(management: Management, subject: str = "test") -> str:
    event: uuid.UUID = management.value(
        "select gateway.raise_event('limit.soft_crossed', %s, jsonb_build_object('subject', %s::text))",
        subject,
        subject,
    )
    return f"evt_{event.hex}"


def let_time_pass(management: Management) -> None:
    management.connection.execute(
        "update gateway.event_deliveries set claimed_until = claimed_until - interval '1 day',"
        " next_attempt_at = next_attempt_at - interval '1 day'"
    )


def deliveries(management: Management) -> list[tuple[Any, ...]]:
    return management.query(
        "select attempts, delivered_at is not null, last_status, last_error from gateway.event_deliveries"
    )


async def test_a_crossing_reaches_the_receiver_once(local: Management, receiver: Receiver) -> None:
    customer = local.customer("2")
    model = await local.model()
    await local.ok(
        "POST",
        "/admin/services",
        {
            "name": f"service {uuid.uuid4()}",
            "provider": "openai-compatible",
            "base_url": "https://8.8.8.8/v1",
            "enabled_models": [model["name"]],
        },
        status=201,
    )
    await local.ok("POST", "/admin/limit", {"user_id": customer.id, "warn": {"tokens_per_day": 100}})
    admission = await local.process.database.admit_request(
        key_hash=key_hash(customer.key),
        request_id=new_request_id(),
        models=[model["name"]],
        endpoint="chat.completions",
        lease_seconds=60,
        input_tokens_bound=1000,
        max_output_tokens=10,
    )
    assert isinstance(admission, Admission)
    assert admission.warnings == ("tokens_per_day",)
    await run_once(local.process)
    assert receiver.messages == []
    settlement = {
        "request_id": admission.request_id,
        "admitted_at": admission.admitted_at,
        "outcome": "succeeded",
        "route_id": admission.candidates[0].route_id,
        "usage": {"input": 120, "output": 3},
        "status": 200,
        "latency_ms": 5,
    }
    assert await local.process.database.settle_request(settlement)
    sweep = await run_once(local.process)
    assert (sweep.events_delivered, sweep.events_failed) == (1, 0)
    assert (await run_once(local.process)).events_delivered == 0
    [message] = receiver.messages
    assert message["type"] == "limit.soft_crossed"
    window_start = message["data"].pop("window_start")
    assert message["data"] == {
        "subject": "customer",
        "id": customer.id,
        "customer_id": customer.id,
        "model": None,
        "limit": "tokens_per_day",
        "mark": 100,
        "used": 123,
    }
    [crossing] = await local.process.database.list_crossings(customer_id=customer.id)
    assert (crossing["window_start"], crossing["used"]) == (window_start, 123)
    assert receiver.paths == ["/hooks"]
    # and the monitors show it: to the customer, to the operator, not to a key that sees only itself
    for key, seen in (
        (customer.key, [crossing]),
        (local.key(customer.id, "chat")[0], []),
        (local.customer().key, []),
    ):
        assert (await local.ok("GET", "/user/monitor", key=key))["soft_limits_crossed"] == seen
    figures = (await local.ok("GET", "/admin/monitor"))["data"]
    assert crossing in figures["soft_limits_crossed"]
    assert (figures["webhook"]["webhook_set"], figures["webhook"]["waiting"]) == (True, 0)
    assert figures["webhook"]["last_delivered_at"] is not None


async def test_an_event_is_sent_until_it_is_taken(local: Management, receiver: Receiver) -> None:
    receiver.statuses = [500, 302, 404]
    identity = raise_event(local)
    for failed in range(1, 4):
        sweep = await run_once(local.process)
        assert (sweep.events_delivered, sweep.events_failed) == (0, 1)
        assert deliveries(local)[0][:2] == (failed, False)
        # not before its time
        assert (await run_once(local.process)).events_failed == 0
        let_time_pass(local)
    assert (await run_once(local.process)).events_delivered == 1
    assert [message["id"] for message in receiver.messages] == [identity] * 4
    assert receiver.paths == ["/hooks"] * 4  # the redirect was not followed
    # each attempt is signed for its own time, the same message
    assert len({json.dumps(message) for message in receiver.messages}) == 1
    assert deliveries(local) == [(4, True, 204, None)]


async def test_what_was_sent_and_not_written_down_is_sent_again_under_its_id(
    local: Management, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = raise_event(local)
    with monkeypatch.context() as patched:

        async def die(*_args: object, **_options: object) -> None:
            raise DatabaseAwayError("finish_delivery", None, "gone")

        patched.setattr(Database, "finish_delivery", die)
        with pytest.raises(DatabaseAwayError):
            await run_once(local.process)
    assert (await run_once(local.process)).events_delivered == 0  # still claimed
    let_time_pass(local)
    assert (await run_once(local.process)).events_delivered == 1
    assert [message["id"] for message in receiver.messages] == [identity, identity]
    assert deliveries(local) == [(2, True, 204, None)]


async def test_many_events_go_out_a_few_at_a_time(local: Management, receiver: Receiver) -> None:
    receiver.gate = asyncio.Barrier(outbox.AT_A_TIME)
    raised = {raise_event(local, f"subject {number}") for number in range(3 * outbox.AT_A_TIME)}
    assert (await run_once(local.process)).events_delivered == len(raised)
    assert {message["id"] for message in receiver.messages} == raised
    assert receiver.most_at_once == outbox.AT_A_TIME


async def test_maintainers_at_once_send_each_event_once(local: Management, receiver: Receiver) -> None:
    raised = sorted(raise_event(local, f"subject {number}") for number in range(40))
    sweeps = await asyncio.gather(*(run_once(local.process) for _ in range(4)))
    assert sum(sweep.events_delivered for sweep in sweeps) == len(raised)
    assert sorted(message["id"] for message in receiver.messages) == raised


async def test_a_receiver_that_takes_nothing_is_left_alone_until_the_next_run(
    local: Management, receiver: Receiver
) -> None:
    receiver.statuses = [503] * 100
    for number in range(2 * outbox.AT_A_TIME):
        raise_event(local, f"subject {number}")
    assert (await run_once(local.process)).events_failed == outbox.AT_A_TIME
    told = await local.process.database.read_deliveries(limit=3)
    assert (told["waiting"], told["given_up"], len(told["undelivered"])) == (2 * outbox.AT_A_TIME, 0, 3)
    assert told["undelivered"][0]["last_status"] == 503


async def test_a_receiver_that_is_not_there_is_told_of(local: Management, unused_tcp_port: int) -> None:
    await local.ok(
        "PATCH", "/admin/settings", {"webhook_url": f"http://127.0.0.1:{unused_tcp_port}/?t=hidden"}
    )
    raise_event(local)
    assert (await run_once(local.process)).events_failed == 1
    [(attempts, delivered, status, error)] = deliveries(local)
    assert (attempts, delivered, status) == (1, False, None)
    assert error.startswith("ConnectError: ")
    assert "hidden" not in error


async def test_an_inside_address_is_refused_when_it_is_to_be_called(
    management: Management, receiver: Receiver
) -> None:
    """As after an edit in Studio, or on a stack that does not allow what another did."""
    management.connection.execute("delete from gateway.events")
    sealed = seal_secret(SECRET, master_keys=MASTER_KEYS)
    management.connection.execute(
        "update gateway.settings set webhook_url = %s, webhook_secret = %s", [receiver.url, sealed]
    )
    raise_event(management)
    assert (await run_once(management.process)).events_failed == 1
    assert deliveries(management) == [(1, False, None, "webhook_url must be https.")]
    told = await management.ok("POST", "/admin/webhook/test")
    assert (told["delivered"], told["error"]) == (False, "webhook_url must be https.")
    assert receiver.messages == []


async def test_a_ping_tells_what_the_receiver_said(local: Management, receiver: Receiver) -> None:
    receiver.statuses = [200, 401]
    told = await local.ok("POST", "/admin/webhook/test")
    WebhookTest.model_validate(told)
    assert (told["delivered"], told["status"], told["error"]) == (True, 200, None)
    assert [(message["id"], message["type"]) for message in receiver.messages] == [
        (told["id"], "webhook.test")
    ]
    told = await local.ok("POST", "/admin/webhook/test")
    WebhookTest.model_validate(told)
    assert (told["delivered"], told["status"]) == (False, 401)
    assert told["error"] == "the receiver answered 401"
    # it is not an event, and is not tried again
    assert local.value("select count(*) from gateway.events") == 0


async def test_a_ping_without_a_webhook_is_a_conflict(local: Management) -> None:
    await local.ok("PATCH", "/admin/settings", {"webhook_url": None})
    assert_error(await local.admin("POST", "/admin/webhook/test"), 409, "webhook_not_set")


async def test_only_an_admin_sends_a_ping(local: Management, receiver: Receiver) -> None:
    customer = local.customer()
    assert_error(await local.call("POST", "/admin/webhook/test", None), 401)
    assert_error(await local.call("POST", "/admin/webhook/test", customer.key), 403)
    assert receiver.messages == []


async def test_nothing_of_the_gateways_secrets_goes_out(local: Management, receiver: Receiver) -> None:
    raise_event(local)
    await run_once(local.process)
    [headers] = receiver.headers
    assert set(headers) == {
        "host",
        "accept",
        "accept-encoding",
        "connection",
        "content-length",
        "content-type",
        "user-agent",
        "webhook-id",
        "webhook-timestamp",
        "webhook-signature",
    }
