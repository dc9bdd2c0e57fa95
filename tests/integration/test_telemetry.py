"""Spans and metrics as a collector gets them: what the conventions require, and nothing of what was said."""

from __future__ import annotations

import contextlib
import itertools
import json
import secrets
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from pydantic import SecretStr

from gateway.runtime.conventions import HTTP_SECONDS_BUCKETS, SECONDS_BUCKETS, TOKEN_BUCKETS
from tests.fixtures.collector import CLIENT, ERROR, SERVER, Collector, Span
from tests.fixtures.gateway import RunningGateway, serve
from tests.fixtures.wire import CHAT, HELLO, RawClient, nothing_is_left_held, settled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from infra.local.postgrest import PostgRest
    from tests.fixtures.database import Database
    from tests.fixtures.gateway import Customer
    from tests.fixtures.simulator import Simulator

    Serve = Callable[..., contextlib.AbstractContextManager[RunningGateway]]

__all__ = ["nothing_is_left_held"]

PARENT = "00f067aa0ba902b7"
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def serve_with(
    module_database: Database,
    module_postgrest: PostgRest,
    simulator_server: Simulator,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Serve]:
    """Serves a gateway of these settings."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        patched.setenv("OTEL_METRIC_EXPORT_INTERVAL", "100")

        numbers = itertools.count(1)

        @contextlib.contextmanager
        def serving(**settings: Any) -> Iterator[RunningGateway]:
            spool = tmp_path_factory.mktemp("spool")
            with serve(module_database, module_postgrest, simulator_server, spool, **settings) as served:
                # They share a database, and so the names in it.
                served._numbers = numbers
                yield served

        yield serving


def endpoints(collector: Collector) -> dict[str, Any]:
    return {
        "otlp_traces_endpoint": f"{collector.url}/v1/traces",
        "otlp_metrics_endpoint": f"{collector.url}/v1/metrics",
    }


@pytest.fixture(scope="module")
def module_gateway(serve_with: Serve, collector: Collector) -> Iterator[RunningGateway]:
    secret = SecretStr("api-key=collector-secret%20one,x-tenant=t")
    headers = {"otlp_traces_headers": secret, "otlp_metrics_headers": secret}
    with serve_with(**endpoints(collector), **headers) as served:
        yield served


@pytest.fixture
def gateway(module_gateway: RunningGateway, simulator: Simulator) -> RunningGateway:
    assert simulator is module_gateway.simulator
    return module_gateway


def trace_headers(flags: str = "01") -> tuple[str, dict[str, str]]:
    """A trace of the client's."""
    trace_id = secrets.token_hex(16)
    return trace_id, {"traceparent": f"00-{trace_id}-{PARENT}-{flags}"}


def ask(
    gateway: RunningGateway, path: str, body: dict[str, Any], customer: Customer | None = None
) -> tuple[httpx.Response, str]:
    trace_id, headers = trace_headers()
    customer = customer or gateway.customer("5")
    return gateway.http(customer).post(path, json=body, headers=headers), trace_id


def attempts(spans: list[Span]) -> list[Span]:
    return [span for span in spans if "gen_ai.operation.name" in span.attributes]


def check_attempt(span: Span, root: Span, operation: str, model: str, provider: str) -> None:
    """What the conventions require of every call of a model."""
    assert span.name == f"{operation} {model}"
    assert (span.kind, span.parent) == (CLIENT, root.id)
    told = span.attributes
    assert told["gen_ai.operation.name"] == operation
    assert told["gen_ai.provider.name"] == provider
    assert told["gen_ai.request.model"] == model
    assert told["server.address"] == "127.0.0.1"
    assert isinstance(told["server.port"], int)
    assert root.start <= span.start <= span.end <= root.end


def check_root(span: Span, route: str, status: int) -> None:
    assert span.name == f"POST {route}"
    assert (span.kind, span.parent) == (SERVER, PARENT)
    told = span.attributes
    assert told["http.request.method"] == "POST"
    assert (told["http.route"], told["url.path"], told["url.scheme"]) == (route, route, "http")
    assert told["http.response.status_code"] == status
    assert span.schema_url == "https://opentelemetry.io/schemas/1.41.0"
    assert span.resource["service.name"] == "sluice"


