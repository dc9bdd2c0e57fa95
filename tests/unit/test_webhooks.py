"""What goes to the operator's webhook, and where it is sent: to what was checked, and nowhere else."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from pydantic import SecretStr
from standardwebhooks import Webhook

from gateway import webhooks
from gateway.outbox import Attempt
from gateway.settings import Settings
from gateway.webhook_endpoint import seal_secret, signing_key
from gateway.webhooks import WebhookSender, sign
from tests.fixtures.certificates import certificate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

MASTER = {"b": bytes(range(32))}
SECRET = "whsec_" + base64.b64encode(bytes(range(24))).decode()
MESSAGE = {
    "id": "evt_01",
    "type": "limit.soft_crossed",
    "created_at": "2026-11-21T12:00:00+00:00",
    "data": {"name": "Zoë", "used": 1},
    "event_id": "not sent",
    "attempt": 3,
}
URL = "https://hooks.example.com:8443/in?token=hidden"
PUBLIC = "93.184.215.14"


class Receiver:
    """A transport that answers as it is told, and remembers what it was sent."""

    def __init__(self, answer: Callable[[httpx.Request], httpx.Response] | None = None) -> None:
        self.requests: list[httpx.Request] = []
        self._answer = answer or (lambda _request: httpx.Response(204))

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self._answer(request)


class Resolver:
    """Gives its answers in turn, the last again and again: a name that is bound anew."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append((host, port))
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


async def send(
    receiver: Receiver, resolver: Resolver | None = None, *, url: str = URL, **others: Any
) -> Attempt:
    settings = Settings(
        rest_url="https://x.example.com",
        supabase_key=SecretStr("key"),
        master_keys=others.pop("master_keys", MASTER),
        **others,
    )
    async with httpx.AsyncClient(transport=httpx.MockTransport(receiver)) as http:
        sender = WebhookSender(settings, http, resolve=resolver or Resolver([PUBLIC]))
        return await sender.send(url, seal_secret(SECRET, master_keys=MASTER), MESSAGE)


def test_the_signature_is_the_specifications_example() -> None:
    key = signing_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    assert (
        sign(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
        == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )


async def test_a_receiver_verifies_the_message_as_documented() -> None:
    receiver = Receiver()
    assert await send(receiver) == Attempt(204, None)
    [request] = receiver.requests
    assert (request.method, request.headers["content-type"]) == ("POST", "application/json")
    told = Webhook(SECRET).verify(request.content, dict(request.headers))
    assert told == {name: MESSAGE[name] for name in ("id", "type", "created_at", "data")}
    assert request.headers["webhook-id"] == told["id"]
    assert abs(int(request.headers["webhook-timestamp"]) - time.time()) < 5


async def test_what_was_checked_is_what_is_connected_to() -> None:
    receiver, resolver = Receiver(), Resolver([PUBLIC], ["127.0.0.1"])
    assert (await send(receiver, resolver)).delivered
    [request] = receiver.requests
    assert str(request.url) == f"https://{PUBLIC}:8443/in?token=hidden"
    assert request.headers["host"] == "hooks.example.com:8443"
    assert request.extensions["sni_hostname"] == "hooks.example.com"  # whose certificate is demanded
    assert resolver.asked == [("hooks.example.com", 8443)]


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], [PUBLIC, "10.0.0.7"], ["169.254.169.254"], ["::1"], ["fd00::1"], ["::ffff:10.0.0.1"], []],
)
async def test_a_name_that_leads_inside_by_now_is_refused(addresses: list[str]) -> None:
    receiver = Receiver()
    attempt = await send(receiver, Resolver(addresses))
    assert (attempt.status, receiver.requests) == (None, [])
    assert "webhook_url" in (attempt.error or "")


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.com/",
        "https://127.0.0.1/",
        "https://localhost/",
        "https://[::1]/",
        "https://0x7f000001/",
        "https://user:pass@hooks.example.com/",
    ],
)
async def test_a_url_that_was_edited_by_hand_is_checked_again(url: str) -> None:
    receiver = Receiver()
    attempt = await send(receiver, url=url)
    assert (attempt.delivered, receiver.requests) == (False, [])


async def test_the_next_address_is_tried_where_one_is_not_reached() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.host != PUBLIC:
            raise httpx.ConnectError("no route", request=request)
        return httpx.Response(200)

    receiver = Receiver(answer)
    assert (await send(receiver, Resolver(["2606:2800:21f::1", "198.41.0.4", PUBLIC]))).delivered
    assert [request.url.host for request in receiver.requests] == ["2606:2800:21f::1", "198.41.0.4", PUBLIC]


