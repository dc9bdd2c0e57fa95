"""Images and embeddings are held for whole before they are made, and asked only of models that give them."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.database.engine import usd

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.database.engine import Engine

BY_TOKEN = {"input": "5", "cached_input": "1.25", "image_input": "8", "output": "10", "image_output": "32"}
BY_IMAGE = {"input": "0", "output": "0", "per_image": "0.04"}
PROVIDER = "openai"
_numbers = itertools.count(1)


def model(
    engine: Engine,
    prices: Mapping[str, str],
    *,
    gives: tuple[str, ...] = ("image",),
    most: int | None = None,
    context: int | None = None,
    provider: str = PROVIDER,
) -> str:
    name = f"media-{next(_numbers)}"
    engine.call(
        "create_model",
        p_name=name,
        p_context_length=context,
        p_max_output_tokens=most,
        p_output_modalities=list(gives),
        p_offers=[{"provider": provider, "upstream_model": name, "prices": dict(prices)}],
    )
    engine.service([name], provider=provider)
    return name


def image(name: str, **given: Any) -> dict[str, Any]:
    return {
        "p_models": [name],
        "p_output": "image",
        "p_media_output": True,
        "p_media_input": False,
        "p_max_output_tokens": None,
        "p_output_bounds": {PROVIDER: 5000},
        **given,
    }


@pytest.mark.parametrize(
    ("prices", "parameters", "most", "hold"),
    [
        # 1,000 x 5 + 5,000 x 32 = 165,000 millionths, and 5 %
        (BY_TOKEN, {}, None, "0.17325"),
        # any input may turn out to be the dearest class where images are sent
        (BY_TOKEN, {"p_media_input": True}, None, "0.1764"),
        # each image may take as much
        (BY_TOKEN, {"p_choices": 3}, None, "0.50925"),
        # no image takes more than the catalogue says
        (BY_TOKEN, {}, 300, "0.01533"),
        (BY_TOKEN, {}, 9000, "0.17325"),
        # an image that is paid by the piece
        (BY_IMAGE, {"p_choices": 3}, None, "0.126"),
        # and one that costs both
        ({**BY_TOKEN, "per_image": "0.01"}, {"p_choices": 2}, None, "0.36225"),
    ],
)
def test_images_are_held_for_to_the_last_digit(
    shared_engine: Engine, prices: dict[str, str], parameters: dict[str, Any], most: int | None, hold: str
) -> None:
    customer = shared_engine.customer()
    admission = shared_engine.admitted(
        customer.key_hash, **image(model(shared_engine, prices, most=most), **parameters)
    )
    assert admission["hold_usd"] == hold
    shared_engine.fail(admission)


def test_images_are_not_cut_to_what_the_balance_affords(shared_engine: Engine) -> None:
    """Nobody can tell a provider to paint fewer tokens: what can't be afforded is refused."""
    customer = shared_engine.customer("0.1")
    refusal = shared_engine.refused(customer.key_hash, **image(model(shared_engine, BY_TOKEN)))
    assert (refusal["refusal"], refusal["affordable_output_tokens"]) == ("insufficient_credits", 0)


def test_the_setting_for_chats_does_not_cut_an_image(shared_engine: Engine) -> None:
    customer = shared_engine.customer()
    shared_engine.settings(default_max_output_tokens=16)
    try:
        admission = shared_engine.admitted(customer.key_hash, **image(model(shared_engine, BY_TOKEN)))
    finally:
        shared_engine.settings(default_max_output_tokens=8192)
    assert admission["candidates"][0]["max_output_tokens"] == 5000
    shared_engine.fail(admission)


def test_what_is_embedded_may_be_longer_than_one_context(shared_engine: Engine) -> None:
    """Each text has a context of its own; the bound is of them all."""
    customer = shared_engine.customer()
    name = model(shared_engine, {"input": "0.1", "output": "0"}, gives=("embedding",), context=8192)
    admission = shared_engine.admitted(
        customer.key_hash,
        p_models=[name],
        p_output="embedding",
        p_input_tokens_bound=300_000,
        p_max_output_tokens=None,
        p_output_bounds={PROVIDER: 0},
    )
    assert admission["hold_usd"] == "0.0315"
    shared_engine.fail(admission)


