"""A call in OpenAI's terms as a request of Anthropic's Messages API.

Looked up in November 2026: https://platform.claude.com/docs/en/api/messages/create and, for what each model
takes, …/docs/en/build-with-claude/thinking-troubleshooting, …/effort and …/working-with-messages, and
…/docs/en/models/{opus,sonnet,haiku}-5-5/.

Nothing that a client said is lost: what the API can't be told is refused by its name. A parameter may be left
out where the call says so (`ProviderCall.dropped`); content never is. Two things stay behind because they are
no content: reasoning that Anthropic did not sign, which it does not take back, and citations, which say where
an earlier answer came from.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import TYPE_CHECKING, Any

from gateway.errors import Unprocessable
from gateway.providers.chat_request import object_field, read_data_url, refuse_unknown, tool_arguments
from gateway.providers.failures import refuse_parameter, unsupported_content

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gateway.providers.wire import ProviderCall

    Block = dict[str, Any]
    Reader = Callable[[ProviderCall, dict[str, Any], str], Block | None]

MIN_THINKING_TOKENS = 1024
"""The API's least budget for thinking, and so what max_tokens has to exceed where a budget is needed."""
REASONING_FORMAT = "anthropic-claude-v1"
"""OpenRouter's name for reasoning_details that hold Anthropic's signatures."""

_IMAGE_TYPES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
_TOOL_ID = re.compile(r"[A-Za-z0-9_-]{1,256}")
_MODEL = re.compile(r"claude-(?:([a-z]+)-)?(\d{1,2})(?:[.-](\d{1,2}))?(?:-([a-z]+))?(?![0-9])")

# Fields that are translated below, and those that the gateway itself sees to.
_TRANSLATED = frozenset(
    {
        "messages",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "response_format",
        "reasoning_effort",
        "temperature",
        "top_p",
        "top_k",
        "stop",
        "user",
        "safety_identifier",
        "metadata",
        "service_tier",
        "thinking",
        "output_config",
        "cache_control",
    }
)
_CONTENT = frozenset({"messages", "tools"})
_SEEN_TO = frozenset({"model", "models", "max_tokens", "max_completion_tokens", "stream", "stream_options"})
# What asks for nothing that would not be so anyway.
_WITHOUT_EFFECT: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "route": ("fallback",),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "store": (False,),
    "modalities": (["text"],),
}

_EFFORTS = {
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "xhigh",
    "max": "max",
}
# Of max_tokens, for models that think by a budget.
_BUDGET_PERCENT = {"minimal": 10, "low": 20, "medium": 50, "high": 80, "xhigh": 95, "max": 95}
_SERVICE_TIERS = {"auto": "auto", "default": "standard_only", "standard_only": "standard_only"}

# Where a JSON schema holds others.
_NAMED_SCHEMAS = frozenset({"properties", "$defs", "definitions"})
_SCHEMA_LISTS = frozenset({"anyOf", "oneOf", "prefixItems"})

_MESSAGE_FIELDS = frozenset(
    {"role", "content", "name", "tool_calls", "tool_call_id", "refusal", "cache_control", "is_error"}
)
# Said of an assistant's message, and not told to the model again.
_ASIDES = frozenset(
    {"reasoning", "reasoning_content", "reasoning_details", "extra_content", "citations", "annotations"}
)
_PART_FIELDS: Mapping[str, frozenset[str]] = {
    "text": frozenset({"text"}),
    "refusal": frozenset({"refusal"}),
    "image_url": frozenset({"image_url"}),
    "file": frozenset({"file"}),
    "thinking": frozenset({"thinking", "signature"}),
    "redacted_thinking": frozenset({"data"}),
}
_FILE_FIELDS = frozenset({"file_data", "filename", "title", "context", "citations"})
# `extra_content` is where Gemini signs what it thought.
_CALL_FIELDS = frozenset({"id", "type", "index", "function", "cache_control", "extra_content"})
_FUNCTION_FIELDS = frozenset({"name", "description", "parameters", "strict"})
# Anthropic's own, where a client writes them beside OpenAI's.
_TOOL_EXTRAS = ("cache_control", "eager_input_streaming", "input_examples")


