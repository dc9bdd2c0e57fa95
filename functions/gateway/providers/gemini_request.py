"""A call in OpenAI's terms as a request of Gemini's generateContent.

Looked up in November 2026: https://ai.google.dev/api/generate-content and, of ai.google.dev/gemini-api/docs,
thinking, thought-signatures, function-calling, file-input-methods, media-resolution, openai and the guides
whats-new-gemini-3.6 and latest-model.

Nothing that a client said is lost: what the API can't be told is refused by its name. A parameter may be left
out where the call says so (`ProviderCall.dropped`); content never is. What an earlier answer said of itself
(its reasoning in plain words, its citations) is no content: Gemini goes on from its signatures alone.
"""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gateway.errors import Unprocessable
from gateway.providers.chat_request import object_field, read_data_url, refuse_unknown, tool_arguments
from gateway.providers.failures import refuse_parameter, unsupported_content

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gateway.providers.wire import InputImage, ProviderCall

    Part = dict[str, Any]
    Reader = Callable[[ProviderCall, dict[str, Any], str], Part | None]

FOREIGN_SIGNATURE = "skip_thought_signature_validator"
"""What Google documents for calls that Gemini did not make: from version 3 on, a call without any signature
is an error."""

_MODEL = re.compile(r"gemini-(\d{1,2})(?:\.(\d{1,2}))?(?:-([a-z]+(?:-lite)?))?")

# Fields that are translated below, and those that the gateway itself sees to.
_TRANSLATED = frozenset(
    {
        "messages",
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
        "presence_penalty",
        "frequency_penalty",
        "logprobs",
        "top_logprobs",
        "modalities",
        "image_config",
        "safety_settings",
        "extra_body",
    }
)
_SEEN_TO = frozenset({"model", "models", "max_tokens", "max_completion_tokens", "stream", "stream_options"})
# What asks for nothing that would not be so anyway.
_WITHOUT_EFFECT: Mapping[str, tuple[Any, ...]] = {
    "route": ("fallback",),
    "logit_bias": ({},),
    "parallel_tool_calls": (True,),
    "service_tier": ("auto", "default"),
    "store": (False,),
}

# Google's own table for its OpenAI endpoint: levels from version 3 on, budgets of tokens before.
_LEVELS = {"minimal": "MINIMAL", "low": "LOW", "medium": "MEDIUM", "high": "HIGH"}
_BUDGETS = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24576}
_THINKING_FIELDS = {
    "thinking_budget": "thinkingBudget",
    "thinking_level": "thinkingLevel",
    "include_thoughts": "includeThoughts",
}
# 1 is OpenAI's default for the first two, and 0 for the last: they need not be said where nothing can be.
_SAMPLING: Mapping[str, tuple[str, int]] = {
    "temperature": ("temperature", 1),
    "top_p": ("topP", 1),
    "top_k": ("topK", 0),
}
# Nothing is asked by zero, and models that know none of these refuse them at all.
_UNLESS_ZERO = {
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
    "n": "candidateCount",
    "logprobs": "responseLogprobs",
    "top_logprobs": "logprobs",
}
_IMAGE_FIELDS = {"aspect_ratio": "aspectRatio", "image_size": "imageSize"}
_MODALITIES = {"text": "TEXT", "image": "IMAGE"}

_MESSAGE_FIELDS = frozenset(
    {
        "role",
        "content",
        "name",
        "tool_calls",
        "tool_call_id",
        "refusal",
        "is_error",
        "images",
        "extra_content",
    }
)
# Said of an assistant's message, and not told to the model again.
_ASIDES = frozenset({"reasoning", "reasoning_content", "reasoning_details", "citations", "annotations"})
_FUNCTION_FIELDS = frozenset({"name", "description", "parameters", "strict"})
_FILE_FIELDS = frozenset({"file_data", "filename"})

