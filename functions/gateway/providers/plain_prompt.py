"""A conversation as one text, for models that only go on with a text.

A single message of a user is the prompt as it is: the model goes on with it. Anything longer is written down
turn by turn, and ends where the model is to speak:

    You are terse.

    User: What is 2 + 2?

    Assistant: 4

    User: And 3 + 3?

    Assistant:

An answer that the client has begun itself (a last message of the assistant's) is left open, for the model to
go on with. The model would write the next turns too, the user's as well: USER_TURN is where to stop it. Who
writes `Assistant:` into a message writes a turn: a plain text has no marks that a user could not write, so
what must hold against its users should not stand in a prompt of this kind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.providers.chat_request import refuse_unknown
from gateway.providers.failures import unsupported_content

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.providers.wire import ProviderCall

USER_TURN = "\nUser:"

_LABELS = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant"}
# A name is nothing that the model needs, and what an answer thought is not told again.
_MESSAGE_FIELDS = frozenset(
    {
        "role",
        "content",
        "name",
        "refusal",
        "reasoning",
        "reasoning_content",
        "reasoning_details",
        "annotations",
        "citations",
    }
)
_PART_FIELDS = {"text": frozenset({"type", "text"}), "refusal": frozenset({"type", "refusal"})}


def plain_prompt(call: ProviderCall) -> str:
    """Return the prompt of a call. Raises Unprocessable (422) by its place for what is not text."""
    return write_turns(read_turns(call))


def read_turns(call: ProviderCall) -> list[tuple[str, str]]:
    """Return each message's role and text. Raises Unprocessable (422) by its place for what is not text."""
    messages = call.body.get("messages") or []
    return [
        (message["role"], _text(call, message, f"messages.{index}")) for index, message in enumerate(messages)
    ]


def is_in_turns(roles: Sequence[str]) -> bool:
    """Return whether messages of these roles are written as turns, so that the answer is one of them."""
    return list(roles) != ["user"]


def write_turns(turns: Sequence[tuple[str, str]]) -> str:
    """Return turns as a prompt: of each its role (system, developer, user or assistant) and its text."""
    if not is_in_turns([role for role, _ in turns]):
        return turns[0][1]
    written = []
    begun = False
    for role, text in turns:
        # Instructions that stand before all turns need no name.
        begun = begun or role not in {"system", "developer"}
        written.append(f"{_LABELS[role]}: {text}" if begun else text)
    if not turns or turns[-1][0] != "assistant":
        written.append("Assistant:")
    return "\n\n".join(written)


def _text(call: ProviderCall, message: dict[str, Any], path: str) -> str:
    if message["role"] not in _LABELS or message.get("tool_calls") or message.get("function_call"):
        raise unsupported_content(call, path, "calls of tools and their results")
    refuse_unknown(call, message, _MESSAGE_FIELDS | {"tool_calls", "function_call"}, path)
    content = message.get("content")
    if isinstance(content, str):
        said = content
    else:
        parts = content or []
        said = "".join(_part_text(call, part, f"{path}.content.{index}") for index, part in enumerate(parts))
    refusal = message.get("refusal")
    return said + refusal if isinstance(refusal, str) else said


def _part_text(call: ProviderCall, part: dict[str, Any], path: str) -> str:
    kind = part.get("type")
    if kind not in _PART_FIELDS:
        raise unsupported_content(call, path, "content other than text")
    refuse_unknown(call, part, _PART_FIELDS[kind], path)
    return str(part[kind])
