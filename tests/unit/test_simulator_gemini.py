"""The simulator's Gemini API against Google's own SDK: what it takes, and what it says."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from google import genai
from google.genai import errors, types

from infra.local.simulator.answers import example, picture, signature
from tests.fixtures.certificates import authorities

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fixtures.simulator import Simulator

HELLO = "Grüße, 世界 👋"
PNG = picture("red")
SCHEMA: Any = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: Any = {"name": "get_weather", "description": "Weather", "parametersJsonSchema": SCHEMA}
CLOCK: Any = {"name": "get_time"}
TOOLS: Any = [{"functionDeclarations": [WEATHER, CLOCK]}]


def url(simulator: Simulator) -> str:
    return simulator.base_url.removesuffix("/v1") + "/gemini"


@pytest.fixture
def client(simulator: Simulator) -> Iterator[genai.Client]:
    made = genai.Client(api_key=simulator.key, http_options=types.HttpOptions(base_url=f"{url(simulator)}/"))
    yield made
    made.close()


def config(**fields: Any) -> types.GenerateContentConfig:
    off = types.AutomaticFunctionCallingConfig(disable=True)
    return types.GenerateContentConfig(automatic_function_calling=off, **fields)


def create(
    client: genai.Client, model: str = "echo", contents: Any = HELLO, **fields: Any
) -> types.GenerateContentResponse:
    return client.models.generate_content(model=model, contents=contents, config=config(**fields))


def streamed(
    client: genai.Client, model: str = "echo", contents: Any = HELLO, **fields: Any
) -> list[types.GenerateContentResponse]:
    return list(
        client.models.generate_content_stream(model=model, contents=contents, config=config(**fields))
    )


def parts(answers: list[types.GenerateContentResponse], index: int = 0) -> list[types.Part]:
    return [
        part
        for answer in answers
        for candidate in answer.candidates or []
        if (candidate.index or 0) == index and candidate.content
        for part in candidate.content.parts or []
    ]


def told(answers: list[types.GenerateContentResponse], index: int = 0) -> dict[str, Any]:
    """Everything that a candidate says, however it was cut into parts."""
    found = parts(answers, index)
    return {
        "text": "".join(part.text or "" for part in found if not part.thought),
        "thought": "".join(part.text or "" for part in found if part.thought),
        "calls": [
            (part.function_call.name, part.function_call.args, part.thought_signature)
            for part in found
            if part.function_call
        ],
        "images": [part.inline_data.data for part in found if part.inline_data],
        "finish": [
            candidate.finish_reason
            for answer in answers
            for candidate in answer.candidates or []
            if (candidate.index or 0) == index and candidate.finish_reason
        ],
        "blocked": [answer.prompt_feedback for answer in answers if answer.prompt_feedback],
        "usage": [answer.usage_metadata for answer in answers if answer.usage_metadata][-1],
    }


THOUGHTS: Any = {"include_thoughts": True}


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        ("echo", {}),
        ("long-50", {"max_output_tokens": 7}),
        ("reasoning", {}),
        ("reasoning", {"thinking_config": THOUGHTS}),
        ("reasoning", {"thinking_config": {"thinking_budget": 0}}),
        ("echo", {"candidate_count": 2}),
        ("echo", {"tools": TOOLS}),
        ("tools-parallel+reasoning", {"tools": TOOLS}),
        ("cached", {}),
        ("filtered", {}),
        ("blocked", {}),
        ("image", {"response_modalities": ["TEXT", "IMAGE"]}),
        ("echo", {"response_mime_type": "application/json", "response_json_schema": SCHEMA}),
    ],
)
def test_the_stream_and_the_plain_answer_are_one_message(
    client: genai.Client, model: str, fields: dict[str, Any]
) -> None:
    plain = create(client, model, **fields)
    whole = streamed(client, model, **fields)
    for index in range(fields.get("candidate_count", 1)):
        assert told([plain], index) == told(whole, index)


def test_echo_says_the_prompt_back_and_counts_it(client: genai.Client) -> None:
    answer = create(client)
    assert answer.text == f"You said: {HELLO}"
    usage = answer.usage_metadata
    assert usage is not None
    assert usage.prompt_token_count
    assert usage.candidates_token_count
    assert usage.total_token_count == usage.prompt_token_count + usage.candidates_token_count


def test_thoughts_are_outside_the_candidates_count_and_inside_the_bound(client: genai.Client) -> None:
    usage = create(client, "reasoning-9").usage_metadata
    assert usage is not None
    assert usage.thoughts_token_count == 9
    assert (
        usage.total_token_count == (usage.prompt_token_count or 0) + (usage.candidates_token_count or 0) + 9
    )
    bounded = create(client, "reasoning-9+long", max_output_tokens=12).usage_metadata
    assert bounded is not None
    assert (bounded.candidates_token_count, bounded.thoughts_token_count) == (3, 9)


def test_each_modality_is_counted_apart(client: genai.Client) -> None:
    contents = [types.Part.from_bytes(data=PNG, mime_type="image/png"), types.Part(text="What is it?")]
    usage = create(client, "cached-3", contents).usage_metadata
    assert usage is not None
    counts = {detail.modality: detail.token_count for detail in usage.prompt_tokens_details or []}
    assert counts[types.MediaModality.IMAGE] == 258
    assert sum(count or 0 for count in counts.values()) == usage.prompt_token_count
    assert usage.cached_content_token_count == 3


def test_an_image_is_made_only_where_the_model_can(client: genai.Client) -> None:
    answer = create(client, "image", response_modalities=["IMAGE"])
    assert told([answer])["images"] == [picture(HELLO)]
    usage = answer.usage_metadata
    assert usage is not None
    assert {detail.modality for detail in usage.candidates_tokens_details or []} >= {
        types.MediaModality.IMAGE
    }
    with pytest.raises(errors.ClientError, match="response modalities"):
        create(client, "echo", response_modalities=["IMAGE"])


def test_a_turn_with_tools_and_thoughts_goes_round(client: genai.Client) -> None:
    first = create(client, "tools-parallel+reasoning", tools=TOOLS)
    calls = told([first])["calls"]
    signed = base64.b64decode(signature("thought"))
    assert calls == [("get_weather", example(SCHEMA), signed), ("get_time", {}, None)]
    assert first.candidates
    assert first.candidates[0].content
    results = [
        types.Part.from_function_response(name=name, response={"output": f"result of {name}"})
        for name, _, _ in calls
    ]
    asked = types.Content(role="user", parts=[types.Part(text=HELLO)])
    turns = [asked, first.candidates[0].content, types.Content(role="user", parts=results)]
    second = create(client, "inventory+reasoning", turns, tools=TOOLS, system_instruction="Be brief.")
    assert json.loads(second.text or "") == [
        {"role": "system", "text": "Be brief."},
        {"role": "user", "text": HELLO},
        {"role": "assistant", "call": "get_weather", "arguments": example(SCHEMA)},
        {"role": "assistant", "call": "get_time", "arguments": {}},
        {"role": "tool", "tool": "get_weather", "text": "result of get_weather"},
        {"role": "tool", "tool": "get_time", "text": "result of get_time"},
    ]
    lost = turns[1].model_copy(deep=True)
    assert lost.parts
    lost.parts[0].thought_signature = None
    with pytest.raises(errors.ClientError, match="missing a thought_signature"):
        create(client, "reasoning", [asked, lost, turns[2]], tools=TOOLS)
    create(client, "echo", [asked, lost, turns[2]], tools=TOOLS)


def test_functions_are_called_as_the_config_says(client: genai.Client) -> None:
    def called(**calling: Any) -> list[str]:
        wanted: Any = {"function_calling_config": calling}
        return [name for name, _, _ in told([create(client, tools=TOOLS, tool_config=wanted)])["calls"]]

    assert called(mode="ANY", allowed_function_names=["get_time"]) == ["get_time"]
    assert called(mode="NONE") == []
    assert called(mode="AUTO") == ["get_weather"]


def post(
    simulator: Simulator, body: Any, model: str = "echo", method: str = "generateContent"
) -> httpx.Response:
    return httpx.post(
        f"{url(simulator)}/v1beta/models/{model}:{method}",
        json=body,
        headers={"x-goog-api-key": simulator.key},
        verify=authorities(),
    )


TEXT: Any = {"text": "Hi"}
CONTENTS: Any = [{"role": "user", "parts": [TEXT]}]
CALL: Any = {"functionCall": {"name": "get_time", "args": {}}}
RESULT: Any = {"functionResponse": {"name": "get_time", "response": {"output": "noon"}}}
BLOB: Any = {"inlineData": {"mimeType": "image/png", "data": base64.b64encode(PNG).decode()}}


def user(*held: Any) -> Any:
    return {"contents": [{"role": "user", "parts": list(held)}]}


def turns(*results: Any) -> Any:
    return {
        "contents": [*CONTENTS, {"role": "model", "parts": [CALL]}, {"role": "user", "parts": list(results)}],
        "tools": TOOLS,
    }


TAKEN: list[dict[str, Any]] = [
    {"systemInstruction": {"parts": [TEXT]}},
    {"system_instruction": {"parts": [TEXT]}, "generation_config": {"max_output_tokens": 5}},
    {"contents": [*CONTENTS, *CONTENTS]},
    user(TEXT, BLOB, {"fileData": {"fileUri": "https://a/b.mp4", "mimeType": "video/mp4"}}),
    user({"inlineData": {"mimeType": "audio/wav", "data": "AAAA"}}),
    turns(RESULT),
    turns(RESULT, TEXT),
    {"generationConfig": {"temperature": 2, "topP": 0.5, "topK": 3, "seed": 7, "presencePenalty": 1}},
    {"generationConfig": {"responseLogprobs": True, "logprobs": 3, "stopSequences": ["a"]}},
    {"generationConfig": {"thinkingConfig": {"thinkingLevel": "LOW"}, "responseModalities": ["TEXT"]}},
    {"safetySettings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "OFF"}]},
    {"tools": TOOLS, "toolConfig": {"functionCallingConfig": {"mode": "ANY"}}},
]


@pytest.mark.parametrize("fields", TAKEN)
def test_what_google_takes_is_taken(simulator: Simulator, fields: dict[str, Any]) -> None:
    response = post(simulator, {"contents": CONTENTS, **fields})
    assert response.status_code == 200, response.text
    types.GenerateContentResponse.model_validate(response.json())


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"contents": []}, "contents is not specified"),
    ({"n": 2}, 'Unknown name "n": Cannot find field.'),
    ({"contents": [{"role": "user", "content": "x"}]}, "Unknown name \"content\" at 'contents[0]'"),
    ({"contents": [{"role": "assistant", "parts": [TEXT]}]}, "valid role: user, model"),
    ({"contents": [{"role": "user", "parts": []}]}, "parts must not be empty"),
    (user({}), "required oneof field 'data'"),
    (user(TEXT | BLOB), "required oneof field 'data'"),
    (user({"inlineData": {"mimeType": "image/png", "data": "no base64!"}}), "inline_data.data"),
    (user({"inlineData": {"mimeType": "application/zip", "data": "AAAA"}}), "Unsupported MIME type"),
    (user({"fileData": {"fileUri": "file.mp4"}}), "file uri"),
    (turns(TEXT), "number of function response parts"),
    (turns(RESULT, RESULT), "number of function response parts"),
    ({"contents": turns(RESULT)["contents"][:2], "tools": TOOLS}, "number of function response parts"),
    ({"contents": turns(RESULT)["contents"][1:], "tools": TOOLS}, "immediately after a user turn"),
    (turns({"functionResponse": {"name": "x", "response": {}}}), "by name"),
    (turns({"functionResponse": {"name": "get_time", "response": "noon"}}), "function_response.response"),
    ({"generationConfig": {"maxTokens": 5}}, "Unknown name \"maxTokens\" at 'generation_config'"),
    ({"generationConfig": {"maxOutputTokens": 0}}, "max_output_tokens"),
    ({"generationConfig": {"temperature": 2.5}}, "temperature"),
    ({"generationConfig": {"stopSequences": list("abcdef")}}, "stop_sequences"),
    ({"generationConfig": {"responseJsonSchema": SCHEMA}}, "response_mime_type"),
    ({"generationConfig": {"logprobs": 3}}, "response_logprobs"),
    (
        {"generationConfig": {"thinkingConfig": {"thinkingBudget": 5, "thinkingLevel": "LOW"}}},
        "only one of thinking budget",
    ),
    (
        {"tools": [{"functionDeclarations": [{"name": "f", "parameters": SCHEMA}]}]},
        "Unknown name \"additionalProperties\" at 'tools[0].function_declarations[0].parameters'",
    ),
    ({"tools": [{"functionDeclarations": [{"name": "1f"}]}]}, "Invalid function name"),
    ({"tools": [{"functionDeclarations": [CLOCK, CLOCK]}]}, "Duplicate function"),
    ({"tools": [{"type": "function"}]}, 'Unknown name "type"'),
    (
        {"tools": TOOLS, "toolConfig": {"functionCallingConfig": {"allowedFunctionNames": ["get_time"]}}},
        "mode is ANY",
    ),
    ({"safetySettings": [{"category": "X", "threshold": "OFF"}]}, "safety_settings[0].category"),
    (user(TEXT | {"thoughtSignature": "AAAA"}), "Corrupted thought signature"),
]


@pytest.mark.parametrize(("fields", "words"), REFUSED)
def test_what_google_refuses_is_refused_in_its_words(
    simulator: Simulator, fields: dict[str, Any], words: str
) -> None:
    response = post(simulator, {"contents": CONTENTS, **fields})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["code"], error["status"]) == (400, "INVALID_ARGUMENT")
    assert words in error["message"]


def test_the_key_belongs_in_its_header(simulator: Simulator) -> None:
    place = f"{url(simulator)}/v1beta/models/echo:generateContent"
    body = {"contents": CONTENTS}
    for headers, params, status in (
        ({"x-goog-api-key": simulator.key}, {}, 200),
        ({"x-goog-api-key": "wrong"}, {}, 400),
        ({"authorization": f"Bearer {simulator.key}"}, {}, 403),
        ({"accept": "*/*"}, {"key": simulator.key}, 403),
        ({"x-goog-api-key": simulator.key}, {"key": simulator.key}, 403),
    ):
        response = httpx.post(place, json=body, headers=headers, params=params)
        assert response.status_code == status, (headers, params)
    wrong = httpx.post(place, json=body, headers={"x-goog-api-key": "wrong"}).json()["error"]
    assert wrong["details"][0]["reason"] == "API_KEY_INVALID"


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (400, "INVALID_ARGUMENT"),
        (401, "UNAUTHENTICATED"),
        (403, "PERMISSION_DENIED"),
        (404, "NOT_FOUND"),
        (429, "RESOURCE_EXHAUSTED"),
        (500, "INTERNAL"),
        (503, "UNAVAILABLE"),
    ],
)
def test_each_status_on_demand_is_googles_own(
    simulator: Simulator, client: genai.Client, status: int, name: str
) -> None:
    with pytest.raises(errors.APIError) as raised:
        create(client, f"status-{status}")
    assert (raised.value.code, raised.value.status) == (status, name)
    assert simulator.key in str(raised.value)  # the careless provider that the gateway has to bear
    if status == 429:
        retry = post(simulator, {"contents": CONTENTS}, "status-429").json()["error"]["details"][0]
        assert retry == {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1s"}


def test_an_unknown_model_and_a_long_prompt_are_refused(client: genai.Client) -> None:
    with pytest.raises(errors.ClientError, match="is not found for API version"):
        create(client, "gemini-9")
    with pytest.raises(errors.ClientError, match="exceeds the maximum number of tokens"):
        create(client, "too-long")


def events(simulator: Simulator, model: str) -> list[dict[str, Any]]:
    place = f"{url(simulator)}/v1beta/models/{model}:streamGenerateContent"
    headers = {"x-goog-api-key": simulator.key}
    with httpx.stream(
        "POST", place, params={"alt": "sse"}, json={"contents": CONTENTS}, headers=headers
    ) as answer:
        text = answer.read().decode()
    return [json.loads(block.removeprefix("data: ")) for block in text.split("\n\n") if block]


def test_streams_fail_on_demand(simulator: Simulator) -> None:
    failed = events(simulator, "error-in-stream-2")
    assert len(failed) == 3
    assert failed[-1]["error"]["status"] == "UNAVAILABLE"
    assert all("finishReason" not in event["candidates"][0] for event in events(simulator, "cut-clean-2"))
    assert all("usageMetadata" not in event for event in events(simulator, "no-usage"))
    with pytest.raises(httpx.RemoteProtocolError):
        events(simulator, "cut-2")
    with pytest.raises(ValueError, match=r".+"):
        events(simulator, "malformed")


def test_a_stream_that_is_not_asked_for_as_events_is_a_list(simulator: Simulator) -> None:
    answers = post(simulator, {"contents": CONTENTS}, method="streamGenerateContent").json()
    assert isinstance(answers, list)
    assert answers[-1]["candidates"][0]["finishReason"] == "STOP"


def test_embeddings_are_the_same_for_the_same_text(client: genai.Client) -> None:
    answer = client.models.embed_content(
        model="echo", contents=["one", "two", "one"], config={"output_dimensionality": 5}
    )
    first, second, third = (embedding.values or [] for embedding in answer.embeddings or [])
    assert first == third != second
    assert len(first) == 5
    assert sum(value * value for value in first) == pytest.approx(1)


def test_one_content_is_embedded_alone(simulator: Simulator) -> None:
    alone = post(simulator, {"content": {"parts": [TEXT]}}, method="embedContent").json()
    assert len(alone["embedding"]["values"]) == 3072
    assert alone["usageMetadata"]["promptTokenCount"] == 1
    request = {"model": "models/echo", "content": {"parts": [TEXT]}}
    batch = post(simulator, {"requests": [request]}, method="batchEmbedContents").json()
    assert batch["embeddings"][0] == alone["embedding"]
    refused: Any = [{"requests": []}, {"requests": [request | {"model": "models/other"}]}, {"requests": [{}]}]
    for body in refused:
        assert post(simulator, body, method="batchEmbedContents").status_code == 400