def test_a_chat_is_a_request_two_queries_and_a_call_of_a_model(
    gateway: RunningGateway, collector: Collector
) -> None:
    customer = gateway.customer("5")
    body = {
        "model": gateway.model("echo+reasoning-5+cached-2", name="gateway/name"),
        "messages": HELLO,
        "max_tokens": 50,
        "temperature": 0.5,
        "top_p": 0.9,
        "frequency_penalty": 0.1,
        "presence_penalty": 0.2,
        "seed": 7,
        "n": 2,
    }
    answer, trace_id = ask(gateway, CHAT, body, customer)
    assert answer.status_code == 200, answer.text
    root, admit, chat, settle = collector.trace(trace_id)
    check_root(root, CHAT, 200)
    assert root.status == 0
    told = answer.json()
    assert root.attributes["sluice.request.id"] == told["gateway_usage"]["request_id"]
    assert root.attributes["sluice.customer.id"] == customer.id
    assert root.attributes["sluice.key.id"] == customer.key_id
    assert root.attributes["sluice.charge.usd"] == told["gateway_usage"]["charge_usd"]
    assert root.attributes["sluice.model"] == "gateway/name"
    assert root.attributes["sluice.outcome"] == "succeeded"
    assert root.attributes["sluice.usage.estimated"] is False

    check_attempt(chat, root, "chat", "echo+reasoning-5+cached-2", "openai-compatible")
    usage = told["usage"]
    assert (
        chat.attributes.items()
        >= {
            "gen_ai.response.id": told["id"],
            "gen_ai.response.model": told["model"],
            "gen_ai.response.finish_reasons": ["stop", "stop"],
            "gen_ai.usage.input_tokens": usage["prompt_tokens"],
            "gen_ai.usage.output_tokens": usage["completion_tokens"],
            "gen_ai.usage.cache_read.input_tokens": 2,
            "gen_ai.usage.reasoning.output_tokens": usage["completion_tokens_details"]["reasoning_tokens"],
            "gen_ai.request.max_tokens": 50,
            "gen_ai.request.temperature": 0.5,
            "gen_ai.request.top_p": 0.9,
            "gen_ai.request.frequency_penalty": 0.1,
            "gen_ai.request.presence_penalty": 0.2,
            "gen_ai.request.seed": 7,
            "gen_ai.request.choice.count": 2,
        }.items()
    )
    assert "gen_ai.request.stream" not in chat.attributes
    assert "error.type" not in chat.attributes
    for query, name in ((admit, "api.admit_request"), (settle, "api.settle_request")):
        assert (query.name, query.kind, query.parent, query.status) == (name, CLIENT, root.id, 0)
        assert query.attributes["db.system.name"] == "postgresql"
        assert query.attributes["db.stored_procedure.name"] == name
        assert isinstance(query.attributes["server.port"], int)


def test_a_stream_ends_with_its_last_byte_and_tells_when_its_first_chunk_came(
    gateway: RunningGateway, collector: Collector
) -> None:
    model = gateway.model("drip-30ms")
    answer, trace_id = ask(gateway, CHAT, {"model": model, "messages": HELLO, "stream": True})
    assert answer.text.endswith("data: [DONE]\n\n")
    root, _, chat, settle = collector.trace(trace_id)
    check_root(root, CHAT, 200)
    check_attempt(chat, root, "chat", "drip-30ms", "openai-compatible")
    first = chat.attributes["gen_ai.response.time_to_first_chunk"]
    assert 0 < first < chat.seconds - 0.03
    assert chat.attributes["gen_ai.request.stream"] is True
    assert chat.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert chat.attributes["gen_ai.response.id"].startswith("chatcmpl-")
    assert chat.attributes["gen_ai.usage.output_tokens"] > 0
    assert chat.end <= settle.start


