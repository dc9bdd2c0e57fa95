"""Models of our own by the very code that loads them: a GPT-2 with random weights, transformers as judge.

The server runs as its operator runs it, as a process of the environment that has torch; what it says is held
against transformers' own tokenizer and its own `generate`.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from tests.fixtures.emulator import rest_event
from tests.fixtures.gateway import gateway, module_gateway
from tests.fixtures.local_models import PATIENCE, PYTHON, REPOSITORY, environment, reference, started
from tests.fixtures.runtime_api import FakeRuntimeApi
from tests.fixtures.simulator import PROVIDER_KEY
from tests.fixtures.wire import MARKUP, money, nothing_is_left_held, settled

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import httpx

    from tests.fixtures.gateway import Customer, RunningGateway
    from tests.fixtures.local_models import LocalServer, Reference

__all__ = ["gateway", "module_gateway", "nothing_is_left_held", "reference"]

CONTEXT = 256
KEY_ON_LAMBDA = "sk-local-models-on-lambda"
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def directory(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reference.build(tmp_path_factory.mktemp("models") / "tiny", context=CONTEXT)


@pytest.fixture(scope="module")
def server(
    reference: Reference, directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalServer]:
    folder = tmp_path_factory.mktemp("more")
    templated = reference.build(folder / "templated", seed=1, template=TEMPLATE)
    endless = reference.build(folder / "endless", context=4096, ends=False)
    models = f"tiny={directory},templated={templated},endless={endless}"
    # The key that the gateway's services have in these tests.
    with started(models, key=PROVIDER_KEY, SLUICE_LOCAL_MODELS_PRELOAD="true") as running:
        yield running


@pytest.fixture
def client(server: LocalServer) -> Iterator[httpx.Client]:
    with server.http() as made:
        yield made


def complete(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = client.post("/completions", json={"model": "tiny", "prompt": "Hello", **fields})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def chunks(text: str) -> list[dict[str, Any]]:
    *events, end = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert end == "[DONE]"
    return [json.loads(event) for event in events]


def streamed(client: httpx.Client, **fields: Any) -> tuple[list[str], str, dict[str, int]]:
    """The pieces of a completion, why it ended, and its usage."""
    body = {"model": "tiny", "prompt": "Hello", "stream": True, "stream_options": {"include_usage": True}}
    response = client.post("/completions", json=body | fields)
    assert response.status_code == 200, response.text
    *pieces, last = chunks(response.text)
    assert last["choices"] == []
    choices = [piece["choices"][0] for piece in pieces]
    [reason] = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    return [choice["text"] for choice in choices], reason, last["usage"]


def said(answer: dict[str, Any]) -> str:
    text: str = answer["choices"][0]["text"]
    return text


@pytest.mark.parametrize("prompt", ["Hello", "The user asks", "😀 und Grüße", "a<|endoftext|>b", " ", "\n\n"])
def test_greedy_answer_is_that_of_transformers_to_the_token(
    client: httpx.Client, reference: Reference, directory: Path, prompt: str
) -> None:
    tokens = reference.encode(directory, prompt)
    right = reference.greedy(directory, tokens, 60)
    answer = complete(client, prompt=prompt, temperature=0, max_tokens=60)
    assert said(answer) == right["text"]
    assert answer["choices"][0]["finish_reason"] == ("stop" if right["ended"] else "length")
    assert answer["usage"] == {
        "prompt_tokens": len(tokens),
        "completion_tokens": len(right["tokens"]),
        "total_tokens": len(tokens) + len(right["tokens"]),
    }


def test_end_of_text_ends_the_answer_and_counts(client: httpx.Client) -> None:
    # Among enough of its random answers some have an end.
    for seed in range(40):
        answer = complete(client, max_tokens=200, seed=seed)
        if answer["choices"][0]["finish_reason"] == "stop":
            break
    else:
        pytest.fail("none of forty answers ended by itself")
    assert "<|endoftext|>" not in said(answer)
    made = answer["usage"]["completion_tokens"]
    assert made < 200
    # Bounded to one token less, the same answer has no room for its end; with the same text.
    shorter = complete(client, max_tokens=made - 1, seed=seed)
    assert shorter["choices"][0]["finish_reason"] == "length"
    assert said(shorter) == said(answer)
    assert shorter["usage"]["completion_tokens"] == made - 1


@pytest.mark.parametrize("seed", [0, 1, -5, 2**63 - 1, -(2**63)])
def test_streamed_and_plain_answers_are_the_same(client: httpx.Client, seed: int) -> None:
    asked = {"seed": seed, "max_tokens": 120, "temperature": 1.2, "top_p": 0.9}
    plain = complete(client, **asked)
    pieces, reason, usage = streamed(client, **asked)
    assert "".join(pieces) == said(plain)
    assert len(pieces) > 3
    assert (reason, usage) == (plain["choices"][0]["finish_reason"], plain["usage"])


def test_seed_decides_the_text(client: httpx.Client) -> None:
    texts = [said(complete(client, seed=seed, max_tokens=40)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    # Each further choice is what the next seed would have said.
    both = complete(client, seed=1, max_tokens=40, n=2)
    assert [choice["text"] for choice in both["choices"]] == [texts[0], texts[2]]
    unseeded = {said(complete(client, max_tokens=40)) for _ in range(3)}
    assert len(unseeded) > 1


def test_narrowest_top_p_is_greedy(client: httpx.Client) -> None:
    greedy = said(complete(client, temperature=0, max_tokens=40))
    for top_p in (0, 1e-9):
        assert said(complete(client, top_p=top_p, temperature=2, max_tokens=40)) == greedy
    assert said(complete(client, temperature=1e-300, max_tokens=40)) == greedy


def test_stop_sequence_never_gets_out_wherever_its_tokens_end(client: httpx.Client) -> None:
    whole = said(complete(client, seed=3, max_tokens=60))
    tried = 0
    for start in range(2, min(len(whole) - 3, 40), 3):
        stop = whole[start : start + 3]
        if "\ufffd" in stop:
            continue
        tried += 1
        expected = whole[: whole.index(stop)]
        plain = complete(client, seed=3, max_tokens=60, stop=[stop, "never said"])
        assert said(plain) == expected
        assert plain["choices"][0]["finish_reason"] == "stop"
        # No more was generated, or is paid for, than it took to see the stop sequence.
        assert plain["usage"]["completion_tokens"] < 60
        pieces, reason, usage = streamed(client, seed=3, max_tokens=60, stop=stop)
        assert ("".join(pieces), reason, usage) == (expected, "stop", plain["usage"])
    assert tried > 5


def test_characters_of_several_tokens_come_whole(client: httpx.Client) -> None:
    # Bytes at random make few characters: what there are of them must come in one piece.
    found = 0
    for seed in range(12):
        asked = {"seed": seed, "max_tokens": 200, "temperature": 2.0}
        pieces, _, _ = streamed(client, **asked)
        whole = said(complete(client, **asked))
        assert "".join(pieces) == whole
        found += sum(ord(character) > 127 and character != "\ufffd" for character in whole)
    assert found > 0


@pytest.mark.parametrize("bound", [1, 2, 17])
def test_bound_is_kept_to_the_token(client: httpx.Client, bound: int) -> None:
    for name, path, asked in (
        ("max_tokens", "/completions", {"prompt": "Hello"}),
        ("max_tokens", "/chat/completions", {"messages": [{"role": "user", "content": "Hello"}]}),
        ("max_completion_tokens", "/chat/completions", {"messages": [{"role": "user", "content": "Hello"}]}),
    ):
        body = {"model": "endless", "seed": 4, name: bound, **asked}
        answer = client.post(path, json=body).json()
        assert answer["usage"]["completion_tokens"] == bound, (name, path)
        assert answer["choices"][0]["finish_reason"] == "length"


def test_context_is_kept(client: httpx.Client, reference: Reference, directory: Path) -> None:
    # One token a letter: none of these was merged.
    fits = "~" * (CONTEXT - 3)
    assert len(reference.encode(directory, fits)) == CONTEXT - 3
    answer = complete(client, prompt=fits, temperature=0, max_tokens=100)
    assert answer["usage"]["completion_tokens"] <= 3
    for length in (CONTEXT, CONTEXT + 1, CONTEXT * 40):
        for stream in (False, True):
            refused = client.post(
                "/completions", json={"model": "tiny", "prompt": "~" * length, "stream": stream}
            )
            assert refused.status_code == 400
            assert refused.json()["error"]["code"] == "context_length_exceeded"
            assert f"{length}" in refused.json()["error"]["message"]


def test_chat_follows_the_models_template(
    client: httpx.Client, server: LocalServer, reference: Reference, directory: Path
) -> None:
    assert server.process.poll() is None
    templated = directory.parent.parent / "more0" / "templated"
    messages = [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "Hello"}]
    prompt = reference.ask("template", directory=str(templated), messages=messages)
    right = reference.greedy(templated, prompt, 30)
    answer = client.post(
        "/chat/completions",
        json={"model": "templated", "messages": messages, "max_tokens": 30, "temperature": 0},
    ).json()
    assert answer["choices"][0]["message"] == {
        "role": "assistant",
        "content": right["text"],
        "refusal": None,
    }
    assert answer["usage"]["prompt_tokens"] == len(prompt)
    assert answer["usage"]["completion_tokens"] == len(right["tokens"])


def test_chat_without_a_template_is_written_turn_by_turn(
    client: httpx.Client, reference: Reference, directory: Path
) -> None:
    messages = [
        {"role": "system", "content": "Be terse."},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
    ]
    prompt = reference.encode(directory, "Be terse.\n\nUser: Hello\n\nAssistant:")
    right = reference.greedy(directory, prompt, 30)
    body = {"model": "tiny", "messages": messages, "max_tokens": 30, "temperature": 0}
    answer = client.post("/chat/completions", json=body).json()
    assert answer["usage"]["prompt_tokens"] == len(prompt)
    assert answer["choices"][0]["message"]["content"] == right["text"].partition("\nUser:")[0].lstrip()
    # A single message is the text to go on with.
    alone = client.post("/chat/completions", json={**body, "messages": [messages[1]]}).json()
    assert alone["usage"]["prompt_tokens"] == len(reference.encode(directory, "Hello"))


def test_client_that_leaves_frees_the_model(client: httpx.Client) -> None:
    body = {"model": "endless", "prompt": "Hello", "max_tokens": 4000, "seed": 1}
    start = time.monotonic()
    counted = 0
    with client.stream("POST", "/completions", json={**body, "stream": True}) as response:
        for _ in response.iter_lines():
            counted += 1
            if counted > 100:
                break
    share = time.monotonic() - start
    start = time.monotonic()
    after = client.post("/completions", json={**body, "max_tokens": 1})
    assert after.status_code == 200
    # Had it gone on, some thirty times as much would have had to be waited for.
    assert time.monotonic() - start < 10 * share + 1


def test_two_models_are_loaded_once_each_and_answer_side_by_side(client: httpx.Client) -> None:
    assert client.get(str(client.base_url).replace("/v1/", "/health")).json() == {
        "status": "ok",
        "models": ["tiny", "templated", "endless"],
        "loaded": ["tiny", "templated", "endless"],
    }
    listed = client.get("/models").json()["data"]
    assert [(model["id"], model["context_length"]) for model in listed] == [
        ("tiny", 256),
        ("templated", 256),
        ("endless", 4096),
    ]
    first = {"model": "tiny", "prompt": "Hello", "seed": 5, "max_tokens": 50}
    second = {**first, "model": "endless"}
    alone = [client.post("/completions", json=body).json()["choices"] for body in (first, second)]
    with ThreadPoolExecutor(4) as pool:
        both = list(pool.map(lambda body: client.post("/completions", json=body).json(), [first, second] * 3))
    # The seed is the request's own: what runs beside it changes nothing.
    assert [answer["choices"] for answer in both] == alone * 3


# On Lambda


@pytest.mark.parametrize("path", ["/local-models/v1/completions", "/v1/completions"])
def test_function_streams_below_its_path_to_who_has_the_key(
    client: httpx.Client, lambda_api: FakeRuntimeApi, path: str
) -> None:
    body = {"model": "tiny", "prompt": "Hello", "max_tokens": 20, "temperature": 0, "stream": True}
    lambda_api.invoke(rest_event("POST", path, body, KEY_ON_LAMBDA))
    told = lambda_api.report(PATIENCE)
    if not path.startswith("/local-models"):
        assert told.metadata["statusCode"] == 404
        return
    assert told.metadata["statusCode"] == 200
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks(told.body.decode()))
    assert text == said(complete(client, temperature=0, max_tokens=20))
    lambda_api.invoke(rest_event("POST", path, body, "another-key"))
    assert lambda_api.report(PATIENCE).metadata["statusCode"] == 401


@pytest.fixture(scope="module")
def lambda_api(directory: Path) -> Iterator[FakeRuntimeApi]:
    """The function's own entry, as its image has it, at a stand-in of the Runtime API."""
    dockerfile = (REPOSITORY / "functions" / "local_models" / "Dockerfile").read_text()
    [entry] = [line for line in dockerfile.splitlines() if line.startswith("ENTRYPOINT")]
    command = [str(PYTHON), *json.loads(entry.removeprefix("ENTRYPOINT "))[1:]]
    with FakeRuntimeApi() as api:
        variables = environment(
            AWS_LAMBDA_RUNTIME_API=api.address,
            SLUICE_LOCAL_MODELS=f"tiny={directory}",
            SLUICE_LOCAL_MODELS_KEY_SHA256=hashlib.sha256(KEY_ON_LAMBDA.encode()).hexdigest(),
        )
        with subprocess.Popen(command, env=variables) as process:
            yield api
            process.kill()