@pytest.mark.parametrize("asked", ["text", "image", "embedding"])
@pytest.mark.parametrize("gives", [("text",), ("image",), ("embedding",), ("text", "image")])
def test_a_model_is_asked_only_for_what_it_gives(
    shared_engine: Engine, asked: str, gives: tuple[str, ...]
) -> None:
    customer = shared_engine.customer()
    name = model(shared_engine, BY_TOKEN, gives=gives)
    answer = shared_engine.admit(
        customer.key_hash,
        **image(name, p_output=asked, p_output_bounds=None, p_max_output_tokens=100, p_media_output=False),
    )
    if asked in gives:
        assert answer["admitted"]
        shared_engine.fail(answer)
    else:
        assert answer["refusal"] == "model_wrong_output"
        assert (answer["output"], answer["output_modalities"]) == (asked, list(gives))
        assert shared_engine.account(customer.id) == (10, 0)


def test_a_fallback_that_gives_it_is_taken(shared_engine: Engine) -> None:
    customer = shared_engine.customer()
    chats, paints = (model(shared_engine, BY_TOKEN, gives=(kind,)) for kind in ("text", "image"))
    admission = shared_engine.admitted(customer.key_hash, **image(chats, p_models=[chats, paints]))
    assert [route["model"] for route in admission["candidates"]] == [paints]
    shared_engine.fail(admission)


def test_a_provider_without_a_bound_is_not_asked(shared_engine: Engine) -> None:
    customer = shared_engine.customer()
    name = model(shared_engine, BY_TOKEN, provider="deepseek")
    assert shared_engine.refused(customer.key_hash, **image(name))["refusal"] == "model_not_served"


@pytest.mark.parametrize("bounds", [{PROVIDER: -1}, {PROVIDER: None}, {PROVIDER: 10**15}])
def test_a_bound_that_is_none_holds_nothing_unseen(shared_engine: Engine, bounds: dict[str, Any]) -> None:
    customer = shared_engine.customer()
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        shared_engine.admit(
            customer.key_hash, **image(model(shared_engine, BY_TOKEN), p_output_bounds=bounds)
        )
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        shared_engine.admit(customer.key_hash, p_output=None)


PRICE = st.none() | st.decimals("0", "100", places=4).map(str)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_an_image_takes_within_its_bounds_was_held(
    shared_engine: Engine, data: st.DataObject
) -> None:
    optional = {
        name: price
        for name in ("cached_input", "image_input", "image_output", "per_image", "per_request")
        if (price := data.draw(PRICE, name)) is not None
    }
    prices = {"input": data.draw(PRICE) or "0", "output": data.draw(PRICE) or "0", **optional}
    mode = data.draw(st.sampled_from(["markup", "flat"]))
    sent, bound = data.draw(st.integers(0, 5000), "sent"), data.draw(st.integers(0, 5000), "bound")
    choices, media = data.draw(st.integers(1, 10), "choices"), data.draw(st.booleans(), "media")
    name = model(shared_engine, prices)
    customer = shared_engine.customer("100000")
    shared_engine.settings(billing_mode=mode)
    try:
        admission = shared_engine.admitted(
            customer.key_hash,
            **image(
                name,
                p_input_tokens_bound=sent,
                p_media_input=media,
                p_output_bounds={PROVIDER: bound},
                p_choices=choices,
            ),
        )
    finally:
        shared_engine.settings(billing_mode="markup")
    most = admission["candidates"][0]["max_output_tokens"] * choices
    read = data.draw(st.integers(0, sent), "read")
    seen = data.draw(st.integers(0, read), "seen") if media else 0
    made = data.draw(st.integers(0, most), "made")
    text = data.draw(st.integers(0, made), "text")
    settled = shared_engine.settle(
        admission,
        usage={
            "input": read - seen,
            "image_input": seen,
            "output": text,
            "image_output": made - text,
            "images": data.draw(st.integers(0, choices), "images"),
        },
    )
    assert usd(settled["charge_usd"]) <= usd(admission["hold_usd"])
    assert settled["uncollected_usd"] == "0"
