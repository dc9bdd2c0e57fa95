"""Exchanges as the vendors' documents have them: where they are from, and OpenAI's through its own types."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.completion_create_params import CompletionCreateParams
from pydantic import TypeAdapter

from gateway.providers.registry import find_provider
from gateway.providers.wire import Chunk, ProviderCall, StreamDone
from gateway.schemas.chat import ChatCompletionRequest
from gateway.schemas.usage import TokenUsage

FIXTURES = Path(__file__).parents[1] / "fixtures"
RECORDED = sorted(path for path in FIXTURES.iterdir() if (path / "README.md").exists())


@pytest.mark.parametrize("directory", RECORDED, ids=lambda path: path.name)
def test_every_exchange_has_its_source_and_the_day_on_which_it_was_looked_up(directory: Path) -> None:
    assert find_provider(directory.name) is not None
    told = (directory / "README.md").read_text()
    assert re.search(r"\b20\d\d-\d\d-\d\d\b", told)
    files = {path.name for path in directory.iterdir()} - {"README.md"}
    assert files
    for name in files:
        rows = [line for line in told.splitlines() if line.startswith("|") and name in line.split("|")[1]]
        assert rows, f"{name} has no row in the README"
        assert all(row.split("|")[2].strip() for row in rows)


def exchange(name: str) -> tuple[dict[str, Any], bytes]:
    recorded = json.loads((FIXTURES / "openai" / name).read_text())
    return recorded["request"], json.dumps(recorded["response"]).encode()


def a_call(request: dict[str, Any], *, stream: bool = False) -> ProviderCall:
    provider = find_provider("openai")
    assert provider is not None
    return ProviderCall(
        provider=provider,
        base_url=provider.base_url or "",
        model=request["model"],
        body=request,
        output_bound=request.get("max_tokens"),
        stream=stream,
        key="sk-provider",
        wants_usage=True,
    )


USAGE = {
    "chat.json": TokenUsage(input=19, output=10, cached_input=0, audio_input=0, audio_output=0, reasoning=0),
    "chat_tools.json": TokenUsage(input=82, output=17, reasoning=0),
    "chat_image.json": TokenUsage(
        input=1117, output=46, cached_input=0, audio_input=0, audio_output=0, reasoning=0
    ),
}


@pytest.mark.parametrize("name", USAGE)
def test_openais_own_exchange_goes_through_whole(name: str) -> None:
    request, response = exchange(name)
    ChatCompletionRequest.model_validate(request)
    call = a_call(request)
    sent = json.loads(call.provider.wire.build_request(call).content)
    TypeAdapter(CompletionCreateParams).validate_python(sent)
    bound = sent.pop("max_completion_tokens", None)
    assert bound == request.get("max_tokens")
    assert sent == {key: value for key, value in request.items() if key != "max_tokens"}
    answer = call.provider.wire.parse_answer(call, response)
    assert answer.body == json.loads(response)
    assert answer.usage == USAGE[name]
    ChatCompletion.model_validate(answer.body)


def test_openais_own_stream_goes_through_whole() -> None:
    request, _ = exchange("chat.json")
    recorded = (FIXTURES / "openai" / "stream.sse").read_bytes()
    call = a_call(request, stream=True)
    sent = json.loads(call.provider.wire.build_request(call).content)
    TypeAdapter(CompletionCreateParams).validate_python(sent)
    stream = call.provider.wire.open_stream(call)
    events = [event for byte in recorded for event in stream.feed(bytes([byte]))]
    chunks = [event for event in events if isinstance(event, Chunk)]
    assert isinstance(events[-1], StreamDone)
    assert b"".join(chunk.sse for chunk in chunks) + b"data: [DONE]\n\n" == recorded
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk.data)
    assert stream.generated == ("Hello",)
    assert stream.finish_reasons == ("stop",)
    assert stream.complete
    assert stream.usage is None
