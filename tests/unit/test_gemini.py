"""Gemini's wire, judged by the vendors' own types: Google's for what we send and read, OpenAI's for what we
answer."""

from __future__ import annotations

import base64
import contextlib
import json
import struct
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from google.genai import types
from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types import CreateEmbeddingResponse, ImagesResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import ValidationError

from gateway.errors import Unprocessable
from gateway.providers.gemini import GEMINI, read_usage
from gateway.providers.gemini_media import GEMINI_EMBEDDINGS, GEMINI_IMAGES
from gateway.providers.gemini_request import FOREIGN_SIGNATURE
from gateway.providers.registry import provider_named
from gateway.providers.wire import (
    Answer,
    Chunk,
    EmbeddingCall,
    Fault,
    ImageCall,
    InputImage,
    ProviderCall,
    ProviderError,
    StreamEvent,
    StreamFailed,
)
from gateway.schemas.chat import ChatCompletionRequest
from gateway.schemas.usage import TokenUsage
from gateway.tokens import input_bound

FIXTURES = Path(__file__).parents[1] / "fixtures" / "gemini"
KEY = "opaque-gemini-key"
HELLO: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}]
CALL = ProviderCall(
    provider=provider_named("google"),
    base_url="https://generativelanguage.googleapis.com/v1beta/",
    model="gemini-2.5-flash",
    body={"messages": HELLO},
    output_bound=4096,
    stream=False,
    key=KEY,
    wants_usage=True,
)
NEWEST = replace(CALL, model="gemini-3.8-flash")
DRAWING = replace(CALL, model="gemini-3-pro-image")
PIXEL = "data:image/png;base64,iVBORw0KGgo="
MARK = {"type": "ephemeral"}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "pattern": "^[A-Z]"}},
            "additionalProperties": False,
        },
    },
}


def _read(name: str) -> bytes:
    return (FIXTURES / name).read_bytes()


def _same(shape: Any, sent: dict[str, Any]) -> None:
    """See that the SDK's type takes all of it: what it did not know it would refuse or leave out."""
    read = shape.model_validate_json(json.dumps(sent))
    assert json.loads(read.model_dump_json(by_alias=True, exclude_none=True)) == sent


def _judged(sent: dict[str, Any]) -> dict[str, Any]:
    known = {"contents", "systemInstruction", "tools", "toolConfig", "safetySettings", "generationConfig"}
    assert sent.keys() <= known
    for content in sent["contents"]:
        _same(types.Content, content)
        assert content["role"] in {"user", "model"}
        assert content["parts"]
    for tool in sent.get("tools", []):
        _same(types.Tool, tool)
    if "systemInstruction" in sent:
        _same(types.Content, sent["systemInstruction"])
    config = {**sent.get("generationConfig", {})}
    for name in ("toolConfig", "safetySettings"):
        if name in sent:
            config[name] = sent[name]
    _same(types.GenerateContentConfig, config)
    return sent


def _sent(call: ProviderCall = CALL, /, **body: Any) -> dict[str, Any]:
    """What the call sends, which the SDK's types take whole."""
    call = replace(call, body={"model": "m", "messages": HELLO, **body})
    ChatCompletionRequest.model_validate(call.body)
    before = json.dumps(call.body)
    sent: dict[str, Any] = json.loads(GEMINI.build_request(call).content)
    assert json.dumps(call.body) == before
    return _judged(sent)


def _contents(*messages: dict[str, Any], call: ProviderCall = CALL, **body: Any) -> list[dict[str, Any]]:
    contents: list[dict[str, Any]] = _sent(call, messages=list(messages), **body)["contents"]
    return contents


def _config(call: ProviderCall = CALL, /, **body: Any) -> dict[str, Any]:
    config: dict[str, Any] = _sent(replace(call, output_bound=None), **body).get("generationConfig", {})
    return config


def _refused(call: ProviderCall = CALL, /, **body: Any) -> Unprocessable:
    with pytest.raises(Unprocessable) as caught:
        _sent(call, **body)
    return caught.value


def _user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def _calling(*calls: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls), **fields}


def _tool_call(
    call_id: str, name: str = "get_weather", arguments: str = "{}", **fields: Any
) -> dict[str, Any]:
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
        **fields,
    }


def _google(signature: str) -> dict[str, Any]:
    return {"google": {"thought_signature": signature}}


# The request.


@pytest.mark.parametrize("name", ["gemini", "google", "google-gemini", "Gemini"])
def test_the_provider_is_found_by_each_of_its_names(name: str) -> None:
    assert provider_named(name).name == "gemini"


def test_the_request_goes_to_the_model_with_the_key_in_its_header_alone() -> None:
    request = GEMINI.build_request(CALL)
    base = "https://generativelanguage.googleapis.com/v1beta"
    assert (request.method, request.url) == ("POST", f"{base}/models/gemini-2.5-flash:generateContent")
    assert request.headers["x-goog-api-key"] == KEY
    assert "authorization" not in request.headers
    assert KEY not in request.url + repr(request) + repr(CALL) + request.content.decode()
    streamed = GEMINI.build_request(replace(CALL, stream=True))
    assert streamed.url == f"{base}/models/gemini-2.5-flash:streamGenerateContent?alt=sse"
    assert streamed.headers["accept-encoding"] == "identity"
    assert streamed.content == request.content
    tuned = GEMINI.build_request(replace(CALL, model="tunedModels/mine?x"))
    assert tuned.url == f"{base}/tunedModels/mine%3Fx:generateContent"
    with pytest.raises(ProviderError) as caught:
        GEMINI.build_request(replace(CALL, key=" "))
    assert caught.value.fault is Fault.OPERATOR


def test_a_start_does_not_import_the_wire() -> None:
    script = (
        "import sys; from gateway.providers.registry import provider_named\n"
        "wire = provider_named('gemini').wire\n"
        "assert not any('gemini' in name for name in sys.modules), sorted(sys.modules)\n"
        "assert 'GEMINI' in repr(wire) and wire.name == 'gemini'"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(Path(__file__).parents[2] / "functions")},
        capture_output=True,
        check=False,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_plain_question_is_a_bound_and_a_turn() -> None:
    assert _sent(max_tokens=7, max_completion_tokens=8, stream_options={"include_usage": True}) == {
        "contents": [{"role": "user", "parts": [{"text": "Hello"}]}],
        "generationConfig": {"maxOutputTokens": 4096},
    }
    assert "generationConfig" not in _sent(replace(CALL, output_bound=None))


def test_system_and_developer_messages_are_the_system_instruction() -> None:
    sent = _sent(
        messages=[
            {"role": "system", "content": "One."},
            {"role": "user", "content": "Hi"},
            {"role": "developer", "content": [{"type": "text", "text": "Two."}]},
        ]
    )
    assert sent["systemInstruction"] == {"parts": [{"text": "One."}, {"text": "Two."}]}
    assert [content["role"] for content in sent["contents"]] == ["user"]


def test_turns_keep_their_order_and_those_of_one_side_are_one() -> None:
    contents = _contents(
        {"role": "user", "content": "a"},
        _user({"type": "text", "text": "b"}, {"type": "text", "text": ""}),
        {"role": "assistant", "content": "c", "reasoning_content": "hm", "reasoning_details": [{"x": 1}]},
        {"role": "assistant", "content": None, "refusal": "d"},
        {"role": "user", "content": ""},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "e"}]},
        {"role": "user", "content": "f"},
    )
    assert [(turn["role"], "".join(part["text"] for part in turn["parts"])) for turn in contents] == [
        ("user", "ab"),
        ("model", "cde"),
        ("user", "f"),
    ]


def test_calls_and_results_are_one_turn_each_with_their_names_and_ids() -> None:
    contents = _contents(
        {"role": "user", "content": "Weather in Oslo and Bergen?"},
        _calling(
            _tool_call("c1", arguments='{"city":"Oslo","days":1.5}'),
            _tool_call("c2", arguments=""),
            content="So:",
        ),
        {"role": "tool", "tool_call_id": "c1", "content": "rain", "name": "get_weather"},
        {
            "role": "tool",
            "tool_call_id": "c2",
            "content": [
                {"type": "text", "text": "a map"},
                {"type": "image_url", "image_url": {"url": PIXEL}},
                {"type": "file", "file": {"file_data": PIXEL, "filename": "map.png"}},
            ],
            "is_error": True,
        },
        {"role": "user", "content": "Well?"},
        tools=[WEATHER],
    )
    assert [turn["role"] for turn in contents] == ["user", "model", "user", "user"]
    assert contents[1]["parts"] == [
        {"text": "So:"},
        {"functionCall": {"id": "c1", "name": "get_weather", "args": {"city": "Oslo", "days": 1.5}}},
        {"functionCall": {"id": "c2", "name": "get_weather", "args": {}}},
    ]
    pixel = {"mimeType": "image/png", "data": "iVBORw0KGgo="}
    assert contents[2]["parts"] == [
        {"functionResponse": {"id": "c1", "name": "get_weather", "response": {"output": "rain"}}},
        {
            "functionResponse": {
                "id": "c2",
                "name": "get_weather",
                "response": {"error": "a map"},
                "parts": [{"inlineData": pixel}, {"inlineData": {**pixel, "displayName": "map.png"}}],
            }
        },
    ]
    assert contents[3]["parts"] == [{"text": "Well?"}]


