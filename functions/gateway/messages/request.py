"""A request in Anthropic's Messages shape, in OpenAI's terms.

Nothing that a client said is lost: what has no counterpart there is named by its path, and then goes to
Anthropic's own wire alone. What is left out says nothing to the model, and asks for nothing that would not be
so anyway: marks for caching, the citations of an earlier answer, thoughts that another provider has signed.

What other providers have thought goes out to the client with a signature of the gateway's, which names the
field that it came in. Sent back, it becomes that field again; Anthropic is not sent it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gateway.providers.anthropic_request import saying, tool_id
from gateway.tokens import input_bound

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    Object = dict[str, Any]

SIGNATURE_LEAD = "gateway:"
"""How signatures, and encrypted thoughts, begin that the gateway made itself."""
REASONING_FIELDS = ("reasoning_content", "reasoning")
"""Where providers with OpenAI's wire put what a model thought."""

_MAX_USER_CHARS = 64
"""Of an end user's name, at OpenAI."""
_BOUND_PER_BLOCK = 16
_IGNORED = frozenset({"cache_control"})
_BLOCK_FIELDS: Mapping[str, frozenset[str]] = {
    "text": frozenset({"type", "text", "citations"}),
    "image": frozenset({"type", "source"}),
    "document": frozenset({"type", "source", "title", "context", "citations"}),
    "search_result": frozenset({"type", "source", "title", "content", "citations"}),
    "tool_use": frozenset({"type", "id", "name", "input", "caller"}),
    "tool_result": frozenset({"type", "tool_use_id", "content", "is_error"}),
    "thinking": frozenset({"type", "thinking", "signature"}),
    "redacted_thinking": frozenset({"type", "data"}),
}
_SYSTEM_BLOCKS = frozenset({"text"})
_RESULT_BLOCKS = frozenset({"text", "image", "document", "search_result"})
_USER_BLOCKS = _RESULT_BLOCKS | {"tool_result"}
_ASSISTANT_BLOCKS = frozenset({"text", "tool_use", "thinking", "redacted_thinking"})
_TOOL_FIELDS = frozenset(
    {"type", "name", "input_schema", "description", "strict", "eager_input_streaming", "allowed_callers"}
)
_TURN_FIELDS = frozenset({"role", "content"})
_SOURCE_FIELDS = frozenset({"type", "media_type", "data", "url", "content"})
_TOOL_CHOICE_FIELDS = frozenset({"type", "name", "disable_parallel_tool_use"})
_OUTPUT_FIELDS = frozenset({"effort", "format"})
_FORMAT_FIELDS = frozenset({"type", "schema"})
# Whether thoughts are shown is left to each provider.
_THINKING_FIELDS = frozenset({"type", "budget_tokens", "display"})
_METADATA_FIELDS = frozenset({"user_id"})
_TOOL_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_EFFORTS = {"max": "xhigh"}
# Of max_tokens, in percent: how much thinking is meant by a budget.
_LOW_BUDGET, _MEDIUM_BUDGET = 30, 65
_SAME = ("temperature", "top_p", "top_k", "stream")


@dataclass(frozen=True, slots=True)
class TranslatedRequest:
    """A request in both shapes."""

    body: Object = field(repr=False)
    """In OpenAI's terms."""
    native: Object = field(repr=False)
    """In Anthropic's, without what it can't take back."""
    native_only: str | None
    """The path of the first thing that `body` can't say."""
    input_bound: int | None
    """Tokens that the input can't exceed, in whichever shape it is sent; None where that can't be told."""


def translate(asked: Object) -> TranslatedRequest:
    """Return a checked request in OpenAI's terms; `asked` is not changed. Nulls count as not said."""
    given = {name: value for name, value in asked.items() if value is not None}
    reader = _Reader()
    body: Object = {"model": given["model"], "messages": reader.conversation(given)}
    if "max_tokens" in given:
        body["max_tokens"] = given["max_tokens"]
    body |= {name: given[name] for name in _SAME if name in given}
    if given.get("stop_sequences"):
        body["stop"] = given["stop_sequences"]
    body |= reader.tools(given)
    body |= reader.output(given)
    body |= reader.account(given)
    native = {**given, "messages": _for_anthropic(given["messages"])}
    bound = None if reader.native_only else input_bound(body)
    if bound is not None:
        bound += reader.native_bytes + reader.blocks * _BOUND_PER_BLOCK
    return TranslatedRequest(body, native, reader.native_only, bound)


