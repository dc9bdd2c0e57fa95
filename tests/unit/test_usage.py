from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.providers.openai_compatible import MAX_PLAUSIBLE_TOKENS, openai_usage, read_cost, read_usage
from gateway.schemas.usage import TokenUsage

JUNK = (
    st.none()
    | st.booleans()
    | st.integers(min_value=-(10**30), max_value=10**30)
    | st.floats()
    | st.text(max_size=5)
    | st.lists(st.integers(), max_size=2)
)


def test_total_is_the_sum_of_the_disjoint_classes() -> None:
    usage = TokenUsage(
        input=1,
        cached_input=2,
        cache_write=4,
        audio_input=8,
        image_input=16,
        output=32,
        audio_output=64,
        image_output=128,
        reasoning=30,
        images=256,
    )
    assert usage.total_input == 31
    assert usage.total_output == 224
    assert usage.total == 255


def test_what_was_not_told_is_not_shown_and_zero_is() -> None:
    assert TokenUsage(input=3, output=2).as_dict() == {"input": 3, "output": 2}
    assert TokenUsage(input=3, output=2, cached_input=0, reasoning=1).as_dict() == {
        "input": 3,
        "output": 2,
        "cached_input": 0,
        "reasoning": 1,
    }


@pytest.mark.parametrize("count", [-1, 1.0, True, "1", None])
def test_a_class_is_a_whole_number_of_tokens(count: Any) -> None:
    with pytest.raises(ValueError, match="input must be"):
        TokenUsage(input=count, output=0)


def test_reasoning_is_a_part_of_output() -> None:
    with pytest.raises(ValueError, match="part of output"):
        TokenUsage(input=1, output=2, reasoning=3)


def test_what_is_cached_for_an_hour_is_a_part_of_what_is_cached() -> None:
    usage = TokenUsage(input=1, output=2, cache_write=5, cache_write_1h=5)
    assert (usage.total_input, usage.total) == (6, 8)
    assert usage.as_dict() == {"input": 1, "output": 2, "cache_write": 5, "cache_write_1h": 5}
    for written in (4, None):
        with pytest.raises(ValueError, match="part of cache_write"):
            TokenUsage(input=1, output=2, cache_write=written, cache_write_1h=5)


@pytest.mark.parametrize(
    ("reported", "expected"),
    [
        # OpenAI: cached inside prompt, reasoning inside completion.
        (
            {
                "prompt_tokens": 100,
                "completion_tokens": 50,
                "total_tokens": 150,
                "prompt_tokens_details": {"cached_tokens": 60, "audio_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 40, "audio_tokens": 0},
            },
            {
                "input": 40,
                "cached_input": 60,
                "audio_input": 0,
                "output": 50,
                "reasoning": 40,
                "audio_output": 0,
            },
        ),
        # OpenAI's audio models.
        (
            {
                "prompt_tokens": 100,
                "completion_tokens": 50,
                "prompt_tokens_details": {"cached_tokens": 10, "audio_tokens": 70},
                "completion_tokens_details": {"audio_tokens": 45},
            },
            {"input": 20, "cached_input": 10, "audio_input": 70, "output": 5, "audio_output": 45},
        ),
        # DeepSeek.
        (
            {
                "prompt_tokens": 100,
                "completion_tokens": 5,
                "prompt_cache_hit_tokens": 64,
                "prompt_cache_miss_tokens": 36,
            },
            {"input": 36, "cached_input": 64, "output": 5},
        ),
        ({"prompt_cache_hit_tokens": 64, "prompt_cache_miss_tokens": 36, "completion_tokens": 5}, 105),
        # OpenRouter: the example of its documentation.
        (
            {
                "completion_tokens": 2,
                "completion_tokens_details": {"reasoning_tokens": 0},
                "cost": 0.95,
                "prompt_tokens": 194,
                "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 100, "audio_tokens": 0},
                "total_tokens": 196,
            },
            {
                "input": 94,
                "cached_input": 0,
                "cache_write": 100,
                "audio_input": 0,
                "output": 2,
                "reasoning": 0,
            },
        ),
        # xAI: reasoning outside completion, as its total shows (a real answer).
        (
            {
                "prompt_tokens": 12,
                "completion_tokens": 1,
                "total_tokens": 399,
                "completion_tokens_details": {"reasoning_tokens": 386},
            },
            {"input": 12, "output": 387, "reasoning": 386},
        ),
        # No completion count, but a total.
        ({"prompt_tokens": 10, "total_tokens": 14}, {"input": 10, "output": 4}),
        # Counts written as floats.
        ({"prompt_tokens": 10.0, "completion_tokens": 4.0}, {"input": 10, "output": 4}),
        # Parts that exceed the whole are cut, in the order cached, written, audio, image.
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 4,
                "prompt_tokens_details": {"cached_tokens": 8, "audio_tokens": 7, "image_tokens": 3},
                "completion_tokens_details": {"reasoning_tokens": 9, "audio_tokens": 1},
            },
            {
                "input": 0,
                "cached_input": 8,
                "audio_input": 2,
                "image_input": 0,
                "output": 3,
                "audio_output": 1,
                "reasoning": 3,
            },
        ),
        # Junk details are as if not told.
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 4,
                "prompt_tokens_details": None,
                "completion_tokens_details": {"reasoning_tokens": -3, "audio_tokens": "2"},
            },
            {"input": 10, "output": 4},
        ),
        ({"prompt_tokens": 10, "completion_tokens": 0}, {"input": 10, "output": 0}),
    ],
)
def test_providers_usage_in_disjoint_classes(
    reported: dict[str, Any], expected: dict[str, int] | int
) -> None:
    usage = read_usage(reported)
    assert usage is not None
    assert (usage.total if isinstance(expected, int) else usage.as_dict()) == expected