_DETAILS = {
    "low": "MEDIA_RESOLUTION_LOW",
    "medium": "MEDIA_RESOLUTION_MEDIUM",
    "high": "MEDIA_RESOLUTION_HIGH",
}
_AUDIO_TYPES = {
    "wav": "audio/wav",
    "mp3": "audio/mp3",
    "aiff": "audio/aiff",
    "aac": "audio/aac",
    "ogg": "audio/ogg",
    "flac": "audio/flac",
    "m4a": "audio/m4a",
    "webm": "audio/webm",
}
# By the ending of a URL's path: the API asks for the type of what it is to fetch.
_ENDINGS = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "heic": "image/heic",
    "heif": "image/heif",
    "pdf": "application/pdf",
    "txt": "text/plain",
    "md": "text/markdown",
    "csv": "text/csv",
    "html": "text/html",
    "xml": "text/xml",
    "json": "application/json",
    "mp4": "video/mp4",
    "mov": "video/quicktime",
    "mpeg": "video/mpeg",
    "mpg": "video/mpeg",
    "webm": "video/webm",
    "wav": "audio/wav",
    "mp3": "audio/mp3",
    "aac": "audio/aac",
    "ogg": "audio/ogg",
    "flac": "audio/flac",
}
_MEDIA_TYPE = re.compile(r"[a-z]+/[a-z0-9][a-z0-9.+-]{0,100}")
# What Google keeps for the account whose key is used, which is the gateway's: no customer's to name.
_ACCOUNT_HOSTS = "googleapis.com"
_OPEN_HOSTS = frozenset({"storage.googleapis.com"})


def build_body(call: ProviderCall) -> dict[str, Any]:
    """Return the body of generateContent. Raises Unprocessable (422), naming what can't be said."""
    for name, value in call.body.items():
        known = name in _TRANSLATED or name in _SEEN_TO
        if not known and value is not None and value not in _WITHOUT_EFFECT.get(name, ()):
            refuse_parameter(call, name)
    asked = {
        name: value
        for name, value in call.body.items()
        if name in _TRANSLATED and value is not None and name not in call.dropped
    }
    system, contents = _Conversation(call).read(asked.get("messages") or [])
    body: dict[str, Any] = {"contents": contents}
    if system:
        body["systemInstruction"] = {"parts": system}
    _add_tools(call, asked, body)
    if asked.get("safety_settings"):
        body["safetySettings"] = asked["safety_settings"]
    config: dict[str, Any] = {}
    if call.output_bound is not None:
        config["maxOutputTokens"] = call.output_bound
    _add_sampling(call, asked, config)
    _add_choices(asked, config)
    _add_form(call, asked, config)
    _add_thinking(call, asked, config)
    if config:
        body["generationConfig"] = config
    return body


# What each model takes


def _version(model: str) -> tuple[int, int, str] | None:
    """Return a model's version and line, such as (3, 5, "flash-lite"); None where its name does not tell."""
    found = _MODEL.search(model.lower())
    return (int(found[1]), int(found[2] or 0), found[3] or "") if found else None


def _at_least(model: str, major: int, minor: int = 0) -> bool:
    """Whether a model is of this version or later. One whose name does not tell is taken for a new one."""
    version = _version(model)
    return version is None or version[:2] >= (major, minor)


def _samples(model: str) -> bool:
    """Whether temperature, top_p and top_k have an effect: from 3.6 on, and in 3.5's Lite, they have none."""
    version = _version(model)
    return version is not None and version[:2] < (3, 6) and version != (3, 5, "flash-lite")


def _thinks_minimally(model: str) -> bool:
    """Whether a model knows the level MINIMAL: Flash and Flash-Lite up to 3.6 do, the others refuse it."""
    version = _version(model)
    return version is not None and version[:2] <= (3, 6) and version[2].startswith("flash")


def _makes_images(model: str) -> bool:
    return "image" in model.lower() or "banana" in model.lower()


# Parameters


