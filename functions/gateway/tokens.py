"""How many tokens a request may have, and how many a text has.

`input_bound` is for admission: cheap, and never too low. `count_text` and `count_request` are for settlement
where the provider told no usage or the stream was cut: exact for OpenAI's models, near for the others.

Loading an encoding takes 0.3 s and 80 MiB, counting then about 4 million tokens a second: both belong in a
thread (`asyncio.to_thread`), and only where a provider's own usage is missing.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.observability import make_logger

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tiktoken import Encoding

DEFAULT_ENCODING = "o200k_base"
_OLDER_ENCODING = "cl100k_base"
# tiktoken's own table (model.py), for what it holds of chat models before gpt-4o.
_OLDER_MODELS = ("gpt-4-", "gpt-4:", "gpt-3-5", "gpt-35")
_NEWER_MODELS = ("gpt-4-5", "gpt-4-1")

# What tiktoken calls the files (the SHA-1 of their address), and the SHA-256 of what is in them.
_FILES = {
    "o200k_base": (
        "fb374d419588a4632f3f557e76b4b70aebbca790",
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    ),
    "cl100k_base": (
        "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    ),
}
_DIRECTORY = Path(__file__).parent / "tokenizers"

# Chat overhead as OpenAI's cookbook has it ("How to count tokens with tiktoken").
TOKENS_PER_MESSAGE = 3
TOKENS_PER_NAME = 1
TOKENS_PER_REPLY = 3
IMAGE_TOKENS = 765
"""An image of 1024 x 1024 in high detail at OpenAI: the estimate for media where nobody told a figure."""
DRAWN_IMAGE_TOKENS = 1290
"""An image of 1024 x 1024 that Gemini made: the estimate for images in a chat where nobody told."""
MAX_IMAGE_TOKENS = 16_384
"""More than any model in use reads of one image: OpenAI's largest come to 14364, Gemini's to 2240."""

# For bounds. Templates of open models wrap a message in up to a dozen tokens, add a system prompt of their
# own (Llama's and Qwen's are below 40), and explain tools in some 350 (Hermes's format). Anthropic explains
# them in 290 to 804 (Opus 4.7 with a forced choice), and an output format in a prompt of its own, too.
_BOUND_PER_MESSAGE = 16
_BOUND_PER_REQUEST = 64
_BOUND_FOR_TOOLS = 1024
_EXPLAINED_FIELDS = ("tools", "functions", "response_format", "output_config")

# tiktoken's regular expression overflows its stack on a million spaces (measured; it panics), and merging
# takes n log n in the longest run without a break: 2 s for 4 MB. In blocks of this size neither shows.
_BLOCK_CHARS = 16_384

# Fields of a request that say how to answer, and are not shown to the model.
_UNSEEN_FIELDS = frozenset(
    {
        "model",
        "models",
        "route",
        "provider",
        "n",
        "stream",
        "stream_options",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "frequency_penalty",
        "presence_penalty",
        "repetition_penalty",
        "logit_bias",
        "logprobs",
        "top_logprobs",
        "seed",
        "stop",
        "user",
        "metadata",
        "store",
        "service_tier",
        "parallel_tool_calls",
        "prompt_cache_key",
        "safety_identifier",
        # Counted with the output, where it is accepted and where it is rejected.
        "prediction",
    }
)
# Fields by which a provider adds to the prompt what the request doesn't hold: search results, documents, a
# template of the client's own.
_EXPANDING_FIELDS = frozenset(
    {
        "web_search_options",
        "web_search",
        "plugins",
        "search_parameters",
        "chat_template",
        "data_sources",
        "extra_body",
        "prompt",
        "previous_response_id",
    }
)
_TEXT_PARTS = frozenset({"text", "refusal", "thinking", "reasoning"})
# What a message may hold that is text; `audio` (an earlier spoken answer, named by its id) is not among it.
_TEXT_FIELDS = frozenset(
    {
        "role",
        "content",
        "name",
        "tool_calls",
        "tool_call_id",
        "function_call",
        "refusal",
        "reasoning",
        "reasoning_content",
        "reasoning_details",
        "extra_content",
        "annotations",
        "citations",
        "cache_control",
        "prefix",
        "is_error",
    }
)
_PLAIN_TOOLS = frozenset({"function", "custom"})


def input_bound(body: Mapping[str, Any]) -> int | None:
    """Return a number of tokens that the request's input can't exceed; None where that can't be told cheaply.

    Every tokenizer in use falls back to bytes, so that text has at most as many tokens as UTF-8 bytes. What
    is not text (images, audio, files, tools that search) has no such bound: the caller takes the model's
    context length. `body` is the client's checked JSON object.
    """
    if not _EXPANDING_FIELDS.isdisjoint(name for name, value in body.items() if value):
        return None
    tools = body.get("tools") or []
    if not all(isinstance(tool, dict) and tool.get("type") in _PLAIN_TOOLS for tool in tools):
        return None
    bound = _BOUND_PER_REQUEST
    if any(body.get(name) for name in _EXPLAINED_FIELDS):
        bound += _BOUND_FOR_TOOLS
    for message in body.get("messages") or []:
        size = _message_bytes(message)
        if size is None:
            return None
        bound += size + _BOUND_PER_MESSAGE
    for name, value in body.items():
        if name != "messages" and name not in _UNSEEN_FIELDS and value is not None:
            bound += len(name) + _json_bytes(value)
    return bound


def embedding_bound(given: str | Sequence[Any]) -> int:
    """Return a number of tokens that what is to be embedded can't exceed: a text, tokens, or several of them.

    Tokens are the provider's own, and count as what they are.
    """
    inputs: Sequence[Any] = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    return sum(
        _BOUND_PER_MESSAGE + (_text_bytes(value) if isinstance(value, str) else len(value))
        for value in inputs
    )


def image_bound(prompt: str, images: int) -> int:
    """Return a number of tokens that a prompt and so many images to edit can't exceed."""
    return _BOUND_PER_REQUEST + _text_bytes(prompt) + images * MAX_IMAGE_TOKENS


