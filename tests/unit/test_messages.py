"""Anthropic's Messages in OpenAI's terms and back, judged by the types of both vendors' SDKs."""

from __future__ import annotations

import base64
import json
import re
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anthropic.types
import pytest
from anthropic.lib.streaming._messages import accumulate_event
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import CompletionCreateParams
from pydantic import TypeAdapter

from gateway.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    GatewayError,
    InsufficientCredits,
    InternalError,
    NotFound,
    PayloadTooLarge,
    ProviderFailed,
    ProviderTimeout,
    RateLimited,
    Unauthorized,
    Unavailable,
    Unprocessable,
)
from gateway.http import validate
from gateway.messages.answer import MessageEvents, message, messages_usage
from gateway.messages.dialect import messages_error
from gateway.messages.request import SIGNATURE_LEAD, carry, read_carried, translate
from gateway.providers.anthropic_messages import ANTHROPIC_MESSAGES
from gateway.providers.registry import PROVIDERS, provider_named
from gateway.providers.wire import Answer, Chunk, MessagesCall, StreamDone, StreamFailed
from gateway.schemas.messages import MessagesRequest
from gateway.schemas.usage import TokenUsage
from gateway.tokens import count_request

if TYPE_CHECKING:
    from collections.abc import Iterator

OPENAI_REQUEST: TypeAdapter[Any] = TypeAdapter(CompletionCreateParams)
EVENT: TypeAdapter[Any] = TypeAdapter(anthropic.types.RawMessageStreamEvent)
IDENTITY = "req_" + "0" * 32
PIXEL = "iVBORw0KGgo="


def asked(*turns: Any, **fields: Any) -> dict[str, Any]:
    """A request that the schema takes."""
    body = {"model": "m", "max_tokens": 100, "messages": list(turns), **fields}
    validate(MessagesRequest, body)
    return body


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def text(words: str, **fields: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **fields}


# Requests


def test_texts_alone_are_one_string_and_marks_for_caching_stay_behind() -> None:
    mark = {"cache_control": {"type": "ephemeral"}}
    request = asked(
        user(text("One", **mark), text(""), text("Two")), system=[text("Be brief.", **mark), text("Be kind.")]
    )
    made = translate(request)
    assert made.body["messages"] == [
        {"role": "system", "content": "Be brief.\n\nBe kind."},
        {"role": "user", "content": "One\n\nTwo"},
    ]
    assert made.native == request
    assert made.native_only is None


def test_results_follow_their_calls_and_what_they_show_follows_them() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
    request = asked(
        user(text("Look")),
        assistant(
            text("I "),
            text("ask."),
            {"type": "tool_use", "id": "a", "name": "see", "input": {"x": "ü"}},
            {"type": "tool_use", "id": "b", "name": "see", "input": {}},
        ),
        user(
            {"type": "tool_result", "tool_use_id": "a", "content": [text("Seen"), image]},
            {"type": "tool_result", "tool_use_id": "b", "is_error": True},
            text("Well?"),
        ),
    )
    _, said, first, second, shown = translate(request).body["messages"]
    assert said["content"] == "I ask."
    assert [(call["id"], call["function"]["arguments"]) for call in said["tool_calls"]] == [
        ("a", '{"x": "ü"}'),
        ("b", "{}"),
    ]
    assert first == {"role": "tool", "tool_call_id": "a", "content": "Seen"}
    assert second == {"role": "tool", "tool_call_id": "b", "content": "Error"}
    label, picture, last = shown["content"]
    assert "a" in label["text"]
    assert picture == {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    assert last == text("Well?")


def test_documents_are_files_or_texts() -> None:
    pdf = {"type": "base64", "media_type": "application/pdf", "data": PIXEL}
    request = asked(
        user(
            {"type": "document", "source": pdf, "title": "a.pdf", "context": "Read it"},
            {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Plain"}},
            {"type": "document", "source": {"type": "content", "content": [text("Inner")]}, "title": "T"},
            {"type": "search_result", "title": "Found", "source": "https://a.b", "content": [text("Hit")]},
        )
    )
    [turn] = translate(request).body["messages"]
    assert turn["content"] == [
        text("Context: Read it"),
        {
            "type": "file",
            "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{PIXEL}"},
        },
        text("Plain"),
        text("Title: T"),
        text("Inner"),
        text("Found\nhttps://a.b\n\nHit"),
    ]


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ({"tool_choice": {"type": "auto"}}, {"tool_choice": "auto"}),
        ({"tool_choice": {"type": "any"}}, {"tool_choice": "required"}),
        ({"tool_choice": {"type": "none"}}, {"tool_choice": "none"}),
        (
            {"tool_choice": {"type": "tool", "name": "see", "disable_parallel_tool_use": True}},
            {"tool_choice": {"type": "function", "function": {"name": "see"}}, "parallel_tool_calls": False},
        ),
        ({"thinking": {"type": "enabled", "budget_tokens": 20}}, {"reasoning_effort": "low"}),
        ({"thinking": {"type": "enabled", "budget_tokens": 50}}, {"reasoning_effort": "medium"}),
        ({"thinking": {"type": "enabled", "budget_tokens": 99}}, {"reasoning_effort": "high"}),
        ({"thinking": {"type": "adaptive"}}, {}),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, {"reasoning_effort": "low"}),
        ({"thinking": {"type": "disabled"}, "output_config": {"effort": "low"}}, {}),
        ({"output_config": {"effort": "max"}}, {"reasoning_effort": "xhigh"}),
        ({"metadata": {"user_id": "u"}}, {"user": "u"}),
        (
            {"stop_sequences": ["x"], "top_k": 3, "temperature": 0.5},
            {"stop": ["x"], "top_k": 3, "temperature": 0.5},
        ),
        ({"service_tier": "auto", "speed": "standard", "cache_control": {"type": "ephemeral"}}, {}),
    ],
)
def test_parameters(given: dict[str, Any], made: dict[str, Any]) -> None:
    tool = {"name": "see", "input_schema": {"type": "object"}, "description": "Sees.", "strict": True}
    plain = translate(asked(user(text("x")), tools=[tool])).body
    body = translate(asked(user(text("x")), tools=[tool], **given)).body
    assert body == {**plain, **made}
    assert plain["tools"] == [
        {
            "type": "function",
            "function": {
                "name": "see",
                "description": "Sees.",
                "parameters": {"type": "object"},
                "strict": True,
            },
        }
    ]


