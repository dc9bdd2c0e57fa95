from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import GatewayError
from gateway.providers.openai_compatible import OPENAI_COMPATIBLE
from gateway.providers.registry import PROVIDERS, find_provider, provider_named
from gateway.providers.wire import (
    Chunk,
    Fault,
    Provider,
    ProviderCall,
    ProviderError,
    StreamDone,
    StreamEvent,
    StreamFailed,
)
from gateway.schemas.usage import TokenUsage
from gateway.service_urls import check_base_url

KEY = "opaque-provider-key"
SPEAKERS = [provider for provider in PROVIDERS if provider.wire is OPENAI_COMPATIBLE]
BODY: dict[str, Any] = {
    "model": "catalogue/name",
    "messages": [{"role": "user", "content": "héllo 😀"}],
    "models": ["other"],
    "max_tokens": 100,
    "logit_bias": {"50256": -100},
    "vendor_field": {"x": [1, 2.5, None]},
}
CALL = ProviderCall(
    provider=provider_named("openai-compatible"),
    base_url="https://api.example.com/v1/",
    model="upstream-name",
    body=BODY,
    output_bound=64,
    stream=False,
    key=KEY,
)


def _sent(call: ProviderCall) -> dict[str, Any]:
    sent: dict[str, Any] = json.loads(OPENAI_COMPATIBLE.build_request(call).content)
    return sent


# The request.


@pytest.mark.parametrize("provider", SPEAKERS, ids=lambda provider: provider.name)
@pytest.mark.parametrize("stream", [False, True])
def test_every_providers_request_is_the_clients_body_put_right(provider: Provider, stream: bool) -> None:
    body = {name: value for name, value in BODY.items() if name not in provider.lacks}
    before = json.dumps(body)
    base_url = provider.base_url or CALL.base_url
    call = replace(CALL, provider=provider, body=body, stream=stream, base_url=base_url)
    request = provider.wire.build_request(call)
    assert request.method == "POST"
    assert request.url == f"{call.base_url.rstrip('/')}/chat/completions"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    sent = json.loads(request.content)
    expected = {name: value for name, value in body.items() if name not in {"models", "max_tokens"}}
    expected |= {"model": "upstream-name", provider.output_bound_field: 64}
    if stream:
        expected["stream"] = True
        if provider.stream_usage_option:
            expected["stream_options"] = {"include_usage": True}
    assert sent == expected
    assert json.dumps(body) == before
    assert KEY not in repr(request)
    assert KEY not in repr(call)
    assert "héllo" not in repr(call)
    assert KEY not in request.url


def test_a_bound_that_is_not_set_leaves_no_bound() -> None:
    sent = _sent(replace(CALL, output_bound=None))
    assert "max_tokens" not in sent
    assert "max_completion_tokens" not in sent


def test_stream_options_of_the_client_are_kept_and_usage_is_asked_for() -> None:
    body = BODY | {"stream": True, "stream_options": {"include_usage": False, "include_obfuscation": False}}
    call = replace(CALL, body=body, stream=True)
    assert _sent(call)["stream_options"] == {"include_usage": True, "include_obfuscation": False}
    mistral = replace(call, provider=provider_named("mistral"), dropped=frozenset({"logit_bias"}))
    assert _sent(mistral)["stream_options"] == {"include_obfuscation": False}
    plain = _sent(replace(call, stream=False))
    assert "stream" not in plain
    assert "stream_options" not in plain


def test_the_fallback_of_openrouter_is_the_gateways_own() -> None:
    assert "route" not in _sent(replace(CALL, body=BODY | {"route": "fallback"}))
    assert _sent(replace(CALL, body=BODY | {"route": "mine"}))["route"] == "mine"


