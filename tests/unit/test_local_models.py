"""The service of local models round a stand-in for the model: text, queue, refusals, and who may ask."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import threading
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Unavailable
from gateway.local_models.model import Asked, Begun, LoadedModel, Piece
from gateway.local_models.options import LocalModelsError, LocalModelsOptions, read_models
from gateway.local_models.service import LocalModels, create_service
from gateway.local_models.text import StopScanner, TokenText
from gateway.local_models.worker import Worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

KEY = "a-key-of-the-operator"


def decode_bytes(tokens: Sequence[int]) -> str:
    """A tokenizer whose tokens are bytes."""
    return bytes(tokens).decode("utf-8", "replace")


def fed(data: bytes, prompt: bytes = b"") -> list[str]:
    text = TokenText(decode_bytes, list(prompt))
    return [*(text.feed(byte) for byte in data), text.close()]


@pytest.mark.parametrize("text", ["Hello", "é", "😀 and 👩‍👩‍👧", "", "\ufffd", "a\ufffdb", "日本語"])
def test_characters_come_whole(text: str) -> None:
    pieces = fed(text.encode())
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not [piece for piece in pieces if "\ufffd" in piece]


@given(data=st.binary(max_size=40), prompt=st.text(max_size=10))
def test_pieces_add_up_to_the_whole_whatever_the_bytes(data: bytes, prompt: str) -> None:
    assert "".join(fed(data, prompt.encode())) == decode_bytes(data)


def test_space_before_the_first_token_is_kept_where_a_tokenizer_drops_it() -> None:
    # As SentencePiece's do: each word carries the space before it, and the first of a text loses it.
    words = ["▁Paris", "▁is", "▁the", "▁capital"]
    text = TokenText(lambda tokens: "".join(words[token] for token in tokens).replace("▁", " ")[1:], [0, 1])
    assert [text.feed(2), text.feed(3), text.close()] == [" the", " capital", ""]


def cut(text: str, stops: Sequence[str], lengths: Sequence[int]) -> tuple[str, bool]:
    scanner = StopScanner(stops)
    said = ""
    for length in lengths:
        said += scanner.feed(text[:length])
        text = text[length:]
        # Nothing that is out may turn out to be the beginning of a stop sequence.
        if scanner.found:
            return said, True
    said += scanner.feed(text)
    return said + scanner.close(), scanner.found


@given(
    text=st.text(alphabet="ab\n", max_size=30),
    stops=st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=4),
    lengths=st.lists(st.integers(1, 4), max_size=30),
)
def test_stop_sequences_cut_alike_wherever_the_pieces_end(
    text: str, stops: list[str], lengths: list[int]
) -> None:
    said, found = cut(text, stops, lengths)
    # The one that is complete first, by trying every end; its longest form.
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            assert (said, found) == (text[: min(starts)], True)
            return
    assert (said, found) == (text, False)


def test_beginning_of_a_stop_sequence_waits() -> None:
    scanner = StopScanner(["END"])
    assert [scanner.feed(piece) for piece in ("aE", "N", "x", "EN", "D", "b")] == ["a", "", "ENx", "", "", ""]
    assert scanner.found
    assert scanner.close() == ""


# The operator's options


def options(**variables: str) -> LocalModelsOptions:
    return LocalModelsOptions.from_environment(
        {f"SLUICE_LOCAL_MODELS{name}": value for name, value in variables.items()}
    )


def test_default_is_gpt2_on_the_loopback() -> None:
    read = options()
    assert read.models == {"gpt2": "openai-community/gpt2"}
    assert (read.host, read.preload, read.key_hash) == ("127.0.0.1", False, None)


def test_list_of_models_is_read() -> None:
    assert read_models("gpt2=openai-community/gpt2, other=/opt/models/x,a/b") == {
        "gpt2": "openai-community/gpt2",
        "other": "/opt/models/x",
        "a/b": "a/b",
    }


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"": "="}, "SLUICE_LOCAL_MODELS"),
        ({"": "a=b,a=c"}, "twice"),
        ({"": ","}, "names no model"),
        ({"_PRELOAD": "perhaps"}, "_PRELOAD"),
        ({"_PORT": "0"}, "_PORT"),
        ({"_QUEUE": "-1"}, "_QUEUE"),
        ({"_KEY": "short"}, "_KEY"),
        ({"_KEY_SHA256": "00"}, "_KEY_SHA256"),
        ({"_KEY": KEY, "_KEY_SHA256": "0" * 64}, "both"),
        ({"_HOST": "0.0.0.0"}, "_KEY must be set"),  # noqa: S104 - refused
        ({"_HOST": "192.168.1.2"}, "_KEY must be set"),
    ],
)
def test_bad_option_is_named(variables: dict[str, str], named: str) -> None:
    with pytest.raises(LocalModelsError, match=named):
        options(**variables)


def test_key_is_kept_as_its_hash_alone() -> None:
    by_key = options(_KEY=KEY)
    by_hash = options(_KEY_SHA256=hashlib.sha256(KEY.encode()).hexdigest())
    for read in (by_key, by_hash):
        assert read.admits(KEY)
        assert not read.admits(KEY[:-1])
        assert not read.admits("")
        assert not read.admits("\udc80")
        assert KEY not in repr(read)
    assert options().admits("")


# The service, with a model that says what a test wants


class StandIn:
    """Says the words of its prompt, one by one, and waits before each where it is told to."""

    context_length = 1000

    def __init__(self) -> None:
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.begun = threading.Event()
        self.stopped = threading.Event()
        self.said = 0

    def run(self, asked: Asked, gone: threading.Event) -> Iterator[Begun | Piece]:
        text = asked.prompt if isinstance(asked.prompt, str) else asked.prompt[-1][1]
        yield Begun(len(text))
        self.begun.set()
        for choice in range(asked.choices):
            for word in text.split():
                while not self.may_go_on.wait(0.01):
                    if gone.is_set():
                        self.stopped.set()
                        return
                self.said += 1
                yield Piece(choice, f"{word} ")
            yield Piece(choice, "", "stop", len(text.split()))


class Loader:
    """Loads stand-ins, and counts; fails as often as it is told to."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.loads = 0
        self.model = StandIn()
        self.may_load = threading.Event()
        self.may_load.set()

    def __call__(self, _source: str) -> Any:
        self.loads += 1
        assert self.may_load.wait(10)
        if self.loads <= self.failures:
            raise LocalModelsError("no network")
        return self.model