def test_a_result_is_told_whole_whatever_it_is() -> None:
    def response(content: Any) -> Any:
        result = {"role": "tool", "tool_call_id": "c", "content": content}
        return _contents(*HELLO, _calling(_tool_call("c")), result)[-1]["parts"][0]["functionResponse"]

    assert response("")["response"] == {"output": ""}
    assert response('{"a": 1.10}')["response"] == {"output": '{"a": 1.10}'}
    texts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert response(texts)["response"] == {"output": ["a", "b"]}


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}, ""),
        ({"type": "file", "file": {"file_data": "https://example.org/a.pdf"}}, ""),
        ({"type": "image_url", "image_url": {"url": PIXEL, "detail": "high"}}, ".image_url.detail"),
    ],
)
def test_a_result_holds_media_by_their_data_alone(part: dict[str, Any], param: str) -> None:
    """FunctionResponsePart of the Gemini API has neither fileData (Vertex AI's has) nor mediaResolution."""
    result = {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "a"}, part]}
    messages = [*HELLO, _calling(_tool_call("c")), result]
    assert _refused(NEWEST, messages=messages).param == f"messages.2.content.1{param}"


def test_a_result_without_its_call_needs_a_name() -> None:
    result = {"role": "tool", "tool_call_id": "c9", "content": "x"}
    assert _refused(messages=[*HELLO, result]).param == "messages.1.tool_call_id"
    (turn,) = _contents({**result, "name": "f"})
    assert turn["parts"][0]["functionResponse"]["name"] == "f"


@pytest.mark.parametrize("arguments", ["{", "[]", "7", '{"a":1,"a":2}', '"x"'])
def test_arguments_that_are_no_object_are_refused_by_their_path(arguments: str) -> None:
    refused = _refused(messages=[*HELLO, _calling(_tool_call("c", arguments=arguments))])
    assert refused.param == "messages.1.tool_calls.0.function.arguments"


# Thought signatures.


def test_signatures_come_back_where_they_stood() -> None:
    (_, model) = _contents(
        *HELLO,
        {
            "role": "assistant",
            "content": "Drawn.",
            "extra_content": _google("c2lnLXRleHQ="),
            "images": [
                {"type": "image_url", "image_url": {"url": PIXEL}, "extra_content": _google("c2lnLWltYWdl")}
            ],
            "tool_calls": [_tool_call("c1", extra_content=_google("c2lnLWNhbGw=")), _tool_call("c2")],
        },
        call=NEWEST,
    )
    assert [part.get("thoughtSignature") for part in model["parts"]] == [
        "c2lnLXRleHQ=",
        "c2lnLWltYWdl",
        "c2lnLWNhbGw=",
        None,
    ]
    assert [set(part) - {"thoughtSignature"} for part in model["parts"]] == [
        {"text"},
        {"inlineData"},
        {"functionCall"},
        {"functionCall"},
    ]


def test_a_signature_without_text_stands_by_itself() -> None:
    (_, model) = _contents(*HELLO, {"role": "assistant", "content": "", "extra_content": _google("c2ln")})
    assert model["parts"] == [{"text": "", "thoughtSignature": "c2ln"}]


@pytest.mark.parametrize(
    ("model", "signed"),
    [
        ("gemini-2.5-pro", False),
        ("gemini-3-flash-preview", True),
        ("gemini-3.8-flash", True),
        ("gemini-4-argon", True),
        ("gemini-flash-latest", True),
    ],
)
def test_calls_of_another_model_get_the_documented_signature_where_one_is_demanded(
    model: str, signed: bool
) -> None:
    step = _calling(_tool_call("c1"), _tool_call("c2"))
    result = {"role": "tool", "tool_call_id": "c1", "content": "x"}
    contents = _contents(*HELLO, step, result, step, call=replace(CALL, model=model))
    for turn in (contents[1], contents[3]):
        expected = [FOREIGN_SIGNATURE if signed else None, None]
        assert [part.get("thoughtSignature") for part in turn["parts"]] == expected


# Media.


def test_media_go_as_they_are_or_by_the_url_that_gemini_fetches() -> None:
    (turn,) = _contents(
        _user(
            {
                "type": "image_url",
                "image_url": {"url": "DATA:Image/JPG;x=1;base64,iVBORw0KGgo=", "detail": "auto"},
            },
            {"type": "image_url", "image_url": {"url": "https://example.org/a/Cat.PNG?size=1"}},
            {"type": "image_url", "image_url": {"url": "https://example.org/picture"}},
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}},
            {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}},
            {"type": "video_url", "video_url": {"url": "https://www.youtube.com/watch?v=9hE5-98ZeCg"}},
            {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA", "filename": "a.pdf"}},
            {"type": "file", "file": {"file_data": "https://example.org/report", "filename": "b.pdf"}},
            {"type": "file", "file": {"file_data": "https://storage.googleapis.com/bucket/c.csv?sig=1"}},
        )
    )
    assert turn["parts"] == [
        {"inlineData": {"mimeType": "image/jpeg", "data": "iVBORw0KGgo="}},
        {"fileData": {"mimeType": "image/png", "fileUri": "https://example.org/a/Cat.PNG?size=1"}},
        {"fileData": {"fileUri": "https://example.org/picture"}},
        {"inlineData": {"mimeType": "audio/wav", "data": "AAAA"}},
        {"inlineData": {"mimeType": "audio/mp3", "data": "AAAA"}},
        {"inlineData": {"mimeType": "video/mp4", "data": "AAAA"}},
        {"fileData": {"fileUri": "https://www.youtube.com/watch?v=9hE5-98ZeCg"}},
        {
            "inlineData": {"mimeType": "application/pdf", "data": "AAAA"},
            "partMetadata": {"filename": "a.pdf"},
        },
        {
            "fileData": {"mimeType": "application/pdf", "fileUri": "https://example.org/report"},
            "partMetadata": {"filename": "b.pdf"},
        },
        {
            "fileData": {
                "mimeType": "text/csv",
                "fileUri": "https://storage.googleapis.com/bucket/c.csv?sig=1",
            }
        },
    ]


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/a.png",
        "ftp://example.org/a.png",
        "gs://bucket/a.png",
        "file:///etc/passwd",
        "https://",
        "https://[::1",
        "cat.png",
        "",
        "data:image/png,plain",
        "data:;base64,AAAA",
        "data:image;base64,AAAA",
        # What Google keeps for the gateway's own account.
        "https://generativelanguage.googleapis.com/v1beta/files/abc-123",
        "https://GenerativeLanguage.googleapis.com:443/v1beta/files/abc-123",
        "https://user@generativelanguage.googleapis.com./v1beta/files/abc-123",
        "https://generativelanguage.mtls.googleapis.com/v1beta/files/abc-123",
        "https://googleapis.com/x",
        "files/abc-123",
    ],
)
def test_media_that_are_not_the_clients_to_name_are_refused_by_their_path(url: str) -> None:
    part = {"type": "video_url", "video_url": {"url": url}}
    refused = _refused(messages=[_user({"type": "text", "text": "x"}, part)])
    assert (refused.status, refused.param) == (422, "messages.0.content.1.video_url.url")
    assert refused.code == "unsupported_content"


def test_files_at_a_services_own_address_are_refused_too() -> None:
    call = replace(CALL, base_url="https://proxy.example/v1beta")
    part = {"type": "image_url", "image_url": {"url": "https://proxy.example/v1beta/files/abc"}}
    assert _refused(call, messages=[_user(part)]).code == "unsupported_content"


@pytest.mark.parametrize(
    ("part", "path"),
    [
        ({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "midi"}}, "input_audio.format"),
        ({"type": "file", "file": {"file_id": "file-1"}}, "file.file_id"),
        ({"type": "file", "file": {"filename": "a.pdf"}}, "file.file_data"),
        ({"type": "video_url", "video_url": "https://example.org/a.mp4"}, "video_url"),
        ({"type": "thinking", "thinking": "x"}, ""),
        ({"type": "refusal", "refusal": "x"}, ""),
        ({"type": "text", "text": "x", "cache_control": MARK}, "cache_control"),
        ({"type": "image_url", "image_url": {"url": PIXEL, "detail": "high"}}, "image_url.detail"),
        ({"type": "image_url", "image_url": {"url": PIXEL, "crop": 1}}, "image_url.crop"),
    ],
)
def test_content_that_it_can_not_be_given_is_refused_by_its_path(part: dict[str, Any], path: str) -> None:
    where = f"messages.0.content.0.{path}".rstrip(".")
    assert _refused(messages=[_user(part)]).param == where


def test_the_detail_of_an_image_is_told_to_models_that_know_it() -> None:
    image = {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}}
    (turn,) = _contents(_user(image), call=NEWEST)
    assert turn["parts"][0]["mediaResolution"] == {"level": "MEDIA_RESOLUTION_LOW"}
    odd = {"type": "image_url", "image_url": {"url": PIXEL, "detail": "huge"}}
    assert _refused(NEWEST, messages=[_user(odd)]).param == "messages.0.content.0.image_url.detail"
    dropped = frozenset({"messages.0.content.0.image_url.detail"})
    (turn,) = _contents(_user(image), call=replace(CALL, dropped=dropped))
    assert turn["parts"] == [{"inlineData": {"mimeType": "image/png", "data": "iVBORw0KGgo="}}]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "function", "name": "f", "content": "x"}, "messages.0.role"),
        ({"role": "assistant", "audio": {"id": "audio_1"}}, "messages.0.audio"),
        ({"role": "assistant", "function_call": {"name": "f", "arguments": ""}}, "messages.0.function_call"),
        ({"role": "user", "content": "x", "name": "Ann"}, "messages.0.name"),
        ({"role": "user", "content": "x", "cache_control": MARK}, "messages.0.cache_control"),
        (_calling({"id": "c", "type": "custom"}), "messages.0.tool_calls.0.type"),
        (_calling({**_tool_call("c"), "id": None}), "messages.0.tool_calls.0.id"),
        (
            {"role": "system", "content": [{"type": "image_url", "image_url": {"url": PIXEL}}]},
            "messages.0.content.0",
        ),
        ({"role": "assistant", "images": [7]}, "messages.0.images.0"),
        ({"role": "assistant", "images": 7}, "messages.0.images.0"),
    ],
)
def test_messages_that_have_no_counterpart_are_refused(message: dict[str, Any], param: str) -> None:
    assert _refused(messages=[message]).param == param


