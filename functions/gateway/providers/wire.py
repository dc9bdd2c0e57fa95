"""What every wire format offers, so that a use case never asks which one it speaks.

A wire translates. It knows no price, does no I/O, retries nothing, logs nothing and authenticates nobody:

- `build_request`: a call in OpenAI's terms becomes the provider's HTTP request;
- `parse_answer`: a provider's whole answer becomes OpenAI's, with what it used;
- `open_stream`: bytes as they arrive become OpenAI's chunks, with what was used and said so far;
- `parse_error`: a provider's refusal becomes a ProviderError that says whose fault it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from gateway import json_text
from gateway.errors import (
    BadRequest,
    GatewayError,
    NotFound,
    PayloadTooLarge,
    ProviderFailed,
    ProviderTimeout,
    Unavailable,
    Unprocessable,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal

    from gateway.schemas.usage import TokenUsage


class AuthStyle(StrEnum):
    """How a provider takes its key. Never in the URL: URLs are logged everywhere."""

    BEARER = "bearer"
    X_API_KEY = "x-api-key"
    X_GOOG_API_KEY = "x-goog-api-key"


class Capability(StrEnum):
    """What a provider's wire can say. What each of its models takes is for the provider to judge."""

    PLAIN = "plain"
    STREAM = "stream"
    TOOLS = "tools"
    PARALLEL_TOOLS = "parallel_tools"
    JSON = "json"
    """Answers that fit a JSON schema."""
    IMAGE_INPUT = "image_input"
    AUDIO_INPUT = "audio_input"
    VIDEO_INPUT = "video_input"
    FILE_INPUT = "file_input"
    IMAGE_OUTPUT = "image_output"
    """Images within an answer of a chat."""
    REASONING = "reasoning"
    CACHE = "cache"
    """It tells how much of the prompt it found in its cache."""
    EMBEDDINGS = "embeddings"
    IMAGES = "images"


TEXT_CHAT = frozenset({Capability.PLAIN, Capability.STREAM})
DOCUMENT_CHAT = TEXT_CHAT | {
    Capability.TOOLS,
    Capability.PARALLEL_TOOLS,
    Capability.JSON,
    Capability.IMAGE_INPUT,
    Capability.FILE_INPUT,
    Capability.REASONING,
    Capability.CACHE,
}
MEDIA_CHAT = DOCUMENT_CHAT | {Capability.AUDIO_INPUT, Capability.VIDEO_INPUT}
"""What is said in OpenAI's own terms, and passed on as it is."""


class Fault(StrEnum):
    """Whose fault a provider's failure is, and so what follows from it."""

    CLIENT = "client"
    """The request itself: the client is told, nothing else is tried."""
    TRANSIENT = "transient"
    """It may pass: the next route may be tried (408, 429, 5xx, no connection)."""
    OPERATOR = "operator"
    """The gateway's key, balance or address at the provider: the client sees 502, the operator the detail."""
    PROTOCOL = "protocol"
    """An answer that is none. Nothing else is tried: it may have been paid for."""