def test_a_long_name_of_a_user_fits_openais_field_and_is_always_the_same() -> None:
    made = [translate(asked(user(text("x")), metadata={"user_id": "u" * 200})).body["user"] for _ in "ab"]
    assert made[0] == made[1]
    assert re.fullmatch(r"[0-9a-f]{64}", made[0])


CITED = {"type": "document", "source": {"type": "text", "data": "x"}, "citations": {"enabled": True}}


@pytest.mark.parametrize(
    ("turn", "fields", "path"),
    [
        (user(CITED), {}, "messages.0.content.0.citations"),
        (user(text("x", citations=None), text("y", strange=1)), {}, "messages.0.content.1.strange"),
        (user(text("x")), {"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools.0.type"),
        (
            user(text("x")),
            {"tools": [{"name": "f", "input_schema": {}, "input_examples": [{}]}]},
            "tools.0.input_examples",
        ),
        (
            user(text("x")),
            {"tools": [{"name": "f", "input_schema": {}, "allowed_callers": ["code_execution_20250825"]}]},
            "tools.0.allowed_callers",
        ),
        (
            user(text("x")),
            {"output_config": {"task_budget": {"type": "tokens", "total": 9}}},
            "output_config.task_budget",
        ),
        (
            user(text("x")),
            {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}},
            "context_management",
        ),
        ({**user(text("x")), "strange": 1}, {}, "messages.0.strange"),
        (
            user({"type": "image", "source": {"type": "url", "url": "https://a.b", "strange": 1}}),
            {},
            "messages.0.content.0.source.strange",
        ),
        (
            user(text("x")),
            {"tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": "any", "strange": 1}},
            "tool_choice.strange",
        ),
        (user(text("x")), {"thinking": {"type": "adaptive", "strange": 1}}, "thinking.strange"),
        (
            user(text("x")),
            {"output_config": {"format": {"type": "json_schema", "schema": {}, "strange": 1}}},
            "output_config.format.strange",
        ),
        (user(text("x")), {"metadata": {"user_id": "u", "strange": 1}}, "metadata.strange"),
        (user({"type": "tool_use", "id": "a", "name": "f", "input": {}}), {}, "messages.0.content.0.type"),
        (assistant({"type": "tool_result", "tool_use_id": "a"}), {}, "messages.0.content.0.type"),
        (
            user(
                {
                    "type": "tool_result",
                    "tool_use_id": "a",
                    "content": [{"type": "tool_reference", "tool_name": "f"}],
                }
            ),
            {},
            "messages.0.content.0.content.0.type",
        ),
    ],
)
def test_what_only_anthropic_knows_is_named_and_its_input_has_no_cheap_bound(
    turn: dict[str, Any], fields: dict[str, Any], path: str
) -> None:
    request = asked(turn, **fields)
    made = translate(request)
    assert made.native_only == path
    assert made.input_bound is None
    assert made.native == request
    for provider in PROVIDERS:
        call: dict[str, Any] = {
            "provider": provider,
            "base_url": "https://a.b",
            "model": "m",
            "body": made.body,
            "output_bound": 1,
            "stream": False,
            "native": made.native,
            "native_only": path,
        }
        if provider.name == "anthropic":
            assert MessagesCall(**call).is_native
        else:
            with pytest.raises(Unprocessable) as caught:
                MessagesCall(**call)
            assert caught.value.param == path