# Parameters.


def test_tools_keep_their_schema_whole() -> None:
    bare = {"type": "function", "function": {"name": "now"}}
    assert _sent(tools=[WEATHER, bare])["tools"] == [
        {
            "functionDeclarations": [
                {
                    "name": "get_weather",
                    "description": "Get the weather",
                    "parametersJsonSchema": WEATHER["function"]["parameters"],
                },
                {"name": "now"},
            ]
        }
    ]


NAMED = {"type": "function", "function": {"name": "get_weather"}}


@pytest.mark.parametrize(
    ("choice", "strict", "expected"),
    [
        (None, False, None),
        (None, True, {"mode": "VALIDATED"}),
        ("auto", False, {"mode": "AUTO"}),
        ("auto", True, {"mode": "VALIDATED"}),
        ("none", True, {"mode": "NONE"}),
        ("required", True, {"mode": "ANY"}),
        (NAMED, False, {"mode": "ANY", "allowedFunctionNames": ["get_weather"]}),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}},
            False,
            {"mode": "VALIDATED", "allowedFunctionNames": ["get_weather"]},
        ),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}},
            False,
            {"mode": "ANY", "allowedFunctionNames": ["get_weather"]},
        ),
    ],
)
def test_each_choice_of_tools(choice: Any, strict: bool, expected: Any) -> None:
    tool = {"type": "function", "function": {**WEATHER["function"], "strict": strict}}
    config = _sent(tools=[tool], tool_choice=choice).get("toolConfig")
    assert config == (expected and {"functionCallingConfig": expected})


@pytest.mark.parametrize(
    "choice",
    ["any", {"type": "tool"}, {"type": "custom", "custom": {"name": "x"}}, {"type": "allowed_tools"}],
)
def test_a_choice_that_it_does_not_know_is_refused(choice: Any) -> None:
    assert _refused(tools=[WEATHER], tool_choice=choice).param == "tool_choice"


@pytest.mark.parametrize("tool", [{"type": "web_search"}, {"type": "google_search"}, {"type": "custom"}])
def test_tools_of_the_providers_own_are_refused(tool: dict[str, Any]) -> None:
    assert _refused(tools=[WEATHER, tool]).param == "tools.1.type"


def test_json_by_a_schema_and_without_one() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": schema}}
    assert _config(response_format=form) == {
        "responseMimeType": "application/json",
        "responseJsonSchema": schema,
    }
    form["json_schema"] = {"name": "n", "description": "told", "schema": schema}
    assert _config(response_format=form)["responseJsonSchema"] == {"description": "told", **schema}
    assert _config(response_format={"type": "json_object"}) == {"responseMimeType": "application/json"}
    assert _config(response_format={"type": "text"}) == {}
    assert _refused(response_format={"type": "grammar"}).param == "response_format"
    assert _refused(response_format={"type": "json_schema"}).param == "response_format.json_schema.schema"


@pytest.mark.parametrize(
    ("model", "effort", "expected"),
    [
        ("gemini-2.5-flash", "none", {"thinkingBudget": 0}),
        ("gemini-2.5-flash-lite", "minimal", {"thinkingBudget": 1024, "includeThoughts": True}),
        ("gemini-2.5-pro", "low", {"thinkingBudget": 1024, "includeThoughts": True}),
        ("gemini-2.5-pro", "medium", {"thinkingBudget": 8192, "includeThoughts": True}),
        ("gemini-2.5-flash", "high", {"thinkingBudget": 24576, "includeThoughts": True}),
        ("gemini-3-flash-preview", "minimal", {"thinkingLevel": "MINIMAL", "includeThoughts": True}),
        ("gemini-3.5-flash-lite", "minimal", {"thinkingLevel": "MINIMAL", "includeThoughts": True}),
        ("gemini-3.1-pro-preview", "minimal", {"thinkingLevel": "LOW", "includeThoughts": True}),
        ("gemini-3.7-flash", "minimal", {"thinkingLevel": "LOW", "includeThoughts": True}),
        ("gemini-3.8-flash", "medium", {"thinkingLevel": "MEDIUM", "includeThoughts": True}),
        ("gemini-4-argon", "high", {"thinkingLevel": "HIGH", "includeThoughts": True}),
        ("gemini-flash-latest", "low", {"thinkingLevel": "LOW", "includeThoughts": True}),
    ],
)
def test_reasoning_effort_is_said_as_the_model_takes_it(
    model: str, effort: str, expected: dict[str, Any]
) -> None:
    call = replace(CALL, model=model)
    assert _config(call, reasoning_effort=effort) == {"thinkingConfig": expected}


@pytest.mark.parametrize(
    ("model", "effort"),
    [
        ("gemini-2.5-pro", "none"),
        ("gemini-3.8-flash", "none"),
        ("gemini-3.8-flash", "xhigh"),
        ("gemini-2.5-flash", "max"),
        ("gemini-2.5-flash", 7),
    ],
)
def test_effort_that_a_model_lacks_is_refused(model: str, effort: Any) -> None:
    call = replace(CALL, model=model)
    assert _refused(call, reasoning_effort=effort).param == "reasoning_effort"
    assert _config(replace(call, dropped=frozenset({"reasoning_effort"})), reasoning_effort=effort) == {}


def test_googles_own_object_for_thinking_goes_on_as_its_openai_endpoint_takes_it() -> None:
    thinking = {"thinking_budget": 800, "include_thoughts": True}
    extra = {"google": {"thinking_config": thinking}}
    assert _config(extra_body=extra) == {"thinkingConfig": {"thinkingBudget": 800, "includeThoughts": True}}
    assert _refused(extra_body=extra, reasoning_effort="low").param == "reasoning_effort"
    silent = {"google": {"thinking_config": {"include_thoughts": False}}}
    config = _config(extra_body=silent, reasoning_effort="low")
    assert config == {"thinkingConfig": {"thinkingBudget": 1024, "includeThoughts": False}}


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"google": {"cached_content": "cachedContents/abc"}}, "extra_body.google.cached_content"),
        ({"google": 7}, "extra_body.google"),
        ({"openai": {}}, "extra_body.openai"),
        ({"google": {"thinking_config": {"x": 1}}}, "extra_body.google.thinking_config.x"),
        ({"google": {"thinking_config": 7}}, "thinking_config"),
    ],
)
def test_what_is_not_the_clients_to_set_is_refused(extra: Any, param: str) -> None:
    assert _refused(extra_body=extra).param == param


def test_sampling_goes_to_the_models_that_take_it() -> None:
    asked = {"temperature": 0.5, "top_p": 0.9, "top_k": 40}
    sampled = {"temperature": 0.5, "topP": 0.9, "topK": 40}
    for model in ("gemini-2.5-flash", "gemini-3.1-pro-preview", "gemini-3.5-flash"):
        assert _config(replace(CALL, model=model), **asked) == sampled
    for model in ("gemini-3.5-flash-lite", "gemini-3.6-flash", "gemini-4-argon", "gemini-flash-latest"):
        call = replace(CALL, model=model)
        for name, value in asked.items():
            assert _refused(call, **{name: value}).param == name
            assert _config(replace(call, dropped=frozenset({name})), **{name: value}) == {}
        assert _config(call, temperature=1, top_p=1.0, top_k=0) == {}


def test_other_parameters_have_their_own_names() -> None:
    assert _config(
        stop="END",
        n=3,
        seed=7,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logprobs=True,
        top_logprobs=5,
    ) == {
        "stopSequences": ["END"],
        "candidateCount": 3,
        "seed": 7,
        "presencePenalty": 0.5,
        "frequencyPenalty": -0.5,
        "responseLogprobs": True,
        "logprobs": 5,
    }
    assert _config(stop=["a", "b"], logprobs=True)["stopSequences"] == ["a", "b"]
    assert _refused(top_logprobs=3).param == "top_logprobs"
    safety = [{"category": "HARM_CATEGORY_HATE_SPEECH", "threshold": "BLOCK_NONE"}]
    assert _sent(safety_settings=safety)["safetySettings"] == safety


def test_images_beside_text_are_made_only_where_they_were_asked_for() -> None:
    assert _config(DRAWING, modalities=["text", "image"], image_config={"aspect_ratio": "16:9"}) == {
        "responseModalities": ["TEXT", "IMAGE"],
        "imageConfig": {"aspectRatio": "16:9"},
    }
    # Nothing is held for an image that nobody asked for.
    for model in ("gemini-3-pro-image", "nano-banana-pro-preview", "gemini-nano-banana-2.1"):
        assert _config(replace(CALL, model=model)) == {"responseModalities": ["TEXT"]}
    assert _config(DRAWING, modalities=["text"]) == {"responseModalities": ["TEXT"]}
    assert _config(modalities=["text"]) == {}
    assert _refused(modalities=["text", "audio"]).param == "modalities"
    assert _refused(modalities="text").param == "modalities"
    assert _refused(image_config={"quality": "high"}).param == "image_config.quality"


LACKING: list[tuple[str, Any]] = [
    ("logit_bias", {"5": 1}),
    ("parallel_tool_calls", False),
    ("user", "u"),
    ("metadata", {"a": "b"}),
    ("store", True),
    ("service_tier", "flex"),
    ("prediction", {"type": "content", "content": "x"}),
    ("audio", {"voice": "alloy", "format": "wav"}),
    ("verbosity", "low"),
    ("web_search_options", {}),
    ("prompt_cache_key", "k"),
    ("safety_identifier", "s"),
    ("functions", [{"name": "f"}]),
    ("cached_content", "cachedContents/abc"),
    ("thinking", {"type": "enabled"}),
    ("transforms", ["middle-out"]),
    ("min_p", 0.1),
]


