"""One model and its tokenizer in this process: prompts, and the loop that generates. Only this imports torch.

Weights are read from safetensors alone, as a pickle is a program; so is code that comes with a model, and
none of it is run. Everything here blocks, and belongs to one thread at a time.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gateway.errors import BadRequest, Unprocessable
from gateway.local_models.options import LocalModelsError
from gateway.local_models.text import StopScanner, TokenText
from gateway.providers.plain_prompt import USER_TURN, is_in_turns, write_turns

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator, Sequence

_GREEDY_BELOW = 1e-4
"""Of a lower temperature nothing but the likeliest token is left, and a float may not hold its logits."""
_UNBOUNDED_TOKENS = 10**9
"""What tokenizers tell that know no bound is far beyond it."""
_SEED_MASK = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks of a model: to go on with a text, or to answer the turns of a conversation."""

    prompt: str | tuple[tuple[str, str], ...]
    """A text, or the role (system, developer, user, assistant) and text of each turn."""
    max_tokens: int | None
    """Of each choice; None for as many as the context has room for."""
    temperature: float
    """0 always takes the likeliest token."""
    top_p: float
    seed: int | None
    """The same seed gives the same text. Further choices count up from it."""
    stops: tuple[str, ...]
    choices: int


@dataclass(frozen=True, slots=True)
class Begun:
    """The prompt is accepted."""

    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Some more of one choice. The one that ends it has a reason (stop or length) and its tokens.

    All that were generated count, the end of text too, and those of a stop sequence.
    """

    choice: int
    text: str
    finish_reason: str | None = None
    completion_tokens: int = 0


class LoadedModel:
    """A causal language model, ready to generate."""

    def __init__(self, tokenizer: Any, model: Any) -> None:
        self._tokenizer = tokenizer
        self._model = model
        self.context_length = _context_length(tokenizer, model)
        """Tokens of prompt and answer together."""
        self._ends = _end_tokens(tokenizer, model)
        # Of the prompt's logits only the last are used: all of a long one's may take gigabytes.
        takes_bound = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._options: dict[str, Any] = {"logits_to_keep": 1} if takes_bound else {}

    @classmethod
    def load(cls, source: str) -> LoadedModel:
        """Load it from a directory, or from the Hugging Face Hub. Raises LocalModelsError."""
        try:
            from transformers import AutoTokenizer  # noqa: PLC0415 - takes seconds
            from transformers.utils import logging  # noqa: PLC0415
        except ImportError as error:
            raise LocalModelsError(
                "transformers and torch are not installed here: `make .venv/.local-models` installs them"
            ) from error
        logging.disable_progress_bar()
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            # It imports torch, which takes seconds more: not for a name that is a mistake.
            from transformers import AutoModelForCausalLM  # noqa: PLC0415

            model = AutoModelForCausalLM.from_pretrained(
                source, trust_remote_code=False, use_safetensors=True
            ).eval()
        except Exception as error:
            # Whatever is wrong with a model's files. What transformers says begins with the point.
            reason = str(error).strip().partition("\n")[0][:300]
            raise LocalModelsError(
                f"{source} can't be loaded. It has to be a directory with a tokenizer and weights in "
                "safetensors, or a repository of such on the Hugging Face Hub, for which the network is "
                f"needed the first time. transformers says: {reason}"
            ) from error
        return cls(tokenizer, model)

    def run(self, asked: Asked, gone: threading.Event) -> Iterator[Begun | Piece]:
        """Generate every choice; end early where `gone` is set.

        Raises BadRequest (400) for a prompt that leaves no room in the context, Unprocessable (422) for one
        that is empty or that the model's template refuses.
        """
        prompt, stops, trims = self._prepare(asked)
        yield Begun(len(prompt))
        for choice in range(asked.choices):
            yield from self._speak(asked, prompt, stops, choice, gone, trims=trims)

    def _prepare(self, asked: Asked) -> tuple[list[int], tuple[str, ...], bool]:
        """Return the prompt's tokens, where to stop, and whether a space before the answer is layout."""
        stops, trims = asked.stops, False
        if isinstance(asked.prompt, str):
            prompt = self._encode(asked.prompt)
        elif self._tokenizer.chat_template:
            prompt = self._encode_turns(asked.prompt)
        else:
            prompt = self._encode(write_turns(asked.prompt))
            if is_in_turns([role for role, _ in asked.prompt]):
                stops, trims = (*stops, USER_TURN), True
        if not prompt:
            raise Unprocessable("The prompt is empty.", code="empty_prompt")
        if len(prompt) >= self.context_length:
            raise BadRequest(
                f"This model's maximum context length is {self.context_length} tokens, and the prompt has "
                f"{len(prompt)}: no room is left for an answer.",
                code="context_length_exceeded",
            )
        return prompt, stops, trims

    def _encode(self, text: str) -> list[int]:
        # What looks like a special token is the user's text, and no command to the model.
        tokens: list[int] = self._tokenizer(text, split_special_tokens=True, verbose=False)["input_ids"]
        if not tokens and self._tokenizer.bos_token_id is not None:
            return [self._tokenizer.bos_token_id]
        return tokens

    def _encode_turns(self, turns: Sequence[tuple[str, str]]) -> list[int]:
        from jinja2 import TemplateError  # noqa: PLC0415 - with transformers, and not without

        messages = [
            {"role": "system" if role == "developer" else role, "content": text} for role, text in turns
        ]
        begun = turns[-1][0] == "assistant"
        try:
            tokens: list[int] = self._tokenizer.apply_chat_template(
                messages,
                add_generation_prompt=not begun,
                continue_final_message=begun,
                tokenize=True,
                return_dict=False,
            )
        except TemplateError as error:
            raise Unprocessable(
                f"The model's chat template refuses these messages: {str(error)[:300]}", param="messages"
            ) from error
        return tokens

    def _speak(
        self,
        asked: Asked,
        prompt: list[int],
        stops: tuple[str, ...],
        choice: int,
        gone: threading.Event,
        *,
        trims: bool,
    ) -> Iterator[Piece]:
        text = TokenText(self._decode, prompt)
        scanner = StopScanner(stops)
        made = 0
        reason = "length"
        for token in self._generate(asked, prompt, choice):
            if gone.is_set():
                return
            made += 1
            if token in self._ends:
                reason = "stop"
                break
            piece = scanner.feed(text.feed(token))
            if scanner.found:
                reason = "stop"
            if trims:
                piece = piece.lstrip()
            if piece:
                trims = False
                yield Piece(choice, piece)
            if scanner.found:
                break
        # What was held back may itself complete a stop sequence.
        last = scanner.feed(text.close()) + scanner.close()
        if scanner.found:
            reason = "stop"
        yield Piece(choice, last.lstrip() if trims else last, reason, made)

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _generate(self, asked: Asked, prompt: list[int], choice: int) -> Iterator[int]:
        """Yield one token after the other, up to the bound or the end of the context."""
        import torch  # noqa: PLC0415 - takes seconds

        generator = torch.Generator()
        if asked.seed is None:
            generator.seed()
        else:
            generator.manual_seed((asked.seed + choice) & _SEED_MASK)
        room = self.context_length - len(prompt)
        tokens = torch.tensor([prompt])
        past = None
        for _ in range(room if asked.max_tokens is None else min(asked.max_tokens, room)):
            with torch.inference_mode():
                told = self._model(input_ids=tokens, past_key_values=past, use_cache=True, **self._options)
                past = told.past_key_values
                token = _pick(told.logits[0, -1].float(), asked, generator)
            yield token
            tokens = torch.tensor([[token]])


def _pick(logits: Any, asked: Asked, generator: Any) -> int:
    """Draw a token from those that make up `top_p` of the probability."""
    import torch  # noqa: PLC0415

    if asked.temperature < _GREEDY_BELOW:
        return int(logits.argmax())
    probabilities, order = torch.softmax(logits / asked.temperature, dim=-1).sort(
        descending=True, stable=True
    )
    if asked.top_p < 1:
        # Each is kept before which less than top_p stands: the first always.
        before = probabilities.cumsum(-1) - probabilities
        kept = before < asked.top_p
        kept[0] = True
        probabilities = probabilities * kept
    return int(order[torch.multinomial(probabilities, 1, generator=generator)])


def _context_length(tokenizer: Any, model: Any) -> int:
    length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(length, int) or length <= 0:
        length = tokenizer.model_max_length
    if not 0 < length < _UNBOUNDED_TOKENS:
        raise LocalModelsError("the model does not tell its context length (max_position_embeddings)")
    return int(length)


def _end_tokens(tokenizer: Any, model: Any) -> frozenset[int]:
    told = model.generation_config.eos_token_id
    ends = told if isinstance(told, list) else [told]
    return frozenset(end for end in [*ends, tokenizer.eos_token_id] if end is not None)
