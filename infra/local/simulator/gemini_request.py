"""What Gemini's generateContent and embedContent take, and what they refuse.

The models hold the fields as the vendor's own SDK sends them (google-genai 3.4), but for its server
tools, speech, and what only the Enterprise platform has. As Google's JSON parser does, they take each name
in camelCase and in snake_case. What goes beyond shapes is in `parse_request`, after the vendor's pages on
function calling, thinking, thought signatures and structured output (November 2026).
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from infra.local.simulator.answers import (
    Question,
    Tool,
    count_tokens,
    data_bytes,
    given_call,
    given_media,
    given_text,
    media_kind,
    signature,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from infra.local.simulator.behaviour import Behaviour

BYPASS_SIGNATURES = frozenset({"context_engineering_is_the_way_to_go", "skip_thought_signature_validator"})
"""Google's own words for a call that another model made: they pass for a thought signature."""

_PER_CONTENT, _PER_MEDIA = 1, {"image": 258, "audio": 32, "video": 263, "file": 258}
_MODALITIES = {"image": "IMAGE", "audio": "AUDIO", "video": "VIDEO", "file": "DOCUMENT"}
_MEDIA_TYPES = re.compile(r"(image|audio|video|text)/[\w.+-]+|application/(pdf|json|xml|rtf)")
_COMMON_ALPHABET = str.maketrans("-_", "+/")
_FUNCTION_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_.:-]{0,127}")
_MOST_STOPS = 5
_MOST_CHOICES = 8
_MOST_REQUESTS = 100


class InvalidArgumentError(ValueError):
    """The request is one that Gemini answers with 400 INVALID_ARGUMENT; the text is its message."""


def _base64(value: str) -> str:
    """Return base64 in the common alphabet. As Google's JSON parser does, this takes the URL's too."""
    common = value.translate(_COMMON_ALPHABET)
    data_bytes(common)
    return common


Base64 = Annotated[str, AfterValidator(_base64)]


class _Message(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, alias_generator=to_camel, populate_by_name=True
    )


class Blob(_Message):
    mime_type: str
    data: Base64
    display_name: str | None = None


class FileData(_Message):
    file_uri: str
    mime_type: str | None = None


class FunctionCall(_Message):
    name: str
    args: dict[str, Any] = {}
    id: str | None = None


class FunctionResponsePart(_Message):
    inline_data: Blob | None = None


class FunctionResponse(_Message):
    name: Annotated[str, Field(min_length=1)]
    response: dict[str, Any]
    id: str | None = None
    parts: list[FunctionResponsePart] = []
    will_continue: bool | None = None
    scheduling: str | None = None


class VideoMetadata(_Message):
    start_offset: str | None = None
    end_offset: str | None = None
    fps: float | None = None


class Part(_Message):
    text: str | None = None
    inline_data: Blob | None = None
    file_data: FileData | None = None
    function_call: FunctionCall | None = None
    function_response: FunctionResponse | None = None
    thought: bool | None = None
    thought_signature: str | None = None
    video_metadata: VideoMetadata | None = None
    media_resolution: dict[str, Any] | None = None
    part_metadata: dict[str, Any] | None = None

    @property
    def held(self) -> tuple[Any, ...]:
        """What is set of the fields of which a part has one."""
        fields = (self.text, self.inline_data, self.file_data, self.function_call, self.function_response)
        return tuple(value for value in fields if value is not None)


class Content(_Message):
    parts: list[Part] = []
    role: str | None = None


class FunctionDeclaration(_Message):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    parameters_json_schema: Any = None
    response: dict[str, Any] | None = None
    response_json_schema: Any = None
    behavior: Literal["UNSPECIFIED", "BLOCKING", "NON_BLOCKING"] | None = None


class ToolSet(_Message):
    function_declarations: list[FunctionDeclaration] = []


class FunctionCallingConfig(_Message):
    mode: Literal["MODE_UNSPECIFIED", "AUTO", "ANY", "NONE", "VALIDATED"] = "AUTO"
    allowed_function_names: list[str] = []


class ToolConfig(_Message):
    function_calling_config: FunctionCallingConfig | None = None