@pytest.mark.parametrize(("name", "value"), LACKING)
def test_a_parameter_that_it_lacks_is_refused_unless_it_may_be_dropped(name: str, value: Any) -> None:
    refused = _refused(**{name: value})
    assert (refused.param, refused.code) == (name, "unsupported_parameter")
    assert "Google Gemini" in refused.message
    assert _sent(replace(CALL, dropped=frozenset({name})), **{name: value}) == _sent()


def test_parameters_that_ask_for_what_is_so_anyway_are_no_fault() -> None:
    assert (
        _sent(
            n=1,
            route="fallback",
            models=["a"],
            logprobs=False,
            top_logprobs=0,
            logit_bias={},
            presence_penalty=0,
            frequency_penalty=0.0,
            parallel_tool_calls=True,
            service_tier="auto",
            store=False,
            user=None,
            tools=[],
            tool_choice="auto",
            stop=[],
        )
        == _sent()
    )


def test_details_inside_tools_are_refused_by_their_path() -> None:
    odd = {"type": "function", "function": {**WEATHER["function"], "examples": []}}
    assert _refused(tools=[odd]).param == "tools.0.function.examples"
    assert _refused(tools=[{**WEATHER, "cache_control": MARK}]).param == "tools.0.cache_control"


# Whatever is sent.

_TEXT = st.text(max_size=20)
_TOKEN = st.text("abcdefgh123", min_size=1, max_size=8)
# In the alphabet that Google's SDK writes.
_BYTES = st.binary(min_size=1, max_size=12).map(lambda raw: base64.urlsafe_b64encode(raw).decode())
_SIGNATURE = st.none() | st.binary(min_size=3, max_size=9).map(
    lambda raw: base64.urlsafe_b64encode(raw).decode()
)
_PART = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, _TEXT),
    st.builds(
        lambda data: {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}, _BYTES
    ),
    st.builds(lambda data: {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}, _BYTES),
    st.builds(
        lambda name, data: {
            "type": "file",
            "file": {"filename": name, "file_data": f"data:application/pdf;base64,{data}"},
        },
        _TOKEN,
        _BYTES,
    ),
    st.builds(
        lambda name: {"type": "image_url", "image_url": {"url": f"https://example.org/{name}.png"}}, _TOKEN
    ),
)
_CONTENT = _TEXT | st.lists(_PART, max_size=4)
_RESULT = _TEXT | st.lists(_PART.filter(lambda part: "https:" not in json.dumps(part)), max_size=4)


@st.composite
def _steps(draw: st.DrawFn) -> list[dict[str, Any]]:
    """One step of a conversation: what the model said and called, and each result."""
    names = draw(st.lists(_TOKEN, max_size=3))
    calls = []
    for name in names:
        arguments = draw(st.dictionaries(_TOKEN, _TEXT | st.integers(-99, 99), max_size=3))
        signature = draw(_SIGNATURE)
        extra = {"extra_content": _google(signature)} if signature else {}
        calls.append(_tool_call(f"call-{draw(st.uuids())}", f"f_{name}", json.dumps(arguments), **extra))
    said: dict[str, Any] = {"role": "assistant", "content": draw(st.none() | _TEXT)}
    if calls:
        said["tool_calls"] = calls
    signature = draw(_SIGNATURE)
    if signature:
        said["extra_content"] = _google(signature)
    results = [{"role": "tool", "tool_call_id": call["id"], "content": draw(_RESULT)} for call in calls]
    return [said, *results, {"role": "user", "content": draw(_CONTENT)}]


_CONVERSATIONS = st.builds(
    lambda system, first, steps: [
        {"role": "system", "content": system},
        {"role": "user", "content": first},
        *(message for step in steps for message in step),
    ],
    _TEXT,
    _CONTENT,
    st.lists(_steps(), max_size=3),
)


def _said(messages: list[dict[str, Any]]) -> list[Any]:
    """Everything that a conversation in OpenAI's shape holds, in its order."""
    found: list[Any] = []
    for message in messages:
        found += _content_of(message)
        if message.get("extra_content"):
            found.append(message["extra_content"]["google"]["thought_signature"])
        for call in message.get("tool_calls", []):
            found.append((call["id"], call["function"]["name"], json.loads(call["function"]["arguments"])))
            if "extra_content" in call:
                found.append(call["extra_content"]["google"]["thought_signature"])
    return found


def _content_of(message: dict[str, Any]) -> list[Any]:
    content = message["content"]
    if message["role"] == "tool":
        found: list[Any] = [("result of", message["tool_call_id"])]
    else:
        found = []
    if isinstance(content, str):
        return found + ([content] if content else [])
    media: list[Any] = []
    for part in content or []:
        if part["type"] == "text":
            found += [part["text"]] if part["text"] else []
            continue
        where = media if message["role"] == "tool" else found
        if part["type"] == "image_url":
            where.append(part["image_url"]["url"].rpartition(",")[2])
        elif part["type"] == "input_audio":
            where.append(part["input_audio"]["data"])
        else:
            where += [part["file"]["file_data"].rpartition(",")[2], part["file"]["filename"]]
    return found + media


def _told(sent: dict[str, Any]) -> list[Any]:
    """Everything that a request of Gemini's holds, in its order."""
    found: list[Any] = []
    system = sent.get("systemInstruction", {"parts": []})
    for content in (system, *sent["contents"]):
        for part in content["parts"]:
            found += _told_by(part)
            signature = part.get("thoughtSignature")
            if signature not in {None, FOREIGN_SIGNATURE}:
                found.append(signature)
    return found


def _told_by(part: dict[str, Any]) -> list[Any]:
    if "functionCall" in part:
        called = part["functionCall"]
        return [(called["id"], called["name"], called["args"])]
    if "functionResponse" in part:
        answered = part["functionResponse"]
        output = answered["response"]["output"]
        texts = output if isinstance(output, list) else [output]
        media = [found for medium in answered.get("parts", []) for found in _medium(medium)]
        return [("result of", answered["id"]), *(text for text in texts if text), *media]
    if "text" in part:
        return [part["text"]] if part["text"] else []
    return _medium(part)


def _medium(part: dict[str, Any]) -> list[Any]:
    holder = part.get("inlineData") or part["fileData"]
    name = part.get("partMetadata", {}).get("filename") or holder.get("displayName")
    return [holder.get("data") or holder["fileUri"], *([name] if name else [])]


@given(_CONVERSATIONS, st.sampled_from(["gemini-2.5-flash", "gemini-3.8-flash"]))
def test_no_content_of_a_conversation_is_lost(messages: list[dict[str, Any]], model: str) -> None:
    call = replace(CALL, model=model, body={"messages": messages})
    assert _told(json.loads(GEMINI.build_request(call).content)) == _said(messages)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-2, 2) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TOKEN | st.just("type"), inner, max_size=3),
    max_leaves=6,
)
_NAMES = st.sampled_from(
    [
        "tools",
        "tool_choice",
        "response_format",
        "reasoning_effort",
        "temperature",
        "top_p",
        "top_k",
        "stop",
        "n",
        "seed",
        "modalities",
        "image_config",
        "extra_body",
        "logprobs",
        "top_logprobs",
        "user",
        "whatever",
    ]
)
_KINDS = st.sampled_from(
    ["text", "image_url", "input_audio", "video_url", "file", "refusal", "thinking", "x"]
)
_MESSAGES = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "developer", "user", "assistant", "tool", "function"]),
        "content": _CONTENT
        | st.lists(
            st.dictionaries(_KINDS, _JSON, max_size=2).map(lambda part: {"type": "x", **part}), max_size=2
        ),
    },
    optional={
        "name": _TEXT,
        "tool_call_id": _TOKEN,
        "images": _JSON,
        "extra_content": _JSON,
        "refusal": _TEXT,
    },
)


@given(st.lists(_MESSAGES, min_size=1, max_size=3), st.dictionaries(_NAMES, _JSON, max_size=3), st.booleans())
def test_whatever_is_sent_is_translated_or_refused(
    messages: list[dict[str, Any]], fields: dict[str, Any], newest: bool
) -> None:
    body = {"model": "m", "messages": messages, **fields}
    try:
        ChatCompletionRequest.model_validate(body)
    except ValidationError:
        return
    refused = None
    try:
        json.loads(GEMINI.build_request(replace(NEWEST if newest else CALL, body=body)).content)
    except Unprocessable as error:
        refused = error
    assert refused is None or refused.param


# The answer.


def _answer(name: str, call: ProviderCall = CALL) -> Answer:
    content = _read(name)
    types.GenerateContentResponse.model_validate_json(content)
    answer = GEMINI.parse_answer(call, content)
    ChatCompletion.model_validate(answer.body)
    return answer


def _message(answer: Answer) -> dict[str, Any]:
    message: dict[str, Any] = answer.body["choices"][0]["message"]
    return message


def test_a_plain_answer() -> None:
    answer = _answer("answer.json")
    assert _message(answer) == {
        "role": "assistant",
        "content": "AI learns patterns from data.",
        "refusal": None,
    }
    assert answer.finish_reasons == ("stop",)
    assert answer.generated == ("AI learns patterns from data.",)
    assert answer.usage == TokenUsage(input=8, output=6)
    assert answer.body["usage"] == {"prompt_tokens": 8, "completion_tokens": 6, "total_tokens": 14}
    assert (answer.body["id"], answer.body["model"]) == ("q4JYavdTheDPsg_q1rDZAg", "gemini-2.5-flash")
    assert answer.body["choices"][0]["native_finish_reason"] == "STOP"
    assert answer.reported_cost_usd is None