def test_usage_that_the_gateway_had_to_count_is_told_as_well(
    gateway: RunningGateway, collector: Collector
) -> None:
    body = {"model": gateway.model("no-usage"), "messages": HELLO, "stream": True}
    customer = gateway.customer("5")
    _, trace_id = ask(gateway, CHAT, body, customer)
    root, _, chat, _ = collector.trace(trace_id)
    [row] = settled(gateway, customer)
    assert root.attributes["sluice.usage.estimated"] is True
    assert chat.attributes["gen_ai.usage.input_tokens"] == row["input_tokens"]
    assert chat.attributes["gen_ai.usage.output_tokens"] == row["output_tokens"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_call_is_told_by_its_reason_alone(
    gateway: RunningGateway, collector: Collector, *, stream: bool
) -> None:
    body = {"model": gateway.model("echo"), "messages": HELLO, "tools": TOOLS, "stream": stream}
    _, trace_id = ask(gateway, CHAT, body)
    [chat] = attempts(collector.trace(trace_id))
    assert chat.attributes["gen_ai.response.finish_reasons"] == ["tool_calls"]
    assert "get_weather" not in str(chat)


@pytest.mark.parametrize(
    ("behaviour", "status", "error_type", "tries"),
    [("status-400", 400, "400", 1), ("status-500", 502, "500", 2), ("malformed", 502, "protocol", 1)],
)
def test_a_failure_is_told_with_its_kind_and_no_word_of_it(
    gateway: RunningGateway, collector: Collector, behaviour: str, *, status: int, error_type: str, tries: int
) -> None:
    answer, trace_id = ask(gateway, CHAT, {"model": gateway.model(behaviour), "messages": HELLO})
    assert answer.status_code == status
    spans = collector.trace(trace_id)
    check_root(spans[0], CHAT, status)
    called = attempts(spans)
    assert len(called) == tries
    # The pause before a second try, a quarter of a second at least, is in neither.
    assert all(after.start - before.end > 0.2e9 for before, after in itertools.pairwise(called))
    for chat in called:
        check_attempt(chat, spans[0], "chat", behaviour, "openai-compatible")
        assert (chat.attributes["error.type"], chat.status) == (error_type, ERROR)
        assert (chat.status_message, chat.events) == ("", 0)
        assert "gen_ai.usage.input_tokens" not in chat.attributes
    # Of a server span only what is the server's own fault is an error.
    assert (spans[0].status == ERROR) is (status >= 500)
    assert spans[0].attributes.get("error.type") == (str(status) if status >= 500 else None)


def test_routes_that_failed_stand_beside_the_one_that_answered(
    gateway: RunningGateway, collector: Collector
) -> None:
    models = [gateway.model("status-503"), gateway.model("status-429"), gateway.model("echo")]
    answer, trace_id = ask(gateway, CHAT, {"model": models[0], "models": models, "messages": HELLO})
    assert answer.status_code == 200
    spans = collector.trace(trace_id)
    called = attempts(spans)
    assert [(chat.name, chat.attributes.get("error.type")) for chat in called] == [
        ("chat status-503", "503"),
        ("chat status-429", "429"),
        ("chat echo", None),
    ]
    assert {chat.parent for chat in called} == {spans[0].id}
    assert all(one.end <= next_one.start for one, next_one in itertools.pairwise(called))
    assert "error.type" not in spans[0].attributes
    # Each was told its own span.
    told = [call.headers["traceparent"] for call in gateway.simulator.calls.all()]
    assert told == [f"00-{trace_id}-{chat.id}-01" for chat in called]


def test_a_stream_that_its_provider_breaks_off_has_usage_and_an_error(
    gateway: RunningGateway, collector: Collector
) -> None:
    body = {"model": gateway.model("cut-3"), "messages": HELLO, "stream": True}
    _, trace_id = ask(gateway, CHAT, body)
    root, _, chat, _ = collector.trace(trace_id)
    assert (chat.attributes["error.type"], chat.status) == ("RemoteProtocolError", ERROR)
    assert chat.attributes["gen_ai.usage.input_tokens"] > 0
    assert root.attributes["sluice.outcome"] == "cut"


def test_a_stream_that_the_client_leaves_ends_then_without_an_error(
    gateway: RunningGateway, collector: Collector
) -> None:
    customer = gateway.customer("5")
    trace_id, headers = trace_headers()
    body = {"model": gateway.model("hang-3"), "messages": HELLO, "stream": True}
    client = RawClient(gateway.url).post(CHAT, body, key=customer.key, **headers)
    client.read_until(b"data: ", 3)
    client.socket.close()
    root, _, chat, _ = collector.trace(trace_id)
    assert root.attributes["sluice.outcome"] == "cancelled"
    assert ("error.type" in chat.attributes, chat.status) == (False, 0)
    assert chat.attributes["gen_ai.usage.input_tokens"] > 0


def test_embeddings(gateway: RunningGateway, collector: Collector) -> None:
    prices = {"input": "0.13", "output": "0"}
    model = gateway.model("echo", prices=prices, max_output_tokens=None, output=("embedding",))
    body = {"model": model, "input": "Hello there", "dimensions": 16, "encoding_format": "float"}
    answer, trace_id = ask(gateway, "/v1/embeddings", body)
    root, _, embeddings, _ = collector.trace(trace_id)
    check_root(root, "/v1/embeddings", 200)
    check_attempt(embeddings, root, "embeddings", "echo", "openai-compatible")
    assert (
        embeddings.attributes.items()
        >= {
            "gen_ai.embeddings.dimension.count": 16,
            "gen_ai.request.encoding_formats": ["float"],
            "gen_ai.response.model": answer.json()["model"],
            "gen_ai.usage.input_tokens": answer.json()["usage"]["prompt_tokens"],
        }.items()
    )
    assert "gen_ai.request.max_tokens" not in embeddings.attributes


def test_images(gateway: RunningGateway, collector: Collector) -> None:
    prices = {"input": "5", "image_input": "8", "output": "10", "image_output": "32"}
    model = gateway.model("echo", prices=prices, max_output_tokens=None, output=("image",))
    body = {"model": model, "prompt": "A lighthouse", "size": "1024x1024", "quality": "low", "n": 2}
    answer, trace_id = ask(gateway, "/v1/images/generations", body)
    root, _, image, _ = collector.trace(trace_id)
    check_attempt(image, root, "generate_content", "echo", "openai-compatible")
    assert (
        image.attributes.items()
        >= {
            "gen_ai.output.type": "image",
            "gen_ai.request.choice.count": 2,
            "gen_ai.usage.output_tokens": answer.json()["usage"]["output_tokens"],
        }.items()
    )


@pytest.mark.parametrize("wire", ["openai-compatible", "anthropic"])
@pytest.mark.parametrize("stream", [False, True])
def test_messages(gateway: RunningGateway, collector: Collector, wire: str, *, stream: bool) -> None:
    base_url = gateway.simulator.base_url
    if wire == "anthropic":
        base_url = base_url.removesuffix("/v1") + "/anthropic/v1"
    prices = {"input": "0.50", "cached_input": "0.05", "cache_write": "0.625", "output": "1.50"}
    model = gateway.model("echo+cache-write-3", provider=wire, base_url=base_url, prices=prices)
    body = {"model": model, "messages": HELLO, "max_tokens": 60, "stream": stream, "top_k": 5}
    if wire != "anthropic":
        del body["top_k"]
    answer, trace_id = ask(gateway, "/v1/messages", body)
    assert answer.status_code == 200, answer.text
    root, _, chat, _ = collector.trace(trace_id)
    check_root(root, "/v1/messages", 200)
    check_attempt(chat, root, "chat", "echo+cache-write-3", wire)
    assert chat.attributes["gen_ai.request.max_tokens"] == 60
    assert chat.attributes["gen_ai.response.id"]
    assert chat.attributes["gen_ai.usage.output_tokens"] > 0
    if wire == "anthropic":
        assert chat.attributes["gen_ai.usage.cache_creation.input_tokens"] == 3
        assert chat.attributes["gen_ai.usage.input_tokens"] > 3
        assert chat.attributes["gen_ai.request.top_k"] == 5


def test_gemini_has_its_own_words(gateway: RunningGateway, collector: Collector) -> None:
    base_url = gateway.simulator.base_url.removesuffix("/v1") + "/gemini/v1beta"
    model = gateway.model("echo", provider="gemini", base_url=base_url)
    answer, trace_id = ask(gateway, CHAT, {"model": model, "messages": HELLO})
    assert answer.status_code == 200, answer.text
    root, _, chat, _ = collector.trace(trace_id)
    check_attempt(chat, root, "generate_content", "echo", "gcp.gemini")


def test_a_refused_request_has_no_call_of_a_model(gateway: RunningGateway, collector: Collector) -> None:
    trace_id, headers = trace_headers()
    answer = gateway.http().post(CHAT, json={"model": "x", "messages": HELLO}, headers=headers)
    assert answer.status_code == 401
    [root] = collector.trace(trace_id)
    check_root(root, CHAT, 401)
    assert root.status == 0


def test_a_path_without_a_route_has_none_in_its_name(gateway: RunningGateway, collector: Collector) -> None:
    trace_id, headers = trace_headers()
    path = "/v9/sk-proj-aaaaaaaaaaaaaaaaaaaaaaaa?key=canary-query-secret"
    assert gateway.http().get(path, headers=headers).status_code == 404
    [root] = collector.trace(trace_id)
    assert root.name == "GET"
    assert "http.route" not in root.attributes
    assert root.attributes["url.path"] == "/v9/sk-[redacted]"
    assert not any(b"canary-query-secret" in body for body in collector.bodies)


def test_metrics_have_the_conventions_boundaries_and_nobodys_name(
    gateway: RunningGateway, collector: Collector
) -> None:
    name = "echo+usage-each"
    customer = gateway.customer("5")
    told: dict[str, int] = {"prompt_tokens": 0, "completion_tokens": 0}
    for stream in (False, True):
        body: dict[str, Any] = {"model": gateway.model(name), "messages": HELLO, "stream": stream}
        if stream:
            body["stream_options"] = {"include_usage": True}
        answer, _ = ask(gateway, CHAT, body, customer)
        usage = json.loads(answer.text.split("data: ")[-2])["usage"] if stream else answer.json()["usage"]
        told = {kind: told[kind] + usage[kind] for kind in told}
    of_model = {"gen_ai__request__model": name}
    duration = "gen_ai.client.operation.duration"
    collector.wait_for(lambda: any(point.count == 2 for point in collector.points(duration, **of_model)))
    [seconds] = collector.points(duration, **of_model)
    assert (seconds.unit, seconds.bounds) == ("s", SECONDS_BUCKETS)
    assert seconds.attributes.keys() == {
        "gen_ai.operation.name",
        "gen_ai.provider.name",
        "gen_ai.request.model",
        "server.address",
        "server.port",
    }
    [first] = collector.points("gen_ai.client.operation.time_to_first_chunk", **of_model)
    assert (first.count, first.unit, first.bounds) == (1, "s", SECONDS_BUCKETS)
    tokens = {
        point.attributes["gen_ai.token.type"]: point
        for point in collector.points("gen_ai.client.token.usage", **of_model)
    }
    assert (tokens["input"].sum, tokens["output"].sum) == (told["prompt_tokens"], told["completion_tokens"])
    assert (tokens["input"].unit, tokens["input"].bounds) == ("{token}", TOKEN_BUCKETS)
    [http] = collector.points(
        "http.server.request.duration", http__route=CHAT, http__response__status_code=200
    )
    assert (http.unit, http.bounds) == ("s", HTTP_SECONDS_BUCKETS)
    assert http.attributes.keys() == {
        "http.request.method",
        "http.route",
        "http.response.status_code",
        "url.scheme",
    }


def test_a_failed_call_counts_in_the_durations_by_its_kind(
    gateway: RunningGateway, collector: Collector
) -> None:
    ask(gateway, CHAT, {"model": gateway.model("status-418"), "messages": HELLO})
    [seconds] = collector.points("gen_ai.client.operation.duration", gen_ai__request__model="status-418")
    assert seconds.attributes["error.type"] == "418"


# What is told to whom


@pytest.mark.parametrize("stream", [False, True])
def test_nothing_that_was_said_and_no_secret_is_exported(
    gateway: RunningGateway, collector: Collector, *, stream: bool
) -> None:
    customer = gateway.customer("5")
    canary = "canary-" + secrets.token_hex(8)
    model = gateway.model("echo")
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": f"{canary}-prompt"}],
        "stop": [f"{canary}-stop"],
        "user": f"{canary}-user",
        "metadata": {canary: canary},
        "tools": [{"type": "function", "function": {"name": canary, "parameters": {"type": "object"}}}],
        "tool_choice": "none",
        "stream": stream,
    }
    for behaviour in ("echo", "status-400", "malformed", "cut-3"):
        body["model"] = gateway.model(behaviour)
        trace_id, headers = trace_headers()
        headers |= {
            "x-canary": canary,
            "user-agent": canary,
            "cookie": canary,
            "baggage": f"who={canary}",
            "idempotency-key": f"{canary}-{behaviour}",
            "referer": f"https://{canary}.example",
        }
        headers["authorization"] = f"Bearer {customer.key}"
        answer = httpx.post(
            f"{gateway.url}{CHAT}?token={canary}", json=body, headers=headers, trust_env=False
        )
        # In a stream it comes in pieces.
        assert stream or behaviour != "echo" or canary in answer.text
        collector.trace(trace_id)
    exported = b"".join(collector.bodies)
    for secret in (canary, customer.key, gateway.simulator.key, "collector-secret"):
        assert secret.encode() not in exported
    assert gateway.settings.supabase_key.get_secret_value().encode() not in exported