class SafetySetting(_Message):
    category: Annotated[str, Field(pattern=r"^HARM_CATEGORY_[A-Z_]+$")]
    threshold: Literal[
        "HARM_BLOCK_THRESHOLD_UNSPECIFIED",
        "BLOCK_LOW_AND_ABOVE",
        "BLOCK_MEDIUM_AND_ABOVE",
        "BLOCK_ONLY_HIGH",
        "BLOCK_NONE",
        "OFF",
    ]


class ThinkingConfig(_Message):
    include_thoughts: bool | None = None
    thinking_budget: int | None = None
    thinking_level: Literal["MINIMAL", "LOW", "MEDIUM", "HIGH", "XHIGH"] | None = None


class ImageConfig(_Message):
    aspect_ratio: str | None = None
    image_size: str | None = None


class GenerationConfig(_Message):
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: float | None = None
    candidate_count: Annotated[int, Field(ge=1, le=_MOST_CHOICES)] | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    stop_sequences: Annotated[list[str], Field(max_length=_MOST_STOPS)] = []
    seed: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, lt=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, lt=2)] | None = None
    response_logprobs: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_mime_type: str | None = None
    response_schema: dict[str, Any] | None = None
    response_json_schema: Any = None
    response_modalities: list[Literal["TEXT", "IMAGE", "AUDIO"]] = []
    thinking_config: ThinkingConfig | None = None
    image_config: ImageConfig | None = None
    media_resolution: str | None = None
    speech_config: dict[str, Any] | None = None


class GenerateContentRequest(_Message):
    """The body of POST /models/{model}:generateContent and :streamGenerateContent."""

    contents: list[Content] = []
    system_instruction: Content | None = None
    tools: list[ToolSet] = []
    tool_config: ToolConfig | None = None
    safety_settings: list[SafetySetting] = []
    generation_config: GenerationConfig = GenerationConfig()
    cached_content: str | None = None
    model: str | None = None
    service_tier: Literal["unspecified", "flex", "standard", "priority"] | None = None
    labels: dict[str, str] | None = None
    store: bool | None = None

    @property
    def declarations(self) -> tuple[FunctionDeclaration, ...]:
        return tuple(declared for tools in self.tools for declared in tools.function_declarations)


class EmbedContentRequest(_Message):
    """The body of POST /models/{model}:embedContent, and one entry of :batchEmbedContents."""

    content: Content
    model: str | None = None
    task_type: str | None = None
    title: str | None = None
    output_dimensionality: Annotated[int, Field(ge=1, le=3072)] | None = None


class BatchEmbedContentsRequest(_Message):
    requests: Annotated[list[EmbedContentRequest], Field(min_length=1, max_length=_MOST_REQUESTS)]


_Shape = TypeVar("_Shape", bound=_Message)


def validated(shape: type[_Shape], body: Any) -> _Shape:
    """Read a body. Raises InvalidArgumentError with Google's words for what is wrong."""
    try:
        return shape.model_validate(body)
    except ValidationError as invalid:
        raise InvalidArgumentError(
            "\n".join(
                _words(error["type"], error["loc"], error) for error in invalid.errors(include_url=False)
            )
        ) from None


def _words(kind: str, location: tuple[int | str, ...], error: Any) -> str:
    *above, name = location
    place = _path(above)
    if kind == "extra_forbidden":
        at = f" at '{place}'" if place else ""
        return f'Invalid JSON payload received. Unknown name "{name}"{at}: Cannot find field.'
    return f"Invalid value at '{_path([*above, name])}': {error['msg']}"


def _path(location: Sequence[int | str]) -> str:
    """Return a place as Google names it: contents[0].parts[1].inline_data."""
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        else:
            snake = re.sub(r"(?<!^)(?=[A-Z])", "_", step).lower()
            path += f".{snake}" if path else snake
    return path