def build_body(call: ProviderCall) -> dict[str, Any]:
    """Return the body of POST /v1/messages. Raises Unprocessable (422), naming what can't be said."""
    if call.output_bound is None:
        raise Unprocessable(
            f"{call.provider.title} needs a bound on the output. Set max_tokens.", param="max_tokens"
        )
    for name, value in call.body.items():
        known = name in _TRANSLATED or name in _SEEN_TO
        if not known and value is not None and value not in _WITHOUT_EFFECT.get(name, ()):
            refuse_parameter(call, name)
    asked = {
        name: value
        for name, value in call.body.items()
        if name in _TRANSLATED and value is not None and (name in _CONTENT or name not in call.dropped)
    }
    system, messages = _Conversation(call).read(asked.get("messages") or [])
    body: dict[str, Any] = {"model": call.model, "max_tokens": call.output_bound, "messages": messages}
    if system:
        body["system"] = system
    if call.stream:
        body["stream"] = True
    if asked.get("cache_control"):
        body["cache_control"] = asked["cache_control"]
    _add_sampling(call, asked, body)
    _add_tools(call, asked, body)
    _add_output(call, asked, body)
    _add_account(call, asked, body)
    return body


# What each model takes


def _version(model: str) -> tuple[str, int, int] | None:
    """Return a model's line and version, such as ("opus", 4, 8); None where its name does not tell."""
    found = _MODEL.search(model.lower())
    if found is None:
        return None
    before, major, minor, after = found.groups()
    return before or after or "", int(major), int(minor or 0)


def _at_least(model: str, major: int, minor: int) -> bool:
    """Whether a model is of this version or later. One whose name does not tell is taken for a new one."""
    version = _version(model)
    return version is None or version[1:] >= (major, minor)


def _samples(model: str) -> bool:
    """Whether temperature, top_p and top_k may be set: 4.7 and later refuse all but their defaults."""
    return _version(model) is None or not _at_least(model, 4, 7)


def _unthinking(model: str) -> Block | None:
    """Return how a model is told not to think; None where it always does."""
    match _version(model):
        case ("fable" | "mythos", _, _):
            return None
        case ("opus", major, minor) if (major, minor) >= (5, 5):
            return None
        case ("sonnet", major, minor) if (major, minor) >= (5, 5):
            return {"type": "between_tools"}
    return {"type": "disabled"}


def _calls_when_told(model: str) -> bool:
    """Whether a model takes a choice of tools that makes it call one."""
    match _version(model):
        case ("fable" | "mythos", major, minor):
            return (major, minor) < (5, 1)
        case ("opus" | "sonnet", major, minor):
            return (major, minor) < (5, 5)
    return True


# Parameters


def _add_sampling(call: ProviderCall, asked: Mapping[str, Any], body: dict[str, Any]) -> None:
    # 1 is their default, which every model takes: it is left out, as 0 is for top_k.
    for name, default in (("temperature", 1), ("top_p", 1), ("top_k", 0)):
        value = asked.get(name)
        if value is None or value == default:
            continue
        if not _samples(call.model):
            refuse_parameter(call, name, f"the model {call.model} takes no sampling parameters")
        elif name == "temperature" and isinstance(value, int | float) and value > 1:
            refuse_parameter(call, name, "its temperatures end at 1")
        else:
            body[name] = value
    stop = asked.get("stop")
    if stop:
        body["stop_sequences"] = [stop] if isinstance(stop, str) else stop


def _add_tools(call: ProviderCall, asked: Mapping[str, Any], body: dict[str, Any]) -> None:
    tools = [_tool(call, tool, f"tools.{index}") for index, tool in enumerate(asked.get("tools") or [])]
    if tools:
        body["tools"] = tools
    choice = _tool_choice(call, asked.get("tool_choice"), with_tools=bool(tools))
    if asked.get("parallel_tool_calls") is False and tools:
        choice = choice or {"type": "auto"}
        if choice["type"] != "none":
            choice["disable_parallel_tool_use"] = True
    if choice:
        body["tool_choice"] = choice