def test_openrouter_is_told_who_asks() -> None:
    call = replace(CALL, provider=provider_named("openrouter"), site_url="https://s.example", site_name="S")
    headers = OPENAI_COMPATIBLE.build_request(call).headers
    assert (headers["http-referer"], headers["x-title"]) == ("https://s.example", "S")
    assert headers["x-openrouter-title"] == "S"
    others = OPENAI_COMPATIBLE.build_request(replace(call, provider=provider_named("openai"))).headers
    assert "http-referer" not in others


@pytest.mark.parametrize("key", [None, "", " "])
def test_a_missing_key_is_the_operators_fault_where_one_is_needed(key: str | None) -> None:
    with pytest.raises(ProviderError) as caught:
        OPENAI_COMPATIBLE.build_request(replace(CALL, provider=provider_named("openai"), key=key))
    assert caught.value.fault is Fault.OPERATOR
    local = OPENAI_COMPATIBLE.build_request(replace(CALL, provider=provider_named("ollama"), key=key))
    assert "authorization" not in local.headers


@pytest.mark.parametrize("key", ["sk\nx: y", "schlüssel", "a\x00b"])
def test_a_key_that_no_header_can_hold_is_not_sent_or_shown(key: str) -> None:
    with pytest.raises(ProviderError) as caught:
        OPENAI_COMPATIBLE.build_request(replace(CALL, key=key))
    assert caught.value.fault is Fault.OPERATOR
    assert key not in f"{caught.value} {caught.value.detail}"


# The registry.


def test_the_registry_has_the_providers_that_are_promised() -> None:
    promised = "openai deepseek openrouter groq mistral together xai ollama vllm openai-compatible"
    for name in promised.split():
        assert provider_named(name).name == name
        assert provider_named(name.upper()).name == name
    assert find_provider("nobody") is None
    with pytest.raises(GatewayError) as caught:
        provider_named("nobody")
    assert (caught.value.status, caught.value.param) == (422, "provider")


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.name)
def test_default_base_urls_are_in_their_normal_form(provider: Provider) -> None:
    if provider.base_url is not None:
        local = provider.base_url.startswith("http://127.0.0.1:")
        assert check_base_url(provider.base_url, allow_private=local) == provider.base_url


# Plain answers.


def _answer(**changes: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "upstream-name",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "Hi."}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
        **changes,
    }


def test_an_answer_is_given_on_as_it_came() -> None:
    body = _answer(vendor={"x": 1})
    answer = OPENAI_COMPATIBLE.parse_answer(CALL, b"\n \n" + json.dumps(body).encode())
    assert answer.body == body
    assert answer.usage == TokenUsage(input=9, output=2)
    assert answer.finish_reasons == ("stop",)
    assert answer.generated == ("Hi.",)
    assert answer.reported_cost_usd is None


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": None, "refusal": "No."}, "No."),
        ({"content": "a", "reasoning_content": "b"}, "ab"),
        ({"content": "a", "reasoning": "b"}, "ab"),
        ({"content": "a", "reasoning_content": "b", "reasoning": "b"}, "ab"),
        ({"content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}, {}, 7]}, "f{}"),
        ({"content": None, "function_call": {"name": "f", "arguments": "{}"}}, "f{}"),
        (
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "t"}]},
                    {"type": "text", "text": "a"},
                ]
            },
            "ta",
        ),
        ({"content": 7, "tool_calls": "x"}, ""),
        (None, ""),
    ],
)
def test_everything_generated_is_counted(message: Any, text: str) -> None:
    body = _answer(choices=[{"message": message}], usage=None)
    answer = OPENAI_COMPATIBLE.parse_answer(CALL, json.dumps(body).encode())
    assert answer.generated == (text,)
    assert answer.usage is None