@pytest.mark.parametrize(
    ("schema", "strict"),
    [
        ({"properties": {"a": {"type": "integer"}}, "required": ["a"]}, True),
        ({"properties": {"a": {"type": "integer"}, "b": {"type": "null"}}, "required": ["a"]}, False),
        ({"properties": {"a": {"type": "array", "items": {"type": "object"}}}, "required": ["a"]}, False),
        ({"properties": {}, "$defs": {"p": {"type": "object", "properties": {"q": {}}}}}, False),
        ({"properties": {"a": {"anyOf": [{"type": ["object", "null"]}]}}, "required": ["a"]}, False),
        ({"properties": {"a": {"enum": [{"type": "object"}]}}, "required": ["a"]}, True),
    ],
)
def test_a_format_is_strict_where_openai_can_be(schema: dict[str, Any], *, strict: bool) -> None:
    """OpenAI refuses that where a property may be missing; Anthropic's SDK makes such of each default."""
    schema = {"type": "object", "additionalProperties": False, **schema}
    form = {"type": "json_schema", "schema": schema}
    given = translate(asked(user(text("x")), output_config={"format": form})).body["response_format"]
    assert given["json_schema"]["schema"] == schema
    assert given["json_schema"].get("strict", False) is strict


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.sampled_from(["object", "a"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["type", "properties", "required", "$defs", "anyOf", "items", "additionalProperties"]
                ),
                inner,
            )
        ),
        max_leaves=12,
    )
)
def test_any_schema_is_passed_on(schema: Any) -> None:
    form = {"type": "json_schema", "schema": {"of": schema, "properties": schema, "items": schema}}
    given = translate(asked(user(text("x")), output_config={"format": form})).body["response_format"]
    assert given["json_schema"]["schema"] == form["schema"]


def test_to_keep_all_thoughts_asks_for_nothing_that_would_not_be_so_anyway() -> None:
    """Claude Code says it with each request that thinks."""
    kept = {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}
    made = translate(asked(user(text("x")), thinking={"type": "adaptive"}, context_management=kept))
    assert made.native_only is None
    assert made.native["context_management"] == kept
    fewer = {"edits": [{"type": "clear_thinking_20251015", "keep": {"type": "thinking_turns", "value": 1}}]}
    assert translate(asked(user(text("x")), context_management=fewer)).native_only == "context_management"


def test_ids_that_anthropic_would_not_take_still_join_call_and_result() -> None:
    """They are of a provider that answered earlier; it gets them back as they were."""
    call = {"type": "tool_use", "id": "functions.f:0", "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "functions.f:0", "content": "y"}
    fine = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}
    fine_result = {"type": "tool_result", "tool_use_id": "toolu_1"}
    request = asked(user(text("x")), assistant(call, fine), user(result, fine_result))
    made = translate(request)
    sent, answered = made.native["messages"][1]["content"], made.native["messages"][2]["content"]
    assert sent[0]["id"] == answered[0]["tool_use_id"]
    assert re.fullmatch("[A-Za-z0-9_-]+", sent[0]["id"])
    assert (sent[1], answered[1]) == (fine, fine_result)
    assert made.body["messages"][1]["tool_calls"][0]["id"] == "functions.f:0"
    assert made.body["messages"][2]["tool_call_id"] == "functions.f:0"


def test_thoughts_go_back_to_who_had_them() -> None:
    theirs = {"type": "thinking", "thinking": "Deep", "signature": "EqQBCg"}
    hidden = {"type": "redacted_thinking", "data": "EmwKAhgB"}
    ours = {"type": "thinking", "thinking": "Flat", "signature": f"{SIGNATURE_LEAD}reasoning"}
    forged = {"type": "thinking", "thinking": "?", "signature": f"{SIGNATURE_LEAD}content"}
    details = [{"type": "reasoning.encrypted", "data": "abc"}]
    carried = {
        "type": "redacted_thinking",
        "data": carry(
            {"reasoning_details": details, "tool_calls": {"a": {"google": {"thought_signature": "s"}}}}
        ),
    }
    broken = {"type": "redacted_thinking", "data": f"{SIGNATURE_LEAD}###"}
    call = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
    request = asked(
        user(text("x")),
        assistant(theirs, hidden, ours, forged, carried, broken, text("So"), call),
        assistant(ours),
        user({"type": "tool_result", "tool_use_id": "a", "content": "y"}),
    )
    made = translate(request)
    said, thought = made.body["messages"][1:3]
    assert said["reasoning"] == "Flat"
    assert said["reasoning_details"] == details
    assert said["tool_calls"][0]["extra_content"] == {"google": {"thought_signature": "s"}}
    assert said["content"] == "So"
    assert set(said) == {"role", "reasoning", "reasoning_details", "content", "tool_calls"}
    assert thought == {"role": "assistant", "reasoning": "Flat", "content": ""}
    assert made.native["messages"] == [
        request["messages"][0],
        assistant(theirs, hidden, text("So"), call),
        request["messages"][3],
    ]
    assert request["messages"][2] == assistant(ours), "the client's own object is not changed"