@dataclass(frozen=True, slots=True)
class Provider:
    """One entry of the registry: what is particular to a provider that speaks a known wire."""

    name: str
    title: str
    """The name as people write it, for messages."""
    wire: ChatWire
    base_url: str | None
    """Where it is by default; None where each service must say."""
    images: ImageWire | None = None
    """How it makes and edits images; None where it does not."""
    embeddings: EmbeddingWire | None = None
    """How it makes embeddings; None where it does not."""
    messages: ChatWire | None = None
    """How it takes Anthropic's Messages as they are; None where they have to be said in OpenAI's terms."""
    chat: frozenset[Capability] = MEDIA_CHAT
    """What its wire for chat can."""
    aliases: tuple[str, ...] = ()
    auth: AuthStyle = AuthStyle.BEARER
    key_needed: bool = True
    output_bound_field: str = "max_tokens"
    """The field by which the provider takes the bound on output tokens."""
    stream_usage_option: bool = True
    """Whether `stream_options.include_usage` is understood; where it is not, usage comes unasked."""
    knows_developers: bool = True
    """Whether it takes messages of the role `developer`; else they are told as `system`, the older name."""
    lacks: frozenset[str] = frozenset()
    """OpenAI's parameters that it refuses, where it is known to refuse them."""
    asides: frozenset[str] | None = None
    """What messages may hold of answers beside what was said, such as thoughts. None: whatever there is."""
    service_tiers: tuple[str, ...] = ("auto", "default")
    """The tiers at which a token costs what the price list says. Any other has no price, and is refused."""
    reasoning_apart: bool = False
    """Whether completion_tokens leaves out the reasoning tokens."""
    lists_models_to_all: bool = False
    """Whether the list of models is told whatever the key is, so that it says nothing about the key."""
    attribution: Mapping[str, str] = field(default_factory=dict)
    """Header name → which attribution setting it carries: `site_url` or `site_name`."""
    extra_headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def capabilities(self) -> frozenset[Capability]:
        """All that can be asked of it."""
        media = {Capability.IMAGES: self.images, Capability.EMBEDDINGS: self.embeddings}
        return self.chat | {capability for capability, wire in media.items() if wire is not None}

    @property
    def subject(self) -> str:
        """The title as a sentence begins with it. Names such as xAI and vLLM keep their first letter."""
        return f"T{self.title[1:]}" if self.title.startswith("the ") else self.title


@dataclass(frozen=True, slots=True)
class ProviderCall:
    """One call of a model, in OpenAI's terms, with where it goes."""

    provider: Provider
    base_url: str
    model: str
    """The model's name at the provider."""
    body: Mapping[str, Any] = field(repr=False)
    """The client's own JSON object; it is not changed."""
    output_bound: int | None
    """Tokens of output per choice that may be generated; None leaves the provider's own bound."""
    stream: bool
    key: str | None = field(default=None, repr=False)
    wants_usage: bool = False
    """Whether the client asked for usage in the stream."""
    site_url: str | None = None
    site_name: str | None = None
    dropped: frozenset[str] = frozenset()
    """Parameters that are left out where the provider can't be told them; any other is refused (422)."""

    @property
    def wire(self) -> Wire | None:
        """The wire that carries it; None where the provider has none for it."""
        return self.provider.wire


@dataclass(frozen=True, slots=True)
class InputImage:
    """An image that the client sent (`content`) or named (`url`): one of them is there."""

    param: str
    """The field that it came in, for messages."""
    content: bytes | None = field(default=None, repr=False)
    media_type: str | None = None
    """As the client told it, such as `image/png`; None with a URL."""
    url: str | None = field(default=None, repr=False)
    """An address for the provider to fetch. A wire that can't pass it on raises Unprocessable (422)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageCall(ProviderCall):
    """One call for images. `body` is OpenAI's request without the files; `n` in it is how many images."""

    images: tuple[InputImage, ...] = ()
    """What is to be edited; empty where images are made from the prompt alone."""
    mask: InputImage | None = None

    @property
    def wire(self) -> ImageWire | None:
        return self.provider.images


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagesCall(ProviderCall):
    """One call of a model whose client speaks Anthropic's Messages; `body` says the same in OpenAI's terms.

    Raises Unprocessable (422) where the provider takes these terms alone and they don't say everything.
    """

    native: Mapping[str, Any] = field(repr=False)
    """The client's own JSON object."""
    native_headers: Mapping[str, str] = field(default_factory=dict)
    """What it said in headers: the version of the API, betas."""
    native_only: str | None = None
    """The path of the first thing that `body` can't say; None where it says everything."""

    def __post_init__(self) -> None:
        if self.native_only is not None and not self.is_native:
            raise Unprocessable(
                f"{self.provider.subject} can't be told {self.native_only!r}: only Anthropic knows it.",
                param=self.native_only,
                code="unsupported_content",
            )

    @property
    def is_native(self) -> bool:
        """Whether the provider takes Messages as they are, and answers so."""
        return self.provider.messages is not None

    @property
    def wire(self) -> ChatWire:
        return self.provider.messages or self.provider.wire


