"""Whatever a conversation in OpenAI's terms holds arrives in each provider's request, in its order.

The requests are read by the simulator, which checks them as the vendors do and lists what it was given, and
by the vendors' own types. What a wire can't carry is refused by its place, never left out.
"""

from __future__ import annotations

import base64
import functools
import json
from typing import TYPE_CHECKING, Any, cast

import pytest
from anthropic.types.message_create_params import MessageCreateParams
from google.genai import types
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from gateway.errors import Unprocessable
from gateway.providers.registry import PROVIDERS
from gateway.providers.wire import Capability, ProviderCall
from infra.local.simulator import anthropic_request, gemini_request
from infra.local.simulator.openai_wire import read_given

if TYPE_CHECKING:
    from gateway.providers.wire import Provider

ONE_OF_EACH_WIRE = list({repr(provider.wire): provider for provider in reversed(PROVIDERS)}.values())
IDS = [provider.name for provider in ONE_OF_EACH_WIRE]
TRANSLATING = [provider for provider in ONE_OF_EACH_WIRE if provider.wire.name in {"anthropic", "gemini"}]

STRICT = [*TRANSLATING, *(provider for provider in ONE_OF_EACH_WIRE if provider.name == "completions")]
"""Those that refuse what they don't know; the others pass it on."""
WITH_TOOLS = [provider for provider in ONE_OF_EACH_WIRE if Capability.TOOLS in provider.capabilities]

# Text that is nothing but space, the vendors refuse.
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(str.strip)
names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,20}", fullmatch=True)
ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
)
values = st.recursive(
    scalars | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
arguments = st.dictionaries(texts, values, max_size=3).map(json.dumps)
data = st.binary(min_size=1, max_size=30).map(lambda raw: base64.b64encode(raw).decode())


def data_url(media_type: str) -> st.SearchStrategy[str]:
    return data.map(lambda text: f"data:{media_type};base64,{text}")


def parts(provider: Provider) -> st.SearchStrategy[dict[str, Any]]:
    """Any content part that the provider's wire carries."""
    kinds = {
        Capability.IMAGE_INPUT: data_url("image/png").map(lambda url: media("image_url", {"url": url})),
        Capability.FILE_INPUT: data_url("application/pdf").map(lambda url: media("file", {"file_data": url})),
        Capability.VIDEO_INPUT: data_url("video/mp4").map(lambda url: media("video_url", {"url": url})),
        Capability.AUDIO_INPUT: data.map(lambda raw: media("input_audio", {"data": raw, "format": "wav"})),
    }
    carried = [strategy for capability, strategy in kinds.items() if capability in provider.capabilities]
    return st.one_of(texts.map(lambda text: {"type": "text", "text": text}), *carried)


def media(kind: str, value: dict[str, str]) -> dict[str, Any]:
    return {"type": kind, kind: value}


@st.composite
def conversations(draw: st.DrawFn, provider: Provider) -> list[dict[str, Any]]:
    """A conversation that begins with the user, and in which every call of a tool is answered."""
    contents = texts | st.lists(parts(provider), min_size=1, max_size=3)
    only_text = texts | st.lists(
        texts.map(lambda text: {"type": "text", "text": text}), min_size=1, max_size=2
    )
    messages: list[dict[str, Any]] = [{"role": "user", "content": draw(contents)}]
    if draw(st.booleans()):
        messages.insert(0, {"role": "system", "content": draw(only_text)})
    with_tools = Capability.TOOLS in provider.capabilities
    kinds = ["user", "assistant", "system", "developer", *(["tools"] * 2 if with_tools else [])]
    for kind in draw(st.lists(st.sampled_from(kinds), max_size=6)):
        if kind == "tools":
            messages += draw(called_and_answered(contents, only_text))
        else:
            messages.append({"role": kind, "content": draw(contents if kind == "user" else only_text)})
    messages.append({"role": "user", "content": draw(contents)})
    return messages


@st.composite
def called_and_answered(draw: st.DrawFn, contents: Any, only_text: Any) -> list[dict[str, Any]]:
    calls = [
        {
            "id": call_id,
            "type": "function",
            "function": {"name": draw(names), "arguments": draw(arguments)},
        }
        for call_id in draw(st.lists(ids, min_size=1, max_size=3, unique=True))
    ]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": texts_first(draw(contents))} for call in calls
    ]
    said = draw(st.none() | only_text)
    return [{"role": "assistant", "content": said, "tool_calls": calls}, *draw(st.permutations(results))]


def texts_first(content: Any) -> Any:
    """Gemini's results of functions have their texts in one field and their media in another."""
    return content if isinstance(content, str) else sorted(content, key=lambda part: part["type"] != "text")


def a_call(provider: Provider, body: dict[str, Any], model: str = "sim") -> ProviderCall:
    return ProviderCall(
        provider=provider,
        base_url=provider.base_url or "https://llm.example.org/v1",
        model=model,
        body=body,
        output_bound=100,
        stream=False,
        key="sk-provider",
    )


def built(provider: Provider, body: dict[str, Any], model: str = "sim") -> dict[str, Any]:
    content = provider.wire.build_request(a_call(provider, body, model)).content
    return cast("dict[str, Any]", json.loads(content))


@functools.cache
def anthropics_request() -> TypeAdapter[Any]:
    """The SDK's own type of a request; made once, for it takes a tenth of a second."""
    return TypeAdapter(MessageCreateParams)