@pytest.mark.parametrize(
    ("total", "output"),
    [(None, 30), (130, 30), (110, 10), (999, 30)],
    ids=["untold", "apart", "inside", "odd"],
)
def test_reasoning_apart_yields_to_a_total_that_says_otherwise(total: int | None, output: int) -> None:
    reported = {
        "prompt_tokens": 100,
        "completion_tokens": 10,
        "total_tokens": total,
        "completion_tokens_details": {"reasoning_tokens": 20},
    }
    usage = read_usage(reported, reasoning_apart=True)
    assert usage is not None
    assert usage.output == output


@pytest.mark.parametrize(
    "reported",
    [
        None,
        [],
        "usage",
        {},
        {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        {"prompt_tokens": 10},
        {"prompt_tokens": 10, "completion_tokens": -1},
        {"prompt_tokens": 10, "completion_tokens": None},
        {"prompt_tokens": 10, "completion_tokens": 2.5},
        {"prompt_tokens": "10", "completion_tokens": 4},
        {"prompt_tokens": True, "completion_tokens": 4},
        {"prompt_tokens": -10, "completion_tokens": 4},
        {"prompt_tokens": MAX_PLAUSIBLE_TOKENS + 1, "completion_tokens": 4},
        {"prompt_tokens": 10, "total_tokens": 9},
    ],
)
def test_nonsense_is_no_usage(reported: Any) -> None:
    assert read_usage(reported) is None


FIELDS = [
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "prompt_cache_hit_tokens",
    "prompt_cache_miss_tokens",
    "cost",
]
DETAILS = ["cached_tokens", "cache_write_tokens", "audio_tokens", "image_tokens", "reasoning_tokens"]
COUNTS = st.integers(min_value=0, max_value=1000) | JUNK


@given(
    st.dictionaries(st.sampled_from(FIELDS), COUNTS)
    | st.fixed_dictionaries(
        {
            "prompt_tokens": COUNTS,
            "completion_tokens": COUNTS,
            "total_tokens": COUNTS,
            "prompt_tokens_details": JUNK | st.dictionaries(st.sampled_from(DETAILS), COUNTS),
            "completion_tokens_details": JUNK | st.dictionaries(st.sampled_from(DETAILS), COUNTS),
        }
    ),
    st.booleans(),
)
def test_no_usage_object_crashes_or_counts_a_token_twice(reported: dict[str, Any], apart: bool) -> None:
    read_cost(reported)
    usage = read_usage(reported, reasoning_apart=apart)
    if usage is None:
        return
    prompt = reported.get("prompt_tokens")
    if isinstance(prompt, int) and not isinstance(prompt, bool) and 0 < prompt <= MAX_PLAUSIBLE_TOKENS:
        assert usage.total_input == prompt
    assert read_usage(openai_usage(usage)) == usage


def test_cost_is_exact_or_missing() -> None:
    assert str(read_cost({"cost": 0.00014})) == "0.00014"
    assert str(read_cost({"cost": 0})) == "0"
    for junk in (None, True, "1", -1, float("nan"), float("inf")):
        assert read_cost({"cost": junk}) is None
    assert read_cost(None) is None