def _add_sampling(call: ProviderCall, asked: Mapping[str, Any], config: dict[str, Any]) -> None:
    for name, (key, default) in _SAMPLING.items():
        value = asked.get(name)
        if value is None:
            continue
        if _samples(call.model):
            if name != "top_k" or value != default:
                config[key] = value
        elif value != default:
            refuse_parameter(call, name, f"the model {call.model} takes no sampling parameters")
    stop = asked.get("stop")
    if stop:
        config["stopSequences"] = [stop] if isinstance(stop, str) else stop
    if asked.get("seed") is not None:
        config["seed"] = asked["seed"]


def _add_choices(asked: Mapping[str, Any], config: dict[str, Any]) -> None:
    """Add how many answers are wanted, how they may repeat themselves and what is to be told of them."""
    config |= {key: asked[name] for name, key in _UNLESS_ZERO.items() if asked.get(name)}
    if config.get("candidateCount") == 1:
        del config["candidateCount"]
    if "logprobs" in config and "responseLogprobs" not in config:
        raise Unprocessable("top_logprobs needs logprobs.", param="top_logprobs")


def _add_form(call: ProviderCall, asked: Mapping[str, Any], config: dict[str, Any]) -> None:
    """Add in which form to answer."""
    form = object_field(asked, "response_format")
    kind = form.get("type")
    if kind == "json_schema":
        config["responseMimeType"] = "application/json"
        config["responseJsonSchema"] = _schema(form)
    elif kind == "json_object":
        config["responseMimeType"] = "application/json"
    elif form and kind != "text":
        refuse_parameter(call, "response_format", "it knows text, json_object and json_schema")
    modalities = asked.get("modalities")
    if modalities is None:
        # Models that make images make them unasked, and nothing would be held for their price.
        modalities = ["text"] if _makes_images(call.model) else []
    if not isinstance(modalities, list) or not all(isinstance(name, str) for name in modalities):
        raise Unprocessable("modalities must be an array of strings.", param="modalities")
    if any(name not in _MODALITIES for name in modalities):
        refuse_parameter(call, "modalities", f"it knows {' and '.join(_MODALITIES)}")
    elif modalities and (modalities != ["text"] or _makes_images(call.model)):
        config["responseModalities"] = [_MODALITIES[name] for name in modalities]
    image = object_field(asked, "image_config")
    refuse_unknown(call, image, _IMAGE_FIELDS, "image_config")
    shape = {key: image[name] for name, key in _IMAGE_FIELDS.items() if image.get(name) is not None}
    if shape:
        config["imageConfig"] = shape


def _schema(form: Mapping[str, Any]) -> Mapping[str, Any]:
    given = form.get("json_schema")
    schema = given.get("schema") if isinstance(given, dict) else None
    if not isinstance(schema, dict):
        raise Unprocessable(
            "json_schema needs a schema: an object.", param="response_format.json_schema.schema"
        )
    if isinstance(given, dict) and isinstance(given.get("description"), str):
        # OpenAI tells the model; here the schema is the one place for it.
        return {"description": given["description"], **schema}
    return schema


def _add_thinking(call: ProviderCall, asked: Mapping[str, Any], config: dict[str, Any]) -> None:
    """Add how much to think: `reasoning_effort`, or Google's own object as its OpenAI endpoint takes it."""
    extra = object_field(asked, "extra_body")
    refuse_unknown(call, extra, {"google"}, "extra_body")
    google = extra.get("google")
    if google is not None and not isinstance(google, dict):
        raise Unprocessable("extra_body.google must be an object.", param="extra_body.google")
    # Among them cached_content: caches are kept for the account, which is the gateway's.
    refuse_unknown(call, google or {}, {"thinking_config"}, "extra_body.google")
    thinking = object_field(google or {}, "thinking_config")
    refuse_unknown(call, thinking, _THINKING_FIELDS, "extra_body.google.thinking_config")
    told = {key: thinking[name] for name, key in _THINKING_FIELDS.items() if thinking.get(name) is not None}
    effort = asked.get("reasoning_effort")
    if effort is not None and told.keys() - {"includeThoughts"}:
        raise Unprocessable(
            "reasoning_effort and thinking_config say different things.", param="reasoning_effort"
        )
    if effort is not None:
        told = {**_effort(call, effort), **told}
    if told:
        config["thinkingConfig"] = told