class _Reader:
    """Reads a request, and remembers what of it is Anthropic's alone."""

    def __init__(self) -> None:
        self.native_only: str | None = None
        self.native_bytes = 0
        """Of thoughts and citations, which Anthropic's wire alone is sent."""
        self.blocks = 0
        self._messages: list[Object] = []

    def conversation(self, given: Object) -> list[Object]:
        if given.get("system"):
            self._read_system(given["system"], "system")
        for index, turn in enumerate(given["messages"]):
            path = f"messages.{index}"
            self._check(turn, _TURN_FIELDS, path)
            match turn["role"]:
                case "user":
                    self._read_user(turn["content"], path)
                case "assistant":
                    self._read_assistant(turn["content"], path)
                case _:
                    self._read_system(turn["content"], f"{path}.content")
        return self._messages

    def _read_system(self, content: Any, path: str) -> None:
        parts = [part for _, _, part in self._parts(content, path, _SYSTEM_BLOCKS)]
        if parts:
            self._messages.append({"role": "system", "content": _simplest(parts)})

    def _read_user(self, content: Any, path: str) -> None:
        """Read a turn of the user's. Results stand first, as they have to follow the calls."""
        said: list[Object] = []
        shown: list[Object] = []
        for where, block, part in self._parts(content, f"{path}.content", _USER_BLOCKS):
            if block["type"] == "tool_result":
                shown += self._read_result(block, where)
            else:
                said.append(part)
        if shown or said:
            self._messages.append({"role": "user", "content": _simplest([*shown, *said])})

    def _read_result(self, block: Object, path: str) -> list[Object]:
        """Add a tool's message, and return what it showed: a tool's message has room for text alone."""
        texts: list[str] = []
        shown: list[Object] = []
        for _, _, part in self._parts(block.get("content"), f"{path}.content", _RESULT_BLOCKS):
            if part["type"] == "text":
                texts.append(part["text"])
            else:
                shown.append(part)
        text = "\n\n".join(texts)
        call_id = block["tool_use_id"]
        if shown:
            label = f"What the tool call {call_id} has shown:"
            text = text or f"{label} see the user's message."
            shown.insert(0, {"type": "text", "text": label})
        if block.get("is_error"):
            text = f"Error: {text}" if text else "Error"
        self._messages.append({"role": "tool", "tool_call_id": call_id, "content": text})
        return shown

    def _read_assistant(self, content: Any, path: str) -> None:
        message: Object = {"role": "assistant"}
        texts: list[str] = []
        calls: list[Object] = []
        carried: list[Object] = []
        for _, block, _ in self._parts(content, f"{path}.content", _ASSISTANT_BLOCKS):
            match block["type"]:
                case "text":
                    texts.append(block["text"])
                    if block.get("citations"):
                        self.native_bytes += len(json.dumps(block["citations"]))
                case "tool_use":
                    calls.append(_tool_call(block))
                case _:
                    self._read_thought(block, message, carried)
        _put_back(message, calls, carried)
        # Texts are parts of one: citations split a sentence.
        text = "".join(texts)
        if text or calls or len(message) > 1:
            message["content"] = text or None if calls else text
            self._messages.append({**message, "tool_calls": calls} if calls else message)

    def _read_thought(self, block: Object, message: Object, carried: list[Object]) -> None:
        if block["type"] == "redacted_thinking":
            own = read_carried(block["data"])
            if own is not None:
                carried.append(own)
                return
        else:
            name = _reasoning_field(block["signature"])
            if name is not None:
                message[name] = message.get(name, "") + block["thinking"]
                return
        self.native_bytes += len(json.dumps(block))

    def _parts(self, content: Any, path: str, known: frozenset[str]) -> Iterator[tuple[str, Object, Object]]:
        """Yield each block with its path, and as a part of OpenAI's where it is one."""
        if content is None:
            return
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        for index, block in enumerate(content):
            where = f"{path}.{index}"
            kind = block["type"]
            self.blocks += 1
            if kind not in known:
                self._only(f"{where}.type")
                continue
            self._check(block, _BLOCK_FIELDS[kind], where)
            for part in self._translated(block, where):
                yield where, block, part

    def _translated(self, block: Object, path: str) -> list[Object]:
        """Return a block as parts of OpenAI's, or as it is where it is none. Empty texts say nothing."""
        if isinstance(block.get("source"), dict):
            self._check(block["source"], _SOURCE_FIELDS, f"{path}.source")
        match block["type"]:
            case "text":
                return [_text(block["text"])] if block["text"] else []
            case "image":
                return [{"type": "image_url", "image_url": {"url": _url(block["source"])}}]
            case "document":
                return self._document(block, path)
            case "search_result":
                return [self._search_result(block, path)]
            case _:
                return [block]

    def _document(self, block: Object, path: str) -> list[Object]:
        self._check_citations(block, path)
        source = block["source"]
        head = [_text(f"{name.title()}: {block[name]}") for name in ("title", "context") if block.get(name)]
        match source["type"]:
            case "text":
                return [*head, _text(source["data"])]
            case "content":
                inner = self._parts(source["content"], f"{path}.source.content", _RESULT_BLOCKS)
                return [*head, *(part for _, _, part in inner)]
            case _:
                name = block.get("title") or "document.pdf"
                file = {"filename": name, "file_data": _url(source)}
                context = [_text(f"Context: {block['context']}")] if block.get("context") else []
                return [*context, {"type": "file", "file": file}]

    def _search_result(self, block: Object, path: str) -> Object:
        self._check_citations(block, path)
        for index, inner in enumerate(block["content"]):
            self._check(inner, _BLOCK_FIELDS["text"], f"{path}.content.{index}")
        texts = [inner["text"] for inner in block["content"]]
        return _text("\n\n".join([f"{block['title']}\n{block['source']}", *texts]))

    def tools(self, given: Object) -> Object:
        tools = []
        for index, tool in enumerate(given.get("tools") or []):
            path = f"tools.{index}"
            if tool.get("type") not in {None, "custom"}:
                self._only(f"{path}.type")
                continue
            self._check(tool, _TOOL_FIELDS, path)
            if tool.get("allowed_callers") not in (None, ["direct"]):
                self._only(f"{path}.allowed_callers")
            function = {"name": tool["name"], "parameters": tool["input_schema"]}
            function |= {name: tool[name] for name in ("description", "strict") if tool.get(name) is not None}
            tools.append({"type": "function", "function": function})
        body: Object = {"tools": tools} if tools else {}
        choice = given.get("tool_choice") or {}
        self._check(choice, _TOOL_CHOICE_FIELDS, "tool_choice")
        if choice and tools:
            if choice["type"] == "tool":
                body["tool_choice"] = {"type": "function", "function": {"name": choice["name"]}}
            else:
                body["tool_choice"] = _TOOL_CHOICES[choice["type"]]
            if choice.get("disable_parallel_tool_use"):
                body["parallel_tool_calls"] = False
        return body

    def output(self, given: Object) -> Object:
        """Return how much to think, and in which form to answer."""
        body: Object = {}
        config = given.get("output_config") or {}
        self._check(config, _OUTPUT_FIELDS, "output_config")
        form = config.get("format") or given.get("output_format")
        if form:
            self._check(form, _FORMAT_FIELDS, "output_config.format")
            schema = {"name": "answer", "schema": form["schema"]}
            if _may_be_strict(form["schema"]):
                schema["strict"] = True
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        edits = (given.get("context_management") or {}).get("edits") or []
        if not all(map(_keeps_all, edits)):
            self._only("context_management")
        thinking = given.get("thinking") or {}
        self._check(thinking, _THINKING_FIELDS, "thinking")
        effort = config.get("effort")
        if thinking.get("type") == "disabled":
            return body
        if effort:
            body["reasoning_effort"] = _EFFORTS.get(effort, effort)
        elif thinking.get("type") == "enabled":
            percent = thinking["budget_tokens"] * 100 // given.get("max_tokens", thinking["budget_tokens"])
            body["reasoning_effort"] = (
                "low" if percent <= _LOW_BUDGET else "medium" if percent <= _MEDIUM_BUDGET else "high"
            )
        return body

    def account(self, given: Object) -> Object:
        """Return whose request it is."""
        metadata = given.get("metadata") or {}
        self._check(metadata, _METADATA_FIELDS, "metadata")
        return {"user": _user(metadata["user_id"])} if metadata.get("user_id") else {}

    def _check(self, given: Object, known: frozenset[str], path: str) -> None:
        for name, value in given.items():
            if value is not None and name not in known and name not in _IGNORED:
                self._only(f"{path}.{name}")

    def _check_citations(self, block: Object, path: str) -> None:
        if (block.get("citations") or {}).get("enabled"):
            self._only(f"{path}.citations")

    def _only(self, path: str) -> None:
        self.native_only = self.native_only or path