def test_an_answer_that_calls_tools_carries_its_signature() -> None:
    answer = _answer("answer_tools.json")
    assert _message(answer)["content"] is None
    assert _message(answer)["tool_calls"] == [
        {
            "id": "a1b2c3",
            "type": "function",
            "function": {"name": "get_current_temperature", "arguments": '{"location": "Paris"}'},
            "extra_content": {"google": {"thought_signature": "c2lnbmF0dXJlLWE="}},
        },
        {
            "id": "d4e5f6",
            "type": "function",
            "function": {"name": "get_current_temperature", "arguments": '{"location": "London"}'},
        },
    ]
    assert answer.finish_reasons == ("tool_calls",)
    assert answer.usage == TokenUsage(input=71, output=148, reasoning=112)
    assert "Paris" in answer.generated[0]


def test_an_answer_that_was_thought_over() -> None:
    answer = _answer("answer_thinking.json")
    assert _message(answer) == {
        "role": "assistant",
        "reasoning_content": "**Counting**\n\nThe first fifty primes are wanted.",
        "content": "Their sum is 5117.",
        "refusal": None,
        "extra_content": {"google": {"thought_signature": "c2lnbmF0dXJlLWI="}},
    }
    # Thoughts stand beside the candidates' tokens, and are charged as output.
    assert answer.usage == TokenUsage(input=13, output=885, reasoning=876)
    assert answer.body["usage"]["total_tokens"] == 898


def test_an_answer_with_an_image() -> None:
    answer = _answer("answer_image.json", DRAWING)
    assert _message(answer)["content"] == "Here is your banana dish."
    # What it drew while it thought is not its answer.
    assert _message(answer)["images"] == [
        {
            "index": 0,
            "type": "image_url",
            "image_url": {"url": PIXEL},
            "extra_content": {"google": {"thought_signature": "c2lnbmF0dXJlLWM="}},
        }
    ]
    assert answer.usage == TokenUsage(
        input=10, image_input=258, output=161, image_output=1120, reasoning=154, images=1
    )
    assert answer.usage.total == 1549


def test_log_probabilities_are_openais() -> None:
    answer = _answer("answer_logprobs.json")
    assert answer.body["choices"][0]["logprobs"]["content"] == [
        {
            "token": "Yes",
            "logprob": -0.25,
            "bytes": [89, 101, 115],
            "top_logprobs": [
                {"token": "Yes", "logprob": -0.25, "bytes": [89, 101, 115]},
                {"token": "Ja", "logprob": -1.5, "bytes": [74, 97]},
            ],
        }
    ]


def test_what_was_filtered_is_an_answer_that_says_so_and_is_paid_for() -> None:
    filtered = _answer("answer_filtered.json")
    assert filtered.finish_reasons == ("content_filter",)
    assert _message(filtered)["content"] == ""
    assert _message(filtered)["refusal"] == "The answer was withheld for safety."
    assert filtered.usage == TokenUsage(input=11)
    blocked = _answer("answer_blocked.json")
    assert blocked.finish_reasons == ("content_filter",)
    assert blocked.body["choices"][0]["native_finish_reason"] == "PROHIBITED_CONTENT"
    assert blocked.usage == TokenUsage(input=9603)


def _body(*parts: Any, reason: str | None = "STOP", **fields: Any) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": list(parts), "role": "model"}, **fields}
    if reason is not None:
        candidate["finishReason"] = reason
    return {"candidates": [candidate], "responseId": "r1", "modelVersion": "m1"}


def _parsed(body: Any, call: ProviderCall = CALL) -> Answer:
    answer = GEMINI.parse_answer(call, json.dumps(body).encode())
    ChatCompletion.model_validate(answer.body)
    return answer


_KNOWN_REASONS = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "CONTINUATION": "length",
    "OTHER": "stop",
    "MALFORMED_FUNCTION_CALL": "stop",
    "UNEXPECTED_TOOL_CALL": "stop",
    "TOO_MANY_TOOL_CALLS": "stop",
    "MISSING_THOUGHT_SIGNATURE": "stop",
    "MALFORMED_RESPONSE": "stop",
    "IMAGE_OTHER": "stop",
    "NO_IMAGE": "stop",
}


@pytest.mark.parametrize(
    "reason", [*(reason.value for reason in types.FinishReason), "A_REASON_OF_A_LATER_DAY"]
)
def test_each_finish_reason_of_the_sdk_has_its_counterpart(reason: str) -> None:
    body = _body({"text": "x"}, reason=reason)
    if reason == "FINISH_REASON_UNSPECIFIED":
        assert GEMINI.parse_answer(CALL, json.dumps(body).encode()).finish_reasons == ()
        return
    answer = _parsed(body)
    later = "stop" if reason not in types.FinishReason.__members__ else "content_filter"
    assert answer.finish_reasons == (_KNOWN_REASONS.get(reason, later),)
    assert answer.body["choices"][0]["native_finish_reason"] == reason


@pytest.mark.parametrize("reason", [reason.value for reason in types.BlockedReason])
def test_each_blocked_prompt_is_filtered(reason: str) -> None:
    answer = _parsed({"promptFeedback": {"blockReason": reason, "blockReasonMessage": "No."}})
    assert answer.finish_reasons == ("content_filter",)
    assert _message(answer)["refusal"] == "No."


def test_calls_without_ids_get_ids_that_hold() -> None:
    part = {"functionCall": {"name": "f"}}
    first, second = (_message(_parsed(_body(part, part)))["tool_calls"] for _ in range(2))
    assert first == second
    ids = [call["id"] for call in first]
    assert len(set(ids)) == 2
    assert first[0]["function"] == {"name": "f", "arguments": "{}"}
    other = _parsed({**_body(part), "responseId": "r2"})
    assert _message(other)["tool_calls"][0]["id"] not in ids
    cut = _parsed(_body(part, reason="MAX_TOKENS"))
    assert cut.finish_reasons == ("length",)


def test_several_choices_are_answered_in_order() -> None:
    body = _body({"text": "b"}, index=1)
    body["candidates"].append({"content": {"parts": [{"text": "a"}]}, "finishReason": "MAX_TOKENS"})
    answer = _parsed(body, replace(CALL, body={"messages": HELLO, "n": 2}))
    assert answer.generated == ("a", "b")
    assert answer.finish_reasons == ("length", "stop")
    assert [choice["index"] for choice in answer.body["choices"]] == [1, 0]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>",
        b"[]",
        b"7",
        b"{}",
        b'{"candidates":[]}',
        b'{"candidates":7}',
        b'{"candidates":[7]}',
        b'{"promptFeedback":{}}',
    ],
)
def test_an_answer_that_is_none_is_502(content: bytes) -> None:
    with pytest.raises(ProviderError) as caught:
        GEMINI.parse_answer(CALL, content)
    assert caught.value.fault is Fault.PROTOCOL
    assert caught.value.as_gateway_error().status == 502


@given(_JSON)
def test_nothing_in_an_answer_breaks_its_reading(value: Any) -> None:
    for body in (
        {"candidates": [value]},
        {"candidates": [{"content": value}], "usageMetadata": value},
        {"candidates": [{"content": {"parts": [value, {"functionCall": value, "inlineData": value}]}}]},
        {"candidates": [{"finishReason": value, "citationMetadata": value, "logprobsResult": value}]},
        {"promptFeedback": value},
        {"error": value},
    ):
        content = json.dumps(body).encode()
        with contextlib.suppress(ProviderError):
            GEMINI.parse_answer(CALL, content)
        stream = GEMINI.open_stream(CALL)
        for event in stream.feed(b"data: " + content + b"\n\n"):
            if isinstance(event, Chunk):
                assert event.sse
        GEMINI.parse_error(CALL, 400, {}, content)


# Usage.


def test_what_was_cached_is_charged_once_by_modality() -> None:
    answer = _answer("answer_cached.json")
    assert answer.usage == TokenUsage(input=9, cached_input=9651, image_input=8, audio_input=32, output=7)
    assert answer.usage.total == 9707


@pytest.mark.parametrize(
    ("reported", "expected"),
    [
        (
            {"promptTokenCount": 12, "toolUsePromptTokenCount": 65, "candidatesTokenCount": 71},
            TokenUsage(input=77, output=71),
        ),
        # The total says that the thoughts are inside.
        (
            {
                "promptTokenCount": 10,
                "candidatesTokenCount": 30,
                "thoughtsTokenCount": 20,
                "totalTokenCount": 40,
            },
            TokenUsage(input=10, output=30, reasoning=20),
        ),
        # The breakdown leaves out what was cached.
        (
            {
                "promptTokenCount": 100,
                "cachedContentTokenCount": 60,
                "promptTokensDetails": [
                    {"modality": "TEXT", "tokenCount": 10},
                    {"modality": "AUDIO", "tokenCount": 30},
                ],
                "cacheTokensDetails": [{"modality": "AUDIO", "tokenCount": 60}],
            },
            TokenUsage(input=10, cached_input=60, audio_input=30),
        ),
        # Video and documents have no class of their own.
        (
            {
                "promptTokenCount": 100,
                "promptTokensDetails": [
                    {"modality": "VIDEO", "tokenCount": 50},
                    {"modality": "DOCUMENT", "tokenCount": 40},
                    {"modality": "TEXT"},
                ],
            },
            TokenUsage(input=100),
        ),
        (
            {
                "promptTokenCount": 5,
                "candidatesTokenCount": 9,
                "candidatesTokensDetails": [{"modality": "AUDIO", "tokenCount": 9}],
            },
            TokenUsage(input=5, audio_output=9),
        ),
        # Parts that exceed the whole are cut to it.
        (
            {
                "promptTokenCount": 5,
                "cachedContentTokenCount": 7,
                "promptTokensDetails": [{"modality": "IMAGE", "tokenCount": 50}],
                "candidatesTokenCount": 3,
                "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 50}],
            },
            TokenUsage(input=0, cached_input=5, image_input=0, image_output=3),
        ),
        ({"totalTokenCount": 7}, None),
        ({"promptTokenCount": 0}, None),
        ({"promptTokenCount": -1}, None),
        ({"promptTokenCount": "12"}, None),
        ({"promptTokenCount": 5, "candidatesTokenCount": -1}, None),
        (None, None),
        ([], None),
    ],
)
def test_usage_is_read_in_disjoint_classes(reported: Any, expected: TokenUsage | None) -> None:
    assert read_usage(reported) == expected


