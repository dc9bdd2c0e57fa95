"""A service's test says what is wrong and how to mend it, and never what must stay secret."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from pydantic import SecretStr

from gateway import service_keys
from gateway.providers.registry import PROVIDERS, provider_named
from gateway.providers.wire import AuthStyle
from gateway.service_check import _MEND, Finding, Problem, ServiceCheck
from gateway.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from gateway.providers.wire import Provider

    Answers = Callable[[httpx.Request], httpx.Response]

KEY = "opaque-key-of-the-provider"
MASTER = {"a": bytes(32)}
HERE = "https://8.8.8.8/v1"
MODELS = ({"name": "ours", "upstream_model": "theirs", "chats": True},)
LIST = {"object": "list", "data": [{"id": "theirs"}, {"id": "other"}]}
GOOGLES_LIST = {"models": [{"name": "models/theirs"}, {"name": "models/other"}]}
CHAT = {"choices": [{"message": {"role": "assistant", "content": "1"}, "finish_reason": "length"}]}


def settings(*, private: bool = False) -> Settings:
    return Settings(
        rest_url="http://127.0.0.1:1",
        supabase_key=SecretStr("x"),
        master_keys=MASTER,
        spool_dir=Path("spool"),
        allow_private_urls=private,
    )


def connection(
    provider: str = "deepseek", *, base_url: str = HERE, key: str | None = KEY, models: Sequence[Any] = MODELS
) -> dict[str, Any]:
    sealed = key and service_keys.seal(
        key, master_keys=MASTER, service_id=7, provider=provider_named(provider).name, base_url=base_url
    )
    return {
        "id": 7,
        "provider": provider,
        "base_url": base_url,
        "provider_key": sealed,
        "models": list(models),
    }


async def look(told: dict[str, Any], answers: Answers) -> Finding:
    async with httpx.AsyncClient(transport=httpx.MockTransport(answers)) as http:
        return await ServiceCheck(told, settings(), http).run()


class Provider200:
    """Answers the list and the chat with what it is given, and keeps what it was asked."""

    def __init__(self, listed: Any = LIST, chat: Any = CHAT) -> None:
        self._listed, self._chat = listed, chat
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        told = self._listed if request.method == "GET" else self._chat
        return told if isinstance(told, httpx.Response) else httpx.Response(200, json=told)

    @property
    def paths(self) -> list[str]:
        return [f"{request.method} {request.url.path}" for request in self.asked]


def refused(status: int, message: str = "no", **fields: Any) -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": message, **fields}})


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.name)
async def test_a_good_service_of_every_provider_is_ok(provider: Provider) -> None:
    path = "completions" if provider.name == "completions" else "chat/completions"
    said = {"choices": [{"index": 0, "text": "Hi", "finish_reason": "length"}]}
    answers = Provider200(
        GOOGLES_LIST if provider.name == "gemini" else LIST,
        said if provider.name == "completions" else CHAT,
    )
    finding = await look(connection(provider.name), answers)
    assert finding.as_json() == {
        "ok": True,
        "status": 200,
        "latency_ms": finding.latency_ms,
        "problem": None,
        "message": None,
        "provider_said": None,
        "models_missing": [],
    }
    # a chat only where the list says nothing about the key
    chat = [f"POST /v1/{path}"] if provider.lists_models_to_all else []
    assert answers.paths == ["GET /v1/models", *chat]
    bearer = provider.auth is AuthStyle.BEARER
    header, value = ("authorization", f"Bearer {KEY}") if bearer else (provider.auth.value, KEY)
    assert {request.headers[header] for request in answers.asked} == {value}
    for request in answers.asked[1:]:
        body = json.loads(request.content)
        assert (body["model"], body[provider.output_bound_field]) == ("theirs", 1)


@pytest.mark.parametrize(
    ("provider", "listed", "chat", "problem"),
    [
        ("openai", refused(401), CHAT, "unauthorized"),
        ("openai", refused(403), CHAT, None),
        ("openai", refused(403), refused(401), "unauthorized"),
        ("openrouter", LIST, refused(401), "unauthorized"),
        ("openrouter", LIST, refused(402), "no_credit"),
        ("openai-compatible", LIST, refused(403), "unauthorized"),
        ("openai", refused(402), CHAT, "no_credit"),
        ("gemini", refused(400, "API key not valid. Please pass a valid API key."), CHAT, "unauthorized"),
        ("openai", refused(429), CHAT, "rate_limited"),
        ("openai", refused(500), CHAT, "provider_failed"),
        ("openai", httpx.Response(503, text="<html>down</html>"), CHAT, "provider_failed"),
        ("openai", refused(504), CHAT, "timeout"),
        ("openai", httpx.Response(301, headers={"location": "https://1.1.1.1/"}), CHAT, "redirected"),
        ("openai", {"data": [{"id": "other"}]}, CHAT, "model_not_found"),
        ("openai", [{"id": "theirs"}], CHAT, None),
        ("openai", {"data": []}, CHAT, None),
        ("openai", {"data": "none"}, CHAT, None),
        ("openai", refused(404), CHAT, None),
        ("openai", refused(405), CHAT, None),
        ("openai", refused(404), refused(404), "not_compatible"),
        ("openai", httpx.Response(200, text="<html>a page</html>"), refused(404), "not_compatible"),
        ("openrouter", LIST, refused(404, "No endpoints found for theirs."), "model_not_found"),
        ("openrouter", LIST, refused(400, "Model Not Exist"), "model_not_found"),
        ("openrouter", LIST, refused(400, "not a valid ID", code="model_not_found"), "model_not_found"),
        ("openrouter", LIST, refused(400, "max_tokens must be at least 16"), "refused"),
        ("openrouter", LIST, httpx.Response(200, text="<html>"), "not_compatible"),
        ("openrouter", LIST, {"error": {"message": "no", "code": 402}}, "no_credit"),
        ("openrouter", LIST, {"hello": "world"}, "not_compatible"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_named(provider: str, listed: Any, chat: Any, problem: str | None) -> None:
    finding = await look(connection(provider), Provider200(listed, chat))
    assert finding.problem == problem
    told = finding.as_json()
    assert told["ok"] is (problem is None)
    assert bool(told["message"]) is (problem is not None)


async def test_a_key_that_opens_nothing_costs_no_chat() -> None:
    answers = Provider200(refused(401))
    assert (await look(connection("openai"), answers)).problem is Problem.UNAUTHORIZED
    assert answers.paths == ["GET /v1/models"]


async def test_the_models_that_are_missing_are_named_as_we_name_them() -> None:
    models = [
        {"name": "ours", "upstream_model": "theirs", "chats": True},
        {"name": "variant", "upstream_model": "other:nitro", "chats": True},
        {"name": "gone", "upstream_model": "was-there", "chats": False},
    ]
    finding = await look(connection("deepseek", models=models), Provider200())
    assert (finding.problem, finding.models_missing) == (Problem.MODEL_NOT_FOUND, ("gone",))
    finding = await look(connection("deepseek", models=models), Provider200(refused(404)))
    assert (finding.problem, finding.models_missing) == (None, None)


async def test_the_chat_is_with_a_model_that_chats() -> None:
    models = [
        {"name": "embed", "upstream_model": "other", "chats": False},
        {"name": "ours", "upstream_model": "theirs", "chats": True},
    ]
    answers = Provider200()
    await look(connection("openrouter", models=models), answers)
    assert json.loads(answers.asked[1].content)["model"] == "theirs"


@pytest.mark.parametrize(("listed", "problem"), [(LIST, "no_models"), (refused(404), "not_compatible")])
async def test_without_a_model_that_chats_what_can_be_told_is(listed: Any, problem: str) -> None:
    assert (await look(connection("openrouter", models=()), Provider200(listed))).problem == problem


async def test_without_a_key_a_list_is_enough_where_none_is_needed() -> None:
    answers = Provider200()
    assert (await look(connection("openai-compatible", key=None), answers)).problem is None
    assert "authorization" not in answers.asked[0].headers
    assert len(answers.asked) == 1


def nobody(request: httpx.Request) -> httpx.Response:
    raise AssertionError(f"{request.url} was called")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"provider": "gone"}, "unknown_provider"),
        ({"provider": "openai-compatible", "base_url": None}, "unknown_provider"),
        ({"provider_key": None}, "key_missing"),
        ({"provider_key": "v1.other.AAAA.AAAA"}, "key_unreadable"),
        ({"base_url": "https://1.1.1.1/v1"}, "key_unreadable"),
        ({"base_url": "https://10.0.0.1/v1"}, "address"),
        ({"base_url": "http://8.8.8.8/v1"}, "address"),
        ({"id": 8}, "key_unreadable"),
    ],
)
async def test_what_is_wrong_with_the_row_calls_nobody(changes: dict[str, Any], problem: str) -> None:
    finding = await look({**connection(), **changes}, nobody)
    assert (finding.problem, finding.status) == (problem, None)
    assert KEY not in str(finding.as_json())


async def test_a_host_without_an_address_is_dns() -> None:
    async def resolve(_host: str, _port: int) -> Sequence[str]:
        raise OSError("no such host")

    told = connection(base_url="https://llm.example.com/v1")
    async with httpx.AsyncClient(transport=httpx.MockTransport(nobody)) as http:
        finding = await ServiceCheck(told, settings(), http).run(resolve=resolve)
    assert finding.problem is Problem.DNS


async def test_a_host_that_leads_inside_by_now_is_not_called() -> None:
    async def resolve(_host: str, _port: int) -> Sequence[str]:
        return ["8.8.8.8", "127.0.0.1"]

    told = connection(base_url="https://llm.example.com/v1")
    async with httpx.AsyncClient(transport=httpx.MockTransport(nobody)) as http:
        finding = await ServiceCheck(told, settings(), http).run(resolve=resolve)
    assert finding.problem is Problem.ADDRESS


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 422, 429, 500])
@pytest.mark.parametrize("provider", ["openai", "openrouter"])
async def test_nothing_that_a_provider_repeats_tells_the_key(provider: str, status: int) -> None:
    echo = refused(
        status, f"Key {KEY} for {HERE} is wrong.\nsk-proj-abcdefghijklmnopqrstuvwx\r\n" + "x" * 5000
    )
    finding = await look(connection(provider), Provider200(echo, echo))
    shown = json.dumps(finding.as_json())
    assert finding.problem is not None
    for secret in (KEY, HERE, "abcdefghijkl"):
        assert secret not in shown
    said = finding.provider_said or ""
    assert len(said) <= 200
    assert said.isprintable()
    if status in {401, 403}:
        assert finding.provider_said is None


def test_every_problem_says_how_to_mend_it() -> None:
    assert set(_MEND) == set(Problem)


# Over real sockets.


@contextlib.asynccontextmanager
async def listening(answer: bytes | None) -> AsyncIterator[int]:
    """A server that answers every connection with these bytes, or with None never; its port."""

    served: list[asyncio.Task[Any] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(asyncio.current_task())
        with contextlib.suppress(ConnectionError):
            await reader.read(1)
            if answer is None:
                await reader.read()
            else:
                writer.write(answer)
                await writer.drain()
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
    await asyncio.gather(*filter(None, served))


async def look_at(url: str, *, seconds: float = 15.0) -> Finding:
    told = connection("openai-compatible", base_url=url)
    async with httpx.AsyncClient(timeout=httpx.Timeout(None, connect=5), trust_env=False) as http:
        return await ServiceCheck(told, settings(private=True), http).run(seconds=seconds)


async def test_a_port_that_nobody_listens_on_is_connect() -> None:
    async with listening(b"") as port:
        pass
    assert (await look_at(f"http://127.0.0.1:{port}/v1")).problem is Problem.CONNECT


async def test_a_name_that_nobody_has_is_dns() -> None:
    assert (await look_at("https://nobody.invalid/v1")).problem is Problem.DNS


async def test_what_speaks_no_tls_is_tls() -> None:
    async with listening(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n") as port:
        assert (await look_at(f"https://127.0.0.1:{port}/v1")).problem is Problem.TLS


async def test_what_never_answers_is_a_timeout_in_time() -> None:
    async with listening(None) as port:
        start = time.monotonic()
        finding = await look_at(f"http://127.0.0.1:{port}/v1", seconds=0.3)
        assert finding.problem is Problem.TIMEOUT
        assert time.monotonic() - start < 5


async def test_what_is_no_http_is_told() -> None:
    async with listening(b"SSH-2.0-OpenSSH_9.9\r\n") as port:
        assert (await look_at(f"http://127.0.0.1:{port}/v1")).problem is Problem.CONNECT