class EmbeddingCall(ProviderCall):
    """One call for embeddings."""

    __slots__ = ()

    @property
    def wire(self) -> EmbeddingWire | None:
        return self.provider.embeddings


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """What to send. The headers hold the provider's key: they are never shown."""

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer in OpenAI's shape."""

    body: dict[str, Any] = field(repr=False)
    usage: TokenUsage | None
    """None where the provider told none, or told nonsense: it is then estimated from the texts."""
    finish_reasons: tuple[str, ...]
    generated: tuple[str, ...] = field(repr=False)
    """Everything that was generated, one text per choice."""
    reported_cost_usd: Decimal | None = None
    """What the provider says the call cost (OpenRouter); for comparison, never for charging."""


@dataclass(frozen=True, slots=True)
class ImageAnswer:
    """A whole answer in the shape of OpenAI's Images API."""

    body: dict[str, Any] = field(repr=False)
    """`created`, and in `data` an object with `b64_json` or `url` for each image."""
    usage: TokenUsage | None
    """Without the number of images. None where the provider told none: it is then the bound."""
    images: int
    """How many were made, and are paid for."""
    reported_cost_usd: Decimal | None = None


@dataclass(frozen=True, slots=True)
class EmbeddingAnswer:
    """A whole answer in the shape of OpenAI's Embeddings API."""

    body: dict[str, Any] = field(repr=False)
    usage: TokenUsage | None
    """None where the provider told none: it is then counted from the texts."""
    reported_cost_usd: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """One of OpenAI's chunks, to be passed on."""

    data: dict[str, Any] = field(repr=False)
    raw: str | None = field(default=None, repr=False)
    """The chunk's JSON as it came, where it can go on unchanged."""

    @property
    def sse(self) -> bytes:
        """The chunk as a server-sent event."""
        payload = self.raw.encode("utf-8", "replace") if self.raw is not None else json_text.dump(self.data)
        return b"data: " + payload + b"\n\n"


@dataclass(frozen=True, slots=True)
class StreamFailed:
    """The provider reported an error inside the stream, or sent what can't be read. Nothing follows."""

    error: ProviderError


@dataclass(frozen=True, slots=True)
class StreamDone:
    """The provider said that the stream is whole. Nothing follows."""


StreamEvent = Chunk | StreamFailed | StreamDone


class ChatStream(Protocol):
    """The state of one streamed answer. It is not shared between calls."""

    @property
    def usage(self) -> TokenUsage | None:
        """The latest usage that the provider told; None while there is none."""

    @property
    def input_usage(self) -> TokenUsage | None:
        """What was sent, by classes, where the provider tells that before the answer; None where it does not.

        It counts where the stream is cut before there is `usage`.
        """

    @property
    def reported_cost_usd(self) -> Decimal | None: ...

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        """Of each choice that has finished, in the order of the choices."""

    @property
    def generated(self) -> tuple[str, ...]:
        """Everything that was generated so far, one text per choice."""

    @property
    def complete(self) -> bool:
        """Whether the answer is whole: the provider said so, or every choice has finished."""

    def feed(self, data: bytes) -> list[StreamEvent]:
        """Take bytes as they arrived; return the events that they complete."""

    def close(self) -> list[StreamEvent]:
        """Take the end of the bytes; return what was still pending."""

    def usage_chunk(self, usage: TokenUsage | None = None, **fields: Any) -> Chunk:
        """Return OpenAI's last chunk: `choices: []` and the usage, with further top-level fields.

        The usage is the provider's own object where it told one, else what is given here.
        """