def test_images_without_a_breakdown_are_charged_as_images() -> None:
    usage = read_usage({"promptTokenCount": 5, "candidatesTokenCount": 1290}, images=1)
    assert usage == TokenUsage(input=5, image_output=1290, images=1)
    text = [{"modality": "TEXT", "tokenCount": 10}]
    reported = {"promptTokenCount": 5, "candidatesTokenCount": 1300, "candidatesTokensDetails": text}
    assert read_usage(reported, images=1) == TokenUsage(input=5, output=10, image_output=1290, images=1)


def test_usage_that_denies_what_was_generated_is_none() -> None:
    body = {**_body({"text": "x"}), "usageMetadata": {"promptTokenCount": 5, "totalTokenCount": 5}}
    assert _parsed(body).usage is None
    assert "usage" not in _parsed(body).body


_COUNT = st.integers(0, 500)
_DETAILS = st.lists(
    st.fixed_dictionaries(
        {"modality": st.sampled_from(["TEXT", "IMAGE", "AUDIO", "VIDEO", "DOCUMENT"]), "tokenCount": _COUNT}
    ),
    max_size=4,
)


@given(st.integers(1, 900), _COUNT, _COUNT, _COUNT, _COUNT, _DETAILS, _DETAILS, _DETAILS)
def test_each_token_is_counted_once(  # noqa: PLR0917 - one strategy each
    prompt: int, cached: int, made: int, thought: int, tools: int, sent: Any, kept: Any, drawn: Any
) -> None:
    reported = {
        "promptTokenCount": prompt,
        "cachedContentTokenCount": cached,
        "candidatesTokenCount": made,
        "thoughtsTokenCount": thought,
        "toolUsePromptTokenCount": tools,
        "totalTokenCount": prompt + made + thought + tools,
        "promptTokensDetails": sent,
        "cacheTokensDetails": kept,
        "candidatesTokensDetails": drawn,
    }
    usage = read_usage(reported)
    assert usage is not None
    assert usage.total_input == prompt + tools
    assert usage.total_output == made + thought
    assert usage.total == reported["totalTokenCount"]


# The stream.


def _stream(content: bytes, *cuts: int, call: ProviderCall = CALL) -> tuple[Any, list[StreamEvent]]:
    stream = GEMINI.open_stream(replace(call, stream=True))
    places = sorted({0, len(content), *(min(cut, len(content)) for cut in cuts)})
    events = [event for start, end in pairwise(places) for event in stream.feed(content[start:end])]
    events += stream.close()
    for event in events:
        if isinstance(event, Chunk):
            chunk = json.loads(event.sse.removeprefix(b"data: "))
            assert chunk["usage"] is None
            ChatCompletionChunk.model_validate(chunk)
    return stream, events


def _joined(events: list[StreamEvent], index: int = 0) -> dict[str, Any]:
    """What OpenAI's own SDK makes of the chunks."""
    state = ChatCompletionStreamState()
    for event in events:
        if isinstance(event, Chunk):
            state.handle_chunk(ChatCompletionChunk.model_validate(event.data))
    choice = state.current_completion_snapshot.model_dump()["choices"][index]
    message = {name: value for name, value in choice["message"].items() if name != "parsed"}
    for call in message.get("tool_calls") or []:
        call.pop("index", None)
        call["function"].pop("parsed_arguments", None)
    return {
        "finish_reason": choice["finish_reason"],
        **{name: value for name, value in message.items() if value},
    }


def _whole(body: dict[str, Any], index: int = 0) -> dict[str, Any]:
    choice = body["choices"][index]
    message = {name: value for name, value in choice["message"].items() if value}
    return {"finish_reason": choice["finish_reason"], **message}


def _events_of(name: str) -> list[dict[str, Any]]:
    lines = _read(name).splitlines()
    return [json.loads(line.removeprefix(b"data: ")) for line in lines if line]


STREAMS = sorted(path.name for path in FIXTURES.glob("stream_*.sse"))


@pytest.mark.parametrize("name", STREAMS)
def test_the_recorded_streams_are_what_the_sdk_reads(name: str) -> None:
    for event in _events_of(name):
        types.GenerateContentResponse.model_validate_json(json.dumps(event))


def test_a_stream_of_text() -> None:
    stream, events = _stream(_read("stream_text.sse"))
    chunks = [event.data for event in events if isinstance(event, Chunk)]
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": "Once"},
        {"content": " upon a time"},
        {"content": "."},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]
    assert {chunk["id"] for chunk in chunks} == {"sTrEaM1"}
    assert stream.usage == TokenUsage(input=6, output=5)
    assert stream.complete
    assert stream.generated == ("Once upon a time.",)
    assert stream.finish_reasons == ("stop",)
    last = stream.usage_chunk(gateway_usage={"x": 1})
    ChatCompletionChunk.model_validate(last.data)
    assert last.data["usage"] == {"prompt_tokens": 6, "completion_tokens": 5, "total_tokens": 11}
    assert last.data["gateway_usage"] == {"x": 1}


@pytest.mark.parametrize(
    ("streamed", "plain"),
    [
        ("stream_tools.sse", "answer_tools.json"),
        ("stream_thinking.sse", "answer_thinking.json"),
        ("stream_blocked.sse", "answer_blocked.json"),
    ],
)
def test_a_recorded_stream_adds_up_to_its_plain_answer(streamed: str, plain: str) -> None:
    stream, events = _stream(_read(streamed))
    answer = _answer(plain)
    assert _joined(events) == _whole(answer.body)
    assert stream.complete
    assert (stream.usage, stream.generated) == (answer.usage, answer.generated)
    assert stream.finish_reasons == answer.finish_reasons


def test_clients_that_did_not_ask_for_usage_see_none() -> None:
    stream = GEMINI.open_stream(replace(CALL, wants_usage=False))
    for event in stream.feed(_read("stream_text.sse")):
        assert isinstance(event, Chunk)
        assert "usage" not in event.data


@pytest.mark.parametrize("name", STREAMS)
@given(cuts=st.lists(st.integers(0, 3_000), max_size=6).map(tuple))
def test_it_does_not_matter_how_the_bytes_arrive(name: str, cuts: tuple[int, ...]) -> None:
    _, once = _stream(_read(name))
    _, pieces = _stream(_read(name), *cuts)
    assert _joined(once) == _joined(pieces)


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def test_a_stream_cut_before_output_was_counted_has_its_input_as_it_was_told() -> None:
    told = {
        "promptTokenCount": 100,
        "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": 90}],
        "cachedContentTokenCount": 4,
    }
    stream = GEMINI.open_stream(CALL)
    before = stream.input_usage
    stream.feed(_event({**_body({"text": "Hel"}, reason=None), "usageMetadata": told}))
    stream.feed(_event({**_body({"text": "lo"}, reason=None), "usageMetadata": {"trafficType": "ON_DEMAND"}}))
    uncounted = stream.usage
    assert (before, uncounted) == (None, None)
    assert stream.input_usage == TokenUsage(input=6, cached_input=4, audio_input=90)
    counted = {**told, "candidatesTokenCount": 2, "thoughtsTokenCount": 3}
    stream.feed(_event({**_body({"text": "!"}, reason=None), "usageMetadata": counted}))
    assert stream.usage == TokenUsage(input=6, cached_input=4, audio_input=90, output=5, reasoning=3)
    assert stream.input_usage == TokenUsage(input=6, cached_input=4, audio_input=90)


def test_an_image_of_the_largest_size_is_one_event() -> None:
    data = "A" * (30 * 1024 * 1024)
    stream = GEMINI.open_stream(DRAWING)
    [chunk] = stream.feed(_event(_body({"inlineData": {"mimeType": "image/png", "data": data}})))
    assert isinstance(chunk, Chunk)
    assert len(chunk.sse) > len(data)


@given(st.integers(0, 900))
def test_a_stream_that_was_cut_is_not_whole(cut: int) -> None:
    content = _read("stream_text.sse")
    last = content.index(b'{"candidates": [{"content": {"parts": [{"text": "."}]')
    stream, events = _stream(content[: min(cut, last)])
    assert not stream.complete
    assert stream.finish_reasons == ()
    assert not any(isinstance(event, StreamFailed) for event in events)
    if stream.usage is not None:
        # What was told so far is what will be billed at least.
        assert stream.usage.output in {1, 4}


def test_a_stream_without_its_last_blank_line_is_whole() -> None:
    stream, _ = _stream(_read("stream_text.sse").rstrip())
    assert stream.complete
    assert stream.usage == TokenUsage(input=6, output=5)


def test_a_stream_of_several_choices_is_whole_when_each_has_ended() -> None:
    call = replace(CALL, body={"messages": HELLO, "n": 2})
    first = json.dumps(_body({"text": "a"}, index=0)).encode()
    second = json.dumps(_body({"text": "b"}, index=1)).encode()
    stream, _ = _stream(b"data: " + first + b"\n\n", call=call)
    assert not stream.complete
    stream, events = _stream(b"data: " + first + b"\n\ndata: " + second + b"\n\n", call=call)
    assert stream.complete
    assert stream.generated == ("a", "b")
    roles = [event.data["choices"][0]["delta"].get("role") for event in events if isinstance(event, Chunk)]
    assert roles == ["assistant", "assistant"]


