"""Providers that speak OpenAI's wire in their own way: DeepSeek, OpenRouter, Hugging Face's router and TGI.

Their exchanges are in tests/fixtures. OpenAI's SDK is what their clients use: its types read what comes out.
"""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from gateway.errors import Unprocessable
from gateway.providers.openai_compatible import read_cost
from gateway.providers.registry import PROVIDERS, provider_named
from gateway.providers.wire import Chunk, Fault, ProviderCall, StreamDone, StreamEvent, StreamFailed
from gateway.schemas.chat import ChatCompletionRequest
from gateway.schemas.usage import TokenUsage

FIXTURES = Path(__file__).parents[1] / "fixtures"
TGI = "https://tgi.example.org/v1"


def recorded(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FIXTURES / name).read_text())
    return found


def a_call(provider: str, body: dict[str, Any], **changes: Any) -> ProviderCall:
    known = provider_named(provider)
    call = ProviderCall(
        provider=known,
        base_url=known.base_url or TGI,
        model=body.get("model", "m"),
        body=body,
        output_bound=body.get("max_tokens"),
        stream=bool(body.get("stream")),
        key="sk-provider",
        wants_usage=True,
    )
    return replace(call, **changes)


def sent(call: ProviderCall) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(call.provider.wire.build_request(call).content)
    return body


def streamed(call: ProviderCall, name: str) -> tuple[Any, list[StreamEvent]]:
    """Feed a recorded stream byte by byte, then end it."""
    stream = call.provider.wire.open_stream(call)
    events = [event for byte in (FIXTURES / name).read_bytes() for event in stream.feed(bytes([byte]))]
    return stream, events + stream.close()


def chunks(events: list[StreamEvent]) -> list[dict[str, Any]]:
    found = [json.loads(event.sse.removeprefix(b"data: ")) for event in events if isinstance(event, Chunk)]
    for chunk in found:
        ChatCompletionChunk.model_validate(chunk)
    return found


EXCHANGES = {
    "deepseek/chat.json": ("deepseek", TokenUsage(input=16, output=10, cached_input=0)),
    "deepseek/thinking_tools.json": (
        "deepseek",
        TokenUsage(input=54, cached_input=384, output=97, reasoning=30),
    ),
    "openrouter/chat.json": (
        "openrouter",
        TokenUsage(input=74, cached_input=100, cache_write=20, audio_input=0, output=12, reasoning=5),
    ),
    "huggingface/chat.json": ("huggingface", TokenUsage(input=80, output=60)),
    "huggingface/tgi.json": ("openai-compatible", TokenUsage(input=27, output=10)),
}


@pytest.mark.parametrize("name", EXCHANGES)
def test_exchange_goes_through(name: str) -> None:
    provider, usage = EXCHANGES[name]
    told = recorded(name)
    ChatCompletionRequest.model_validate(told["request"])
    call = a_call(provider, told["request"])
    body = sent(call)
    seen_to = {"models", "route", "stream", "max_tokens"}
    kept = {key: value for key, value in told["request"].items() if key not in seen_to}
    assert {key: value for key, value in body.items() if key != "max_tokens"} == kept
    answer = call.provider.wire.parse_answer(call, json.dumps(told["response"]).encode())
    ChatCompletion.model_validate(answer.body)
    assert answer.usage == usage
    assert answer.body["choices"][0]["message"] == told["response"]["choices"][0]["message"]


# What has no price.

SPEAKS_OPENAIS = [known.name for known in PROVIDERS if known.wire is provider_named("openai").wire]
BOUGHT = [
    {"service_tier": "priority"},
    {"service_tier": "ultrafast"},
    {"service_tier": ["default"]},
    {"web_search_options": {}},
    {"search_parameters": {"mode": "auto"}},
    {"speed": "fast"},
    {"preset": "dear"},
    {"plugins": [{"id": "response-healing"}, {"id": "web"}]},
    {"plugins": [{"id": "file-parser", "pdf": {"engine": "mistral-ocr"}}]},
    {"plugins": {"id": "web"}},
]


@pytest.mark.parametrize("provider", SPEAKS_OPENAIS)
@pytest.mark.parametrize("bought", BOUGHT)
def test_what_costs_more_than_its_tokens_is_refused(provider: str, bought: dict[str, Any]) -> None:
    """A tier of six times the price would be charged at the price of one: the hold is to be hard."""
    (name,) = bought
    call = a_call(provider, {"messages": [], **bought})
    with pytest.raises(Unprocessable) as refusal:
        sent(call)
    assert (refusal.value.param, refusal.value.code) == (name, "unsupported_parameter")
    assert name not in sent(replace(call, dropped=frozenset({name})))