# What is wrong with a model, or a key, is said in a line


def refused(**variables: str) -> str:
    done = subprocess.run(
        [str(PYTHON), "-m", "gateway.local_models"],
        cwd=REPOSITORY,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr


def test_server_for_others_needs_a_key(directory: Path) -> None:
    told = refused(SLUICE_LOCAL_MODELS=f"tiny={directory}", SLUICE_LOCAL_MODELS_HOST="0.0.0.0")  # noqa: S104
    assert "SLUICE_LOCAL_MODELS_KEY must be set" in told


def test_pickled_weights_are_not_read(reference: Reference, tmp_path: Path) -> None:
    model = reference.build(tmp_path / "pickled")
    reference.ask("pickle", directory=str(model))
    told = refused(SLUICE_LOCAL_MODELS=f"x={model}", SLUICE_LOCAL_MODELS_PRELOAD="true")
    assert "can't be loaded" in told
    assert "safetensors" in told


# Through the gateway, paid for


@pytest.fixture
def customer(gateway: RunningGateway) -> Customer:
    return gateway.customer("1")


@pytest.fixture
def sold(gateway: RunningGateway, server: LocalServer) -> str:
    """The tiny model, at a price for each token; its name."""
    return gateway.model(
        "tiny",
        provider="local",
        base_url=server.url,
        prices={"input": "20", "output": "60"},
        context_length=CONTEXT,
        max_output_tokens=CONTEXT,
    )


@pytest.mark.parametrize("stream", [False, True])
def test_chat_through_the_gateway_is_charged_by_the_models_own_tokens(
    gateway: RunningGateway,
    customer: Customer,
    sold: str,
    reference: Reference,
    directory: Path,
    *,
    stream: bool,
) -> None:
    prompt = reference.encode(directory, "Hello")
    right = reference.greedy(directory, prompt, 40)
    asked: dict[str, Any] = {
        "model": sold,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 40,
        "temperature": 0,
    }
    client = gateway.openai(customer)
    if stream:
        told = list(
            client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in told if chunk.choices)
        usage = told[-1].usage
    else:
        answer = client.chat.completions.create(**asked)
        text, usage = answer.choices[0].message.content, answer.usage
    assert text == right["text"]
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(prompt), len(right["tokens"]))
    [row] = settled(gateway, customer, 1)
    cost = Decimal(len(prompt) * 20 + len(right["tokens"]) * 60) / 1_000_000
    assert money(row["cost_usd"]) == cost
    assert money(row["charge_usd"]) == cost * MARKUP
    assert row["usage_estimated"] is False
    assert gateway.balance(customer) == (1 - cost * MARKUP, 0)
    assert gateway.books_add_up()