def arrived(provider: Provider, body: dict[str, Any]) -> list[dict[str, Any]]:
    """What the vendor is given, once it has checked the request."""
    match provider.wire.name:
        case "anthropic":
            anthropics_request().validate_python(body)
            return list(
                anthropic_request.read_question(anthropic_request.parse_request(body, "2023-06-01")).given
            )
        case "gemini":
            for content in body["contents"]:
                types.Content.model_validate(content)
            types.GenerateContentConfig.model_validate(body["generationConfig"])
            return list(gemini_request.read_question(gemini_request.parse_request(body, None)).given)
        case _:
            return list(read_given(body["messages"]))


def joined(pieces: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The pieces with texts of one origin, one after the other, as one text."""
    found: list[dict[str, Any]] = []
    for piece in pieces:
        last = found[-1] if found else {}
        if piece.get("text") == "":
            continue
        if "text" in piece and "text" in last and origin(piece) == origin(last):
            found[-1] = {**last, "text": last["text"] + piece["text"]}
        else:
            found.append(piece)
    return found


def origin(piece: dict[str, Any]) -> tuple[str, str | None]:
    return piece["role"], piece.get("tool")


def assert_in_order(said: list[str], prompt: str) -> None:
    """A model that only goes on with a text is given all of the conversation as one."""
    place = 0
    for text in said:
        found = prompt.find(text, place)
        assert found >= 0, (text, prompt)
        place = found + len(text)


def expected(provider: Provider, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    pieces = list(read_given(messages))
    if provider in TRANSLATING:
        # One system prompt is all that these have; it stands before everything else.
        pieces.sort(key=lambda piece: piece["role"] != "system")
    return joined(pieces)


MANY = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("provider", ONE_OF_EACH_WIRE, ids=IDS)
def test_everything_arrives_in_order(provider: Provider) -> None:
    @MANY
    @given(messages=conversations(provider))
    def check(messages: list[dict[str, Any]]) -> None:
        before = json.dumps(messages)
        body = built(provider, {"model": "x", "messages": messages})
        assert json.dumps(messages) == before, "the client's own object is not changed"
        if "prompt" in body:
            assert_in_order([piece["text"] for piece in read_given(messages)], body["prompt"])
        else:
            assert joined(arrived(provider, body)) == expected(provider, messages)

    check()


unknown_names = st.from_regex(r"[a-z][a-z_]{3,12}", fullmatch=True).map(lambda name: f"x_{name}")


@pytest.mark.parametrize("provider", STRICT, ids=[provider.name for provider in STRICT])
def test_what_is_not_known_is_refused_by_its_place(provider: Provider) -> None:
    @MANY
    @given(messages=conversations(provider), name=unknown_names, value=texts, choice=st.integers(0, 10**6))
    def check(messages: list[dict[str, Any]], name: str, value: str, choice: int) -> None:
        body: dict[str, Any] = {"model": "x", "messages": messages}
        places = list(objects(body))
        path, place = places[choice % len(places)]
        place[name] = value
        with pytest.raises(Unprocessable) as raised:
            built(provider, body)
        param = raised.value.param or ""
        assert param.startswith(".".join(path[:2]))
        assert param.endswith(name)

    check()


def objects(value: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every object of a request, but for what is the client's own: a tool call's arguments are text."""
    found: list[tuple[tuple[str, ...], dict[str, Any]]] = []
    if isinstance(value, dict):
        found.append((path, value))
        for name, inner in value.items():
            found += objects(inner, (*path, name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            found += objects(inner, (*path, str(index)))
    return found


@pytest.mark.parametrize("provider", STRICT, ids=[provider.name for provider in STRICT])
def test_parts_of_a_kind_that_is_not_known_are_refused_by_their_place(provider: Provider) -> None:
    @MANY
    @given(messages=conversations(provider), kind=unknown_names, choice=st.integers(0, 10**6))
    def check(messages: list[dict[str, Any]], kind: str, choice: int) -> None:
        index = choice % len(messages)
        content = messages[index].get("content")
        held = [{"type": "text", "text": content}] if isinstance(content, str) else list(content or [])
        messages[index]["content"] = [*held, {"type": kind, kind: "value"}]
        with pytest.raises(Unprocessable) as raised:
            built(provider, {"model": "x", "messages": messages})
        assert raised.value.param == f"messages.{index}.content.{len(held)}"

    check()


tools = st.lists(
    st.fixed_dictionaries(
        {"name": names},
        optional={
            "description": texts,
            "parameters": st.dictionaries(names, values, max_size=3).map(
                lambda properties: {"type": "object", "properties": {name: {} for name in properties}}
            ),
        },
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda function: str(function["name"]),
)


@pytest.mark.parametrize("provider", WITH_TOOLS, ids=[provider.name for provider in WITH_TOOLS])
def test_every_tool_arrives_with_its_name_description_and_parameters(provider: Provider) -> None:
    @MANY
    @given(functions=tools)
    def check(functions: list[dict[str, Any]]) -> None:
        offered = [{"type": "function", "function": function} for function in functions]
        user = [{"role": "user", "content": "Hi"}]
        body = built(provider, {"model": "x", "messages": user, "tools": offered})
        sent = declared(body)
        assert [tool["name"] for tool in sent] == [function["name"] for function in functions]
        for tool, function in zip(sent, functions, strict=True):
            assert tool.get("description") == function.get("description")
            schema = (
                tool.get("input_schema") or tool.get("parametersJsonSchema") or tool.get("parameters") or {}
            )
            assert (schema.get("properties") or {}) == function.get("parameters", {}).get("properties", {})
        arrived(provider, body)

    check()


def declared(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The functions of a request, wherever its wire has them."""
    found = []
    for tool in body["tools"]:
        found += tool.get("functionDeclarations", [tool.get("function", tool)])
    return found