def test_nothing_is_given_out_before_there_is_content() -> None:
    stream = GEMINI.open_stream(CALL)
    assert stream.feed(b'data: {"usageMetadata":{"promptTokenCount":3}}\n\n') == []
    assert stream.feed(b'data: {"candidates":[{"content":{"role":"model"}}]}\n\n') == []
    (event,) = stream.feed(
        b'data: {"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}\n\n'
    )
    assert isinstance(event, StreamFailed)
    assert event.error.retryable
    assert stream.feed(_read("stream_text.sse")) == stream.close() == []
    assert not stream.complete


@pytest.mark.parametrize("data", [b"data: <html>\n\n", b"data: 7\n\n", b"data: [1]\n\n", b"x" * (65 << 20)])
def test_an_event_that_can_not_be_read_ends_the_stream(data: bytes) -> None:
    stream = GEMINI.open_stream(CALL)
    (event,) = stream.feed(data)
    assert isinstance(event, StreamFailed)
    assert event.error.fault is Fault.PROTOCOL
    assert not stream.complete


_ANSWER_PART = st.one_of(
    st.builds(lambda text: {"text": text}, _TEXT),
    st.builds(lambda text: {"text": text, "thought": True}, _TEXT),
    st.builds(lambda text, sign: {"text": text, "thoughtSignature": sign}, _TEXT, _BYTES),
    st.builds(
        lambda name, args: {"functionCall": {"name": name, "args": args}},
        _TOKEN,
        st.dictionaries(_TOKEN, _TEXT, max_size=2),
    ),
    st.builds(
        lambda name, sign: {"functionCall": {"name": name, "id": name}, "thoughtSignature": sign},
        _TOKEN,
        _BYTES,
    ),
    st.builds(lambda data: {"inlineData": {"mimeType": "image/png", "data": data}}, _BYTES),
    st.just({"executableCode": {"code": "1"}}),
)
_ANSWER_PARTS = st.lists(_ANSWER_PART, max_size=8)
_ENDS = st.sampled_from(["STOP", "MAX_TOKENS", "SAFETY", "OTHER"])


@given(_ANSWER_PARTS, _ENDS, st.integers(1, 4))
def test_the_streamed_and_the_plain_answer_are_the_same(
    parts: list[dict[str, Any]], reason: str, size: int
) -> None:
    usage = {"promptTokenCount": 7, "candidatesTokenCount": 40, "thoughtsTokenCount": 3}
    citations = {"citationMetadata": {"citationSources": [{"uri": "https://example.org/a", "startIndex": 0}]}}
    plain = {**_body(*parts, reason=reason, **citations), "usageMetadata": usage}
    answer = _parsed(plain)
    pieces = [parts[start : start + size] for start in range(0, len(parts), size)]
    bodies = [_body(*piece, reason=None, **citations) for piece in pieces]
    bodies.append({**_body(reason=reason, **citations), "usageMetadata": usage})
    content = b"".join(b"data: " + json.dumps(body).encode() + b"\r\n\r\n" for body in bodies)
    stream, events = _stream(content)
    assert _joined(events) == _whole(answer.body)
    assert (stream.usage, stream.generated) == (answer.usage, answer.generated)
    assert (stream.finish_reasons, stream.complete) == (answer.finish_reasons, True)


@given(_ANSWER_PARTS)
def test_an_answer_that_is_sent_back_is_what_was_answered(parts: list[dict[str, Any]]) -> None:
    message = _message(_parsed(_body(*parts)))
    (turn, *_) = [*_contents(message, call=NEWEST), {"parts": []}]
    back = turn["parts"]
    said = "".join(part["text"] for part in parts if "text" in part and "thought" not in part)
    assert "".join(part["text"] for part in back if "text" in part) == said
    for kind in ("functionCall", "inlineData"):
        ours = [part[kind] for part in back if kind in part]
        theirs = [part[kind] for part in parts if kind in part]
        assert [entry | {"id": "", "args": entry.get("args", {})} for entry in ours] == [
            entry | {"id": "", "args": entry.get("args", {})} for entry in theirs
        ]
    signed = [
        part["thoughtSignature"] for part in parts if "functionCall" in part and "thoughtSignature" in part
    ]
    kept = [
        part["thoughtSignature"]
        for part in back
        if "functionCall" in part and part.get("thoughtSignature") not in {None, FOREIGN_SIGNATURE}
    ]
    assert kept == signed


def test_an_answer_with_tools_can_be_sent_back_with_its_results() -> None:
    echoed = _message(_answer("answer_tools.json"))
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "15"} for call in echoed["tool_calls"]]
    contents = _contents(*HELLO, echoed, *results, call=NEWEST)
    recorded = json.loads(_read("answer_tools.json"))["candidates"][0]["content"]
    assert contents[1] == recorded
    assert [part["functionResponse"]["id"] for part in contents[2]["parts"]] == ["a1b2c3", "d4e5f6"]


def test_an_answer_can_be_sent_on_to_another_provider() -> None:
    echoed = _message(_answer("answer_tools.json"))
    for call_id in ("a1b2c3", "d4e5f6"):
        assert call_id in json.dumps(echoed)
    anthropic = provider_named("anthropic")
    call = replace(CALL, provider=anthropic, model="claude-haiku-4-5", body={"messages": [*HELLO, echoed]})
    _, turn = json.loads(anthropic.wire.build_request(call).content)["messages"]
    assert [block["id"] for block in turn["content"]] == ["a1b2c3", "d4e5f6"]
    assert "thought" not in json.dumps(turn)


def test_citations_are_told_once() -> None:
    source = {"startIndex": 0, "endIndex": 4, "uri": "https://example.org", "license": "mit"}
    body = _body({"text": "x"}, citationMetadata={"citationSources": [source, source]})
    assert _message(_parsed(body))["citations"] == [{"index": 0, **source}]


# Errors.

ERRORS: list[dict[str, Any]] = json.loads(_read("errors.json"))


@pytest.mark.parametrize("shape", ["plain", "list", "stream", "with 200"])
@pytest.mark.parametrize("recorded", ERRORS, ids=lambda entry: f"{entry['status']}-{entry['fault']}")
def test_each_recorded_error_has_its_fault(recorded: dict[str, Any], shape: str) -> None:
    body = json.loads(json.dumps(recorded["body"]))
    body["error"]["message"] += f" {KEY}"
    if shape == "stream":
        _, (event,) = _stream(f"data: {json.dumps(body)}\n\n".encode())
        assert isinstance(event, StreamFailed)
        error = event.error
    elif shape == "with 200":
        with pytest.raises(ProviderError) as caught:
            GEMINI.parse_answer(CALL, json.dumps(body).encode())
        error = caught.value
    else:
        content = json.dumps([body] if shape == "list" else body).encode()
        error = GEMINI.parse_error(CALL, recorded["status"], {}, content)
    assert (error.status, error.fault.value) == (
        recorded.get("given_out", recorded["status"]),
        recorded["fault"],
    )
    assert error.retry_after == recorded.get("retry_after")
    given_out = error.as_gateway_error()
    assert KEY not in f"{given_out.body()} {given_out.detail} {error}"
    if error.fault is Fault.CLIENT:
        assert given_out.code == recorded["code"]
        assert given_out.message.startswith("Google Gemini refused the request: ")
    else:
        assert recorded["body"]["error"]["message"] not in str(given_out.body())
    if error.fault is Fault.TRANSIENT:
        assert recorded["body"]["error"]["status"] in (given_out.detail or "")


@pytest.mark.parametrize(
    "content", [b"", b"<html>", b"7", b"[]", b"[7]", b'{"error":7}', b'{"error":{"details":7}}']
)
def test_an_error_in_any_shape_is_one(content: bytes) -> None:
    assert GEMINI.parse_error(CALL, 400, {}, content).fault is Fault.CLIENT
    assert GEMINI.parse_error(CALL, 503, {"Retry-After": "7"}, content).retry_after == 7.0
    assert GEMINI.parse_error(CALL, 302, {}, content).fault is Fault.OPERATOR
    assert GEMINI.parse_error(CALL, 413, {}, content).as_gateway_error().status == 413


@pytest.mark.parametrize("delay", ["", "soon", "-3s", "nan", "1e9s", "inf"])
def test_a_delay_that_makes_no_sense_is_none_or_bounded(delay: str) -> None:
    details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}]
    body = {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "details": details}}
    told = GEMINI.parse_error(CALL, 429, {}, json.dumps(body).encode()).retry_after
    assert told is None or 0 <= told <= 3600


# The list of models, and the bound.


def test_the_list_of_models_is_read() -> None:
    request = GEMINI.build_list_request(CALL)
    assert request.url == "https://generativelanguage.googleapis.com/v1beta/models?pageSize=1000"
    assert request.headers["x-goog-api-key"] == KEY
    assert GEMINI.parse_list(_read("models.json")) == frozenset({"gemini-3.8-flash", "gemini-embedding-2"})
    assert GEMINI.parse_list(b"{}") is None
    assert GEMINI.parse_list(b"<") is None


def test_signatures_that_are_sent_back_have_a_bound_and_images_have_none() -> None:
    for name in ("answer_tools.json", "answer_thinking.json"):
        echoed = _message(_answer(name))
        bound = input_bound({"messages": [*HELLO, echoed]})
        assert bound is not None
        assert bound >= len(json.dumps(echoed))
    assert input_bound({"messages": [*HELLO, _message(_answer("answer_image.json"))]}) is None


# Images.

IMAGES = ImageCall(
    provider=provider_named("gemini"),
    base_url="https://generativelanguage.googleapis.com/v1beta",
    model="gemini-3-pro-image",
    body={"model": "m", "prompt": "A banana"},
    output_bound=5386,
    stream=False,
    key=KEY,
)