def test_many_customers_share_a_model_and_the_books_add_up(
    gateway: RunningGateway, customer: Customer, sold: str
) -> None:
    client = gateway.openai(customer, max_retries=0)
    answered: list[int] = []
    lock = threading.Lock()

    def ask(number: int) -> None:
        answer = client.chat.completions.create(
            model=sold, messages=[{"role": "user", "content": f"Number {number}"}], max_tokens=10, seed=number
        )
        assert answer.usage is not None
        with lock:
            answered.append(answer.usage.prompt_tokens * 20 + answer.usage.completion_tokens * 60)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(ask, range(6)))
    settled(gateway, customer, 6)
    assert gateway.balance(customer) == (1 - Decimal(sum(answered)) / 1_000_000 * MARKUP, 0)
    assert gateway.books_add_up()


def test_gateway_refuses_by_name_and_passes_on_what_the_context_refuses(
    gateway: RunningGateway, customer: Customer, sold: str
) -> None:
    http = gateway.http(customer)
    body = {"model": sold, "messages": [{"role": "user", "content": "Hello"}]}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    answer = http.post("/v1/chat/completions", json={**body, "tools": tools})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "tools")
    long = {**body, "messages": [{"role": "user", "content": "~" * CONTEXT}], "max_tokens": 16}
    answer = http.post("/v1/chat/completions", json=long)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert gateway.balance(customer) == (1, 0)