def test_a_provider_can_smuggle_nothing_out_as_a_name(gateway: RunningGateway, collector: Collector) -> None:
    """What answers call themselves is told only where it looks like a name, and like no key."""
    from starlette.responses import JSONResponse

    from infra.local.serving import ThreadedServer

    document: dict[str, Any] = {
        "id": "a whole sentence of the prompt",
        "object": "chat.completion",
        "created": 1,
        "model": "sk-proj-aaaaaaaaaaaaaaaaaaaaaaaa",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hi"},
                "finish_reason": "because you said so",
            }
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11},
    }

    async def provider(scope: Any, receive: Any, send: Any) -> None:
        await JSONResponse(document)(scope, receive, send)

    with ThreadedServer(provider) as server:
        model = gateway.model("any", base_url=f"{server.url}/v1")
        answer, trace_id = ask(gateway, CHAT, {"model": model, "messages": HELLO})
        assert answer.status_code == 200
    [chat] = attempts(collector.trace(trace_id))
    assert not {name for name in chat.attributes if name.startswith("gen_ai.response")}


def test_the_collector_is_told_its_headers(gateway: RunningGateway, collector: Collector) -> None:
    _, trace_id = ask(gateway, CHAT, {"model": gateway.model("echo"), "messages": HELLO})
    collector.trace(trace_id)
    assert {headers["api-key"] for headers in collector.headers} == {"collector-secret one"}
    assert {headers["content-type"] for headers in collector.headers} == {"application/x-protobuf"}