def parse_request(body: dict[str, Any], behaviour: Behaviour | None) -> GenerateContentRequest:
    """Read and check a body. Raises InvalidArgumentError with Google's words for what is wrong."""
    request = validated(GenerateContentRequest, body)
    if not request.contents:
        raise InvalidArgumentError("* GenerateContentRequest.contents: contents is not specified\n")
    for place, content in _contents(request):
        if not content.parts:
            raise InvalidArgumentError(
                f"* GenerateContentRequest.{place}.parts: contents.parts must not be empty.\n"
            )
        for number, part in enumerate(content.parts):
            _check_part(f"{place}.parts[{number}]", part)
    if any(content.role not in {None, "user", "model"} for content in request.contents):
        raise InvalidArgumentError("Please use a valid role: user, model.")
    _check_functions(request)
    _check_turns(request)
    if behaviour is not None and behaviour.reasoning_tokens:
        _check_signatures(request)
    _check_generation(request, makes_image=behaviour is not None and behaviour.makes_image)
    return request


def _contents(request: GenerateContentRequest) -> Iterator[tuple[str, Content]]:
    if request.system_instruction is not None:
        yield "system_instruction", request.system_instruction
    for number, content in enumerate(request.contents):
        yield f"contents[{number}]", content


def _check_part(place: str, part: Part) -> None:
    if len(part.held) != 1:
        raise InvalidArgumentError(
            f"* GenerateContentRequest.{place}.data: required oneof field 'data' must have one initialized "
            f"field\n"
        )
    blobs = [part.inline_data]
    if part.function_response is not None:
        blobs += [inner.inline_data for inner in part.function_response.parts]
    for blob in blobs:
        if blob is not None and not _MEDIA_TYPES.fullmatch(blob.mime_type):
            raise InvalidArgumentError(f"Unsupported MIME type: {blob.mime_type}")
    if part.file_data is not None and not re.match(r"https?://|gs://", part.file_data.file_uri):
        raise InvalidArgumentError(f"Invalid or unsupported file uri: {part.file_data.file_uri}")
    signed = part.thought_signature
    known = (
        signed is None
        or signed in BYPASS_SIGNATURES
        or signed.translate(_COMMON_ALPHABET) == signature("thought")
    )
    if not known:
        raise InvalidArgumentError("Corrupted thought signature.")


def _check_functions(request: GenerateContentRequest) -> None:
    names = [declared.name for declared in request.declarations]
    for number, declared in enumerate(request.declarations):
        place = f"GenerateContentRequest.tools[0].function_declarations[{number}]"
        if not _FUNCTION_NAME.fullmatch(declared.name):
            raise InvalidArgumentError(
                f"* {place}.name: Invalid function name. Must start with a letter or an underscore. Must be "
                "alphameric (a-z, A-Z, 0-9), underscores (_), dots (.), colons (:), or dashes (-), with a "
                "maximum "
                "length of 128.\n"
            )
        if declared.parameters is not None and declared.parameters_json_schema is not None:
            raise InvalidArgumentError(
                f"* {place}: parameters and parameters_json_schema are mutually exclusive.\n"
            )
        if declared.parameters is not None:
            _check_schema(declared.parameters, f"tools[0].function_declarations[{number}].parameters")
    if len(names) != len(set(names)):
        raise InvalidArgumentError("Duplicate function declaration found")
    calling = request.tool_config.function_calling_config if request.tool_config else None
    if calling is not None and calling.allowed_function_names:
        if calling.mode not in {"ANY", "VALIDATED"}:
            raise InvalidArgumentError(
                "allowed_function_names should only be set when mode is ANY or VALIDATED."
            )
        if unknown := set(calling.allowed_function_names) - set(names):
            raise InvalidArgumentError(
                f"allowed_function_names has functions that are not declared: {', '.join(sorted(unknown))}"
            )


_SCHEMA_FIELDS = frozenset(
    {
        "type",
        "format",
        "title",
        "description",
        "nullable",
        "enum",
        "maxItems",
        "minItems",
        "properties",
        "required",
        "minProperties",
        "maxProperties",
        "minLength",
        "maxLength",
        "pattern",
        "example",
        "anyOf",
        "propertyOrdering",
        "default",
        "items",
        "minimum",
        "maximum",
    }
)


