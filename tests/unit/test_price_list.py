from __future__ import annotations

from decimal import Decimal

import pytest

from gateway.price_list import MAX_LINES, PriceListError, read_price_list
from gateway.schemas.admin import MAX_TIERS

HEADER = (
    "model,provider,upstream_model,context_length,max_output_tokens,input_modalities,output_modalities,"
    "input,cached_input,output,per_image,source,source_date"
)
GOOD = "m,openai,m-1,128000,4096,text image,text,2.5,0.25,10,,https://example.org,2026-11-21"


def line(**cells: str) -> str:
    """The good line with other cells."""
    named = dict(zip(HEADER.split(","), GOOD.split(","), strict=True)) | cells
    return ",".join(named.values())


def listed(*lines: str, header: str = HEADER) -> str:
    return "\n".join([header, *lines]) + "\n"


def test_a_line_is_read_exactly() -> None:
    (read,) = read_price_list(listed(GOOD)).lines
    assert read.number == 2
    assert read.as_json() == {
        "model": "m",
        "provider": "openai",
        "upstream_model": "m-1",
        "context_length": 128000,
        "max_output_tokens": 4096,
        "input_modalities": ["text", "image"],
        "output_modalities": ["text"],
        "input": "2.5000000000",
        "cached_input": "0.2500000000",
        "output": "10.0000000000",
        "source": "https://example.org",
        "source_date": "2026-11-21",
    }


def test_columns_may_stand_in_any_order_and_an_empty_cell_says_nothing() -> None:
    text = "output, provider ,input,model,per_image\n8,Grok,2,m,\n,,,,\n"
    with pytest.raises(PriceListError, match=r"line 3, \w+: is empty"):
        read_price_list(text)
    (read,) = read_price_list(text.replace(",,,,\n", "\n\n")).lines
    assert read.as_json() == {
        "model": "m",
        "provider": "xai",
        "input": "2.0000000000",
        "output": "8.0000000000",
    }


@pytest.mark.parametrize(
    ("named", "provider"),
    [("openai", "openai"), ("HF", "huggingface"), ("anthropic", "anthropic"), ("Google", "gemini")],
)
def test_providers_are_known_by_name_and_alias(named: str, provider: str) -> None:
    assert read_price_list(listed(line(provider=named))).lines[0].provider == provider


def test_the_short_form_prices_each_token_alike() -> None:
    text = "provider,model,price_per_token\nopenai,a,0.00000015\ndeepseek,b,2.5e-7\nopenai,free,0\n"
    assert [(read.offer.input, read.offer.output) for read in read_price_list(text).lines] == [
        (Decimal("0.15"), Decimal("0.15")),
        (Decimal("0.25"), Decimal("0.25")),
        (0, 0),
    ]