def test_usage_that_denies_what_was_generated_is_no_usage() -> None:
    body = _answer(usage={"prompt_tokens": 9, "completion_tokens": 0, "total_tokens": 9})
    assert OPENAI_COMPATIBLE.parse_answer(CALL, json.dumps(body).encode()).usage is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>",
        b'{"choices"',
        b"[]",
        b"7",
        b"{}",
        b'{"choices":[]}',
        b'{"choices":[7]}',
        b'{"choices":{}}',
        b"[" * 200_000,
    ],
)
def test_an_answer_that_is_none_is_502(content: bytes) -> None:
    with pytest.raises(ProviderError) as caught:
        OPENAI_COMPATIBLE.parse_answer(CALL, content)
    assert caught.value.fault is Fault.PROTOCOL
    assert not caught.value.retryable
    assert caught.value.as_gateway_error().status == 502


def test_an_error_with_status_200_is_an_error() -> None:
    content = b'{"error":{"code":429,"message":"Rate limit exceeded"}}'
    with pytest.raises(ProviderError) as caught:
        OPENAI_COMPATIBLE.parse_answer(CALL, content)
    assert caught.value.retryable
    assert caught.value.status == 429


# Errors.


@pytest.mark.parametrize(
    ("status", "fault", "answered"),
    [
        (301, Fault.OPERATOR, 502),
        (400, Fault.CLIENT, 400),
        (401, Fault.OPERATOR, 502),
        (402, Fault.OPERATOR, 502),
        (403, Fault.OPERATOR, 502),
        (404, Fault.CLIENT, 404),
        (408, Fault.TRANSIENT, 504),
        (409, Fault.CLIENT, 400),
        (413, Fault.CLIENT, 413),
        (418, Fault.CLIENT, 400),
        (422, Fault.CLIENT, 422),
        (429, Fault.TRANSIENT, 503),
        (500, Fault.TRANSIENT, 502),
        (503, Fault.TRANSIENT, 503),
        (504, Fault.TRANSIENT, 504),
        (529, Fault.TRANSIENT, 503),
    ],
)
def test_each_status_has_its_fault_and_its_answer(status: int, fault: Fault, answered: int) -> None:
    content = json.dumps(
        {"error": {"message": f"About {KEY}", "type": "t", "param": "messages", "code": "c"}}
    ).encode()
    error = OPENAI_COMPATIBLE.parse_error(CALL, status, {}, content)
    assert (error.fault, error.status, error.provider) == (fault, status, "openai-compatible")
    assert error.retryable == (fault is Fault.TRANSIENT)
    given_out = error.as_gateway_error()
    assert given_out.status == answered
    assert KEY not in f"{given_out.body()} {given_out.detail}"
    assert CALL.provider.title in given_out.message or given_out.message.startswith(CALL.provider.subject)
    if fault is Fault.CLIENT:
        assert (given_out.param, given_out.code) == ("messages", "c")
    else:
        assert "About" not in given_out.message
    if fault is Fault.OPERATOR:
        assert "About" in (given_out.detail or "")
    else:
        # It may quote the prompt, which belongs in no log.
        assert given_out.detail == f"status {status}, t, c"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"error":{"message":"Too long."}}', "Too long."),
        (b'{"error":"Too long."}', "Too long."),
        (b'{"object":"error","message":"Too long."}', "Too long."),
        (b'{"detail":"Too long."}', "Too long."),
        (b'{"message":{"detail":[{"loc":["body","n"],"msg":"Extra"}]}}', "body.n: Extra"),
        (b'{"error":{"message":{"detail":[{"msg":"Extra"}, 7]}}}', "Extra"),
        (b"<html>not json</html>", "status 400"),
        (b"", "status 400"),
        (b'{"error":7}', "status 400"),
        (b'{"error":{"message":["x"]}}', "status 400"),
    ],
)
def test_the_text_of_an_error_is_found_in_each_shape(content: bytes, told: str) -> None:
    error = OPENAI_COMPATIBLE.parse_error(CALL, 400, {}, content)
    assert error.message.endswith(f"refused the request: {told}")