def test_an_unsampled_trace_goes_on_unsampled(gateway: RunningGateway, collector: Collector) -> None:
    trace_id, headers = trace_headers("00")
    customer = gateway.customer("5")
    model = gateway.model("echo")
    answer = gateway.http(customer).post(CHAT, json={"model": model, "messages": HELLO}, headers=headers)
    assert answer.status_code == 200
    told = gateway.simulator.calls.last().headers["traceparent"].split("-")
    assert (told[1], told[3]) == (trace_id, "00")
    # Another's, which is exported after it.
    _, later = ask(gateway, CHAT, {"model": model, "messages": HELLO})
    collector.trace(later)
    assert not collector.spans(trace_id)


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        '\xff\xfe{"x": 1}',
        "0" * 4000,
    ],
)
def test_a_traceparent_that_is_none_is_ignored(gateway: RunningGateway, garbage: str) -> None:
    customer = gateway.customer("5")
    body = {"model": gateway.model("echo"), "messages": HELLO}
    client = RawClient(gateway.url)
    client.post(CHAT, body, key=customer.key, traceparent=garbage, tracestate="x=1")
    assert b"200 OK" in client.read_until(b"\r\n\r\n")
    client.socket.close()
    headers = gateway.simulator.calls.last().headers
    version, trace_id, _, flags = headers["traceparent"].split("-")
    # The second bit says that the trace's id is random.
    assert (version, len(trace_id), int(flags, 16) & 1) == ("00", 32, 1)
    assert trace_id not in garbage.lower()
    assert "tracestate" not in headers