def _tool(call: ProviderCall, tool: Any, path: str) -> Block:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        # Its own tools that run at the provider's (web search, code) cost what no price of ours covers.
        raise unsupported_content(call, f"{path}.type", "tools other than functions")
    function = tool.get("function") or {}
    refuse_unknown(call, tool, {"type", "function", *_TOOL_EXTRAS}, path)
    refuse_unknown(call, function, _FUNCTION_FIELDS, f"{path}.function")
    # A function's arguments are an object; the API wants that said.
    built: Block = {
        "name": function.get("name"),
        "input_schema": {"type": "object", **(function.get("parameters") or {})},
    }
    for name in ("description", "strict"):
        if function.get(name) is not None:
            built[name] = function[name]
    if function.get("strict"):
        built["input_schema"] = _closed({"properties": {}, **built["input_schema"]})
    return {**built, **{name: tool[name] for name in _TOOL_EXTRAS if tool.get(name) is not None}}


def _tool_choice(call: ProviderCall, choice: Any, *, with_tools: bool) -> Block | None:
    if choice is None or choice in ("auto", "none"):
        # Without tools both say what is so anyway, and the API refuses them.
        return {"type": choice} if choice and with_tools else None
    function = (
        choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    )
    name = function.get("name") if isinstance(function, dict) else None
    if choice != "required" and not isinstance(name, str):
        refuse_parameter(call, "tool_choice", "it knows auto, none, required and a named function")
        return None
    if not _calls_when_told(call.model):
        refuse_parameter(call, "tool_choice", f"the model {call.model} can't be made to call a tool")
        return None
    return {"type": "any"} if choice == "required" else {"type": "tool", "name": name}


def _add_output(call: ProviderCall, asked: Mapping[str, Any], body: dict[str, Any]) -> None:
    """Add how much to think and in which form to answer."""
    config = dict(object_field(asked, "output_config"))
    thinking = object_field(asked, "thinking")
    if thinking:
        body["thinking"] = thinking
    effort = asked.get("reasoning_effort")
    if effort is not None:
        _add_effort(call, effort, body, config)
    form = object_field(asked, "response_format")
    if form and form.get("type") != "text":
        schema = _schema(form)
        if schema is None:
            refuse_parameter(call, "response_format", "it answers in JSON by a schema alone (json_schema)")
        elif config.get("format", schema) != schema:
            raise Unprocessable(
                "response_format and output_config.format say different things.", param="response_format"
            )
        else:
            config["format"] = {**schema, "schema": _closed(schema["schema"])}
    if config:
        body["output_config"] = config


