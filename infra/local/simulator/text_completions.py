"""OpenAI's legacy text completions: POST /v1/completions, plain and streamed."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra.local.simulator.answers import Question, answer, count_tokens, given_text
from infra.local.simulator.endpoint import event, interrupted
from infra.local.simulator.openai_wire import OpenAIWire, known, read_bound, require, stream_error, usage_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from infra.local.simulator.answers import Choice
    from infra.local.simulator.behaviour import Behaviour
    from infra.local.simulator.endpoint import Asked

_DEFAULT_BOUND = 16  # OpenAI's own, famously short
_FIELDS = frozenset(
    {
        "model",
        "prompt",
        "max_tokens",
        "stop",
        "stream",
        "stream_options",
        "n",
        "best_of",
        "echo",
        "suffix",
        "temperature",
        "top_p",
        "seed",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "logprobs",
        "user",
    }
)


@dataclass(frozen=True, slots=True)
class TextCompletion:
    """An answered request, ready to be written plain or as a stream."""

    number: int
    body: dict[str, Any]
    question: Question
    behaviour: Behaviour
    choices: tuple[Choice, ...]

    @property
    def usage(self) -> dict[str, Any]:
        made = sum(choice.output_tokens for choice in self.choices)
        whole = usage_of(self.question, self.behaviour, made, 0)
        return {name: whole[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}

    def _head(self) -> dict[str, Any]:
        return {
            "id": f"cmpl-sim-{self.number}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.body["model"],
        }

    @staticmethod
    def _finish(choice: Choice) -> str:
        if choice.is_filtered:
            return "content_filter"
        return "length" if choice.is_cut else "stop"

    def plain(self) -> dict[str, Any]:
        choices = [
            {
                "text": "".join(choice.content),
                "index": index,
                "logprobs": None,
                "finish_reason": self._finish(choice),
            }
            for index, choice in enumerate(self.choices)
        ]
        whole = {**self._head(), "choices": choices}
        return {**whole, "usage": self.usage} if self.behaviour.tells_usage else whole

    def _chunks(self) -> Iterator[dict[str, Any]]:
        head = self._head()
        for index, choice in enumerate(self.choices):
            steps = [(piece, None) for piece in choice.content]
            for text, finish in [*steps, ("", self._finish(choice))]:
                part = {"text": text, "index": index, "logprobs": None, "finish_reason": finish}
                yield {**head, "choices": [part]}
        options = self.body.get("stream_options") or {}
        if options.get("include_usage") is True and self.behaviour.tells_usage:
            yield {**head, "choices": [], "usage": self.usage}

    def events(self) -> Iterator[bytes]:
        whole = itertools.chain(map(event, self._chunks()), [b"data: [DONE]\n\n"])
        return interrupted(whole, self.behaviour, event(stream_error()))


class Completions(OpenAIWire):
    """POST /v1/completions."""

    name = "completions"

    def reply(self, asked: Asked, behaviour: Behaviour | None) -> TextCompletion:
        body = asked.body
        for name in body:
            require(name in _FIELDS, f"Unrecognized request argument supplied: {name}", name)
        asked_for = known(asked, behaviour)
        prompt = body.get("prompt")
        require(isinstance(prompt, str), "Invalid type for 'prompt': expected a string.", "prompt")
        stop = body.get("stop") or ()
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        require(len(stops) <= 4, "Invalid 'stop': array too long. Expected at most 4.", "stop")  # noqa: PLR2004
        question = Question(
            text=_last_line(str(prompt)),
            prompt_tokens=count_tokens(str(prompt)),
            bound=read_bound(body) or _DEFAULT_BOUND,
            choices=body.get("n") or 1,
            stop=stops,
            given=(given_text("user", str(prompt)),),
        )
        return TextCompletion(asked.number, body, question, asked_for, answer(question, asked_for))


def _last_line(prompt: str) -> str:
    """Return what the last turn of a prompt says: its last line that is no cue, without who says it."""
    lines = [line for line in prompt.splitlines() if line.strip() and not line.rstrip().endswith(":")]
    return lines[-1].rpartition(": ")[2] if lines else prompt