def _drawn(call: ImageCall = IMAGES, /, **body: Any) -> dict[str, Any]:
    request = GEMINI_IMAGES.build_request(replace(call, body={**IMAGES.body, **body}))
    assert request.url.endswith("/models/gemini-3-pro-image:generateContent")
    assert request.headers["x-goog-api-key"] == KEY
    return _judged(json.loads(request.content))


def test_images_are_made_from_a_prompt_and_from_images() -> None:
    assert _drawn(n=1, size="auto", quality="auto", response_format="b64_json", models=["m"]) == {
        "contents": [{"role": "user", "parts": [{"text": "A banana"}]}],
        "generationConfig": {"responseModalities": ["IMAGE"], "maxOutputTokens": 5386},
    }
    edited = replace(
        IMAGES,
        images=(
            InputImage("image", content=b"\x89PNG", media_type="image/png"),
            InputImage("images.1.image_url", url="https://example.org/a.jpg"),
        ),
    )
    assert _drawn(edited)["contents"][0]["parts"] == [
        {"inlineData": {"mimeType": "image/png", "data": base64.b64encode(b"\x89PNG").decode()}},
        {"fileData": {"mimeType": "image/jpeg", "fileUri": "https://example.org/a.jpg"}},
        {"text": "A banana"},
    ]


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        ("1024x1024", {"aspectRatio": "1:1"}),
        ("512x512", {"aspectRatio": "1:1"}),
        ("1024x1536", {"aspectRatio": "2:3"}),
        ("1536x1024", {"aspectRatio": "3:2"}),
        ("1792x1024", {"aspectRatio": "16:9"}),
        ("2048x2048", {"aspectRatio": "1:1", "imageSize": "2K"}),
        ("4096x4096", {"aspectRatio": "1:1", "imageSize": "4K"}),
        ("3840x2160", {"aspectRatio": "16:9", "imageSize": "2K"}),
        ("5504x3072", {"aspectRatio": "16:9", "imageSize": "4K"}),
        ("512x2048", {"aspectRatio": "1:4"}),
        ("11584x1448", {"aspectRatio": "8:1", "imageSize": "4K"}),
    ],
)
def test_a_size_is_a_shape_and_a_grade(size: str, shape: dict[str, str]) -> None:
    assert _drawn(size=size)["generationConfig"]["imageConfig"] == shape


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size", "1000x300"),
        ("size", "9000x9000"),
        ("size", "large"),
        ("n", 2),
        ("quality", "high"),
        ("background", "transparent"),
        ("output_format", "webp"),
        ("output_compression", 50),
        ("response_format", "url"),
        ("style", "vivid"),
        ("moderation", "low"),
        ("user", "u"),
        ("input_fidelity", "high"),
    ],
)
def test_what_an_image_can_not_be_told_is_refused_unless_it_may_be_dropped(name: str, value: Any) -> None:
    with pytest.raises(Unprocessable) as caught:
        _drawn(**{name: value})
    assert (caught.value.param, caught.value.code) == (name, "unsupported_parameter")
    assert _drawn(replace(IMAGES, dropped=frozenset({name})), **{name: value}) == _drawn()


def test_masks_and_files_of_the_gateways_account_are_refused() -> None:
    mask = InputImage("mask", content=b"x", media_type="image/png")
    theirs = InputImage("images.0.image_url", url="https://generativelanguage.googleapis.com/v1beta/files/a")
    for call, param in (
        (replace(IMAGES, mask=mask), "mask"),
        (replace(IMAGES, images=(theirs,)), "images.0.image_url"),
    ):
        with pytest.raises(Unprocessable) as caught:
            _drawn(call)
        assert (caught.value.param, caught.value.code) == (param, "unsupported_content")


def test_an_image_is_answered_as_openai_does() -> None:
    answer = GEMINI_IMAGES.parse_answer(IMAGES, _read("answer_image.json"))
    ImagesResponse.model_validate(answer.body)
    assert answer.body["data"] == [{"b64_json": "iVBORw0KGgo="}]
    assert answer.body["output_format"] == "png"
    assert answer.images == 1
    assert answer.usage == TokenUsage(input=10, image_input=258, output=161, image_output=1120, reasoning=154)
    assert answer.body["usage"] == {
        "input_tokens": 268,
        "output_tokens": 1281,
        "total_tokens": 1549,
        "input_tokens_details": {"text_tokens": 10, "image_tokens": 258},
        "output_tokens_details": {"text_tokens": 161, "image_tokens": 1120},
    }
    untold = {
        name: value for name, value in json.loads(_read("answer_image.json")).items() if "usage" not in name
    }
    assert GEMINI_IMAGES.parse_answer(IMAGES, json.dumps(untold).encode()).usage is None


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"promptFeedback": {"blockReason": "IMAGE_SAFETY"}}, "content_policy_violation"),
        (_body(reason="IMAGE_PROHIBITED_CONTENT"), "content_policy_violation"),
        (_body({"text": "I can't draw."}, reason="NO_IMAGE"), "no_image"),
        (_body({"text": "4"}), "no_image"),
        (_body(reason="MAX_TOKENS"), "no_image"),
    ],
)
def test_an_answer_without_an_image_is_the_clients_error(body: dict[str, Any], code: str) -> None:
    with pytest.raises(ProviderError) as caught:
        GEMINI_IMAGES.parse_answer(IMAGES, json.dumps(body).encode())
    error = caught.value.as_gateway_error()
    assert (error.status, error.code) == (400, code)


def test_the_bound_of_an_image_holds_its_pixels_and_its_thoughts() -> None:
    recorded = GEMINI_IMAGES.parse_answer(IMAGES, _read("answer_image.json")).usage
    assert recorded is not None
    for size, tokens in ((None, 1290), ("auto", 1290), ("2048x2048", 1680), ("4096x4096", 2520)):
        bound = GEMINI_IMAGES.output_bound({"size": size})
        assert bound >= tokens + 4096
        assert bound >= recorded.total_output


# Embeddings.

EMBED = EmbeddingCall(
    provider=provider_named("gemini"),
    base_url="https://generativelanguage.googleapis.com/v1beta",
    model="gemini-embedding-2",
    body={"model": "m", "input": ["one", "two"]},
    output_bound=0,
    stream=False,
    key=KEY,
)


def test_texts_are_embedded_in_one_batch() -> None:
    request = GEMINI_EMBEDDINGS.build_request(
        replace(EMBED, body={**EMBED.body, "dimensions": 768, "encoding_format": "base64", "user": None})
    )
    assert request.url.endswith("/v1beta/models/gemini-embedding-2:batchEmbedContents")
    sent = json.loads(request.content)
    assert sent == {
        "requests": [
            {
                "model": "models/gemini-embedding-2",
                "content": {"parts": [{"text": text}]},
                "outputDimensionality": 768,
            }
            for text in ("one", "two")
        ]
    }
    for entry in sent["requests"]:
        _same(types.Content, entry["content"])
        _same(types.EmbedContentConfig, {"outputDimensionality": entry["outputDimensionality"]})
    single = GEMINI_EMBEDDINGS.build_request(replace(EMBED, body={"input": "one"}))
    assert [entry["content"] for entry in json.loads(single.content)["requests"]] == [
        {"parts": [{"text": "one"}]}
    ]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": [1, 2]}, "input"),
        ({"input": [[1, 2]]}, "input"),
        ({"input": "x", "user": "u"}, "user"),
        ({"input": "x", "output_dtype": "int8"}, "output_dtype"),
    ],
)
def test_what_can_not_be_embedded_is_refused(body: dict[str, Any], param: str) -> None:
    with pytest.raises(Unprocessable) as caught:
        GEMINI_EMBEDDINGS.build_request(replace(EMBED, body=body))
    assert caught.value.param == param


def test_embeddings_are_answered_as_openai_does() -> None:
    content = _read("embeddings.json")
    types.EmbedContentResponse.model_validate_json(
        json.dumps({"embeddings": json.loads(content)["embeddings"]})
    )
    answer = GEMINI_EMBEDDINGS.parse_answer(EMBED, content)
    CreateEmbeddingResponse.model_validate(answer.body)
    assert answer.usage == TokenUsage(input=5)
    assert answer.body["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    assert [entry["embedding"] for entry in answer.body["data"]] == [[0.5, -0.25, 0.125], [-1.0, 0.0, 0.75]]
    packed = GEMINI_EMBEDDINGS.parse_answer(
        replace(EMBED, body={**EMBED.body, "encoding_format": "base64"}), content
    )
    first = packed.body["data"][0]["embedding"]
    assert struct.unpack("<3f", base64.b64decode(first)) == (0.5, -0.25, 0.125)
    untold = GEMINI_EMBEDDINGS.parse_answer(EMBED, b'{"embeddings":[{"values":[1]},{"values":[2]}]}')
    assert untold.usage is None


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{}", b'{"embeddings":[]}', b'{"embeddings":[{"values":7}]}'),
        # One of two: whose it is, nobody could tell.
        b'{"embeddings":[{"values":[1]}]}',
    ],
)
def test_an_answer_without_all_embeddings_is_502(content: bytes) -> None:
    with pytest.raises(ProviderError) as caught:
        GEMINI_EMBEDDINGS.parse_answer(EMBED, content)
    assert caught.value.fault is Fault.PROTOCOL


def test_errors_of_media_are_those_of_the_wire() -> None:
    for wire, call in ((GEMINI_IMAGES, IMAGES), (GEMINI_EMBEDDINGS, EMBED)):
        for recorded in ERRORS:
            error = wire.parse_error(call, recorded["status"], {}, json.dumps(recorded["body"]).encode())
            assert error.fault.value == recorded["fault"]