def _effort(call: ProviderCall, effort: Any) -> dict[str, Any]:
    known = _LEVELS if _at_least(call.model, 3) else _BUDGETS
    if not isinstance(effort, str) or effort not in known:
        if effort == "none":
            reason = f"the model {call.model} always thinks"
        else:
            reason = f"the model {call.model} knows {', '.join(known)}"
        refuse_parameter(call, "reasoning_effort", reason)
        return {}
    if known is _LEVELS:
        # Where there is no MINIMAL, LOW is the least.
        least = effort == "minimal" and not _thinks_minimally(call.model)
        return {"thinkingLevel": "LOW" if least else _LEVELS[effort], "includeThoughts": True}
    version = _version(call.model)
    if effort == "none" and version is not None and version[2] == "pro":
        refuse_parameter(call, "reasoning_effort", f"the model {call.model} always thinks")
        return {}
    if effort == "none":
        return {"thinkingBudget": 0}
    return {"thinkingBudget": _BUDGETS[effort], "includeThoughts": True}


def _add_tools(call: ProviderCall, asked: Mapping[str, Any], body: dict[str, Any]) -> None:
    declared = [
        _function(call, tool, f"tools.{index}") for index, tool in enumerate(asked.get("tools") or [])
    ]
    if declared:
        body["tools"] = [{"functionDeclarations": declared}]
    strict = any((tool.get("function") or {}).get("strict") for tool in asked.get("tools") or [])
    choice = _tool_choice(call, asked.get("tool_choice"), strict=strict)
    if choice and (declared or choice["mode"] not in {"AUTO", "NONE"}):
        # Without functions those two say what is so anyway.
        body["toolConfig"] = {"functionCallingConfig": choice}


def _function(call: ProviderCall, tool: Any, path: str) -> dict[str, Any]:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        # Google's own tools that run there (search, code) cost what no price of ours covers.
        raise unsupported_content(call, f"{path}.type", "tools other than functions")
    function = tool.get("function") or {}
    refuse_unknown(call, tool, {"type", "function"}, path)
    refuse_unknown(call, function, _FUNCTION_FIELDS, f"{path}.function")
    built: dict[str, Any] = {"name": function.get("name")}
    if function.get("description") is not None:
        built["description"] = function["description"]
    if function.get("parameters"):
        built["parametersJsonSchema"] = function["parameters"]
    return built


def _tool_choice(call: ProviderCall, choice: Any, *, strict: bool) -> dict[str, Any] | None:
    # VALIDATED is AUTO with arguments held to their schema, which ANY does by itself.
    auto = "VALIDATED" if strict else "AUTO"
    if choice is None:
        return {"mode": auto} if strict else None
    simple = {"auto": auto, "none": "NONE", "required": "ANY"}
    if isinstance(choice, str) and choice in simple:
        return {"mode": simple[choice]}
    if isinstance(choice, dict):
        name = _function_name(choice)
        if name is not None:
            return {"mode": "ANY", "allowedFunctionNames": [name]}
        allowed = choice.get("allowed_tools") if choice.get("type") == "allowed_tools" else None
        tools = allowed.get("tools") if isinstance(allowed, dict) else None
        if isinstance(allowed, dict) and isinstance(tools, list) and tools:
            names = [_function_name(tool) for tool in tools]
            if None not in names and allowed.get("mode") in {"auto", "required"}:
                mode = "ANY" if allowed["mode"] == "required" else "VALIDATED"
                return {"mode": mode, "allowedFunctionNames": names}
    refuse_parameter(call, "tool_choice", "it knows auto, none, required and functions by name")
    return None


def _function_name(tool: Any) -> str | None:
    function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


# Messages