def count_embedded(given: str | Sequence[Any], model: str = "") -> int:
    """Return the tokens of what was embedded, for a provider that did not tell."""
    inputs: Sequence[Any] = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    return sum(count_text(value, model) if isinstance(value, str) else len(value) for value in inputs)


def caches_for_an_hour(body: Any) -> bool:
    """Return whether a request asks for a cache that lives longer than the usual five minutes.

    That costs more. Wherever in the body: a wire may pass on any of it.
    """
    if isinstance(body, dict):
        control = body.get("cache_control")
        if isinstance(control, dict) and control.get("ttl") not in (None, "5m"):
            return True
        return any(map(caches_for_an_hour, body.values()))
    return isinstance(body, list) and any(map(caches_for_an_hour, body))


def count_text(text: str, model: str = "") -> int:
    """Return the tokens of a text for a model, or an estimate that is rather high where no data is there.

    Special tokens in the text count as the text that they are. Never raises: a settlement depends on it.
    """
    encoding = _encoding(encoding_name(model))
    return sum(_count_block(encoding, block) for block in _blocks(text))


def count_request(body: Mapping[str, Any], model: str = "") -> int:
    """Return the input tokens of a chat request, by OpenAI's rule: texts, names, overhead, tools as JSON.

    Media count IMAGE_TOKENS each. An estimate wherever more than plain text is sent.
    """
    count = count_messages(body.get("messages") or [], model)
    for name in ("tools", "functions", "response_format"):
        if body.get(name):
            count += count_text(_json(body[name]), model)
    return count


