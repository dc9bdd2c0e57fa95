"""What the local models can be asked, and what is refused by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from gateway.errors import Unprocessable
from gateway.local_models.model import Asked
from gateway.providers.failures import refuse_parameter
from gateway.providers.openai_text import text_parameters
from gateway.providers.plain_prompt import read_turns
from gateway.providers.registry import provider_named
from gateway.providers.wire import ProviderCall
from gateway.schemas.chat import ModelName, StreamOptions, TokenBound  # noqa: TC001 - pydantic reads them

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.schemas.chat import ChatCompletionRequest

MAX_CHOICES = 8
MAX_STOPS = 4
MAX_STOP_CHARS = 256
LEGACY_MAX_TOKENS = 16
"""OpenAI's default for legacy completions."""

_LEGACY_FIELDS = {"prompt"}
_CHATS_FIELDS = frozenset({"messages", "max_completion_tokens"})
_LEGACY_WITHOUT_EFFECT: Mapping[str, tuple[Any, ...]] = {
    "echo": (False,),
    "best_of": (1,),
    "suffix": ("",),
}


class CompletionRequest(BaseModel):
    """The body of POST /v1/completions."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    model: ModelName
    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)]
    max_tokens: TokenBound | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | list[str] | None = None

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


def ask_chat(request: ChatCompletionRequest, body: Mapping[str, Any]) -> Asked:
    """Return what a chat asks. Raises Unprocessable (422) naming what a model of text can't be told."""
    call = _call(request.model, body)
    text_parameters(call)
    return _asked(request, tuple(read_turns(call)), request.output_bound)


def ask_completion(request: CompletionRequest, body: Mapping[str, Any]) -> Asked:
    """Return what a completion asks. Raises Unprocessable (422), as `ask_chat` does."""
    rest = {name: value for name, value in body.items() if name not in _LEGACY_FIELDS}
    call = _call(request.model, rest)
    text_parameters(call, _LEGACY_WITHOUT_EFFECT)
    for name in _CHATS_FIELDS & rest.keys():
        refuse_parameter(call, name, "it belongs to a chat")
    prompt = request.prompt if isinstance(request.prompt, str) else request.prompt[0]
    return _asked(request, prompt, request.max_tokens or LEGACY_MAX_TOKENS)


def _call(model: str, body: Mapping[str, Any]) -> ProviderCall:
    """Return the request as the gateway's own call of us, for the rules that both read it by."""
    provider = provider_named("local")
    return ProviderCall(
        provider=provider, base_url="", model=model, body=body, output_bound=None, stream=False
    )


def _asked(
    request: ChatCompletionRequest | CompletionRequest,
    prompt: str | tuple[tuple[str, str], ...],
    max_tokens: int | None,
) -> Asked:
    choices = request.n or 1
    if choices > MAX_CHOICES:
        raise Unprocessable(f"n: at most {MAX_CHOICES} choices are made.", param="n")
    return Asked(
        prompt=prompt,
        max_tokens=max_tokens,
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        seed=request.seed,
        stops=_stops(request.stop),
        choices=choices,
    )


def _stops(given: str | list[str] | None) -> tuple[str, ...]:
    stops = (given,) if isinstance(given, str) else tuple(given or ())
    if len(stops) > MAX_STOPS or any(not 0 < len(stop) <= MAX_STOP_CHARS for stop in stops):
        raise Unprocessable(
            f"stop: at most {MAX_STOPS} sequences of 1 to {MAX_STOP_CHARS} characters are taken.",
            param="stop",
        )
    return stops