class _Conversation:
    """OpenAI's messages as a system instruction and turns of user and model.

    Messages of one side in a row become one turn. Results of functions make a turn of their own, since the
    API counts them against the calls of the turn before.
    """

    def __init__(self, call: ProviderCall) -> None:
        self._call = call
        self._signs = _at_least(call.model, 3)
        self._system: list[Part] = []
        self._turns: list[dict[str, Any]] = []
        self._last = ""
        """The role of the message that the last turn was made of."""
        self._called: dict[str, str] = {}
        """Name of the function by the id of its call."""

    def read(self, messages: list[dict[str, Any]]) -> tuple[list[Part], list[dict[str, Any]]]:
        readers: Mapping[str, Callable[[dict[str, Any], str], None]] = {
            "system": self._read_system,
            "developer": self._read_system,
            "user": self._read_user,
            "assistant": self._read_assistant,
            "tool": self._read_tool,
        }
        for index, message in enumerate(messages):
            path = f"messages.{index}"
            role = str(message.get("role"))
            if role not in readers:
                raise unsupported_content(self._call, f"{path}.role", f"messages of role {role!r}")
            asides = _ASIDES if role == "assistant" else frozenset[str]()
            for name, value in message.items():
                if name == "cache_control" and value:
                    refuse_parameter(self._call, f"{path}.{name}", "it caches by itself")
                elif value and name not in _MESSAGE_FIELDS and name not in asides:
                    raise unsupported_content(self._call, f"{path}.{name}", f"{name} in a message")
            if role != "tool" and message.get("name"):
                refuse_parameter(self._call, f"{path}.name", "it knows no names of participants")
            readers[role](message, path)
        return self._system, self._turns

    def _read_system(self, message: dict[str, Any], path: str) -> None:
        self._system += self._parts(message.get("content"), path, {"text": _text})

    def _read_user(self, message: dict[str, Any], path: str) -> None:
        self._add("user", self._parts(message.get("content"), path, _USER_PARTS), source="user")

    def _read_tool(self, message: dict[str, Any], path: str) -> None:
        call_id = message.get("tool_call_id") or ""
        name = self._called.get(call_id) or message.get("name")
        if not name:
            raise Unprocessable(
                "A tool's result needs the call that it answers, in a message before it.",
                param=f"{path}.tool_call_id",
            )
        content = message.get("content")
        parts = self._parts(content, path, _RESULT_PARTS) if isinstance(content, list) else []
        texts = [part["text"] for part in parts if "text" in part]
        said: Any = texts if len(texts) > 1 else "".join(texts)
        response: Part = {
            "id": call_id,
            "name": name,
            "response": {
                "error" if message.get("is_error") else "output": content
                if isinstance(content, str)
                else said
            },
        }
        media = [part for part in parts if "text" not in part]
        if media:
            response["parts"] = media
        self._add("user", [{"functionResponse": response}], source="tool")

    def _read_assistant(self, message: dict[str, Any], path: str) -> None:
        parts = self._parts(message.get("content"), path, _ASSISTANT_PARTS)
        if message.get("refusal"):
            parts.append({"text": message["refusal"]})
        signature = _signature(message)
        if signature is not None:
            # It closes the text; one that came after all text, by itself.
            signed = next((part for part in reversed(parts) if "text" in part), None)
            if signed is None:
                parts.append(signed := {"text": ""})
            signed["thoughtSignature"] = signature
        images = message.get("images") or []
        for index, image in enumerate(images if isinstance(images, list) else [images]):
            where = f"{path}.images.{index}"
            if not isinstance(image, dict) or not isinstance(image.get("image_url"), dict):
                raise Unprocessable("An image needs an image_url.", param=where)
            part = _image(self._call, image, where)
            parts.append(_signed(part, _signature(image)))
        calls = [
            self._function_call(tool_call, f"{path}.tool_calls.{index}")
            for index, tool_call in enumerate(message.get("tool_calls") or [])
        ]
        if calls and self._signs and not any("thoughtSignature" in part for part in calls):
            calls[0]["thoughtSignature"] = FOREIGN_SIGNATURE
        self._add("model", parts + calls, source="model")

    def _function_call(self, tool_call: dict[str, Any], path: str) -> Part:
        function = tool_call.get("function")
        if tool_call.get("type", "function") != "function" or not isinstance(function, dict):
            raise unsupported_content(self._call, f"{path}.type", "calls of tools other than functions")
        refuse_unknown(self._call, tool_call, {"id", "type", "index", "function", "extra_content"}, path)
        refuse_unknown(self._call, function, {"name", "arguments"}, f"{path}.function")
        call_id = tool_call.get("id")
        if not call_id:
            raise Unprocessable("A tool call needs an id, by which its result is found.", param=f"{path}.id")
        self._called[call_id] = function["name"]
        called = {
            "id": call_id,
            "name": function["name"],
            "args": tool_arguments(function.get("arguments"), f"{path}.function.arguments"),
        }
        return _signed({"functionCall": called}, _signature(tool_call))

    def _parts(self, content: Any, path: str, readers: Mapping[str, Reader]) -> list[Part]:
        """Return the parts of a message's content. Empty texts say nothing, and the API takes none."""
        if content is None or content == "":
            return []
        if isinstance(content, str):
            return [{"text": content}]
        parts = []
        for index, given in enumerate(content):
            where = f"{path}.content.{index}"
            kind = str(given.get("type"))
            reader = readers.get(kind)
            if reader is None:
                raise unsupported_content(self._call, where, f"content of type {kind!r} here")
            refuse_unknown(self._call, given, {"type", kind}, where)
            part = reader(self._call, given, where)
            if part is not None:
                parts.append(part)
        return parts

    def _add(self, role: str, parts: list[Part], *, source: str) -> None:
        if not parts:
            return
        if self._turns and self._last == source:
            self._turns[-1]["parts"] += parts
        else:
            self._turns.append({"role": role, "parts": parts})
        self._last = source