def _check_schema(schema: Any, place: str) -> None:
    """Refuse what Google's own Schema has no field for; JSON Schema has a field of its own."""
    if not isinstance(schema, dict):
        return
    for name in schema:
        if to_camel(name) not in _SCHEMA_FIELDS:
            raise InvalidArgumentError(
                f"Invalid JSON payload received. Unknown name \"{name}\" at '{place}': Cannot find field."
            )
    for number, (_, entry) in enumerate((schema.get("properties") or {}).items()):
        _check_schema(entry, f"{place}.properties[{number}].value")
    _check_schema(schema.get("items"), f"{place}.items")


def _check_turns(request: GenerateContentRequest) -> None:
    called: list[FunctionCall] = []
    previous = None
    for content in _turns(request):
        answers = [part.function_response for part in content.parts if part.function_response is not None]
        if len(answers) != len(called):
            raise InvalidArgumentError(
                "Please ensure that the number of function response parts is equal to the number of "
                "function call "
                "parts of the function call turn."
            )
        if sorted(answer.name for answer in answers) != sorted(call.name for call in called):
            raise InvalidArgumentError(
                "Function response parts do not match the function call parts by name."
            )
        called = [part.function_call for part in content.parts if part.function_call is not None]
        if called and (content.role != "model" or previous is None):
            raise InvalidArgumentError(
                "Please ensure that function call turn comes immediately after a user turn or after a "
                "function "
                "response turn."
            )
        previous = content
    if called:
        raise InvalidArgumentError(
            "Please ensure that the number of function response parts is equal to the number of function "
            "call "
            "parts of the function call turn."
        )


def _turns(request: GenerateContentRequest) -> list[Content]:
    """Return the contents with those of one role, one after the other, joined."""
    turns: list[Content] = []
    for content in request.contents:
        role = content.role or "user"
        before = turns.pop().parts if turns and turns[-1].role == role else []
        turns.append(Content.model_construct(role=role, parts=[*before, *content.parts]))
    return turns


def _check_signatures(request: GenerateContentRequest) -> None:
    """Refuse a call of the current turn whose signature was lost; of parallel calls the first has it."""
    for content in reversed(request.contents):
        if content.role != "model" and any(part.function_response is None for part in content.parts):
            return
        calls = [(place, part) for place, part in enumerate(content.parts) if part.function_call is not None]
        if calls and calls[0][1].thought_signature is None:
            place, part = calls[0]
            name = part.function_call.name if part.function_call else ""
            raise InvalidArgumentError(
                "Function call is missing a thought_signature in functionCall parts. This is required for "
                "tools to "
                "work correctly, and missing thought_signature may lead to degraded model performance. "
                "Additional "
                f"data, function call `default_api:{name}`, position {place}."
            )


def _check_generation(request: GenerateContentRequest, *, makes_image: bool) -> None:
    config = request.generation_config
    if config.response_schema is not None and config.response_json_schema is not None:
        raise InvalidArgumentError("response_schema and response_json_schema are mutually exclusive.")
    has_schema = config.response_schema is not None or config.response_json_schema is not None
    if has_schema and config.response_mime_type not in {"application/json", "text/x.enum"}:
        raise InvalidArgumentError(
            "* GenerateContentRequest.generation_config.response_schema: only allowed when "
            "response_mime_type is "
            "application/json.\n"
        )
    if config.response_schema is not None:
        _check_schema(config.response_schema, "generation_config.response_schema")
    if config.response_mime_type not in {None, "text/plain", "application/json", "text/x.enum"}:
        raise InvalidArgumentError(
            "* GenerateContentRequest.generation_config.response_mime_type: allowed mimetypes are "
            "`text/plain`, "
            "`application/json`, `application/xml`, `application/yaml` and `text/x.enum`.\n"
        )
    thinking = config.thinking_config
    if thinking is not None and thinking.thinking_budget is not None and thinking.thinking_level is not None:
        raise InvalidArgumentError("You can only set only one of thinking budget and thinking level.")
    if config.logprobs is not None and not config.response_logprobs:
        raise InvalidArgumentError("logprobs is only allowed when response_logprobs is true.")
    if ({"IMAGE", "AUDIO"} & set(config.response_modalities)) - ({"IMAGE"} if makes_image else set()):
        wanted = ",".join(modality.lower() for modality in config.response_modalities)
        raise InvalidArgumentError(f"Model does not support the requested response modalities: {wanted}")


