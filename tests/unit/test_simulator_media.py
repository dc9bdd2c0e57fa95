"""The simulator's images, embeddings and legacy completions against OpenAI's own SDK."""

from __future__ import annotations

import base64
import io
import json
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest
import tiktoken

from infra.local.simulator.answers import data_bytes, picture
from infra.local.simulator.openai_media import IMAGE_TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fixtures.simulator import Simulator

PNG = picture("red")


@pytest.fixture
def client(simulator: Simulator) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=simulator.base_url, api_key=simulator.key, max_retries=0) as made:
        yield made


def tokens(text: str) -> int:
    return len(tiktoken.get_encoding("o200k_base").encode(text))


@pytest.mark.parametrize(("size", "quality"), IMAGE_TOKENS)
def test_images_are_made_and_counted(client: openai.OpenAI, size: Any, quality: Any) -> None:
    answer = client.images.generate(model="echo", prompt="A red fox", n=2, size=size, quality=quality)
    assert answer.data is not None
    first, second = (data_bytes(image.b64_json or "") for image in answer.data)
    assert first.startswith(b"\x89PNG")
    assert first != second
    assert answer.usage is not None
    assert answer.usage.output_tokens == 2 * IMAGE_TOKENS[size, quality]
    assert answer.usage.input_tokens == tokens("A red fox")
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


def test_what_is_edited_changes_the_image(client: openai.OpenAI, simulator: Simulator) -> None:
    def edited(*images: bytes, **fields: Any) -> Any:
        files = [("a.png", io.BytesIO(image), "image/png") for image in images]
        answer = client.images.edit(model="echo", image=files, prompt="Bluer", **fields)
        assert answer.data is not None
        assert answer.usage is not None
        count = len(images) + ("mask" in fields)
        assert answer.usage.input_tokens_details.image_tokens == 194 * count
        return answer.data[0].b64_json

    made = {
        edited(PNG),
        edited(picture("blue")),
        edited(PNG, PNG),
        edited(PNG, mask=("m.png", PNG, "image/png")),
    }
    assert len(made) == 4
    url = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    by_json = httpx.post(
        f"{simulator.base_url}/images/edits",
        json={"model": "echo", "prompt": "Bluer", "images": [{"image_url": url}]},
        headers={"authorization": f"Bearer {simulator.key}"},
    ).json()
    assert by_json["data"][0]["b64_json"] in made


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 11},
        {"prompt": ""},
        {"size": "big"},
        {"quality": "best"},
        {"response_format": "url"},
    ],
)
def test_images_that_openai_refuses(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.images.generate(**{"model": "echo", "prompt": "A red fox", **fields})
    assert raised.value.param == next(iter(fields))


def test_an_edit_needs_an_image_of_a_kind_that_is_known(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="unsupported mimetype"):
        client.images.edit(model="echo", prompt="x", image=("a.txt", b"x", "text/plain"))


def test_the_log_tells_of_a_file_how_long_it_was(client: openai.OpenAI, simulator: Simulator) -> None:
    client.images.edit(model="echo", prompt="x", image=("a.png", PNG, "image/png"))
    log = httpx.get(f"{simulator.base_url.removesuffix('/v1')}/sim/calls").json()["log"]
    assert log[-1]["body"]["image"] == {"media_type": "image/png", "content": f"{len(PNG)} bytes"}


def test_a_filter_refuses_images_by_its_own_code(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.images.generate(model="blocked", prompt="x")
    assert raised.value.code == "moderation_blocked"


def test_embeddings_in_each_form_are_the_same(client: openai.OpenAI) -> None:
    packed = client.embeddings.create(model="echo", input=["one", "two", "one"], dimensions=8)
    first, second, third = (entry.embedding for entry in packed.data)
    assert first == third != second
    assert sum(value * value for value in first) == pytest.approx(1)
    plain = client.embeddings.create(model="echo", input="one", dimensions=8, encoding_format="float")
    assert plain.data[0].embedding == pytest.approx(first, abs=1e-6)
    assert packed.usage.prompt_tokens == 3
    assert client.embeddings.create(model="echo", input=[1, 2, 3]).usage.total_tokens == 3


@pytest.mark.parametrize("value", ["", [], ["one", ""], [["x"]]])
def test_inputs_that_openai_refuses(client: openai.OpenAI, value: Any) -> None:
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model="echo", input=value)


PROMPT = "You are terse.\n\nUser: Say hello\nAssistant:"


def test_completions_stream_what_they_say_plainly(client: openai.OpenAI) -> None:
    plain = client.completions.create(model="echo", prompt=PROMPT, max_tokens=50)
    assert plain.choices[0].text == "You said: Say hello"
    assert plain.choices[0].finish_reason == "stop"
    assert plain.usage is not None
    assert plain.usage.prompt_tokens == tokens(PROMPT)
    chunks = list(
        client.completions.create(
            model="echo",
            prompt=PROMPT,
            max_tokens=50,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == plain.choices[0].text
    assert chunks[-1].usage == plain.usage
    assert client.completions.create(model="long", prompt=PROMPT).choices[0].finish_reason == "length"


def test_completions_take_no_messages(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="Unrecognized request argument supplied: messages"):
        client.completions.create(model="echo", prompt=PROMPT, extra_body={"messages": []})


def test_the_inventory_says_all_that_was_given(client: openai.OpenAI) -> None:
    image = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    call: Any = {"id": "a", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
    messages: Any = [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is it?"},
                {"type": "image_url", "image_url": {"url": image}},
                {"type": "image_url", "image_url": {"url": "https://a/b.png"}},
                {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
                {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA"}},
                {"type": "hologram", "hologram": {}},
            ],
        },
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "a fox"},
    ]
    answer = client.chat.completions.create(model="inventory", messages=messages)
    given = json.loads(answer.choices[0].message.content or "")
    assert [next(name for name in piece if name != "role") for piece in given] == [
        "text",
        "text",
        "image",
        "image",
        "audio",
        "file",
        "unknown",
        "call",
        "tool",
    ]
    assert given[2]["image"].startswith("sha256:")
    assert given[-1] == {"role": "tool", "tool": "look", "text": "a fox"}