def _add_effort(call: ProviderCall, effort: Any, body: dict[str, Any], config: dict[str, Any]) -> None:
    """Say `reasoning_effort` as the model takes it: adaptive thinking, or a budget before version 4.6.

    Beside a `thinking` of the client's own it is the effort alone.
    """
    if effort == "none":
        unthinking = _unthinking(call.model)
        if unthinking is None:
            refuse_parameter(call, "reasoning_effort", f"the model {call.model} always thinks")
        else:
            body.setdefault("thinking", unthinking)
        return
    if not isinstance(effort, str) or effort not in _EFFORTS:
        refuse_parameter(call, "reasoning_effort", f"it knows none, {', '.join(_EFFORTS)}")
        return
    if _at_least(call.model, 4, 6):
        # Newer models leave out what they thought unless they are asked for it.
        body.setdefault("thinking", {"type": "adaptive", "display": "summarized"})
        config.setdefault("effort", _EFFORTS[effort])
        return
    if "thinking" in body:
        refuse_parameter(call, "reasoning_effort", f"the model {call.model} thinks by a budget, which is set")
        return
    bound = body["max_tokens"]
    if not _at_least(call.model, 3, 7):
        refuse_parameter(call, "reasoning_effort", f"the model {call.model} does not think")
        return
    if bound <= MIN_THINKING_TOKENS:
        refuse_parameter(
            call,
            "reasoning_effort",
            f"to think, {call.model} needs more than {MIN_THINKING_TOKENS} max_tokens",
        )
        return
    budget = max(bound * _BUDGET_PERCENT[effort] // 100, MIN_THINKING_TOKENS)
    body["thinking"] = {"type": "enabled", "budget_tokens": min(budget, bound - 1)}


def _schema(form: Mapping[str, Any]) -> Block | None:
    """Return the output format that a response_format asks for; None where there is no schema in it."""
    given = form.get("json_schema")
    if form.get("type") != "json_schema" or not isinstance(given, dict):
        return None
    schema = given.get("schema")
    if not isinstance(schema, dict):
        return None
    if isinstance(given.get("description"), str):
        # OpenAI tells the model; here the schema is the one place for it.
        schema = {"description": given["description"], **schema}
    return {"type": "json_schema", "schema": schema}


def _closed(schema: Any) -> Any:
    """Return a schema whose objects are closed where it does not say: the API takes no others.

    What fits the closed one fits the open one, too. Of `allOf` that does not hold: it stays as it is, and so
    does an object that names no properties, of which nothing would be left.
    """
    if not isinstance(schema, dict):
        return schema
    closed = {**schema}
    for name, value in schema.items():
        if name in _NAMED_SCHEMAS and isinstance(value, dict):
            closed[name] = {key: _closed(entry) for key, entry in value.items()}
        elif name in _SCHEMA_LISTS and isinstance(value, list):
            closed[name] = [_closed(entry) for entry in value]
        elif name == "items":
            closed[name] = _closed(value)
    kind = schema.get("type")
    if "properties" in schema and (kind == "object" or (isinstance(kind, list) and "object" in kind)):
        closed.setdefault("additionalProperties", False)
    return closed


def _add_account(call: ProviderCall, asked: Mapping[str, Any], body: dict[str, Any]) -> None:
    """Add whose request it is, and at which tier."""
    metadata = object_field(asked, "metadata")
    if metadata.keys() - {"user_id"}:
        refuse_parameter(call, "metadata", "it keeps no metadata but user_id")
    said: dict[str, Any] = {
        "metadata": metadata.get("user_id"),
        "safety_identifier": asked.get("safety_identifier"),
        "user": asked.get("user"),
    }
    user: Any = None
    for name, value in said.items():
        if value is None or value == user:
            continue
        if user is not None:
            refuse_parameter(call, name, "the user is named twice, differently")
            continue
        user = value
    if user is not None:
        body["metadata"] = {"user_id": user}
    tier = asked.get("service_tier")
    if tier is not None:
        if isinstance(tier, str) and tier in _SERVICE_TIERS:
            body["service_tier"] = _SERVICE_TIERS[tier]
        else:
            refuse_parameter(call, "service_tier", f"it knows {' and '.join(_SERVICE_TIERS)}")


# Messages


class _Conversation:
    """OpenAI's messages as a system prompt and turns.

    System and developer messages go into the system prompt, in their order: models before Opus 4.8 know no
    other place. Messages of one role in a row become one turn, and tool results are the user's.
    """

    def __init__(self, call: ProviderCall) -> None:
        self._call = call
        self._system: list[Block] = []
        self._turns: list[dict[str, Any]] = []
        self._called: dict[str, str] = {}
        """Name of the function by the id of its call."""

    def read(self, messages: list[dict[str, Any]]) -> tuple[list[Block], list[dict[str, Any]]]:
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
                if value and name not in _MESSAGE_FIELDS and name not in asides:
                    raise unsupported_content(self._call, f"{path}.{name}", f"{name} in a message")
            if role != "tool" and message.get("name"):
                refuse_parameter(self._call, f"{path}.name", "it knows no names of participants")
            readers[role](message, path)
        return self._system, self._turns

    def _read_system(self, message: dict[str, Any], path: str) -> None:
        blocks = self._blocks(message.get("content"), path, {"text": _text})
        self._system += _marked(saying(blocks), message)

    def _read_user(self, message: dict[str, Any], path: str) -> None:
        blocks = self._blocks(message.get("content"), path, _USER_PARTS)
        self._add("user", _marked(saying(blocks), message))

    def _read_tool(self, message: dict[str, Any], path: str) -> None:
        call_id = message.get("tool_call_id") or ""
        name = message.get("name")
        if name and name != self._called.get(call_id):
            refuse_parameter(self._call, f"{path}.name", "it knows a result by its call's id")
        result: Block = {"type": "tool_result", "tool_use_id": tool_id(call_id)}
        content = message.get("content")
        if isinstance(content, str):
            if content:
                result["content"] = content
        elif blocks := self._blocks(content, path, _USER_PARTS):
            result["content"] = blocks
        if message.get("is_error") is not None:
            result["is_error"] = bool(message["is_error"])
        self._add("user", _marked([result], message))

    def _read_assistant(self, message: dict[str, Any], path: str) -> None:
        blocks = self._blocks(message.get("content"), path, _ASSISTANT_PARTS)
        refusal = message.get("refusal")
        if refusal:
            if not isinstance(refusal, str):
                raise Unprocessable("A refusal is a text.", param=f"{path}.refusal")
            blocks.append({"type": "text", "text": refusal})
        for index, tool_call in enumerate(message.get("tool_calls") or []):
            blocks.append(self._tool_use(tool_call, f"{path}.tool_calls.{index}"))
        self._add("assistant", _marked(saying(_with_reasoning(blocks, message)), message))

    def _tool_use(self, tool_call: dict[str, Any], path: str) -> Block:
        function = tool_call.get("function")
        if tool_call.get("type", "function") != "function" or not isinstance(function, dict):
            raise unsupported_content(self._call, f"{path}.type", "calls of tools other than functions")
        refuse_unknown(self._call, tool_call, _CALL_FIELDS, path)
        refuse_unknown(self._call, function, {"name", "arguments"}, f"{path}.function")
        call_id = tool_call.get("id")
        if not call_id:
            raise Unprocessable("A tool call needs an id, by which its result is found.", param=f"{path}.id")
        self._called[call_id] = function["name"]
        block: Block = {
            "type": "tool_use",
            "id": tool_id(call_id),
            "name": function["name"],
            "input": tool_arguments(function.get("arguments"), f"{path}.function.arguments"),
        }
        return _marked([block], tool_call)[0]

    def _blocks(self, content: Any, path: str, readers: Mapping[str, Reader]) -> list[Block]:
        """Return the blocks of a message's content. Empty texts say nothing, and the API takes none."""
        if content is None or content == "":
            return []
        if isinstance(content, str):
            return [{"type": "text", "text": content}]
        blocks = []
        for index, part in enumerate(content):
            where = f"{path}.content.{index}"
            kind = str(part.get("type"))
            reader = readers.get(kind)
            if reader is None:
                raise unsupported_content(self._call, where, f"content of type {kind!r} here")
            refuse_unknown(self._call, part, {"type", "cache_control", *_PART_FIELDS[kind]}, where)
            block = reader(self._call, part, where)
            if block is not None:
                blocks += _marked([block], part)
        return blocks

    def _add(self, role: str, blocks: list[Block]) -> None:
        if not blocks:
            return
        if self._turns and self._turns[-1]["role"] == role:
            self._turns[-1]["content"] += blocks
        else:
            self._turns.append({"role": role, "content": blocks})


def _marked(blocks: list[Block], source: Mapping[str, Any]) -> list[Block]:
    """Return the blocks, the last of them with the source's cache_control."""
    mark = source.get("cache_control")
    if mark is None or not blocks:
        return blocks
    return [*blocks[:-1], {**blocks[-1], "cache_control": mark}]


def saying(blocks: list[Block]) -> list[Block]:
    """Return a message's blocks without its texts where all of them are white space: the API takes none."""
    if any(block["type"] == "text" and block["text"].strip() for block in blocks):
        return blocks
    return [block for block in blocks if block["type"] != "text"]


def _with_reasoning(blocks: list[Block], message: Mapping[str, Any]) -> list[Block]:
    """Return the blocks with what was thought, each thought where it says that it stood.

    The API demands the thoughts of a turn that called tools back, in their order and unchanged.
    """
    placed = list(blocks)
    details = message.get("reasoning_details")
    for position, detail in enumerate(details if isinstance(details, list) else []):
        thought = _thought(detail)
        if thought is not None:
            place = detail.get("block")
            placed.insert(place if isinstance(place, int) and place >= 0 else position, thought)
    return placed


def _thought(detail: Any) -> Block | None:
    if not isinstance(detail, dict) or detail.get("format", REASONING_FORMAT) != REASONING_FORMAT:
        return None
    if detail.get("type") == "reasoning.text" and isinstance(detail.get("signature"), str):
        text = detail.get("text")
        return {
            "type": "thinking",
            "thinking": text if isinstance(text, str) else "",
            "signature": detail["signature"],
        }
    if detail.get("type") == "reasoning.encrypted" and isinstance(detail.get("data"), str):
        return {"type": "redacted_thinking", "data": detail["data"]}
    return None


def tool_id(call_id: str) -> str:
    """Return an id that the API takes: another provider's may hold dots, colons or spaces."""
    if _TOOL_ID.fullmatch(call_id):
        return call_id
    return f"call_{hashlib.sha256(call_id.encode('utf-8', 'surrogatepass')).hexdigest()[:40]}"


# Content parts


def _text(_call: ProviderCall, part: dict[str, Any], _path: str) -> Block | None:
    return {"type": "text", "text": part["text"]} if part["text"] else None


def _refusal(_call: ProviderCall, part: dict[str, Any], _path: str) -> Block | None:
    return {"type": "text", "text": part["refusal"]} if part["refusal"] else None


def _thinking(_call: ProviderCall, part: dict[str, Any], path: str) -> Block | None:
    if not isinstance(part.get("signature"), str) or not isinstance(part.get("thinking"), str):
        raise Unprocessable("A thinking part needs its thinking and its signature.", param=path)
    return {"type": "thinking", "thinking": part["thinking"], "signature": part["signature"]}


def _redacted(_call: ProviderCall, part: dict[str, Any], path: str) -> Block | None:
    if not isinstance(part.get("data"), str):
        raise Unprocessable("A redacted_thinking part needs its data.", param=path)
    return {"type": "redacted_thinking", "data": part["data"]}


def _image(call: ProviderCall, part: dict[str, Any], path: str) -> Block:
    image = part["image_url"]
    where = f"{path}.image_url"
    if image.get("detail") not in {None, "auto"}:
        refuse_parameter(call, f"{where}.detail", "it chooses an image's detail itself")
    refuse_unknown(call, image, {"url", "detail"}, where)
    url: str = image["url"]
    if url.startswith(("https://", "http://")):
        return {"type": "image", "source": {"type": "url", "url": url}}
    media_type, data = read_data_url(call, url, f"{where}.url")
    return _base64_image(call, media_type, data, f"{where}.url")


def _base64_image(call: ProviderCall, media_type: str, data: str, path: str) -> Block:
    media_type = "image/jpeg" if media_type == "image/jpg" else media_type
    if media_type not in _IMAGE_TYPES:
        raise unsupported_content(call, path, f"images of type {media_type[:64]!r}")
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}