@pytest.fixture
def loader() -> Loader:
    return Loader()


def served(loader: Any, *, key: str | None = None, queue: int = 2) -> LocalModels:
    read = LocalModelsOptions(
        {"one": "x"}, key_hash=hashlib.sha256(key.encode()).hexdigest() if key else None, queue=queue
    )
    return LocalModels(read, [Worker("one", "x", queue=queue, threads=1, load=loader)])


@pytest.fixture
async def client(loader: Loader) -> AsyncIterator[httpx.AsyncClient]:
    models = served(loader)
    transport = httpx.ASGITransport(create_service(models))
    async with httpx.AsyncClient(transport=transport, base_url="http://local") as made:
        yield made
    models.close()


def chat(text: str = "one two", **more: Any) -> dict[str, Any]:
    return {"model": "one", "messages": [{"role": "user", "content": text}], **more}


async def test_concurrent_first_requests_load_once(client: httpx.AsyncClient, loader: Loader) -> None:
    loader.may_load.clear()
    asking = [
        asyncio.create_task(client.post("/v1/chat/completions", json=chat(f"number {number}")))
        for number in range(3)
    ]
    await asyncio.sleep(0.05)
    loader.may_load.set()
    answers = await asyncio.gather(*asking)
    assert [answer.json()["choices"][0]["message"]["content"] for answer in answers] == [
        "number 0 ",
        "number 1 ",
        "number 2 ",
    ]
    assert loader.loads == 1


