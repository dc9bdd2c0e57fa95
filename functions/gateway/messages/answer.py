"""A chat model's answer in Anthropic's Messages shape, whole or streamed.

Both take one path: a whole answer is the stream of one delta, put together.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from gateway import json_text
from gateway.calls import gateway_usage
from gateway.messages.request import REASONING_FIELDS, SIGNATURE_LEAD, carry
from gateway.providers.wire import MessagesCall

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gateway.calls import Call
    from gateway.database.rpc import Settled
    from gateway.providers.wire import Answer, Chunk, ProviderCall
    from gateway.schemas.usage import TokenUsage

    Object = dict[str, Any]

_STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
# Parts of reasoning_details whose pieces are joined; of any other field the last one counts.
_JOINED = ("text", "summary", "data")
_UNKNOWN_USAGE = {"input_tokens": 0, "output_tokens": 0}


def message(call: Call, answer: Answer, usage: TokenUsage, settled: Settled | None) -> Object:
    """Return the body of a whole answer, with what it has cost."""
    told = {"usage": messages_usage(usage), "gateway_usage": gateway_usage(call, settled)}
    if "choices" not in answer.body:
        said = {
            name: value for name, value in answer.body.items() if name != "usage" or _tells_usage(answer.body)
        }
        return {**told, **said, "gateway_usage": told["gateway_usage"]}
    choice = answer.body["choices"][0]
    translation = _Translation(call)
    events = [*translation.take(choice, choice.get("message")), *translation.close()]
    return {**translation.head(), "content": _whole(events), **translation.stop(), **told}


def messages_usage(usage: TokenUsage) -> Object:
    """Return Anthropic's usage object for counts of our own: cached tokens are not among its input."""
    told: Object = {
        "input_tokens": usage.input + (usage.audio_input or 0) + (usage.image_input or 0),
        "output_tokens": usage.total_output,
    }
    if usage.cached_input is not None:
        told["cache_read_input_tokens"] = usage.cached_input
    if usage.cache_write is not None:
        told["cache_creation_input_tokens"] = usage.cache_write
    if usage.reasoning is not None:
        told["output_tokens_details"] = {"thinking_tokens": usage.reasoning}
    return told


class MessageEvents:
    """The events of one stream, whoever answers: Anthropic's own, or OpenAI's chunks translated."""

    keep_alive = b'event: ping\ndata: {"type":"ping"}\n\n'

    def __init__(self, call: Call) -> None:
        self._call = call
        self._source: _Native | _Translated = _Translated(call)

    def begin(self, provider_call: ProviderCall) -> None:
        native = isinstance(provider_call, MessagesCall) and provider_call.is_native
        self._source = _Native() if native else _Translated(self._call)

    def encode(self, chunks: Sequence[Chunk]) -> bytes:
        return b"".join(_sse(event) for chunk in chunks for event in self._source.take(chunk))

    def end(self, call: Call, settled: Settled | None) -> bytes:
        usage = None if call.usage is None else messages_usage(call.usage)
        last = [*self._source.end(usage, gateway_usage(call, settled)), {"type": "message_stop"}]
        return b"".join(map(_sse, last))


class _Native:
    """Anthropic's own events. The last of them waits for what the call has cost."""

    def __init__(self) -> None:
        self._last: Object | None = None

    def take(self, chunk: Chunk) -> Iterable[Object | Chunk]:
        if chunk.data.get("type") == "message_delta":
            before, self._last = self._last, chunk.data
            return [] if before is None else [before]
        started = chunk.data.get("message")
        if chunk.data.get("type") == "message_start" and isinstance(started, dict):
            # SDKs add to it, and fail where it is missing.
            return (
                [chunk]
                if started.get("usage")
                else [{**chunk.data, "message": {**started, "usage": _UNKNOWN_USAGE}}]
            )
        return [chunk]

    def end(self, usage: Object | None, cost: Object) -> Iterable[Object]:
        last = self._last or {"type": "message_delta", "delta": {"stop_reason": None, "stop_sequence": None}}
        if not _tells_usage(last):
            last = {**last, "usage": usage}
        return [{**last, "gateway_usage": cost}]


class _Translated:
    """OpenAI's chunks as Anthropic's events."""

    def __init__(self, call: Call) -> None:
        self._translation = _Translation(call)
        self._begun = False

    def take(self, chunk: Chunk) -> Iterable[Object | Chunk]:
        events: list[Object] = []
        choices = chunk.data.get("choices")
        for choice in choices if isinstance(choices, list) else []:
            if isinstance(choice, dict) and choice.get("index", 0) == 0:
                events += self._begin()
                events += self._translation.take(choice, choice.get("delta"))
        return events

    def end(self, usage: Object | None, cost: Object) -> Iterable[Object]:
        last = {"type": "message_delta", "delta": self._translation.stop(), "usage": usage}
        return [*self._begin(), *self._translation.close(), {**last, "gateway_usage": cost}]

    def _begin(self) -> Iterable[Object]:
        if self._begun:
            return []
        self._begun = True
        head = {**self._translation.head(), "content": [], "stop_reason": None, "stop_sequence": None}
        # What was read is told with what was written, at the end.
        return [{"type": "message_start", "message": {**head, "usage": _UNKNOWN_USAGE}}]