def _signature(source: Mapping[str, Any]) -> str | None:
    """Return the signature in `extra_content`, where Google's own OpenAI endpoint has it."""
    extra = source.get("extra_content")
    google = extra.get("google") if isinstance(extra, dict) else None
    signature = google.get("thought_signature") if isinstance(google, dict) else None
    return signature if isinstance(signature, str) and signature else None


def _signed(part: Part, signature: str | None) -> Part:
    return part if signature is None else {**part, "thoughtSignature": signature}


# Content parts


def _text(_call: ProviderCall, part: dict[str, Any], _path: str) -> Part | None:
    return {"text": part["text"]} if part["text"] else None


def _refusal(_call: ProviderCall, part: dict[str, Any], _path: str) -> Part | None:
    return {"text": part["refusal"]} if part["refusal"] else None


def _image(call: ProviderCall, part: dict[str, Any], path: str) -> Part:
    image = part["image_url"]
    where = f"{path}.image_url"
    refuse_unknown(call, image, {"url", "detail"}, where)
    read = _media(call, image.get("url"), f"{where}.url")
    detail = image.get("detail")
    if detail in {None, "auto"}:
        return read
    if detail not in _DETAILS or not _at_least(call.model, 3):
        refuse_parameter(call, f"{where}.detail", f"the model {call.model} chooses an image's detail itself")
        return read
    return {**read, "mediaResolution": {"level": _DETAILS[detail]}}


def _audio(call: ProviderCall, part: dict[str, Any], path: str) -> Part:
    audio = part["input_audio"]
    where = f"{path}.input_audio"
    refuse_unknown(call, audio, {"data", "format"}, where)
    media_type = _AUDIO_TYPES.get(str(audio["format"]).lower())
    if media_type is None:
        raise unsupported_content(call, f"{where}.format", f"audio as {str(audio['format'])[:32]!r}")
    return _inline(media_type, audio["data"])


def _video(call: ProviderCall, part: dict[str, Any], path: str) -> Part:
    video = part.get("video_url")
    where = f"{path}.video_url"
    if not isinstance(video, dict):
        raise Unprocessable("A video_url part needs an object with a url.", param=where)
    refuse_unknown(call, video, {"url"}, where)
    return _media(call, video.get("url"), f"{where}.url")