@pytest.mark.parametrize("provider", SPEAKS_OPENAIS)
@pytest.mark.parametrize("name", ["n_predict", "n_cmpl", "max_new_tokens", "max_output_tokens"])
def test_no_other_name_for_the_bound_goes_past_it(provider: str, name: str) -> None:
    """llama.cpp's n_predict wins over max_tokens, n_cmpl over n: the answer would be beyond the hold."""
    call = a_call(provider, {"messages": [], name: 1_000_000}, output_bound=10)
    with pytest.raises(Unprocessable) as refusal:
        sent(call)
    assert (refusal.value.param, refusal.value.code) == (name, "unsupported_parameter")
    assert name not in sent(replace(call, dropped=frozenset({name})))


@pytest.mark.parametrize(
    "tool", ["web_search", "openrouter:web_search", "browser_search", "code_interpreter"]
)
def test_a_tool_that_the_provider_runs_itself_is_refused(tool: str) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}, {"type": tool}]
    with pytest.raises(Unprocessable) as refusal:
        sent(a_call("openrouter", {"messages": [], "tools": tools}, dropped=frozenset({"tools.1"})))
    assert refusal.value.param == "tools.1"


@pytest.mark.parametrize(
    ("provider", "free"),
    [
        ("openai", {"service_tier": "auto"}),
        ("openai", {"service_tier": "default"}),
        ("groq", {"service_tier": "flex"}),
        ("groq", {"service_tier": "on_demand"}),
        ("openrouter", {"plugins": [{"id": "context-compression"}]}),
        ("openai", {"tools": [{"type": "custom", "custom": {"name": "c"}}]}),
    ],
)
def test_what_costs_its_tokens_alone_goes_out_as_it_is(provider: str, free: dict[str, Any]) -> None:
    assert free.items() <= sent(a_call(provider, {"messages": [], **free})).items()


# What a provider lacks.


@pytest.mark.parametrize(
    "asked",
    [{"seed": 1}, {"user": "u"}, {"logprobs": True}, {"store": True}, {"logit_bias": {"5": 1}}, {"seed": 0}],
)
def test_what_mistral_refuses_is_refused_by_name_or_left_out(asked: dict[str, Any]) -> None:
    (name,) = asked
    call = a_call("mistral", {"messages": [], **asked})
    with pytest.raises(Unprocessable) as refusal:
        sent(call)
    assert (refusal.value.param, refusal.value.code) == (name, "unsupported_parameter")
    assert name not in sent(replace(call, dropped=frozenset({name})))
    assert asked.items() <= sent(a_call("openai", {"messages": [], **asked})).items()


@pytest.mark.parametrize(
    "idle", [{"seed": None}, {"logprobs": False}, {"service_tier": "auto"}, {"logit_bias": {}}]
)
def test_what_asks_for_nothing_is_not_told_to_mistral(idle: dict[str, Any]) -> None:
    assert not idle.keys() & sent(a_call("mistral", {"messages": [], **idle})).keys()


@pytest.mark.parametrize("provider", SPEAKS_OPENAIS)
def test_what_a_developer_says_is_told_by_the_name_that_the_provider_knows(provider: str) -> None:
    messages = [{"role": "developer", "content": "Be terse."}, {"role": "user", "content": "Hi"}]
    first, second = sent(a_call(provider, {"messages": messages}))["messages"]
    role = "system" if provider in {"deepseek", "mistral"} else "developer"
    assert (first, second) == ({"role": role, "content": "Be terse."}, messages[1])


def test_groqs_lack_of_capacity_may_pass() -> None:
    error = provider_named("groq").wire.parse_error(a_call("groq", {}), 498, {}, b'{"error": {}}')
    assert error.fault is Fault.TRANSIENT


# What other providers have said.

MIXED: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]},
    {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "annotations": [],
        "reasoning_content": "Hm.",
        "reasoning_details": [{"type": "reasoning.text", "text": "Hm.", "signature": "s"}],
        "extra_content": {"google": {"thought_signature": "s"}},
        "tool_calls": [
            {
                "id": "1",
                "type": "function",
                "function": {"name": "f", "arguments": '{"citations": null}'},
                "extra_content": {"google": {"thought_signature": "s"}},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "1", "content": "42"},
]
TOLD: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"citations": null}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "1", "content": "42"},
]
SCHEMA = {"type": "object", "properties": {"citations": {"default": None}}}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}