def test_an_error_shows_neither_key_nor_address_nor_secret() -> None:
    said = f"{KEY} at https://api.example.com/v1/chat with sk-0123456789abcdef\x1b[31m" + "x" * 5000
    error = OPENAI_COMPATIBLE.parse_error(CALL, 400, {}, json.dumps({"error": {"message": said}}).encode())
    assert KEY not in error.message
    assert "api.example.com" not in error.message
    assert "0123456789abcdef" not in error.message
    assert "\x1b" not in error.message
    assert len(error.message) < 1000


def test_a_page_instead_of_an_api_is_the_operators_fault() -> None:
    assert OPENAI_COMPATIBLE.parse_error(CALL, 404, {}, b"<html>").fault is Fault.OPERATOR


def test_a_flagged_prompt_is_the_clients_fault() -> None:
    content = b'{"error":{"code":403,"message":"flagged","metadata":{"flagged_input":"x","reasons":[]}}}'
    assert OPENAI_COMPATIBLE.parse_error(CALL, 403, {}, content).fault is Fault.CLIENT


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "12"}, 12.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": "-5"}, 0.0),
        ({"retry-after": "1e9"}, 3600.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, 3600.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    error = OPENAI_COMPATIBLE.parse_error(CALL, 429, headers, b"{}")
    assert error.retry_after == seconds


@given(st.binary(max_size=80), st.integers(min_value=300, max_value=599))
def test_no_error_body_crashes(content: bytes, status: int) -> None:
    assert OPENAI_COMPATIBLE.parse_error(CALL, status, {}, content).as_gateway_error().status >= 400


# Streams.


def _chunk(content: str | None = None, **changes: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": content} if content is not None else {}, "finish_reason": None}
    head = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "upstream-name"}
    return {**head, "choices": [choice], **changes}


def _last(**changes: Any) -> dict[str, Any]:
    return _chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}], **changes)


USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}


def _bytes(*chunks: dict[str, Any] | str) -> bytes:
    texts = (
        chunk if isinstance(chunk, str) else json.dumps(chunk, separators=(",", ":")) for chunk in chunks
    )
    return "".join(f"data: {text}\n\n" for text in texts).encode()


def _run(stream: bytes, *, wants_usage: bool = False, **changes: Any) -> tuple[Any, list[StreamEvent]]:
    state = OPENAI_COMPATIBLE.open_stream(replace(CALL, stream=True, wants_usage=wants_usage, **changes))
    events = state.feed(stream)
    return state, events + state.close()


def _chunks(events: list[StreamEvent]) -> list[dict[str, Any]]:
    chunks = [event for event in events if isinstance(event, Chunk)]
    for chunk in chunks:
        assert chunk.sse == b"data: " + chunk.sse[6:-2] + b"\n\n"
        assert json.loads(chunk.sse[6:]) == chunk.data
    return [chunk.data for chunk in chunks]


ENDINGS = {
    "openai: a chunk of its own": [_last(usage=None), _chunk(choices=[], usage=USAGE), "[DONE]"],
    "mistral: on the last chunk": [_last(usage=USAGE), "[DONE]"],
    "groq: under x_groq": [_last(x_groq={"id": "r", "usage": USAGE}), "[DONE]"],
    "vllm: on every chunk, the last wins": [
        _last(usage={**USAGE, "completion_tokens": 1, "total_tokens": 10}),
        _chunk(choices=[], usage=USAGE),
        "[DONE]",
    ],
    "after the last chunk, then without DONE": [_last(), _chunk(choices=[], usage=USAGE)],
    "junk after sense does not count": [
        _last(usage=USAGE),
        _chunk(choices=[], usage={"prompt_tokens": -1}),
        "[DONE]",
    ],
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS.keys())
@pytest.mark.parametrize("wants_usage", [False, True])
def test_usage_is_found_wherever_it_stands_and_taken_out(
    ending: list[dict[str, Any] | str], wants_usage: bool
) -> None:
    stream = _bytes(_chunk("Hel", usage=None), _chunk("lo"), *ending)
    state, events = _run(stream, wants_usage=wants_usage)
    chunks = _chunks(events)
    assert state.usage == TokenUsage(input=9, output=2)
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks] == ["Hel", "lo", None]
    for chunk in chunks:
        assert chunk.get("usage") is None
        assert wants_usage or "usage" not in chunk
    assert state.generated == ("Hello",)
    assert state.finish_reasons == ("stop",)
    assert state.complete
    last = state.usage_chunk(gateway_usage={"request_id": "req_1"})
    assert json.loads(last.sse[6:]) == {
        "id": "c1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "upstream-name",
        "choices": [],
        "usage": USAGE,
        "gateway_usage": {"request_id": "req_1"},
    }