class _Tool:
    """A call of a tool, as far as it has come."""

    def __init__(self, identity: str) -> None:
        self.id = identity
        self.name = ""
        self.arguments = ""
        self.sent = 0
        """How many characters of the arguments have gone out."""

    @property
    def whole(self) -> bool:
        """Whether the arguments are complete."""
        if not self.arguments.rstrip().endswith("}"):
            return False
        try:
            json.loads(self.arguments)
        except (ValueError, RecursionError):
            return False
        return True


class _Translation:
    """One answer's deltas as content blocks, of which one is open at a time.

    Providers may stream several tool calls by turns: what belongs to another than the open one waits until
    that one's arguments are complete.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._index = -1
        self._kind: str | None = None
        """The type of the open block; None while none is open."""
        self._reasoning_field = REASONING_FIELDS[0]
        self._open_tool: _Tool | None = None
        self._waiting: list[_Tool] = []
        self._tools: dict[int, _Tool] = {}
        self._made = 0
        self._carried: Object = {}
        self._finish_reason: str | None = None
        self._stopped_by: str | None = None
        self._refused = False

    def head(self) -> Object:
        """Return the beginning of the message."""
        candidate = self._call.exchange.candidate
        return {
            "id": f"msg_{self._identity}",
            "type": "message",
            "role": "assistant",
            "model": candidate.model if candidate else "",
        }

    def stop(self) -> Object:
        """Return why the answer ended."""
        if self._refused:
            return {"stop_reason": "refusal", "stop_sequence": None}
        reason = _STOP_REASONS.get(self._finish_reason or "stop", "end_turn")
        if reason == "end_turn" and self._made:
            reason = "tool_use"
        if reason == "end_turn" and self._stopped_by is not None:
            return {"stop_reason": "stop_sequence", "stop_sequence": self._stopped_by}
        return {"stop_reason": reason, "stop_sequence": None}

    def take(self, choice: Object, delta: Any) -> list[Object]:
        """Return the events that a choice's delta, or its whole message, comes to."""
        if isinstance(choice.get("finish_reason"), str):
            self._finish_reason = choice["finish_reason"]
        stopped_by = choice.get("stop_reason")
        if isinstance(stopped_by, str) and stopped_by in (self._call.exchange.body.get("stop") or ()):
            # vLLM's field, and the gateway's own for Anthropic: which sequence it was.
            self._stopped_by = stopped_by
        if not isinstance(delta, dict):
            return []
        events: list[Object] = []
        for name in REASONING_FIELDS:
            if isinstance(delta.get(name), str) and delta[name]:
                self._reasoning_field = name
                events += self._say("thinking", delta[name])
                break
        self._keep(delta)
        thought, text = _texts(delta.get("content"))
        events += self._say("thinking", thought)
        events += self._say("text", text)
        if isinstance(delta.get("refusal"), str) and delta["refusal"]:
            self._refused = True
            events += self._say("text", delta["refusal"])
        calls = delta.get("tool_calls")
        for position, called in enumerate(calls if isinstance(calls, list) else []):
            if isinstance(called, dict):
                events += self._take_call(called, position)
        return events

    def close(self) -> list[Object]:
        """Return what ends the content."""
        return [*self._close(), *self._hand_over()]

    @property
    def _identity(self) -> str:
        return self._call.admission.request_id.removeprefix("req_")

    def _say(self, kind: str, text: str) -> list[Object]:
        if not text:
            return []
        events: list[Object] = []
        if self._kind != kind:
            events += self._close()
            if kind == "text":
                events += [*self._hand_over(), *self._open({"type": "text", "text": ""})]
            else:
                events += self._open({"type": "thinking", "thinking": "", "signature": ""})
        return [*events, self._delta({"type": f"{kind}_delta", kind: text})]

    def _keep(self, delta: Object) -> None:
        """Remember what the shape has no place for, and the provider may need again."""
        if isinstance(delta.get("extra_content"), dict):
            self._carried["extra_content"] = delta["extra_content"]
        details = delta.get("reasoning_details")
        kept: list[Object] = self._carried.setdefault("reasoning_details", [])
        for piece in details if isinstance(details, list) else []:
            if isinstance(piece, dict):
                _join(kept, piece)

    def _hand_over(self) -> list[Object]:
        """Return a block that carries what is remembered."""
        carried = {name: value for name, value in self._carried.items() if value}
        self._carried = {}
        if not carried:
            return []
        return [
            *self._close(),
            *self._open({"type": "redacted_thinking", "data": carry(carried)}),
            *self._close(),
        ]

    # Calls of tools

    def _take_call(self, called: Object, position: int) -> list[Object]:
        place = called.get("index")
        tool = self._tool(place if isinstance(place, int) else position, called.get("id"))
        function = called.get("function")
        function = function if isinstance(function, dict) else {}
        if isinstance(function.get("name"), str) and not tool.name:
            tool.name = function["name"]
        arguments = function.get("arguments")
        if isinstance(arguments, dict):
            arguments = json.dumps(arguments, ensure_ascii=False)
        tool.arguments += arguments if isinstance(arguments, str) else ""
        if isinstance(called.get("extra_content"), dict):
            self._carried.setdefault("tool_calls", {})[tool.id] = called["extra_content"]
        if tool is not self._open_tool and tool not in self._waiting:
            self._waiting.append(tool)
        return self._send_calls()

    def _tool(self, place: int, identity: Any) -> _Tool:
        """Return the call at this place; another id there means another call."""
        known = self._tools.get(place)
        named = isinstance(identity, str) and bool(identity)
        if known is not None and (not named or identity == known.id):
            return known
        self._made += 1
        tool = _Tool(identity if named else f"toolu_{self._identity}_{self._made}")
        self._tools[place] = tool
        return tool

    def _send_calls(self) -> list[Object]:
        """Return what can go out of the calls so far."""
        events = self._send_arguments()
        while self._waiting and (self._open_tool is None or self._open_tool.whole):
            events += self._open_next()
        return events

    def _open_next(self) -> list[Object]:
        tool = self._waiting.pop(0)
        start = {"type": "tool_use", "id": tool.id, "name": tool.name, "input": {}}
        events = [*self._close_block(), *self._hand_over(), *self._open(start)]
        self._open_tool = tool
        return [*events, *self._send_arguments()]

    def _send_arguments(self) -> list[Object]:
        tool = self._open_tool
        if tool is None or tool.sent == len(tool.arguments):
            return []
        piece, tool.sent = tool.arguments[tool.sent :], len(tool.arguments)
        return [self._delta({"type": "input_json_delta", "partial_json": piece})]

    # Blocks

    def _open(self, block: Object) -> list[Object]:
        self._index += 1
        self._kind = block["type"]
        return [{"type": "content_block_start", "index": self._index, "content_block": block}]

    def _delta(self, delta: Object) -> Object:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _close(self) -> list[Object]:
        """Return the end of the open block, and the calls that have waited for it."""
        events = self._close_block()
        while self._waiting:
            events += [*self._open_next(), *self._close_block()]
        return events

    def _close_block(self) -> list[Object]:
        if self._kind is None:
            return []
        events: list[Object] = []
        if self._kind == "thinking":
            signature = f"{SIGNATURE_LEAD}{self._reasoning_field}"
            events.append(self._delta({"type": "signature_delta", "signature": signature}))
        self._kind = self._open_tool = None
        return [*events, {"type": "content_block_stop", "index": self._index}]