@pytest.mark.parametrize("provider", SPEAKS_OPENAIS)
def test_a_conversation_goes_on_at_a_provider_that_takes_openais_fields_alone(provider: str) -> None:
    """OpenAI, Mistral and Groq refuse a message for a field that they don't know."""
    tools = [TOOL | {"cache_control": {"type": "ephemeral"}}]
    given = {"messages": MIXED, "tools": tools}
    before = json.dumps(given)
    body = sent(a_call(provider, given))
    assert json.dumps(given) == before
    strict = provider in {"openai", "mistral", "groq"}
    assert body["messages"] == (TOLD if strict else MIXED)
    assert body["tools"] == ([TOOL] if strict else tools)


def test_groq_is_told_again_what_its_model_thought() -> None:
    thought = {"role": "assistant", "content": "42", "reasoning": "Hm.", "reasoning_details": []}
    (told,) = sent(a_call("groq", {"messages": [thought]}))["messages"]
    assert told == {"role": "assistant", "content": "42", "reasoning": "Hm."}


@pytest.mark.parametrize("provider", SPEAKS_OPENAIS)
def test_an_image_that_a_model_has_made_is_not_lost_unsaid(provider: str) -> None:
    images = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    messages = [{"role": "assistant", "content": "Here.", "images": images}]
    if provider in {"openai", "mistral", "groq"}:
        with pytest.raises(Unprocessable) as refusal:
            sent(a_call(provider, {"messages": messages}))
        assert refusal.value.param == "messages.0.images"
    else:
        assert sent(a_call(provider, {"messages": messages}))["messages"] == messages


# DeepSeek.


def test_deepseek_is_told_again_what_it_thought_before_it_called_a_tool() -> None:
    """With tools, it answers 400 where the thoughts of earlier turns are missing."""
    told = recorded("deepseek/thinking_tools.json")
    first, answered = told["request"]["messages"][1], told["response"]["choices"][0]["message"]
    assert sent(a_call("deepseek", told["request"]))["messages"][1] == first
    turns = [*told["request"]["messages"], answered]
    assert sent(a_call("deepseek", told["request"] | {"messages": turns}))["messages"][3] == answered


def test_deepseeks_hits_and_misses_are_priced_apart() -> None:
    told = recorded("deepseek/thinking_tools.json")
    reported = told["response"]["usage"]
    del reported["prompt_tokens_details"]
    call = a_call("deepseek", told["request"])
    usage = call.provider.wire.parse_answer(call, json.dumps(told["response"]).encode()).usage
    assert usage is not None
    assert (usage.cached_input, usage.input) == (384, 54)
    # An older answer has them alone.
    del reported["prompt_tokens"]
    del reported["total_tokens"]
    usage = call.provider.wire.parse_answer(call, json.dumps(told["response"]).encode()).usage
    assert usage is not None
    assert (usage.cached_input, usage.input, usage.output) == (384, 54, 97)


def test_deepseek_sends_empty_lines_while_a_whole_answer_is_awaited() -> None:
    told = recorded("deepseek/chat.json")
    call = a_call("deepseek", told["request"])
    answer = call.provider.wire.parse_answer(call, b"\n\n\n" + json.dumps(told["response"]).encode())
    assert answer.generated == ("Hello! How can I help you today?",)


def test_deepseeks_stream() -> None:
    call = a_call("deepseek", {"messages": [], "stream": True})
    assert sent(call)["stream_options"] == {"include_usage": True}
    stream, events = streamed(call, "deepseek/stream.sse")
    assert isinstance(events[-1], StreamDone)
    assert len(chunks(events)) == 11
    assert stream.generated == ("Hello! How can I assist you today?",)
    assert stream.usage == TokenUsage(input=17, cached_input=0, output=9)
    assert stream.complete


# OpenRouter.


def test_openrouters_fields_are_passed_on_but_for_its_own_falling_back() -> None:
    """Each model that is tried is priced and admitted here: OpenRouter must not choose another."""
    body = sent(a_call("openrouter", recorded("openrouter/chat.json")["request"]))
    assert not {"models", "route"} & body.keys()
    assert body["provider"]["order"] == ["anthropic", "openai"]
    assert body["plugins"] == [{"id": "response-healing"}]
    assert body["transforms"] == ["middle-out"]
    assert body["usage"] == {"include": True}
    assert body["reasoning"] == {"effort": "high", "exclude": False}


def test_openrouters_own_cost_is_read() -> None:
    told = recorded("openrouter/chat.json")
    call = a_call("openrouter", told["request"])
    answer = call.provider.wire.parse_answer(call, json.dumps(told["response"]).encode())
    assert answer.reported_cost_usd == Decimal("0.00095")
    assert answer.generated == ("Forty-two.A joke is expected.",)