def test_chunks_go_on_unchanged_byte_for_byte() -> None:
    raw = '{"id": "c1", "choices":[{"index":0,"delta":{"content":"\\u00e9"}}], "x":1.50}'
    _, events = _run(_bytes(raw))
    assert isinstance(events[0], Chunk)
    assert events[0].sse == f"data: {raw}\n\n".encode()


def test_a_null_usage_at_the_end_is_cut_off_without_encoding_anew() -> None:
    raw = '{"choices":[{"index":0,"delta":{"content":"x\\",\\"usage\\":null}"}}],"usage":null}'
    _, events = _run(_bytes(raw))
    assert isinstance(events[0], Chunk)
    assert events[0].sse == b"data: " + raw.removesuffix(',"usage":null}').encode() + b"}\n\n"
    assert _chunks(events)


@pytest.mark.parametrize(
    "raw",
    [
        '{"choices":[{"index":0,"delta":{"content":"x"},"logprobs":NaN}]}',
        '{"choices":[{"index":0,\ndata: "delta":{"content":"x"}}]}',
    ],
)
def test_what_cannot_go_on_as_it_came_is_encoded_anew(raw: str) -> None:
    _, events = _run(_bytes(raw))
    assert len(_chunks(events)) == 1


@given(st.lists(st.integers(min_value=0, max_value=2000), max_size=10))
def test_no_split_of_the_bytes_matters(cuts: list[int]) -> None:
    stream = b": OPENROUTER PROCESSING\n\n" + _bytes(
        _chunk("é😀"), _last(), _chunk(choices=[], usage=USAGE), "[DONE]"
    )
    whole, expected = _run(stream)
    bounds = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    state = OPENAI_COMPATIBLE.open_stream(replace(CALL, stream=True))
    events: list[StreamEvent] = []
    for start, end in pairwise(bounds):
        events += state.feed(stream[start:end])
    assert events + state.close() == expected
    assert (state.usage, state.generated) == (whole.usage, whole.generated)


def test_texts_are_gathered_for_each_choice() -> None:
    def choice(index: Any, **delta: Any) -> dict[str, Any]:
        return {"index": index, "delta": delta}

    tool = {"index": 0, "function": {"name": "f", "arguments": '{"a'}}
    stream = _bytes(
        _chunk(choices=[choice(1, content="B"), choice(0, content="A")]),
        _chunk(choices=[choice(0, reasoning_content="r"), choice(1, tool_calls=[tool])]),
        _chunk(choices=[choice(1, tool_calls=[{"index": 0, "function": {"arguments": '":1}'}}]), 7]),
        _chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}]),
    )
    state, _ = _run(stream, body={**BODY, "n": 2})
    assert state.generated == ("Ar", 'Bf{"a":1}')
    assert state.usage is None
    assert not state.complete
    state.feed(b"")


@pytest.mark.parametrize(
    ("ending", "complete"),
    [
        (_bytes(_last(), "[DONE]"), True),
        (_bytes(_last()), True),
        (_bytes("[DONE]"), True),
        (b"data: [DONE]", True),
        (b"", False),
        (b'data: {"choices":[{"ind', False),
        (_bytes(_last()).rstrip(), True),
    ],
)
def test_a_stream_that_was_cut_is_told_from_a_whole_one(ending: bytes, complete: bool) -> None:
    state, events = _run(_bytes(_chunk("Hi")) + ending)
    assert state.complete is complete
    assert state.generated == ("Hi",)
    assert not any(isinstance(event, StreamFailed) for event in events)