def test_citations_that_anthropic_is_sent_are_within_the_bound() -> None:
    cited = {"type": "char_location", "cited_text": "x" * 1000, "document_index": 0}
    bare = translate(asked(user(text("x")), assistant(text("y")), user(text("z")))).input_bound
    given = translate(asked(user(text("x")), assistant(text("y", citations=[cited])), user(text("z"))))
    assert bare is not None
    assert given.input_bound is not None
    assert given.input_bound >= bare + len(json.dumps(cited))


def test_thoughts_that_anthropic_is_sent_are_within_the_bound() -> None:
    signature = "S" * 4000
    thought = {"type": "thinking", "thinking": "", "signature": signature}
    with_it = translate(asked(user(text("x")), assistant(thought, text("y")), user(text("z")))).input_bound
    without = translate(asked(user(text("x")), assistant(text("y")), user(text("z")))).input_bound
    assert with_it is not None
    assert without is not None
    assert with_it - without >= len(signature)


@given(st.text() | st.binary().map(lambda raw: raw.hex()))
@settings(max_examples=100)
def test_what_was_not_carried_by_the_gateway_is_never_read_as_if(data: str) -> None:
    assert read_carried(data) is None or data.startswith(SIGNATURE_LEAD)
    assert isinstance(read_carried(SIGNATURE_LEAD + data), dict)


# Any conversation: nothing is lost, and the bound holds

WORDS = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=30)
IDS = st.text(alphabet="abcdefgh0123_-", min_size=1, max_size=12)
TEXT = st.builds(text, WORDS)
IMAGE = st.one_of(
    st.builds(lambda name: {"type": "image", "source": {"type": "url", "url": f"https://e.org/{name}"}}, IDS),
    st.builds(
        lambda data: {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}},
        st.binary(min_size=1, max_size=12).map(lambda raw: base64.b64encode(raw).decode()),
    ),
)
CALL = st.builds(
    lambda identity, name, value: {"type": "tool_use", "id": identity, "name": name, "input": {"v": value}},
    IDS,
    IDS,
    WORDS,
)
RESULT = st.builds(
    lambda identity, content: {"type": "tool_result", "tool_use_id": identity, "content": content},
    IDS,
    WORDS | st.lists(TEXT | IMAGE, max_size=3),
)
TURN = st.one_of(
    st.builds(lambda blocks: user(*blocks), st.lists(TEXT | IMAGE | RESULT, min_size=1, max_size=4)),
    st.builds(lambda blocks: assistant(*blocks), st.lists(TEXT | CALL, min_size=1, max_size=4)),
)


def leaves(turns: list[Any]) -> Iterator[str]:
    """Everything in Anthropic's turns that a model is to see."""
    for turn in turns:
        for block in turn["content"]:
            yield from _leaves_of(block)


def _leaves_of(block: Any) -> Iterator[str]:
    match block["type"]:
        case "text":
            yield block["text"]
        case "image":
            yield block["source"].get("url") or block["source"]["data"]
        case "tool_use":
            yield from (block["id"], block["name"], block["input"]["v"])
        case "tool_result":
            yield block["tool_use_id"]
            content = block["content"]
            for inner in [text(content)] if isinstance(content, str) else content:
                yield from _leaves_of(inner)


@given(st.lists(TURN, min_size=1, max_size=6), WORDS)
@settings(max_examples=200, deadline=None)
def test_a_conversation_loses_no_content_and_is_openais(turns: list[Any], system: str) -> None:
    made = translate(asked(*turns, system=system))
    assert made.native_only is None
    OPENAI_REQUEST.validate_python({name: made.body[name] for name in ("model", "messages")})
    seen: list[str] = []
    for said in made.body["messages"]:
        content = said.get("content") or ""
        parts = [text(content)] if isinstance(content, str) else content
        seen += [part["text"] if part["type"] == "text" else part["image_url"]["url"] for part in parts]
        seen.append(said.get("tool_call_id", ""))
        for call in said.get("tool_calls", ()):
            seen += [call["id"], call["function"]["name"], json.loads(call["function"]["arguments"])["v"]]
    for leaf in [system, *leaves(turns)]:
        assert any(leaf in piece for piece in seen), leaf