def _file(call: ProviderCall, part: dict[str, Any], path: str) -> Part:
    file = part["file"]
    where = f"{path}.file"
    if file.get("file_id"):
        raise unsupported_content(call, f"{where}.file_id", "files that were uploaded elsewhere")
    refuse_unknown(call, file, _FILE_FIELDS, where)
    read = _media(call, file.get("file_data"), f"{where}.file_data", name=file.get("filename"))
    name = file.get("filename")
    return {**read, "partMetadata": {"filename": name}} if isinstance(name, str) and name else read


def _media(call: ProviderCall, url: Any, path: str, *, name: Any = None) -> Part:
    """Return a part for what a URL holds (data) or names (https), which Gemini then fetches itself."""
    if not isinstance(url, str):
        raise Unprocessable("Media need a URL: of data, or by https.", param=path)
    if url[:5].lower() != "data:":
        return named_media(call, url, path, name=name)
    media_type, data = read_data_url(call, url, path)
    media_type = "image/jpeg" if media_type == "image/jpg" else media_type or _type_by_ending(name) or ""
    if not _MEDIA_TYPE.fullmatch(media_type):
        raise unsupported_content(call, path, "media that do not say their type")
    return _inline(media_type, data)


def named_media(call: ProviderCall, url: str, path: str, *, name: Any = None) -> Part:
    """Return a part for media that Gemini fetches: what is public by https, YouTube's videos among it.

    Files that Google keeps for an account are refused: the account is the gateway's, and who holds a name of
    such a file would read it with the gateway's key.
    """
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".") if parts.scheme == "https" else ""
    except ValueError:
        parts, host = urlsplit(""), ""
    if not host:
        raise unsupported_content(call, path, "media other than by https URL or data URL")
    account = host == _ACCOUNT_HOSTS or host.endswith(f".{_ACCOUNT_HOSTS}")
    if (account and host not in _OPEN_HOSTS) or host == urlsplit(call.base_url).hostname:
        raise unsupported_content(call, path, "files kept in the gateway's account there")
    media_type = _type_by_ending(parts.path) or _type_by_ending(name)
    kind = {"mimeType": media_type} if media_type else {}
    return {"fileData": {**kind, "fileUri": url}}


def image_part(call: ProviderCall, image: InputImage) -> Part:
    """Return a part for an image that is to be edited."""
    if image.url is not None:
        return _media(call, image.url, image.param)
    media_type = image.media_type or ""
    return _inline(
        "image/jpeg" if media_type == "image/jpg" else media_type,
        base64.b64encode(image.content or b"").decode("ascii"),
    )


def _inline(media_type: str, data: str) -> Part:
    return {"inlineData": {"mimeType": media_type, "data": data}}


def _type_by_ending(name: Any) -> str | None:
    return _ENDINGS.get(name.rpartition(".")[2].lower()) if isinstance(name, str) else None


_USER_PARTS: Mapping[str, Reader] = {
    "text": _text,
    "image_url": _image,
    "input_audio": _audio,
    "video_url": _video,
    "file": _file,
}


def _within_result(read: Reader) -> Reader:
    """Return a reader of media in a function's result: of their data alone, with their name beside it."""

    def read_within(call: ProviderCall, part: dict[str, Any], path: str) -> Part | None:
        medium = read(call, part, path)
        if medium is None or "text" in medium:
            return medium
        if "inlineData" not in medium:
            raise unsupported_content(call, path, "media by their URL in a tool's result")
        if "mediaResolution" in medium:
            refuse_parameter(call, f"{path}.image_url.detail", "an image in a tool's result has none")
        name = medium.get("partMetadata", {}).get("filename")
        return {"inlineData": {**medium["inlineData"], **({"displayName": name} if name else {})}}

    return read_within


_RESULT_PARTS: Mapping[str, Reader] = {kind: _within_result(read) for kind, read in _USER_PARTS.items()}
_ASSISTANT_PARTS: Mapping[str, Reader] = {"text": _text, "refusal": _refusal}
