from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import tokens
from gateway.tokens import (
    IMAGE_TOKENS,
    caches_for_an_hour,
    count_messages,
    count_request,
    count_text,
    encoding_name,
    estimate,
    input_bound,
)

FUNCTIONS = Path(__file__).parents[2] / "functions"
TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60)
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}


def _chat(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": list(messages), **fields}


# Counting.


def test_known_counts() -> None:
    # The cookbook's figures for o200k_base and cl100k_base.
    assert count_text("antidisestablishmentarianism", "gpt-4o") == 6
    assert count_text("antidisestablishmentarianism", "gpt-4") == 6
    assert count_text("2 + 2 = 4", "gpt-4o") == 7
    assert count_text("お誕生日おめでとう", "gpt-4o") == 8
    assert count_text("お誕生日おめでとう", "gpt-4") == 9
    assert count_text("") == 0


def test_the_cookbooks_conversation() -> None:
    """The example of OpenAI's cookbook, for which the API counted 124 (gpt-4o) and 129 (gpt-4)."""
    messages = [
        {
            "role": "system",
            "content": "You are a helpful, pattern-following assistant that translates corporate jargon into "
            "plain English.",
        },
        {
            "role": "system",
            "name": "example_user",
            "content": "New synergies will help drive top-line growth.",
        },
        {
            "role": "system",
            "name": "example_assistant",
            "content": "Things working well together will increase revenue.",
        },
        {
            "role": "system",
            "name": "example_user",
            "content": "Let's circle back when we have more bandwidth to touch base on "
            "opportunities for increased leverage.",
        },
        {
            "role": "system",
            "name": "example_assistant",
            "content": "Let's talk later when we're less busy about how to do better.",
        },
        {
            "role": "user",
            "content": "This late pivot means we don't have time to boil the ocean "
            "for the client deliverable.",
        },
    ]
    assert count_messages(messages, "gpt-4o") == 124
    assert count_messages(messages, "gpt-4") == 129


def test_parts_tools_and_media_are_counted() -> None:
    plain = count_request(_chat({"role": "user", "content": "Hello there."}))
    parts = count_request(_chat({"role": "user", "content": [{"type": "text", "text": "Hello there."}]}))
    assert parts == plain
    image = {"type": "image_url", "image_url": {"url": "https://x.example/y.png"}}
    both = count_request(
        _chat({"role": "user", "content": [{"type": "text", "text": "Hello there."}, image]})
    )
    assert both == plain + IMAGE_TOKENS
    tools = count_request(_chat({"role": "user", "content": "Hello there."}, tools=[TOOL]))
    assert tools == plain + count_text(json.dumps([TOOL], separators=(",", ":")))


def test_special_tokens_in_a_text_are_text() -> None:
    assert count_text("<|endoftext|>", "gpt-4o") > 1
    assert count_text("<|im_start|>system<|endofprompt|>", "gpt-4") > 1


@pytest.mark.parametrize(
    "text",
    [
        " " * 2_000_000,
        " " * 999_999 + "x",
        "a" * 2_000_000,
        "\n" * 500_000,
        "^" * 500_000,
        "漢" * 300_000,
        "\u0301" * 100_000,
        "\ud800 lone",
    ],
    ids=["spaces", "spaces-x", "letters", "lines", "signs", "han", "marks", "surrogate"],
)
def test_texts_that_break_the_tokenizer_are_counted(text: str) -> None:
    assert 0 < count_text(text) <= len(text.encode("utf-8", "surrogatepass"))


def test_a_long_text_has_the_tokens_of_the_whole() -> None:
    import tiktoken

    text = (
        " ".join((FUNCTIONS / "gateway" / f"{name}.py").read_text() for name in ("tokens", "http", "auth"))
        * 2
    )
    assert len(text) > 3 * tokens._BLOCK_CHARS
    whole = len(tiktoken.get_encoding("o200k_base").encode_ordinary(text))
    blocks = list(tokens._blocks(text))
    assert "".join(blocks) == text
    assert whole <= count_text(text) <= whole + 2 * len(blocks)


@pytest.mark.parametrize(
    ("model", "encoding"),
    [
        ("gpt-4", "cl100k_base"),
        ("gpt-4-0613", "cl100k_base"),
        ("openai/gpt-4-turbo", "cl100k_base"),
        ("gpt-3.5-turbo", "cl100k_base"),
        ("ft:gpt-3.5-turbo:org", "cl100k_base"),
        ("gpt-4o-mini", "o200k_base"),
        ("gpt-4.1", "o200k_base"),
        ("gpt-4.5-preview", "o200k_base"),
        ("o3", "o200k_base"),
        ("deepseek/deepseek-r1", "o200k_base"),
        ("", "o200k_base"),
    ],
)
def test_encoding_of_a_model(model: str, encoding: str) -> None:
    assert encoding_name(model) == encoding


def test_the_older_models_are_those_of_tiktokens_table() -> None:
    from tiktoken.model import MODEL_TO_ENCODING, encoding_name_for_model

    for model in [*MODEL_TO_ENCODING, "gpt-4-32k", "gpt-4o-2024-08-06", "gpt-4.1-nano", "gpt-35-turbo-16k"]:
        expected = encoding_name_for_model(model)
        if expected in {"cl100k_base", "o200k_base"} and not model.startswith(
            ("text-", "davinci-", "babbage-")
        ):
            assert encoding_name(model) == expected


# Without the data.


def _count_elsewhere(directory: Path, code: str) -> str:
    environ = {
        "PYTHONPATH": str(FUNCTIONS),
        "TIKTOKEN_CACHE_DIR": str(directory),
        "https_proxy": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
    }
    run = subprocess.run(
        [sys.executable, "-c", f"from gateway.tokens import *; {code}"],
        env=environ,
        check=True,
        capture_output=True,
        text=True,
    )
    return run.stdout


@pytest.mark.parametrize("content", [None, b"", b"damaged"])
def test_missing_or_damaged_data_is_an_estimate_and_a_warning_once(
    tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / tokens._FILES["o200k_base"][0]
    if content is not None:
        file.write_bytes(content)
    warning, count, again = _count_elsewhere(
        tmp_path, "print(count_text('Hello, world')); print(count_text('x'))"
    ).splitlines()
    assert json.loads(warning)["level"] == "WARNING"
    assert int(count) == estimate("Hello, world") == 4
    assert int(again) == 1
    # tiktoken itself would have deleted it and gone to the network.
    assert file.exists() == (content is not None)


def test_importing_loads_no_tokenizer() -> None:
    assert _count_elsewhere(Path(), "import sys; print('tiktoken' in sys.modules)") == "False\n"


@pytest.mark.parametrize(
    "text",
    [
        (FUNCTIONS / "gateway" / "tokens.py").read_text(),
        "The quick brown fox jumps over the lazy dog. " * 50,
        "敏捷的棕色狐狸跳过了懒狗。" * 50,
        "Быстрая коричневая лиса прыгает через ленивую собаку. " * 50,
        "素早い茶色の狐がのろまな犬を飛び越える。" * 50,
        "빠른 갈색 여우가 게으른 개를 뛰어넘는다. " * 50,
    ],
)
def test_the_estimate_is_rather_high(text: str) -> None:
    exact = count_text(text)
    assert exact <= estimate(text) <= exact * 6


# Bounds.


@settings(max_examples=200)
@given(
    st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["system", "user", "assistant"]), "content": TEXT},
            optional={
                "name": TEXT,
                "tool_calls": st.lists(
                    st.fixed_dictionaries({"function": st.just({"name": "f", "arguments": "{}"})}), max_size=2
                ),
            },
        ),
        max_size=6,
    ),
    st.booleans(),
    st.sampled_from(["gpt-4o", "gpt-4"]),
)
def test_the_bound_holds(messages: list[dict[str, Any]], with_tools: bool, model: str) -> None:
    body = _chat(*messages, **({"tools": [TOOL]} if with_tools else {}))
    bound = input_bound(body)
    assert bound is not None
    assert bound >= count_request(body, model)