@given(st.lists(TURN, min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_the_bound_is_no_less_than_what_is_sent_in_either_shape(turns: list[Any]) -> None:
    made = translate(asked(*turns))
    if "image" in json.dumps([block["type"] for turn in turns for block in turn["content"]]) or (
        any(
            inner["type"] == "image"
            for turn in turns
            for block in turn["content"]
            if block["type"] == "tool_result" and isinstance(block["content"], list)
            for inner in block["content"]
        )
    ):
        assert made.input_bound is None
        return
    assert made.input_bound is not None
    assert made.input_bound >= count_request(made.body)
    # In Anthropic's: every tokenizer falls back to bytes.
    assert made.input_bound >= sum(len(leaf.encode()) for leaf in leaves(turns))


# Answers


def call(**fields: Any) -> Any:
    candidate = SimpleNamespace(model="test/model")
    exchange = SimpleNamespace(candidate=candidate, body={"stop": ["END"]}, **fields)
    admission = SimpleNamespace(request_id=IDENTITY, key_prefix="sk_abc…")
    return SimpleNamespace(exchange=exchange, admission=admission, usage=TokenUsage(input=5, output=7))


def chunks_of(*deltas: dict[str, Any], finish: str | None = "stop", **choice: Any) -> list[Chunk]:
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "upstream"}
    made = [
        Chunk({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}) for delta in deltas
    ]
    if finish:
        made.append(
            Chunk({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": finish, **choice}]})
        )
    return made


def events_of(out: bytes) -> list[dict[str, Any]]:
    """The events of a stream, each checked to be Anthropic's: its name and its shape."""
    found = []
    for event in out.decode().split("\n\n")[:-1]:
        name, data = event.split("\n")
        body = json.loads(data.removeprefix("data: "))
        assert name == f"event: {body['type']}"
        EVENT.validate_python(body)
        found.append(body)
    return found


def streamed(*chunks: Chunk) -> tuple[Any, list[dict[str, Any]]]:
    """What the SDK makes of the events of these chunks, and the events."""
    one = call()
    shape = MessageEvents(one)
    shape.begin(SimpleNamespace())  # type: ignore[arg-type]
    out = b"".join(shape.encode([chunk]) for chunk in chunks) + shape.end(one, None)
    events = events_of(out)
    snapshot: Any = None
    buffers: dict[int, bytes] = {}
    opened: list[int] = []
    for event in events:
        if event["type"] == "content_block_start":
            assert not opened
            opened.append(event["index"])
        elif event["type"].startswith("content_block"):
            assert opened == [event["index"]]
            if event["type"] == "content_block_stop":
                opened.clear()
        if event["type"] != "message_stop":
            snapshot = accumulate_event(event=event, current_snapshot=snapshot, json_bufs=buffers)  # type: ignore[arg-type]
    assert not opened
    assert [event["type"] for event in events][-2:] == ["message_delta", "message_stop"]
    return snapshot, events


def plain(said: dict[str, Any], finish: str = "stop", **choice: Any) -> dict[str, Any]:
    body = {"id": "c", "choices": [{"index": 0, "message": said, "finish_reason": finish, **choice}]}
    answer = Answer(body=body, usage=None, finish_reasons=(finish,), generated=())
    made = message(call(), answer, TokenUsage(input=5, output=7), None)
    anthropic.types.Message.model_validate(made)
    return made


def tool_call(index: int, identity: str | None, name: str | None, arguments: str) -> dict[str, Any]:
    function = {"arguments": arguments, **({"name": name} if name else {})}
    return {"index": index, **({"id": identity} if identity else {}), "function": function}


def calls_in(snapshot: Any) -> list[tuple[str, str, Any]]:
    return [(block.id, block.name, block.input) for block in snapshot.content if block.type == "tool_use"]


def test_calls_that_are_streamed_by_turns_come_out_one_after_the_other() -> None:
    snapshot, _ = streamed(
        *chunks_of(
            {"role": "assistant", "content": None},
            {"tool_calls": [tool_call(0, "a", "f", ""), tool_call(1, "b", "g", "")]},
            {"tool_calls": [tool_call(1, None, None, '{"y":')]},
            {"tool_calls": [tool_call(0, None, None, '{"x": "}"')]},
            {"tool_calls": [tool_call(1, None, None, " 2}")]},
            {"tool_calls": [tool_call(0, None, None, "}"), tool_call(2, "c", "h", "{}")]},
            finish="tool_calls",
        )
    )
    assert calls_in(snapshot) == [("a", "f", {"x": "}"}), ("b", "g", {"y": 2}), ("c", "h", {})]
    assert snapshot.stop_reason == "tool_use"


def test_a_call_streams_as_it_comes() -> None:
    one = call()
    shape = MessageEvents(one)
    shape.begin(SimpleNamespace())  # type: ignore[arg-type]
    first, second, *_ = chunks_of(
        {"tool_calls": [tool_call(0, "a", "f", '{"x"')]}, {"tool_calls": [tool_call(0, None, None, ": 1}")]}
    )
    assert b'{\\"x\\"' in shape.encode([first])
    assert b": 1}" in shape.encode([second])


def test_calls_without_an_index_or_with_one_index_for_all_are_told_apart_by_their_ids() -> None:
    snapshot, _ = streamed(
        *chunks_of(
            {"tool_calls": [tool_call(0, "a", "f", "{}")]},
            {"tool_calls": [tool_call(0, "b", "f", "{}")]},
            {"tool_calls": [{"id": "c", "function": {"name": "f", "arguments": {"z": 1}}}]},
        )
    )
    assert calls_in(snapshot) == [("a", "f", {}), ("b", "f", {}), ("c", "f", {"z": 1})]
    assert snapshot.stop_reason == "tool_use", "whatever the provider called it"


def test_every_kind_of_content_is_a_block_of_its_own() -> None:
    deltas: list[dict[str, Any]] = [
        {"role": "assistant", "content": "", "reasoning": "Hm"},
        {"reasoning": "m"},
        {"content": "One"},
        {"content": " two"},
        {"tool_calls": [tool_call(0, "a", "f", "{}")]},
        {"content": "After"},
    ]
    snapshot, events = streamed(*chunks_of(*deltas))
    assert [block.type for block in snapshot.content] == ["thinking", "text", "tool_use", "text"]
    assert snapshot.content[0].thinking == "Hmm"
    assert snapshot.content[0].signature == f"{SIGNATURE_LEAD}reasoning"
    assert snapshot.content[1].text == "One two"
    assert events[0]["message"]["model"] == "test/model"
    assert (snapshot.usage.input_tokens, snapshot.usage.output_tokens) == (5, 7)


def test_what_the_shape_has_no_place_for_is_carried_and_comes_back() -> None:
    """OpenRouter's details, whose pieces are joined, and the signatures of Gemini's calls."""
    signature = {"google": {"thought_signature": "sig"}}
    deltas: list[dict[str, Any]] = [
        {"reasoning": "A", "reasoning_details": [{"type": "reasoning.text", "index": 0, "text": "A"}]},
        {"reasoning": "B", "reasoning_details": [{"type": "reasoning.text", "index": 0, "text": "B"}]},
        {"reasoning_details": [{"type": "reasoning.text", "index": 0, "signature": "S"}]},
        {"tool_calls": [{**tool_call(0, "a", "f", "{}"), "extra_content": signature}]},
    ]
    snapshot, _ = streamed(*chunks_of(*deltas))
    assert [block.type for block in snapshot.content] == ["thinking", "redacted_thinking", "tool_use"]
    back = translate(asked(user(text("x")), assistant(*(block.to_dict() for block in snapshot.content))))
    said = back.body["messages"][1]
    assert said["reasoning"] == "AB"
    assert said["reasoning_details"] == [
        {"type": "reasoning.text", "index": 0, "text": "AB", "signature": "S"}
    ]
    assert said["tool_calls"][0]["extra_content"] == signature


@pytest.mark.parametrize(
    ("finish", "choice", "reason", "sequence"),
    [
        ("stop", {}, "end_turn", None),
        ("length", {}, "max_tokens", None),
        ("content_filter", {}, "refusal", None),
        ("stop", {"stop_reason": "END"}, "stop_sequence", "END"),
        ("stop", {"stop_reason": 128001}, "end_turn", None),
        ("stop", {"stop_reason": "never asked for"}, "end_turn", None),
        ("eos", {}, "end_turn", None),
    ],
)
def test_reasons(finish: str, choice: dict[str, Any], reason: str, sequence: str | None) -> None:
    snapshot, _ = streamed(*chunks_of({"content": "x"}, finish=finish, **choice))
    made = plain({"content": "x"}, finish, **choice)
    assert (snapshot.stop_reason, snapshot.stop_sequence) == (reason, sequence)
    assert (made["stop_reason"], made["stop_sequence"]) == (reason, sequence)


def test_a_refusal_is_said_and_named() -> None:
    made = plain({"content": None, "refusal": "No."})
    assert made["content"] == [text("No.")]
    assert made["stop_reason"] == "refusal"


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        ("", {}),
        ("{}", {}),
        ('{"a": [1, "b', {"a": [1]}),
        ('{"a": 1, "b": "cut', {"a": 1}),
        ("not JSON", {"arguments": "not JSON"}),
        ("[1]", {"arguments": "[1]"}),
    ],
)
def test_arguments_that_are_cut_or_broken_lose_nothing_that_can_be_read(arguments: str, read: Any) -> None:
    made = plain(
        {"tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}]}
    )
    assert made["content"][0]["input"] == read
    if not arguments or arguments.startswith("{"):
        snapshot, _ = streamed(*chunks_of({"tool_calls": [tool_call(0, "a", "f", arguments)]}))
        assert calls_in(snapshot)[0][2] == read


@pytest.mark.parametrize(
    "deltas",
    [
        [],
        [{"role": "assistant", "content": ""}],
        [None, {"content": 5, "tool_calls": "x", "reasoning": {}, "reasoning_details": 1}],
        [{"tool_calls": [None, {"index": "x", "function": None}]}],
        [{"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "T"}]}, text("S"), None]}],
    ],
)
def test_odd_deltas_make_a_stream_all_the_same(deltas: list[Any]) -> None:
    snapshot, _ = streamed(*chunks_of(*deltas))
    assert snapshot.role == "assistant"


def test_a_stream_of_nothing_but_its_end_is_a_message_all_the_same() -> None:
    snapshot, events = streamed()
    assert [event["type"] for event in events] == ["message_start", "message_delta", "message_stop"]
    assert snapshot.content == []


PIECES = st.one_of(
    st.builds(lambda words: {"content": words}, st.text(max_size=8)),
    st.builds(lambda words: {"reasoning_content": words}, st.text(max_size=8)),
    st.builds(
        lambda index, arguments: {"tool_calls": [tool_call(index, f"id{index}", "f", arguments)]},
        st.integers(0, 2),
        st.sampled_from(["", "{", "}", '"a": 1', "{}"]),
    ),
)


@given(st.lists(PIECES, max_size=12))
@settings(max_examples=300, deadline=None)
def test_a_stream_keeps_every_text_and_argument_however_it_is_cut(deltas: list[dict[str, Any]]) -> None:
    one = call()
    shape = MessageEvents(one)
    shape.begin(SimpleNamespace())  # type: ignore[arg-type]
    out = b"".join(shape.encode([chunk]) for chunk in chunks_of(*deltas)) + shape.end(one, None)
    said = thought = ""
    arguments: dict[str, str] = {}
    names: dict[int, str] = {}
    for event in events_of(out):
        if event["type"] == "content_block_start" and event["content_block"]["type"] == "tool_use":
            names[event["index"]] = event["content_block"]["id"]
        delta = event.get("delta", {})
        said += delta.get("text", "")
        thought += delta.get("thinking", "")
        if "partial_json" in delta:
            name = names[event["index"]]
            arguments[name] = arguments.get(name, "") + delta["partial_json"]
    assert said == "".join(delta.get("content", "") for delta in deltas)
    assert thought == "".join(delta.get("reasoning_content", "") for delta in deltas)
    sent: dict[str, str] = {}
    for delta in deltas:
        for each in delta.get("tool_calls", ()):
            sent[each["id"]] = sent.get(each["id"], "") + each["function"]["arguments"]
    assert {name: value for name, value in arguments.items() if value} == {
        name: value for name, value in sent.items() if value
    }


def test_usage_in_anthropics_classes() -> None:
    usage = TokenUsage(input=5, cached_input=3, cache_write=2, image_input=1, output=7, reasoning=4)
    assert messages_usage(usage) == {
        "input_tokens": 6,
        "output_tokens": 7,
        "cache_read_input_tokens": 3,
        "cache_creation_input_tokens": 2,
        "output_tokens_details": {"thinking_tokens": 4},
    }
    assert messages_usage(TokenUsage(input=5, output=7)) == {"input_tokens": 5, "output_tokens": 7}


# Anthropic's own events


def native_call(**fields: Any) -> MessagesCall:
    provider = provider_named("anthropic")
    told = {"base_url": "https://api.test/v1", "model": "claude", "body": {}, "native": {}, **fields}
    return MessagesCall(**{"provider": provider, "output_bound": 10, "stream": True, "key": "k", **told})


def sse(*events: dict[str, Any]) -> bytes:
    return b"".join(b"event: %s\ndata: %s\n\n" % (e["type"].encode(), json.dumps(e).encode()) for e in events)


START = {
    "type": "message_start",
    "message": {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 5, "output_tokens": 1},
    },
}
OPENED = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
SAID = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}}
NEW = {"type": "an_event_of_a_later_day", "x": 1}
CLOSED = {"type": "content_block_stop", "index": 0}
ENDED = {
    "type": "message_delta",
    "delta": {"stop_reason": "end_turn", "stop_sequence": None},
    "usage": {"output_tokens": 7},
}
STOPPED = {"type": "message_stop"}


def test_anthropics_events_pass_as_they_are_with_the_cost_in_the_last() -> None:
    given = native_call()
    stream = ANTHROPIC_MESSAGES.open_stream(given)
    assert stream.feed(sse(START, {"type": "ping"}, OPENED)) == [], "an overloaded model may still give way"
    arrived = stream.feed(sse(SAID, {"type": "ping"}, NEW, CLOSED, ENDED, STOPPED))
    assert isinstance(arrived[-1], StreamDone)
    shape = MessageEvents(call())
    shape.begin(given)
    out = shape.encode([event for event in arrived if isinstance(event, Chunk)])
    found = [json.loads(line[6:]) for line in out.decode().splitlines() if line.startswith("data: ")]
    assert found == [START, OPENED, SAID, NEW, CLOSED]
    last, stop = events_of(shape.end(call(), None))
    assert {name: value for name, value in last.items() if name != "gateway_usage"} == ENDED
    assert last["gateway_usage"]["request_id"] == IDENTITY
    assert stop == STOPPED
    assert stream.usage == TokenUsage(input=5, output=7)
    assert (stream.complete, stream.finish_reasons, stream.generated) == (True, ("stop",), ("Hi",))


def test_an_overloaded_model_fails_before_a_byte_went_out() -> None:
    stream = ANTHROPIC_MESSAGES.open_stream(native_call())
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    [failed] = stream.feed(sse(START, error))
    assert isinstance(failed, StreamFailed)
    assert failed.error.retryable


@pytest.mark.parametrize("last", [[], [{**ENDED, "delta": {"stop_reason": "refusal"}}]])
def test_a_message_without_content_is_whole(last: list[dict[str, Any]]) -> None:
    given = native_call()
    stream = ANTHROPIC_MESSAGES.open_stream(given)
    arrived = stream.feed(sse(START, *last, STOPPED))
    shape = MessageEvents(call())
    shape.begin(given)
    out = shape.encode([event for event in arrived if isinstance(event, Chunk)]) + shape.end(call(), None)
    assert [event["type"] for event in events_of(out)] == ["message_start", "message_delta", "message_stop"]


def test_a_stream_that_another_route_began_is_begun_anew() -> None:
    shape = MessageEvents(call())
    shape.begin(native_call())
    assert shape.encode([Chunk(ENDED)]) == b""
    shape.begin(SimpleNamespace())  # type: ignore[arg-type]
    out = shape.encode(chunks_of({"content": "x"})) + shape.end(call(), None)
    assert [event["type"] for event in events_of(out)].count("message_delta") == 1


def test_the_clients_object_goes_on_with_the_model_and_the_bound_put_right() -> None:
    native = {"model": "mine", "max_tokens": 500, "messages": [], "metadata": {"user_id": "x"}, "future": [1]}
    request = ANTHROPIC_MESSAGES.build_request(
        native_call(native=native, output_bound=100, native_headers={"anthropic-version": "2026-10-21"})
    )
    assert request.url == "https://api.test/v1/messages"
    assert json.loads(request.content) == {**native, "model": "claude", "max_tokens": 100, "stream": True}
    assert request.headers["anthropic-version"] == "2026-10-21"
    assert request.headers["x-api-key"] == "k"
    assert native["max_tokens"] == 500


def test_a_whole_answer_of_anthropics_is_as_it_came_with_the_cost() -> None:
    whole = {
        **START["message"],  # type: ignore[dict-item]
        "content": [{"type": "text", "text": "Hi", "citations": [{"type": "later"}]}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 5, "output_tokens": 7, "service_tier": "standard"},
        "gateway_usage": "of another gateway",
        "future": 1,
    }
    answer = ANTHROPIC_MESSAGES.parse_answer(native_call(), json.dumps(whole).encode())
    made = message(call(), answer, TokenUsage(input=5, output=7), None)
    assert {name: value for name, value in made.items() if name != "gateway_usage"} == {
        name: value for name, value in whole.items() if name != "gateway_usage"
    }
    assert made["gateway_usage"]["request_id"] == IDENTITY


# Errors


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (BadRequest("x"), 400, "invalid_request_error"),
        (Unauthorized("x"), 401, "authentication_error"),
        (InsufficientCredits("x"), 402, "billing_error"),
        (Forbidden("x"), 403, "permission_error"),
        (NotFound("x"), 404, "not_found_error"),
        (Conflict("x"), 409, "conflict_error"),
        (PayloadTooLarge("x"), 413, "request_too_large"),
        (Unprocessable("x", param="p"), 400, "invalid_request_error"),
        (RateLimited("x", retry_after=1), 429, "rate_limit_error"),
        (InternalError("secret"), 500, "api_error"),
        (ProviderFailed("x"), 502, "api_error"),
        (Unavailable("x"), 503, "overloaded_error"),
        (ProviderTimeout("x"), 504, "timeout_error"),
    ],
)
def test_errors_in_anthropics_shape(error: GatewayError, status: int, kind: str) -> None:
    told, body = messages_error(error, IDENTITY)
    assert told == status
    assert body["error"]["type"] == kind
    assert body["error"]["message"] == error.message
    assert body["request_id"] == IDENTITY
    assert "secret" not in json.dumps(body)
    if kind != "request_too_large":
        assert kind in anthropic.types.shared.ErrorType.__args__  # type: ignore[attr-defined]