async def test_failed_load_is_503_and_tried_again() -> None:
    loader = Loader(failures=1)
    models = served(loader)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(create_service(models)), base_url="http://local"
    ) as client:
        first = await client.post("/v1/chat/completions", json=chat(stream=True))
        assert first.status_code == 503
        assert first.json()["error"]["code"] == "model_unavailable"
        # Why is for the operator's log.
        assert "network" not in first.text
        assert (await client.post("/v1/chat/completions", json=chat())).status_code == 200
    models.close()
    with pytest.raises(LocalModelsError, match="no network"):
        served(Loader(failures=1)).preload()


async def test_queue_is_bounded(client: httpx.AsyncClient, loader: Loader) -> None:
    loader.model.may_go_on.clear()
    asking = [
        asyncio.create_task(client.post("/v1/chat/completions", json=chat(stream=bool(number % 2))))
        for number in range(3)
    ]
    assert await asyncio.to_thread(loader.model.begun.wait, 5)
    for stream in (False, True):
        refused = await client.post("/v1/chat/completions", json=chat(stream=stream))
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "model_busy"
        assert int(refused.headers["retry-after"]) >= 1
    # Who only looks is not kept waiting by a generation.
    assert (await client.get("/health")).json() == {"status": "ok", "models": ["one"], "loaded": ["one"]}
    loader.model.may_go_on.set()
    assert {answer.status_code for answer in await asyncio.gather(*asking)} == {200}
    assert (await client.post("/v1/chat/completions", json=chat())).status_code == 200


async def call(app: Any, body: dict[str, Any], leave: asyncio.Event) -> list[Any]:
    """A POST whose client leaves when `leave` is set; the messages that were sent to it."""
    arrived = False

    async def receive() -> dict[str, Any]:
        nonlocal arrived
        if not arrived:
            arrived = True
            return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}
        await leave.wait()
        return {"type": "http.disconnect"}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/chat/completions",
        "raw_path": b"/v1/chat/completions",
        "root_path": "",
        "query_string": b"",
        "headers": [],
    }
    await app(scope, receive, send)
    return sent


@pytest.mark.parametrize("stream", [False, True])
async def test_client_that_leaves_stops_the_generation(loader: Loader, *, stream: bool) -> None:
    models = served(loader, queue=0)
    app = create_service(models)
    loader.model.may_go_on.clear()
    leave = asyncio.Event()
    asking = asyncio.create_task(call(app, chat(stream=stream), leave))
    assert await asyncio.to_thread(loader.model.begun.wait, 5)
    leave.set()
    sent = await asking
    assert b"[DONE]" not in b"".join(message.get("body", b"") for message in sent)
    assert await asyncio.to_thread(loader.model.stopped.wait, 5)
    assert loader.model.said == 0
    # Its place in the queue is free again.
    loader.model.may_go_on.set()
    assert (await call(app, chat(), asyncio.Event()))[0]["status"] == 200
    models.close()


async def test_one_that_waits_and_leaves_is_never_begun(loader: Loader) -> None:
    worker = Worker("one", "x", queue=2, threads=1, load=loader)
    asked = Asked("a b", None, 1.0, 1.0, None, (), 1)
    loader.model.may_go_on.clear()
    async with aclosing(worker.run(asked)) as first:
        assert await anext(first) == Begun(3)
        second = worker.run(Asked("never said", None, 1.0, 1.0, None, (), 1))
        waiting = asyncio.ensure_future(anext(second))
        await asyncio.sleep(0.02)
        waiting.cancel()
        await asyncio.wait([waiting])
        await second.aclose()
        loader.model.may_go_on.set()
        assert [item async for item in first][-1] == Piece(0, "", "stop", 2)
    assert [item async for item in worker.run(asked)][-1] == Piece(0, "", "stop", 2)
    assert loader.model.said == 4
    worker.close()