@pytest.mark.parametrize(
    ("told", "cost"),
    [
        ({"cost": 0.001, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.02}}, "0.021"),
        ({"cost": 0.001, "is_byok": False, "cost_details": {"upstream_inference_cost": 0.001}}, "0.001"),
        ({"cost": 0.001, "is_byok": True, "cost_details": {"upstream_inference_cost": None}}, "0.001"),
        ({"cost": 0.001, "is_byok": True}, "0.001"),
        ({"is_byok": True, "cost_details": {"upstream_inference_cost": 0.02}}, None),
    ],
)
def test_openrouters_cost_with_a_key_of_ones_own_is_its_fee_and_the_providers_price(
    told: dict[str, Any], cost: str | None
) -> None:
    assert read_cost(told) == (None if cost is None else Decimal(cost))


def test_openrouters_stream_with_its_comments_and_usage() -> None:
    call = a_call("openrouter", {"messages": [], "stream": True})
    assert "stream_options" not in sent(call)
    stream, events = streamed(call, "openrouter/stream.sse")
    assert isinstance(events[-1], StreamDone)
    assert all(chunk.get("usage") is None for chunk in chunks(events))
    assert stream.generated == ("Hello",)
    assert stream.usage == TokenUsage(input=14, cached_input=0, audio_input=0, output=2, reasoning=0)
    assert stream.reported_cost_usd == Decimal("0.00012")
    unasked = replace(call, wants_usage=False)
    assert all("usage" not in chunk for chunk in chunks(streamed(unasked, "openrouter/stream.sse")[1]))


def test_openrouters_error_within_a_stream_ends_it() -> None:
    stream, events = streamed(a_call("openrouter", {"messages": []}), "openrouter/stream_error.sse")
    failed = events[-1]
    assert isinstance(failed, StreamFailed)
    assert failed.error.fault is Fault.TRANSIENT
    assert not stream.complete
    assert stream.generated == ("Half an ans",)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("flagged", Fault.CLIENT),
        ("no_credit", Fault.OPERATOR),
        ("no_provider", Fault.TRANSIENT),
        ("provider", Fault.TRANSIENT),
    ],
)
def test_openrouters_errors_have_their_faults(name: str, fault: Fault) -> None:
    told = recorded("openrouter/errors.json")[name]
    call, content = a_call("openrouter", {"messages": []}), json.dumps(told["body"]).encode()
    if told["status"] == 200:
        with pytest.raises(Exception, match="OpenRouter") as raised:
            call.provider.wire.parse_answer(call, content)
        error: Any = raised.value
    else:
        error = call.provider.wire.parse_error(call, told["status"], {}, content)
    assert error.fault is fault


# Hugging Face.


@pytest.mark.parametrize("model", ["openai/gpt-oss-120b:fastest", "meta-llama/Llama-3.3-70B:groq", "tgi"])
def test_a_name_with_its_provider_goes_out_as_it_is(model: str) -> None:
    assert sent(a_call("huggingface", {"model": model, "messages": []}))["model"] == model


def test_tgis_word_for_the_end_becomes_openais() -> None:
    told = recorded("huggingface/tgi.json")
    call = a_call("openai-compatible", told["request"])
    answer = call.provider.wire.parse_answer(call, json.dumps(told["response"]).encode())
    assert answer.finish_reasons == ("stop",)
    assert answer.body["choices"][0]["finish_reason"] == "stop"


def test_tgis_stream_without_usage_or_end_mark_is_whole() -> None:
    call = a_call("openai-compatible", {"messages": [], "stream": True})
    stream, events = streamed(call, "huggingface/tgi_stream.sse")
    *_, last = chunks(events)
    assert last["choices"][0]["finish_reason"] == "stop"
    assert stream.finish_reasons == ("stop",)
    assert stream.generated == ("Deep learning",)
    assert stream.complete
    # It is then counted from the texts.
    assert stream.usage is None


@pytest.mark.parametrize(
    ("name", "fault", "code"),
    [
        ("too_long", Fault.CLIENT, "context_length_exceeded"),
        ("overloaded", Fault.TRANSIENT, None),
        ("generation", Fault.TRANSIENT, None),
    ],
)
def test_tgis_errors_have_their_faults(name: str, fault: Fault, code: str | None) -> None:
    told = recorded("huggingface/tgi_errors.json")[name]
    call = a_call("openai-compatible", {"messages": []})
    error = call.provider.wire.parse_error(call, told["status"], {}, json.dumps(told["body"]).encode())
    assert (error.fault, error.code) == (fault, code)