def test_the_bound_holds_for_many_short_messages() -> None:
    body = _chat(*({"role": "user", "content": ""} for _ in range(1000)))
    bound = input_bound(body)
    assert bound is not None
    # Three tokens of overhead for each message by OpenAI's rule, up to a dozen in other templates.
    assert bound >= max(count_request(body), 12 * 1000)


@pytest.mark.parametrize("text", ["🏳️‍🌈" * 200, "\u0301" * 500, "aAbBcC" * 300, "\x01\x02" * 300, "𓀀" * 300])
def test_the_bound_holds_for_text_that_falls_apart_into_bytes(text: str) -> None:
    body = _chat({"role": "user", "content": text})
    bound = input_bound(body)
    assert bound is not None
    assert count_request(body, "gpt-4") <= bound <= len(text.encode()) + 100


def test_the_bound_is_not_far_above_the_bytes_of_the_text() -> None:
    bound = input_bound(
        _chat({"role": "user", "content": "x" * 10_000}, metadata={"a": "b" * 10_000}, user="u" * 10_000)
    )
    assert bound is not None
    assert 10_000 <= bound <= 10_100


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x"}}]},
        {
            "role": "user",
            "content": [{"type": "text", "text": "x"}, {"type": "input_audio", "input_audio": {}}],
        },
        {"role": "user", "content": [{"type": "file", "file": {}}]},
        {"role": "user", "content": [{"type": "new_kind"}]},
        {"role": "assistant", "audio": {"id": "a"}},
        {"role": "user", "content": "x", "images": ["https://x"]},
    ],
)
def test_media_have_no_cheap_bound(message: dict[str, Any]) -> None:
    assert input_bound(_chat({"role": "user", "content": "x"}, message)) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "web_search"}]},
        {"tools": [TOOL, {"type": "mcp", "server_url": "https://x"}]},
        {"web_search_options": {"x": 1}},
        {"plugins": [{"id": "web"}]},
        {"chat_template": "{{ x }}"},
    ],
)
def test_what_adds_to_the_prompt_has_no_cheap_bound(fields: dict[str, Any]) -> None:
    assert input_bound(_chat({"role": "user", "content": "x"}, **fields)) is None