def test_two_traceparents_are_none(gateway: RunningGateway) -> None:
    trace_id, headers = trace_headers()
    customer = gateway.customer("5")
    pairs = [("traceparent", headers["traceparent"])] * 2
    body = {"model": gateway.model("echo"), "messages": HELLO}
    assert gateway.http(customer).post(CHAT, json=body, headers=pairs).status_code == 200
    assert trace_id not in gateway.simulator.calls.last().headers["traceparent"]


@pytest.mark.parametrize(
    ("provider", "setting", "traceparent", "tracestate"),
    [
        ("openai", "all", True, False),
        ("openai", "own", False, False),
        ("openai", "none", False, False),
        ("openai-compatible", "all", True, True),
        ("openai-compatible", "own", True, True),
        ("openai-compatible", "none", False, False),
    ],
)
def test_who_is_told_the_trace_is_a_setting(
    serve_with: Serve,
    collector: Collector,
    simulator: Simulator,
    *,
    provider: str,
    setting: str,
    traceparent: bool,
    tracestate: bool,
) -> None:
    with serve_with(**endpoints(collector), traceparent_to=setting) as gateway:
        trace_id, headers = trace_headers()
        headers |= {"tracestate": "vendor=opaque,other=1", "baggage": "who=me"}
        customer = gateway.customer("5")
        model = gateway.model("echo", provider=provider)
        answer = gateway.http(customer).post(CHAT, json={"model": model, "messages": HELLO}, headers=headers)
        assert answer.status_code == 200
        told = simulator.calls.last().headers
        assert ("traceparent" in told, "tracestate" in told) == (traceparent, tracestate)
        if traceparent:
            assert told["traceparent"].split("-")[1] == trace_id
        if tracestate:
            assert told["tracestate"] == "vendor=opaque,other=1"
        assert "baggage" not in told
        [chat] = attempts(collector.trace(trace_id))
        assert chat.trace_state == "vendor=opaque,other=1"