async def test_what_was_sent_is_not_sent_to_another_address() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("reset", request=request)

    receiver = Receiver(answer)
    attempt = await send(receiver, Resolver([PUBLIC, "198.41.0.4"]))
    assert (attempt, len(receiver.requests)) == (Attempt(None, "ReadError: reset"), 1)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed(status: int) -> None:
    receiver = Receiver(lambda _: httpx.Response(status, headers={"location": "https://other.example/"}))
    attempt = await send(receiver)
    assert len(receiver.requests) == 1
    assert attempt == Attempt(status, f"the receiver answered {status}, and redirects are not followed")


@pytest.mark.parametrize("status", [199, 400, 410, 429, 500, 503])
async def test_anything_but_2xx_is_a_failure(status: int) -> None:
    attempt = await send(Receiver(lambda _: httpx.Response(status)))
    assert attempt == Attempt(status, f"the receiver answered {status}")


async def test_a_receiver_that_does_not_answer_is_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(httpx.AsyncBaseTransport):
        async def handle_async_request(self, _request: httpx.Request) -> httpx.Response:
            await asyncio.Event().wait()
            raise AssertionError

    monkeypatch.setattr(webhooks, "ATTEMPT_SECONDS", 0.05)
    settings = Settings(rest_url="https://x.example.com", supabase_key=SecretStr("key"), master_keys=MASTER)
    async with httpx.AsyncClient(transport=Silent()) as http:
        sender = WebhookSender(settings, http, resolve=Resolver([PUBLIC]))
        attempt = await sender.send(URL, seal_secret(SECRET, master_keys=MASTER), MESSAGE)
    assert attempt == Attempt(None, "no answer within 0 s")


async def test_a_secret_that_does_not_open_sends_nothing() -> None:
    receiver = Receiver()
    attempt = await send(receiver, master_keys={"another": bytes(32)})
    assert (attempt.delivered, receiver.requests) == (False, [])
    assert "SLUICE_MASTER_KEYS" in (attempt.error or "")


async def test_no_error_shows_the_url_or_the_secret() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("certificate verify failed", request=request)

    for attempt in (
        await send(Receiver(answer)),
        await send(Receiver(lambda _: httpx.Response(500, content=b"hidden"))),
        await send(Receiver(), Resolver(["127.0.0.1"])),
        await send(Receiver(), url="https://hooks.example.com/ hidden?hidden"),
    ):
        assert attempt.error
        assert "hidden" not in attempt.error
        assert SECRET not in attempt.error


def test_the_body_is_json_as_it_stands() -> None:
    """Receivers that verify text and not bytes get the same: UTF-8, and one spelling of it."""
    key = signing_key(SECRET)
    body = json.dumps({"name": "Zoë"}, ensure_ascii=False).encode()
    headers = {
        "webhook-id": "evt_01",
        "webhook-timestamp": str(int(time.time())),
        "webhook-signature": sign(key, "evt_01", int(time.time()), body),
    }
    assert Webhook(SECRET).verify(body, headers) == {"name": "Zoë"}


async def test_the_certificate_is_to_be_the_names_and_not_the_address(tmp_path: Path) -> None:
    """Over real TLS: connected to an address, the receiver proves that it is the host of the URL."""
    path = certificate("hooks.example.com", tmp_path)
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(path)
    heads: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=serving)
    port = server.sockets[0].getsockname()[1]
    trusting = ssl.create_default_context(cafile=path)
    settings = Settings(rest_url="https://x.example.com", supabase_key=SecretStr("key"), master_keys=MASTER)
    async with server, httpx.AsyncClient(verify=trusting, trust_env=False) as http:
        sender = WebhookSender(settings, http)

        async def post(name: str) -> int:
            url = httpx.URL(f"https://127.0.0.1:{port}/in")
            return await sender._post_to(url, name, {"host": f"{name}:{port}"}, b"{}")

        assert await post("hooks.example.com") == 204
        assert f"Host: hooks.example.com:{port}".lower().encode() in heads[0].lower()
        for stranger in ("other.example.com", "127.0.0.1"):
            with pytest.raises(httpx.ConnectError, match="certificate"):
                await post(stranger)
    assert len(heads) == 1