@pytest.mark.parametrize(
    ("text", "number", "column", "message"),
    [
        ("", 1, None, "empty"),
        (HEADER, 1, None, "empty"),
        ("\n\n", 1, None, "empty"),
        (listed(GOOD, header=HEADER.replace("cached_input", "cached_inptu")), 1, "cached_inptu", "no column"),
        (listed(GOOD, header=HEADER.replace("per_image", "input")), 1, "input", "twice"),
        (listed("m,openai,1", header="model,provider,input"), 1, "output", "missing"),
        (listed("m,openai", header="model,provider"), 1, "input", "missing"),
        (listed("m,1,1,2", header="model,price_per_token,input,output"), 1, "provider", "missing"),
        (listed("m,openai,1,2", header="model,provider,price_per_token,input"), 1, "input", "beside"),
        (listed("m,openai,", header="model,provider,price_per_token"), 2, "price_per_token", "empty"),
        (listed("m,openai,nan", header="model,provider,price_per_token"), 2, "price_per_token", "decimal"),
        (listed("m,openai,1_0", header="model,provider,price_per_token"), 2, "price_per_token", "decimal"),
        (listed("m,openai,-1", header="model,provider,price_per_token"), 2, "price_per_token", "decimal"),
        (listed("m,openai,1e99", header="model,provider,price_per_token"), 2, "price_per_token", "from 0"),
        (listed("m,openai,1e-17", header="model,provider,price_per_token"), 2, "price_per_token", "decimals"),
        (listed(GOOD, GOOD + ",more"), 3, None, "14 fields, not 13"),
        (listed(GOOD, "m,openai"), 3, None, "2 fields, not 13"),
        (listed(GOOD, 'n,"openai'), 3, None, "CSV"),
        (listed(GOOD, 'n,"openai"x,,,'), 3, None, "CSV"),
        (listed(line(model="")), 2, "model", "is empty"),
        (listed(line(model="a b")), 2, "model", "pattern"),
        (listed(line(model="x" * 201)), 2, "model", "pattern"),
        (listed(line(provider="")), 2, "provider", "is empty"),
        (listed(line(provider="nobody")), 2, "provider", "'nobody' is not a provider"),
        (listed(line(upstream_model="y" * 301)), 2, "upstream_model", "300"),
        (listed(line(context_length="128k")), 2, "context_length", "whole number"),
        (listed(line(context_length="128000.0")), 2, "context_length", "whole number"),
        (listed(line(context_length="-1")), 2, "context_length", "whole number"),
        (listed(line(context_length="٤")), 2, "context_length", "whole number"),
        (listed(line(context_length="0")), 2, "context_length", "greater than or equal to 1"),
        (listed(line(max_output_tokens="9" * 30)), 2, "max_output_tokens", "whole number"),
        (listed(line(max_output_tokens="10000001")), 2, "max_output_tokens", "10000000"),
        (listed(line(input_modalities="text smell")), 2, "input_modalities", "'text', 'image'"),
        (listed(line(output_modalities="text text")), 2, "output_modalities", "twice"),
        (listed(line(input="")), 2, "input", "is empty"),
        (listed(line(output="")), 2, "output", "is empty"),
        (listed(line(input="$2.50")), 2, "input", "decimal"),
        (listed(line(input="-2.5")), 2, "input", "from 0"),
        (listed(line(input="NaN")), 2, "input", "decimal"),
        (listed(line(input="1e-3")), 2, "input", "decimal"),
        (listed(line(cached_input="0.00000000001")), 2, "cached_input", "10 decimals"),
        (listed(line(per_image="1000000001")), 2, "per_image", "from 0 to 1000000000"),
        (listed(line(source_date="21.11.2026")), 2, "source_date", "date"),
        (listed(line(source_date="2026-02-30")), 2, "source_date", "date"),
        (listed(line(source="s" * 501)), 2, "source", "500"),
        (listed(GOOD, GOOD), 3, "provider", "offer of line 2 again"),
        (listed(line(provider="gemini"), line(provider="google")), 3, "provider", "offer of line 2 again"),
        (
            listed(GOOD, line(provider="xai", context_length="1")),
            3,
            "context_length",
            "another than line 2 has",
        ),
    ],
)
def test_a_malformed_line_is_named_with_its_column(
    text: str, number: int, column: str | None, message: str
) -> None:
    with pytest.raises(PriceListError) as caught:
        read_price_list(text)
    assert (caught.value.line, caught.value.column, caught.value.others) == (number, column, 0)
    assert message in str(caught.value)
    assert f"line {number}" in str(caught.value)


def test_the_first_of_several_is_named_and_the_rest_are_counted() -> None:
    with pytest.raises(PriceListError, match=r"line 3, input: .*\(2 more lines are malformed\)"):
        read_price_list(
            listed(GOOD, line(model="a", input="x"), line(model="b"), line(model="c", input="x"), "short")
        )


def test_numbers_are_those_of_the_file() -> None:
    text = listed(line(source='"two\nlines"'), "", line(model="n"), line(model="o", input="x"))
    with pytest.raises(PriceListError, match="line 6, input"):
        read_price_list(text)


def test_lines_of_one_model_agree_where_both_speak() -> None:
    text = listed(
        GOOD,
        line(provider="xai", context_length="", input_modalities="image text"),
        line(provider="groq", max_output_tokens=""),
    )
    assert len(read_price_list(text).lines) == 3


def test_a_cache_dearer_than_its_input_is_a_warning() -> None:
    assert read_price_list(listed(GOOD)).warnings == []
    read = read_price_list(listed(GOOD, line(model="n", cached_input="2.6")))
    assert read.warnings == ["line 3, cached_input: is more than input"]
    assert len(read.lines) == 2