class Wire(Protocol):
    """What wire formats have in common, whatever they are for."""

    name: str

    def build_request(self, call: Any) -> UpstreamRequest:
        """Translate the call, of the kind that the wire is for."""

    def parse_error(
        self, call: ProviderCall, status: int, headers: Mapping[str, str], content: bytes
    ) -> ProviderError:
        """Translate an answer that is not 2xx. Never raises: what can't be read is the provider's."""


class ChatWire(Wire, Protocol):
    """A wire format for chat."""

    def build_request(self, call: ProviderCall) -> UpstreamRequest:
        """Translate the call. Raises Unprocessable (422) where the wire can't say what the client said."""

    def parse_answer(self, call: ProviderCall, content: bytes) -> Answer:
        """Translate a 2xx answer. Raises ProviderError where it is none."""

    def open_stream(self, call: ProviderCall) -> ChatStream:
        """Return the state for one streamed answer."""

    def build_list_request(self, call: ProviderCall) -> UpstreamRequest:
        """Return the request for the list of models. Of the call, only where it goes and its key are used."""

    def parse_list(self, content: bytes) -> frozenset[str] | None:
        """Return the names in a list of models; None where the answer is no such list."""


class ImageWire(Wire, Protocol):
    """A wire format for images."""

    def output_bound(self, body: Mapping[str, Any]) -> int:
        """Return the tokens that one image of this request may take at most, whatever model makes it.

        It is held before the call and given to `build_request` as `call.output_bound`, cut to what the
        catalogue says that the model can answer with.
        """

    def build_request(self, call: ImageCall) -> UpstreamRequest:
        """Translate the call. Raises Unprocessable (422) where the wire can't say what the client said."""

    def parse_answer(self, call: ImageCall, content: bytes) -> ImageAnswer:
        """Translate a 2xx answer. Raises ProviderError where it is none."""


class EmbeddingWire(Wire, Protocol):
    """A wire format for embeddings."""

    def build_request(self, call: ProviderCall) -> UpstreamRequest:
        """Translate the call. Raises Unprocessable (422) where the wire can't say what the client said."""

    def parse_answer(self, call: ProviderCall, content: bytes) -> EmbeddingAnswer:
        """Translate a 2xx answer. Raises ProviderError where it is none."""


class ProviderError(Exception):
    """A provider's failure, sorted by whose fault it is.

    `message` is fit for the client: it names the provider and holds neither key nor URL. `detail` is for
    the log. `retry_after` is in seconds.
    """

    def __init__(
        self,
        provider: str,
        fault: Fault,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        detail: str | None = None,
    ) -> None:
        super().__init__(message)
        self.provider = provider
        self.fault = fault
        self.message = message
        self.status = status
        self.code = code
        self.param = param
        self.retry_after = retry_after
        self.detail = detail

    @property
    def retryable(self) -> bool:
        """Whether another route may be tried: also where it is our credit there that has run out (429)."""
        return self.fault is Fault.TRANSIENT or (self.fault is Fault.OPERATOR and self.status == 429)  # noqa: PLR2004

    def as_gateway_error(self) -> GatewayError:
        """Return what the client is told when nothing else is left to try."""
        detail = self.detail
        if self.fault is Fault.CLIENT:
            known: dict[int | None, type[GatewayError]] = {
                404: NotFound,
                413: PayloadTooLarge,
                422: Unprocessable,
            }
            return known.get(self.status, BadRequest)(
                self.message, code=self.code or "provider_refused", param=self.param, detail=detail
            )
        if self.fault is Fault.TRANSIENT:
            if self.status in {408, 504}:
                return ProviderTimeout(self.message, detail=detail)
            if self.status in {None, 429, 503, 529}:
                code = "provider_rate_limited" if self.status == 429 else "provider_unavailable"  # noqa: PLR2004
                return Unavailable(self.message, code=code, retry_after=self.retry_after, detail=detail)
        return ProviderFailed(self.message, detail=detail)