def count_messages(messages: Sequence[Mapping[str, Any]], model: str = "") -> int:
    """Return the tokens of a conversation, with the three that begin the reply."""
    count = TOKENS_PER_REPLY
    for message in messages:
        count += TOKENS_PER_MESSAGE
        for name, value in message.items():
            if name == "name" and isinstance(value, str):
                count += TOKENS_PER_NAME + count_text(value, model)
            elif isinstance(value, str):
                count += count_text(value, model)
            elif name == "content" and isinstance(value, list):
                count += _count_parts(value, model)
            elif value:
                count += count_text(_json(value), model)
    return count


def encoding_name(model: str) -> str:
    """Return the encoding that a model's tokens are counted in, whatever provider stands before its name."""
    name = model.rpartition("/")[2].lower().replace(".", "-").removeprefix("ft:")
    if name == "gpt-4" or (name.startswith(_OLDER_MODELS) and not name.startswith(_NEWER_MODELS)):
        return _OLDER_ENCODING
    return DEFAULT_ENCODING


def estimate(text: str) -> int:
    """Return a number of tokens without any data: one for three ASCII characters, five for four others.

    English prose has 4 to 5 characters to a token, code about 3, Chinese 0.9 to 1.5, so that this is rather
    high. It is for a deployment whose tokenizer data is missing, which is warned of.
    """
    ascii_chars = len(text) if text.isascii() else sum(map(str.isascii, text))
    return -(-ascii_chars // 3) - (-(len(text) - ascii_chars) * 5 // 4)


def _message_bytes(message: Any) -> int | None:
    if not isinstance(message, dict):
        return None
    size = 0
    for name, value in message.items():
        if value and name not in _TEXT_FIELDS:
            return None
        if isinstance(value, str):
            size += _text_bytes(value)
        elif name == "content" and isinstance(value, list):
            if not all(isinstance(part, dict) and part.get("type") in _TEXT_PARTS for part in value):
                return None
            size += _json_bytes(value)
        elif value is not None:
            size += len(name) + _json_bytes(value)
    return size


def _text_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _json_bytes(value: Any) -> int:
    return _text_bytes(_json(value))


def _count_parts(parts: list[Any], model: str) -> int:
    count = 0
    for part in parts:
        if isinstance(part, dict) and part.get("type") in _TEXT_PARTS:
            count += sum(
                count_text(value, model)
                for name, value in part.items()
                if name != "type" and isinstance(value, str)
            )
        else:
            count += IMAGE_TOKENS
    return count


def _blocks(text: str) -> Iterable[str]:
    """Split a text where a word begins, so that the parts have the tokens of the whole or a few more."""
    start = 0
    while len(text) - start > _BLOCK_CHARS:
        end = start + _BLOCK_CHARS
        space = text.rfind(" ", start + _BLOCK_CHARS // 2, end)
        end = space if space > start else end
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def _count_block(encoding: Encoding | None, block: str) -> int:
    if encoding is None:
        return estimate(block)
    try:
        return len(encoding.encode_ordinary(block))
    except BaseException as error:
        # A panic in tiktoken's Rust is no Exception, and would pass every handler on its way.
        if type(error).__name__ != "PanicException":
            raise
        return estimate(block)


_loading = threading.Lock()


@functools.cache
def _load(name: str, directory: str) -> Encoding | None:
    file, digest = _FILES[name]
    path = Path(directory) / file
    try:
        # Checked here because tiktoken deletes a file that it finds wrong, and fetches it from the network.
        intact = hashlib.sha256(path.read_bytes()).hexdigest() == digest
    except OSError:
        intact = False
    if not intact:
        make_logger().warning(
            "Tokens are estimated: the tokenizer's data is missing or damaged.",
            extra={"encoding": name, "path": str(path)},
        )
        return None
    import tiktoken  # noqa: PLC0415 - 25 ms that no start should pay

    os.environ["TIKTOKEN_CACHE_DIR"] = directory
    return tiktoken.get_encoding(name)


def _encoding(name: str) -> Encoding | None:
    directory = os.environ.get("TIKTOKEN_CACHE_DIR") or str(_DIRECTORY)
    with _loading:
        return _load(name, directory)