def test_text_parts_and_tools_have_a_bound() -> None:
    body = _chat({"role": "user", "content": [{"type": "text", "text": "x" * 100}]}, tools=[TOOL], plugins=[])
    bound = input_bound(body)
    assert bound is not None
    assert bound >= 100 + len(json.dumps(TOOL))


_HOUR = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}


@pytest.mark.parametrize(
    "body",
    [
        _HOUR,
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", **_HOUR}]}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "c", **_HOUR}]}]},
        {"tools": [{"type": "function", "function": {"name": "f", **_HOUR}}]},
        {"vendor": [[{"cache_control": {"ttl": "24h"}}]]},
        {"cache_control": {"ttl": ["1h"]}},
    ],
)
def test_a_cache_of_an_hour_is_seen_wherever_it_is_asked_for(body: dict[str, Any]) -> None:
    assert caches_for_an_hour(body)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"cache_control": {"type": "ephemeral"}},
        {"cache_control": {"type": "ephemeral", "ttl": "5m"}},
        {"messages": [{"role": "user", "content": '{"cache_control":{"ttl":"1h"}}'}]},
        {"ttl": "1h", "cache_control": "1h"},
    ],
)
def test_the_usual_cache_is_none_of_an_hour(body: dict[str, Any]) -> None:
    assert not caches_for_an_hour(body)