def test_without_an_endpoint_nobody_is_told_anything(serve_with: Serve, simulator: Simulator) -> None:
    with serve_with() as gateway:
        answer, _ = ask(gateway, CHAT, {"model": gateway.model("echo"), "messages": HELLO})
        assert answer.status_code == 200
        assert "traceparent" not in simulator.calls.last().headers


def test_spans_alone_or_metrics_alone(serve_with: Serve, simulator: Simulator) -> None:
    for signal in ("traces", "metrics"):
        with Collector() as own:
            with serve_with(**{f"otlp_{signal}_endpoint": f"{own.url}/v1/{signal}"}) as gateway:
                answer, trace_id = ask(gateway, CHAT, {"model": gateway.model("echo"), "messages": HELLO})
                assert answer.status_code == 200
                told = simulator.calls.last().headers["traceparent"].split("-")
                assert (told[1], told[3]) == (trace_id, "01")
                own.wait_for(lambda own=own: bool(own.bodies))  # type: ignore[misc]
            assert {path for path, _ in own.arrivals} == {f"/v1/{signal}"}


# A collector that is not well


@pytest.mark.parametrize("ill", ["away", "hangs", "fails", "busy", "redirects"])
def test_an_ill_collector_changes_and_delays_no_answer(serve_with: Serve, ill: str) -> None:
    with Collector() as own:
        settings = endpoints(own)
        if ill == "away":
            settings = dict.fromkeys(settings, "http://127.0.0.1:9/v1/x")
        elif ill == "hangs":
            own.gate.clear()
        else:
            own.status = {"fails": 500, "busy": 503, "redirects": 307}[ill]
        with serve_with(**settings, otlp_timeout_milliseconds=5000) as gateway:
            client = gateway.http(gateway.customer("5"))
            body = {"model": gateway.model("echo"), "messages": HELLO}
            took = []
            for _ in range(8):
                began = time.monotonic()
                answer = client.post(CHAT, json=body)
                took.append(time.monotonic() - began)
                assert answer.status_code == 200
                assert answer.json()["choices"][0]["message"]["content"] == "You said: Hello"
            if ill != "away":
                own.wait_for(lambda: bool(own.arrivals))
            began = time.monotonic()
            streamed = client.post(CHAT, json={**body, "stream": True})
            took.append(time.monotonic() - began)
            assert streamed.text.endswith("data: [DONE]\n\n")
            # One export that hangs takes five seconds.
            assert max(took) < 2.5
            began = time.monotonic()
        assert time.monotonic() - began < 10
        own.gate.set()