def test_a_list_has_its_bound() -> None:
    lines = [line(model=f"m{number}") for number in range(MAX_LINES + 1)]
    assert len(read_price_list(listed(*lines[:-1])).lines) == MAX_LINES
    with pytest.raises(PriceListError, match=rf"line {MAX_LINES + 2}: more than {MAX_LINES} lines"):
        read_price_list(listed(*lines))


TIERED = "model,provider,above_input_tokens,input,cached_input,output,per_request,source\n"


def tiers_of(*lines: str) -> list[dict[str, object]]:
    return read_price_list(TIERED + "\n".join(lines) + "\n").as_json()


def test_a_line_with_a_length_is_a_tier_of_its_offer_wherever_it_stands() -> None:
    told = tiers_of(
        "m,openai,400000,5,0.5,20,,",
        "m,xai,,9,,9,,",
        "m,openai,,2,0.2,8,0.01,https://example.org",
        "m,openai,200000,4,0.4,12,,https://example.org",
    )
    assert told == [
        {"model": "m", "provider": "xai", "input": "9.0000000000", "output": "9.0000000000"},
        {
            "model": "m",
            "provider": "openai",
            "input": "2.0000000000",
            "cached_input": "0.2000000000",
            "output": "8.0000000000",
            "per_request": "0.0100000000",
            "source": "https://example.org",
            "tiers": [
                {
                    "above_input_tokens": above,
                    "input": f"{given}.0000000000",
                    "cached_input": f"0.{given}000000000",
                    "output": f"{out}.0000000000",
                }
                for above, given, out in ((200_000, 4, 12), (400_000, 5, 20))
            ],
        },
    ]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("m,xai,200000,4,0.4,12,,", r"line 4, above_input_tokens: is a tier of an offer that has no line"),
        ("n,openai,200000,4,0.4,12,,", r"line 4, above_input_tokens: is a tier of an offer that has no line"),
        ("m,openai,100000,5,0.5,20,,", r"line 4, above_input_tokens: is the same as in line 3"),
        ("m,openai,,5,0.5,20,,", r"line 4, provider: names the offer of line 2 again"),
        ("m,openai,200000,4,,12,,", r"line 4, cached_input: is empty, and is not in line 2"),
        ("m,openai,200000,,0.4,12,,", r"line 4, input: is empty"),
        ("m,openai,200000,4,0.4,12,0.01,", r"line 4, per_request: is the same for any length"),
        ("m,openai,0,4,0.4,12,,", r"line 4, above_input_tokens: "),
        ("m,openai,-1,4,0.4,12,,", r"line 4, above_input_tokens: must be a whole number"),
        ("m,openai,2e5,4,0.4,12,,", r"line 4, above_input_tokens: must be a whole number"),
        ("m,openai,200000,4,0.4,12,,https://other.org", r"line 4, source: is another than line 2 has"),
    ],
)
def test_a_tier_that_makes_no_sense_is_named(line: str, fault: str) -> None:
    with pytest.raises(PriceListError, match=fault):
        tiers_of("m,openai,,2,0.2,8,,https://example.org", "m,openai,100000,4,0.4,12,,", line)


def test_a_tier_has_no_class_that_the_price_has_not() -> None:
    with pytest.raises(PriceListError, match=r"line 2, cached_input: is empty in line 3"):
        tiers_of("m,openai,100000,4,0.4,12,,", "m,openai,,2,,8,,")


def test_there_are_only_so_many_tiers() -> None:
    lines = [f"m,openai,{1000 * number or ''},2,,8,," for number in range(MAX_TIERS + 1)]
    assert len(tiers_of(*lines)) == 1
    with pytest.raises(PriceListError, match=rf"line {MAX_TIERS + 3}, above_input_tokens: is one more than"):
        tiers_of(*lines, "m,openai,99000,2,,8,,")


def test_a_long_prompt_that_is_cheaper_is_odd() -> None:
    odd = TIERED + "m,openai,,2,,8,,\nm,openai,100000,4,,12,,\nm,openai,200000,3,,12,,\n"
    assert read_price_list(odd).warnings == ["line 4, input: is less than in line 3, of shorter prompts"]


def test_one_price_per_token_may_have_tiers_too() -> None:
    text = "model,provider,price_per_token,above_input_tokens\nm,openai,0.000002,\nm,openai,0.000004,1000\n"
    (read,) = read_price_list(text).as_json()
    assert read["tiers"] == [{"above_input_tokens": 1000, "input": "4.0000000000", "output": "4.0000000000"}]