def _texts(content: Any) -> tuple[str, str]:
    """Return what was thought and what was said in a content; Mistral's is a list of parts of either."""
    if isinstance(content, str):
        return "", content
    thoughts: list[str] = []
    texts: list[str] = []
    for part in content if isinstance(content, list) else []:
        if isinstance(part, dict) and part.get("type") == "thinking":
            thoughts += _texts(part.get("thinking"))
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            texts.append(part["text"])
    return "".join(thoughts), "".join(texts)


def _join(kept: list[Object], piece: Object) -> None:
    """Add a piece of reasoning_details to the entry that it continues, or as a new one."""
    for entry in kept:
        if (entry.get("type"), entry.get("index")) == (
            piece.get("type"),
            piece.get("index"),
        ) and "index" in piece:
            for name, value in piece.items():
                joined = name in _JOINED and isinstance(value, str) and isinstance(entry.get(name), str)
                entry[name] = entry[name] + value if joined else value
            return
    kept.append(dict(piece))


def _whole(events: Sequence[Object]) -> list[Object]:
    """Return the blocks that events make, as SDKs put them together."""
    blocks: list[Object] = []
    arguments: dict[int, str] = {}
    for event in events:
        match event["type"]:
            case "content_block_start":
                blocks.append(dict(event["content_block"]))
            case "content_block_delta":
                block, delta = blocks[event["index"]], event["delta"]
                match delta["type"]:
                    case "input_json_delta":
                        index = event["index"]
                        arguments[index] = arguments.get(index, "") + delta["partial_json"]
                    case "signature_delta":
                        block["signature"] = delta["signature"]
                    case kind:
                        name = kind.removesuffix("_delta")
                        block[name] += delta[name]
    for index, text in arguments.items():
        blocks[index]["input"] = _arguments(text)
    return blocks


def _arguments(text: str) -> Object:
    """Return a call's arguments as an object; what a bound has cut as far as it goes, as SDKs read it."""
    try:
        value = from_json(text, allow_partial=True)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {"arguments": text}


def _tells_usage(said: Object) -> bool:
    usage = said.get("usage")
    return isinstance(usage, dict) and usage.get("output_tokens") is not None


def _sse(event: Object | Chunk) -> bytes:
    if isinstance(event, dict):
        data, payload = event, json_text.dump(event)
    else:
        data = event.data
        raw = event.raw
        plain = raw is not None and "\n" not in raw and "NaN" not in raw and "Infinity" not in raw
        payload = raw.encode("utf-8", "replace") if raw is not None and plain else json_text.dump(data)
    return b"event: " + str(data.get("type")).split("\n", 1)[0].encode() + b"\ndata: " + payload + b"\n\n"