def _file(call: ProviderCall, part: dict[str, Any], path: str) -> Block:
    file = part["file"]
    where = f"{path}.file"
    if file.get("file_id"):
        raise unsupported_content(call, f"{where}.file_id", "files that were uploaded elsewhere")
    refuse_unknown(call, file, _FILE_FIELDS, where)
    given = file.get("file_data")
    if not isinstance(given, str):
        raise Unprocessable("A file part needs file_data: a data URL.", param=f"{where}.file_data")
    if given.startswith(("https://", "http://")):
        source = {"type": "url", "url": given}
    else:
        media_type, data = read_data_url(call, given, f"{where}.file_data")
        if media_type.startswith("image/"):
            return _base64_image(call, media_type, data, f"{where}.file_data")
        source = _document_source(call, media_type, data, f"{where}.file_data")
    block: Block = {"type": "document", "source": source}
    title = file.get("title") or file.get("filename")
    for name, value in (
        ("title", title),
        ("context", file.get("context")),
        ("citations", file.get("citations")),
    ):
        if value is not None:
            block[name] = value
    return block


def _document_source(call: ProviderCall, media_type: str, data: str, path: str) -> dict[str, str]:
    if media_type == "application/pdf":
        return {"type": "base64", "media_type": media_type, "data": data}
    if not media_type.startswith("text/"):
        raise unsupported_content(call, path, f"files of type {media_type[:64]!r}")
    try:
        text = base64.b64decode(data, validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        raise Unprocessable("A text file must be UTF-8 in base64.", param=path) from None
    return {"type": "text", "media_type": "text/plain", "data": text}


_USER_PARTS: Mapping[str, Reader] = {"text": _text, "image_url": _image, "file": _file}
_ASSISTANT_PARTS: Mapping[str, Reader] = {
    "text": _text,
    "refusal": _refusal,
    "thinking": _thinking,
    "redacted_thinking": _redacted,
}