def read_question(request: GenerateContentRequest) -> Question:
    """Return what is asked."""
    config = request.generation_config
    given = tuple(_given(request))
    return Question(
        text=_last_text(request, given),
        prompt_tokens=sum(count for _, count in prompt_tokens(request, given)),
        bound=config.max_output_tokens,
        choices=config.candidate_count or 1,
        stop=tuple(config.stop_sequences),
        tools=_tools(request),
        wants_json=config.response_mime_type == "application/json",
        json_schema=config.response_json_schema or config.response_schema,
        given=given,
    )


def _last_text(request: GenerateContentRequest, given: Sequence[dict[str, Any]]) -> str:
    for content in reversed(_turns(request)):
        if content.role == "user":
            said = [part.text for part in content.parts if part.text is not None]
            if said:
                return "".join(said)
            results = [piece["text"] for piece in given if piece["role"] == "tool" and "text" in piece]
            return results[-1] if results else ""
    return ""


def _given(request: GenerateContentRequest) -> Iterator[dict[str, Any]]:
    if request.system_instruction is not None:
        for part in request.system_instruction.parts:
            yield from _given_part("system", part)
    for content in request.contents:
        for part in content.parts:
            if not part.thought:
                yield from _given_part("assistant" if content.role == "model" else "user", part)


def _given_part(role: str, part: Part) -> Iterator[dict[str, Any]]:
    if part.text is not None:
        yield given_text(role, part.text)
    elif part.function_call is not None:
        yield given_call(part.function_call.name, part.function_call.args)
    elif part.function_response is not None:
        answer = part.function_response
        yield given_text("tool", _result_text(answer.response), tool=answer.name)
        for inner in answer.parts:
            yield _given_data("tool", inner.inline_data, None, answer.name)
    else:
        yield _given_data(role, part.inline_data, part.file_data, None)


def _given_data(role: str, blob: Blob | None, file: FileData | None, tool: str | None) -> dict[str, Any]:
    if blob is not None:
        return given_media(role, media_kind(blob.mime_type), data=blob.data, tool=tool)
    if file is None:
        return {"role": role, "unknown": None}
    return given_media(role, media_kind(file.mime_type or ""), url=file.file_uri, tool=tool)


def _result_text(response: dict[str, Any]) -> str:
    """Return a function's result as a text; Google's own fields for one are `output` and `error`."""
    if len(response) == 1:
        (name, value) = next(iter(response.items()))
        texts = value if isinstance(value, list) else [value]
        if name in {"output", "result", "error"} and all(isinstance(text, str) for text in texts):
            return "".join(texts)
    return json.dumps(response, ensure_ascii=False)


def _tools(request: GenerateContentRequest) -> tuple[Tool, ...]:
    """Return the tools to choose from; none where the model has its answer and is to speak now."""
    calling = request.tool_config.function_calling_config if request.tool_config else None
    answered = any(part.function_response is not None for part in request.contents[-1].parts)
    if answered or (calling is not None and calling.mode == "NONE"):
        return ()
    allowed = set(calling.allowed_function_names) if calling is not None else set()
    return tuple(
        Tool(declared.name, declared.parameters_json_schema or declared.parameters or {})
        for declared in request.declarations
        if not allowed or declared.name in allowed
    )


def prompt_tokens(request: GenerateContentRequest, given: Sequence[dict[str, Any]]) -> list[tuple[str, int]]:
    """Count a prompt by modality: texts by o200k_base, media by constants of the vendor's pages."""
    text = _PER_CONTENT * len(request.contents)
    counts: dict[str, int] = {}
    for piece in given:
        if "call" in piece:
            text += count_tokens(piece["call"]) + count_tokens(json.dumps(piece["arguments"]))
        text += count_tokens(piece.get("text", ""))
        for kind, modality in _MODALITIES.items():
            if kind in piece:
                counts[modality] = counts.get(modality, 0) + _PER_MEDIA[kind]
    if request.declarations:
        tools = [declared.model_dump(mode="json", exclude_none=True) for declared in request.declarations]
        text += count_tokens(json.dumps(tools, ensure_ascii=False))
    return [("TEXT", text), *counts.items()]