async def test_place_in_the_queue_is_given_back_after_a_failure() -> None:
    worker = Worker("one", "x", queue=0, threads=1, load=Loader(failures=9))
    for _ in range(3):
        with pytest.raises(Unavailable, match="can't be loaded"), worker.turn():
            await anext(worker.run(Asked("a", None, 1.0, 1.0, None, (), 1)))
    worker.close()


async def test_key_is_asked_for_on_every_route_but_health(loader: Loader) -> None:
    models = served(loader, key=KEY)
    transport = httpx.ASGITransport(create_service(models))
    async with httpx.AsyncClient(transport=transport, base_url="http://local") as client:
        routes = [("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("GET", "/v1/models")]
        for method, path in routes:
            for given in ({}, {"authorization": f"Bearer {KEY}x"}, {"authorization": KEY}):
                refused = await client.request(method, path, json=chat(), headers=given)
                assert refused.status_code == 401, (path, given)
        assert (await client.get("/health")).status_code == 200
        assert loader.loads == 0
        good = {"authorization": f"Bearer {KEY}"}
        assert (await client.post("/v1/chat/completions", json=chat(), headers=good)).status_code == 200
        assert [each["id"] for each in (await client.get("/v1/models", headers=good)).json()["data"]] == [
            "one"
        ]
    models.close()


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logprobs": True}, "logprobs"),
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"audio": {"voice": "alloy"}}, "audio"),
        ({"n": 9}, "n"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"temperature": 3}, "temperature"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages.0",
        ),
        ({"messages": [{"role": "tool", "tool_call_id": "1", "content": "x"}]}, "messages.0"),
    ],
)
async def test_what_a_model_of_text_can_not_do_is_refused_by_name(
    client: httpx.AsyncClient, loader: Loader, more: dict[str, Any], param: str
) -> None:
    refused = await client.post("/v1/chat/completions", json=chat() | more)
    assert refused.status_code == 422, refused.text
    assert refused.json()["error"]["param"].startswith(param)
    assert loader.loads == 0


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"echo": True}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 1}, "logprobs"),
        ({"suffix": "x"}, "suffix"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"messages": [{"role": "user", "content": "x"}]}, "messages"),
    ],
)
async def test_legacy_completion_is_refused_by_name(
    client: httpx.AsyncClient, more: dict[str, Any], param: str
) -> None:
    refused = await client.post("/v1/completions", json={"model": "one", "prompt": "x"} | more)
    assert refused.status_code == 422, refused.text
    assert refused.json()["error"]["param"].startswith(param)


async def test_parameters_without_effect_are_taken(client: httpx.AsyncClient) -> None:
    harmless: dict[str, Any] = {
        "tools": [],
        "logprobs": False,
        "presence_penalty": 0,
        "user": "u",
        "response_format": None,
    }
    assert (await client.post("/v1/chat/completions", json=chat(**harmless))).status_code == 200


async def test_unknown_model_is_404(client: httpx.AsyncClient) -> None:
    refused = await client.post("/v1/chat/completions", json=chat() | {"model": "two"})
    assert refused.status_code == 404
    assert refused.json()["error"]["code"] == "model_not_found"


async def test_choices_are_told_apart_and_their_tokens_added(client: httpx.AsyncClient) -> None:
    plain = (await client.post("/v1/chat/completions", json=chat("a b c", n=2))).json()
    assert [choice["index"] for choice in plain["choices"]] == [0, 1]
    assert plain["usage"] == {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}
    asked = chat("a b c", n=2, stream=True, stream_options={"include_usage": True})
    streamed = (await client.post("/v1/chat/completions", json=asked)).text
    *events, end = [line.removeprefix("data: ") for line in streamed.split("\n\n") if line]
    assert end == "[DONE]"
    assert json.loads(events[-1])["usage"] == plain["usage"]


def test_model_without_transformers_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(LocalModelsError, match=r"make \.venv/\.local-models"):
        LoadedModel.load("/nonexistent")
