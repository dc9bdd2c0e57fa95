"""Which route is called when, and how often: over a transport that says what each provider answers."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from pydantic import SecretStr

from gateway import upstream
from gateway.database.rpc import Candidate
from gateway.errors import BadRequest, Unprocessable
from gateway.observability import make_logger
from gateway.providers.registry import provider_named
from gateway.providers.wire import Fault, ProviderError
from gateway.settings import Settings
from gateway.upstream import Exchange, Upstream

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.providers.wire import ProviderCall

ANSWER = {
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}]
}
BODY = {"messages": [{"role": "user", "content": "Hello"}]}
SETTINGS = Settings(
    rest_url="http://127.0.0.1:1", supabase_key=SecretStr("none"), allow_private_urls=True, master_keys={}
)
Said = httpx.Response | Exception


def route(number: int, provider: str = "vllm") -> Candidate:
    return Candidate(
        route_id=number,
        service_id=number,
        service_name=f"service {number}",
        provider=provider,
        base_url=f"http://127.0.0.{number}/v1",
        provider_key="sealed",
        model="model",
        upstream_model="claude-sonnet-4-5" if provider == "anthropic" else "model",
        max_output_tokens=100,
    )


def status(number: int, retry_after: str | None = None, **error: Any) -> httpx.Response:
    headers = {} if retry_after is None else {"retry-after": retry_after}
    return httpx.Response(number, headers=headers, json={"error": {"message": "no", **error}})


def good() -> httpx.Response:
    return httpx.Response(200, json=ANSWER)


@dataclass(slots=True)
class Providers:
    """What each route answers, in turn, and which were called."""

    said: dict[int, list[Said]]
    called: list[int] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)

    def answer(self, request: httpx.Request) -> httpx.Response:
        number = int(request.url.host.rpartition(".")[2])
        self.called.append(number)
        self.bodies.append(json.loads(request.content))
        said = self.said[number].pop(0)
        if isinstance(said, Exception):
            raise said
        return said

    async def exchange(self, exchange: Exchange) -> bytes:
        async def read(_call: ProviderCall, response: httpx.Response) -> bytes:
            return await response.aread()

        async with httpx.AsyncClient(transport=httpx.MockTransport(self.answer)) as http:
            return await Upstream(SETTINGS, http, make_logger()).exchange(exchange, read)


@pytest.fixture
def providers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Providers]:
    """Make providers; pauses are written down, not made."""

    def make(**said: list[Said]) -> Providers:
        made = Providers({int(name.removeprefix("of_")): answers for name, answers in said.items()})

        ours, really = threading.current_thread(), asyncio.sleep

        async def sleep(seconds: float) -> None:
            # A server that other tests share may sleep, too: in a thread of its own.
            if threading.current_thread() is ours:
                made.pauses.append(seconds)
            else:
                await really(seconds)

        monkeypatch.setattr(asyncio, "sleep", sleep)
        monkeypatch.setattr(upstream, "open_sealed", lambda *_, **__: "a-key")
        return made

    return make


def exchange(*routes: Candidate, **fields: Any) -> Exchange:
    return Exchange(**{"body": BODY, "candidates": routes, **fields})


REFUSED = httpx.ConnectError("refused")


async def test_the_first_route_that_answers_is_the_last_that_is_called(providers: Any) -> None:
    made = providers(of_1=[status(500)], of_2=[good()], of_3=[good()])
    asked = exchange(route(1), route(2), route(3))
    assert json.loads(await made.exchange(asked)) == ANSWER
    assert (made.called, made.pauses) == ([1, 2], [])
    assert asked.candidate == route(2)
    (failed,) = asked.failed_routes
    assert (failed["route_id"], failed["status"], failed["fault"]) == (1, 500, "transient")


@pytest.mark.parametrize("number", [408, 429, 500, 502, 503, 504, 529])
async def test_what_may_pass_moves_on_at_once(providers: Any, number: int) -> None:
    made = providers(of_1=[status(number)], of_2=[good()])
    await made.exchange(exchange(route(1), route(2)))
    assert (made.called, made.pauses) == ([1, 2], [])


@pytest.mark.parametrize("number", [400, 401, 403, 404, 413, 422])
async def test_what_will_not_pass_is_tried_nowhere_else(providers: Any, number: int) -> None:
    made = providers(of_1=[status(number)], of_2=[good()])
    with pytest.raises(ProviderError):
        await made.exchange(exchange(route(1), route(2)))
    assert made.called == [1]


async def test_a_connection_that_broke_after_the_request_is_tried_nowhere_else(providers: Any) -> None:
    for broken in (httpx.ReadError("broken"), httpx.RemoteProtocolError("gone"), httpx.ReadTimeout("late")):
        made = providers(of_1=[broken], of_2=[good()])
        with pytest.raises(ProviderError) as failure:
            await made.exchange(exchange(route(1), route(2)))
        assert failure.value.fault is Fault.PROTOCOL
        assert made.called == [1]


async def test_credit_that_has_run_out_moves_on_and_is_the_operators_fault(providers: Any) -> None:
    made = providers(of_1=[status(429, code="insufficient_quota")], of_2=[good()])
    asked = exchange(route(1), route(2))
    await made.exchange(asked)
    assert made.called == [1, 2]
    assert asked.failed_routes[0]["fault"] == "operator"
    made = providers(of_1=[status(429, code="insufficient_quota")])
    with pytest.raises(ProviderError) as failure:
        await made.exchange(exchange(route(1)))
    assert failure.value.as_gateway_error().status == 502


async def test_a_connection_that_failed_is_tried_once_more(providers: Any) -> None:
    made = providers(of_1=[REFUSED, good()], of_2=[good()])
    asked = exchange(route(1), route(2))
    await made.exchange(asked)
    assert made.called == [1, 1]
    assert 0.05 <= made.pauses[0] <= 0.15
    assert [failed["status"] for failed in asked.failed_routes] == [None]

    made = providers(of_1=[REFUSED, REFUSED, good()], of_2=[REFUSED, REFUSED, good()])
    with pytest.raises(ProviderError):
        await made.exchange(exchange(route(1), route(2)))
    assert made.called == [1, 1, 2, 2]


async def test_pauses_are_jittered(providers: Any) -> None:
    pauses = set()
    for _ in range(8):
        made = providers(of_1=[REFUSED, good()])
        await made.exchange(exchange(route(1)))
        pauses.update(made.pauses)
    assert len(pauses) == 8


@pytest.mark.parametrize("number", [429, 503])
async def test_a_provider_that_says_when_is_tried_then(providers: Any, number: int) -> None:
    made = providers(of_1=[status(number, "2"), good()])
    await made.exchange(exchange(route(1)))
    assert made.called == [1, 1]
    assert 2 <= made.pauses[0] <= 2.1


async def test_nobody_waits_long_where_another_route_is_left(providers: Any) -> None:
    made = providers(of_1=[status(429, "2")], of_2=[good()])
    asked = exchange(route(1), route(2))
    await made.exchange(asked)
    assert (made.called, made.pauses) == ([1, 2], [])
    # the database sets it aside for as long
    assert asked.failed_routes[0]["retry_after"] == 2
    made = providers(of_1=[httpx.Response(429, headers={"retry-after-ms": "300"}), good()], of_2=[good()])
    await made.exchange(exchange(route(1), route(2)))
    assert made.called == [1, 1]


@pytest.mark.parametrize("number", [500, 502, 503, 529])
async def test_a_servers_failure_is_tried_once_more_where_no_other_route_is_left(
    providers: Any, number: int
) -> None:
    made = providers(of_1=[status(500)], of_2=[status(number), good()])
    asked = exchange(route(1), route(2))
    assert json.loads(await made.exchange(asked)) == ANSWER
    assert made.called == [1, 2, 2]
    assert 0.25 <= made.pauses[0] <= 0.75
    assert [failed["status"] for failed in asked.failed_routes] == [500, number]

    made = providers(of_1=[status(number), status(number), good()])
    with pytest.raises(ProviderError):
        await made.exchange(exchange(route(1)))
    assert made.called == [1, 1]


@pytest.mark.parametrize(
    "said", [status(429), status(504), status(503, "4"), status(429, "4"), status(500, "1"), status(408, "1")]
)
async def test_no_other_failure_is_tried_again(providers: Any, said: httpx.Response) -> None:
    made = providers(of_1=[said, good()])
    with pytest.raises(ProviderError):
        await made.exchange(exchange(route(1)))
    assert made.called == [1]


async def test_no_pause_lasts_beyond_the_deadline(providers: Any) -> None:
    now = asyncio.get_running_loop().time()
    made = providers(of_1=[status(429, "2"), good()])
    with pytest.raises(ProviderError):
        await made.exchange(exchange(route(1), started=now, deadline=now + 1))
    assert (made.called, made.pauses) == ([1], [])


async def test_nothing_is_tried_again_once_the_client_has_some_of_the_answer(providers: Any) -> None:
    made = providers(of_1=[good(), good()], of_2=[good()])
    asked = exchange(route(1), route(2))

    async def use(_call: ProviderCall, _response: httpx.Response) -> None:
        asked.forwarded = True
        raise ProviderError("vllm", Fault.TRANSIENT, "overloaded")

    async with httpx.AsyncClient(transport=httpx.MockTransport(made.answer)) as http:
        with pytest.raises(ProviderError):
            await Upstream(SETTINGS, http, make_logger()).exchange(asked, use)
    assert made.called == [1]
    assert asked.candidate is not None, "it is paid for"


async def test_a_failure_says_how_long_after_the_admission_it_came(providers: Any) -> None:
    made = providers(of_1=[status(500)], of_2=[good()])
    asked = exchange(route(1), route(2), started=asyncio.get_running_loop().time() - 7)
    await made.exchange(asked)
    assert 7000 <= asked.failed_routes[0]["after_ms"] < 9000


# What a provider can't be told


async def test_a_parameter_that_is_lacking_is_refused_by_its_name(providers: Any) -> None:
    made = providers()
    with pytest.raises(Unprocessable) as refusal:
        await made.exchange(exchange(route(1, "anthropic"), body={**BODY, "seed": 1}))
    assert (refusal.value.param, refusal.value.code) == ("seed", "unsupported_parameter")
    assert made.called == []


async def test_the_next_route_that_can_say_it_is_called(providers: Any) -> None:
    made = providers(of_2=[good()])
    asked = exchange(route(1, "anthropic"), route(2), body={**BODY, "seed": 1})
    await made.exchange(asked)
    assert made.called == [2]
    assert made.bodies[0]["seed"] == 1
    assert (asked.failed_routes, asked.dropped) == ([], frozenset())


async def test_a_failure_that_may_pass_is_told_before_what_the_others_lack(providers: Any) -> None:
    for routes in ((route(1), route(2, "anthropic")), (route(2, "anthropic"), route(1))):
        made = providers(of_1=[status(500), status(500)])
        with pytest.raises(ProviderError) as failure:
            await made.exchange(exchange(*routes, body={**BODY, "seed": 1}))
        assert failure.value.status == 500


async def test_what_is_lacking_is_left_out_and_told_where_a_setting_says_so(providers: Any) -> None:
    body = {**BODY, "seed": 1, "logit_bias": {"5": 1}, "frequency_penalty": 0.5, "unheard_of": True}
    made = providers(of_1=[good()])
    asked = exchange(route(1, "anthropic"), body=body, drops=True)
    await made.exchange(asked)
    assert asked.dropped == {"seed", "logit_bias", "frequency_penalty", "unheard_of"}
    assert not asked.dropped & made.bodies[0].keys()


async def test_each_route_leaves_out_only_what_it_lacks(providers: Any) -> None:
    made = providers(of_1=[status(500)], of_2=[good()])
    asked = exchange(route(1, "anthropic"), route(2), body={**BODY, "seed": 1}, drops=True)
    await made.exchange(asked)
    assert "seed" not in made.bodies[0]
    assert made.bodies[1]["seed"] == 1
    assert asked.dropped == frozenset()


async def test_content_is_never_left_out(providers: Any) -> None:
    audio = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    messages = [{"role": "user", "content": [audio]}]
    with pytest.raises(Unprocessable) as refusal:
        await providers().exchange(exchange(route(1, "anthropic"), body={"messages": messages}, drops=True))
    assert str(refusal.value.param).startswith("messages.0.content.0")


async def test_nothing_is_left_out_that_the_headers_have_not_told(providers: Any) -> None:
    asked = exchange(route(1, "anthropic"), body={**BODY, "seed": 1, "logit_bias": {"5": 1}}, drops=True)
    asked.announced = frozenset({"seed"})
    with pytest.raises(Unprocessable) as refusal:
        await providers().exchange(asked)
    assert refusal.value.param == "logit_bias"


async def test_a_body_of_nothing_but_unknown_names_is_no_burden(providers: Any) -> None:
    body = {**BODY, **{f"name{number}": 1 for number in range(100_000)}}
    with pytest.raises(Unprocessable):
        await providers().exchange(exchange(route(1, "anthropic"), body=body, drops=True))


async def test_what_is_no_request_at_all_is_asked_of_nobody_else(
    providers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise BadRequest("no")

    monkeypatch.setattr(provider_named("vllm").wire, "build_request", refuse)
    made = providers(of_1=[good()], of_2=[good()])
    with pytest.raises(BadRequest):
        await made.exchange(exchange(route(1), route(2)))
    assert made.called == []