def carry(value: Object) -> str:
    """Return what the shape has no place for, as the data of a block that the client sends back."""
    return SIGNATURE_LEAD + base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


def read_carried(data: str) -> Object | None:
    """Return what `carry` has packed; None where the gateway has not made it, or not so."""
    if not data.startswith(SIGNATURE_LEAD):
        return None
    try:
        value = json.loads(base64.urlsafe_b64decode(data.removeprefix(SIGNATURE_LEAD)))
    except (binascii.Error, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _reasoning_field(signature: str) -> str | None:
    """Return the field that a thought came in; None where Anthropic has signed it."""
    if not signature.startswith(SIGNATURE_LEAD):
        # What was cut has no signature, and no provider takes it back.
        return None
    name = signature.removeprefix(SIGNATURE_LEAD)
    return name if name in REASONING_FIELDS else None


def _put_back(message: Object, calls: list[Object], carried: list[Object]) -> None:
    """Put what was carried through the client where the provider had it."""
    for own in carried:
        details, extra, extras = (
            own.get(name) for name in ("reasoning_details", "extra_content", "tool_calls")
        )
        if isinstance(details, list):
            message["reasoning_details"] = [*message.get("reasoning_details", ()), *details]
        if isinstance(extra, dict):
            message["extra_content"] = extra
        for call in calls:
            if isinstance(extras, dict) and isinstance(extras.get(call["id"]), dict):
                call["extra_content"] = extras[call["id"]]


def _for_anthropic(turns: list[Object]) -> list[Object]:
    """Return the turns without what Anthropic does not take back of other providers' answers.

    That are thoughts that it did not sign, texts of white space alone, and ids in other letters.
    """
    kept = []
    for turn in turns:
        content = turn["content"]
        if isinstance(content, list):
            blocks = [_with_its_letters(block) for block in content]
            if turn["role"] == "assistant":
                blocks = saying([block for block in blocks if not _is_own(block)])
                if content and not blocks:
                    continue
            turn = {**turn, "content": blocks}  # noqa: PLW2901
        kept.append(turn)
    return kept


def _with_its_letters(block: Object) -> Object:
    name = {"tool_use": "id", "tool_result": "tool_use_id"}.get(block["type"])
    return block if name is None else {**block, name: tool_id(block[name])}


def _is_own(block: Object) -> bool:
    names = {"thinking": "signature", "redacted_thinking": "data"}
    name = names.get(block["type"])
    return name is not None and str(block[name]).startswith(SIGNATURE_LEAD)


def _may_be_strict(schema: Any) -> bool:
    """Whether OpenAI can hold an answer to a schema: its objects are closed, and none of it may be missing.

    What is no schema is for the provider to refuse.
    """
    if isinstance(schema, list):
        return all(map(_may_be_strict, schema))
    if not isinstance(schema, dict):
        return True
    kind, required = schema.get("type"), schema.get("required")
    named, shared = _named(schema, "properties"), _named(schema, "$defs")
    if kind == "object" or (isinstance(kind, list) and "object" in kind):
        needed = required if isinstance(required, list) else []
        if schema.get("additionalProperties") is not False or any(name not in needed for name in named):
            return False
    return _may_be_strict([*named.values(), *shared.values(), schema.get("anyOf"), schema.get("items")])


def _named(schema: Object, name: str) -> Object:
    schemas = schema.get(name)
    return schemas if isinstance(schemas, dict) else {}


def _keeps_all(edit: Object) -> bool:
    """Whether an edit of the context is none. Claude Code sends it with each request that thinks."""
    return edit["type"].startswith("clear_thinking_") and edit.get("keep") == "all"


def _tool_call(block: Object) -> Object:
    arguments = json.dumps(block["input"], ensure_ascii=False)
    return {
        "id": block["id"],
        "type": "function",
        "function": {"name": block["name"], "arguments": arguments},
    }


def _text(text: str) -> Object:
    return {"type": "text", "text": text}


def _url(source: Object) -> str:
    if source["type"] == "url":
        url: str = source["url"]
        return url
    return f"data:{source['media_type']};base64,{source['data']}"


def _simplest(parts: list[Object]) -> str | list[Object]:
    """Return texts alone as one string: many a server takes nothing else."""
    if all(part["type"] == "text" for part in parts):
        return "\n\n".join(part["text"] for part in parts)
    return parts


def _user(name: str) -> str:
    if len(name) <= _MAX_USER_CHARS:
        return name
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
