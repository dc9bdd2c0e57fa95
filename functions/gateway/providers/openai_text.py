"""OpenAI's chat for models that know nothing but text: what they can't do is refused before it is sent.

The server of our own models (gateway.local_models) reads its requests by the same rules.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gateway.providers.failures import refuse_parameter
from gateway.providers.openai_compatible import OpenAICompatibleWire
from gateway.providers.plain_prompt import read_turns

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.providers.wire import ChatWire, ProviderCall, UpstreamRequest

_TAKEN = frozenset(
    {
        "model",
        "models",
        "messages",
        "max_tokens",
        "max_completion_tokens",
        "stream",
        "stream_options",
        "stop",
        "temperature",
        "top_p",
        "seed",
        "n",
        "user",
    }
)
# What asks for nothing that would not be so anyway.
_WITHOUT_EFFECT: Mapping[str, tuple[Any, ...]] = {
    "route": ("fallback",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "reasoning_effort": ("none",),
    "service_tier": ("auto", "default"),
    "store": (False,),
}


def text_parameters(call: ProviderCall, also: Mapping[str, tuple[Any, ...]] | None = None) -> dict[str, Any]:
    """Return the call's body with nothing in it but what a model of text can be told.

    `also` names further parameters, with the values of them that have no effect. Raises Unprocessable (422)
    by name for what it can't be told, unless the call says that it may be left out.
    """
    ignored = {**_WITHOUT_EFFECT, **(also or {})}
    kept = {}
    for name, value in call.body.items():
        if name in _TAKEN:
            kept[name] = value
        elif value is not None and value not in ignored.get(name, ()):
            refuse_parameter(call, name)
    return kept


class OpenAITextWire(OpenAICompatibleWire):
    """POST …/chat/completions, of text alone."""

    def build_request(self, call: ProviderCall) -> UpstreamRequest:
        """Return the client's own object.

        Raises Unprocessable (422) naming what is not text, and ProviderError (operator) where the key is
        missing or unusable.
        """
        read_turns(call)
        return super().build_request(replace(call, body=text_parameters(call)))


OPENAI_TEXT: ChatWire = OpenAITextWire()