@pytest.mark.parametrize(
    ("sent", "status", "retryable"),
    [
        ('data: {"error":{"code":502,"message":"Provider disconnected"},"choices":[]}', 502, True),
        ('data: {"error":{"code":"429","message":"slow"}}', 429, True),
        ('data: {"error":{"code":"server_error","message":"x"}}', 502, True),
        ('data: {"error":"x"}', 502, True),
        ('event: error\ndata: {"message":"x"}', 502, True),
        ('data: {"error":{"code":400,"message":"bad"}}', 400, False),
        ("data: {oops", None, False),
        ("data: [1]", None, False),
        ("data: " + "[" * 100_000, None, False),
    ],
)
def test_an_error_in_the_stream_ends_it(sent: str, status: int | None, retryable: bool) -> None:
    state, events = _run(_bytes(_chunk("Hi")) + f"{sent}\n\n".encode() + _bytes(_chunk("no"), "[DONE]"))
    assert len(events) == 2
    failed = events[1]
    assert isinstance(failed, StreamFailed)
    assert (failed.error.status, failed.error.retryable) == (status, retryable)
    assert not state.complete
    assert state.generated == ("Hi",)
    assert state.feed(_bytes(_chunk("late"))) == []


def test_usage_beside_an_error_is_kept() -> None:
    stream = _bytes(_chunk("Hi"), _chunk(error={"code": 502, "message": "x"}, usage={**USAGE, "cost": 0.25}))
    state, _ = _run(stream)
    assert state.usage == TokenUsage(input=9, output=2)
    assert str(state.reported_cost_usd) == "0.25"


def test_an_event_without_end_fails_the_stream() -> None:
    state = OPENAI_COMPATIBLE.open_stream(replace(CALL, stream=True))
    events: list[StreamEvent] = []
    for _ in range(20):
        events += state.feed(b"data: " + b"x" * 1024 * 1024)
    assert [type(event) for event in events] == [StreamFailed]


def test_nothing_counts_after_done() -> None:
    state, events = _run(_bytes(_chunk("Hi"), _last(), "[DONE]", _chunk("late")))
    assert isinstance(events[-1], StreamDone)
    assert state.generated == ("Hi",)


def test_a_usage_chunk_can_be_made_of_our_own_counts() -> None:
    state, _ = _run(_bytes(_chunk("Hi"), _last(usage={**USAGE, "completion_tokens": 0})))
    assert state.usage is None
    own = TokenUsage(input=4, cached_input=2, output=3, reasoning=1)
    assert state.usage_chunk(own).data["usage"] == {
        "prompt_tokens": 6,
        "completion_tokens": 3,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 1},
    }


@given(
    st.lists(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=3),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(
                        ["choices", "delta", "usage", "error", "index", "message", "content", "x_groq"]
                    ),
                    inner,
                )
            ),
            max_leaves=8,
        ),
        max_size=4,
    )
)
def test_no_chunk_crashes_the_stream(chunks: list[Any]) -> None:
    state, _ = _run(_bytes(*(json.dumps(chunk) for chunk in chunks)))
    assert state.usage is None or state.usage.total_input > 0
    assert isinstance(state.generated, tuple)


@pytest.mark.parametrize(
    ("name", "beginning"),
    [("openai-compatible", "The OpenAI-compatible service"), ("xai", "xAI"), ("vllm", "vLLM")],
)
def test_a_failures_message_begins_as_a_sentence_does(name: str, beginning: str) -> None:
    provider = provider_named(name)
    call = ProviderCall(provider, "http://127.0.0.1/v1", "m", {}, output_bound=None, stream=False)
    error = OPENAI_COMPATIBLE.parse_error(call, 500, {}, b"")
    assert error.message == f"{beginning} failed (status 500)."
