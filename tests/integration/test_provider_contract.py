"""One contract for every provider of the registry, over its own wire, as the simulator speaks it.

Whatever the wire: the client sees OpenAI's shape; the streamed and the plain answer add up to the same
message, usage and charge; every class of tokens is charged at its own price; nothing that was sent is lost,
and what the wire can't say is refused by its name before anything is sent.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal
from typing import TYPE_CHECKING, Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from gateway.providers.registry import PROVIDERS
from gateway.providers.wire import Capability, Provider
from infra.local.simulator.answers import digest, example, picture
from tests.fixtures.gateway import gateway, module_gateway
from tests.fixtures.wire import CHAT, HELLO, MARKUP, money, nothing_is_left_held, settled

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import httpx

    from infra.local.simulator import Call
    from tests.fixtures.gateway import Customer, RunningGateway

__all__ = ["gateway", "module_gateway", "nothing_is_left_held"]

PATHS = {"anthropic": "/anthropic/v1", "gemini": "/gemini/v1beta"}
"""Where the simulator speaks a wire; the others are at /v1."""

PRICES = {
    "input": "1",
    "cached_input": "0.1",
    "cache_write": "1.25",
    "image_input": "3",
    "audio_input": "7",
    "output": "11",
    "image_output": "41",
}
"""No two classes at one price, so that a token in the wrong class shows in the charge."""

PNG = base64.b64encode(picture("red")).decode()
WAV = base64.b64encode(b"RIFF....WAVE").decode()
MP4 = base64.b64encode(b"....ftypisom").decode()
PDF = base64.b64encode(b"%PDF-1.7").decode()
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "?", "parameters": SCHEMA}}
CLOCK = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}}


def can(capability: Capability) -> list[Provider]:
    return [provider for provider in PROVIDERS if capability in provider.capabilities]


def cannot(capability: Capability) -> list[Provider]:
    return [provider for provider in PROVIDERS if capability not in provider.capabilities]


def over(providers: list[Provider]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("provider", providers, ids=[provider.name for provider in providers])


@dataclass(slots=True)
class Told:
    """What a client was told, plain or streamed, and what it was charged."""

    choices: list[dict[str, Any]]
    """Of each: everything that was said, by kind."""
    usage: dict[str, Any]
    row: dict[str, Any]
    deltas: list[dict[str, Any]] = field(default_factory=list)

    @property
    def only(self) -> dict[str, Any]:
        [choice] = self.choices
        return choice

    @property
    def text(self) -> str:
        said: str = self.only["content"]
        return said

    @property
    def charge(self) -> Decimal:
        return money(self.row["charge_usd"])

    def comparable(self) -> dict[str, Any]:
        """What has to be the same however the answer came."""
        usage = {name: value for name, value in self.usage.items() if name != "cost"}
        kept = {name: value for name, value in self.row.items() if name.endswith("_tokens")}
        return {"choices": self.choices, "usage": usage, "row": kept, "charge": self.charge}


@dataclass(slots=True)
class Bench:
    """A provider on the simulator, and a customer who calls it."""

    gateway: RunningGateway
    provider: Provider
    customer: Customer

    @property
    def base_url(self) -> str:
        root = self.gateway.simulator.base_url.removesuffix("/v1")
        return root + PATHS.get(self.provider.wire.name, "/v1")

    @property
    def call(self) -> Call:
        """The latest call that reached the provider."""
        return self.gateway.simulator.calls.last()

    def model(self, behaviour: str, **fields: Any) -> str:
        if not self.provider.stream_usage_option:
            # It is not asked for usage, and tells it all the same.
            behaviour += "+usage-last"
        return self.gateway.model(
            behaviour,
            provider=self.provider.name,
            **{"base_url": self.base_url, "prices": PRICES, "max_output_tokens": 2048, **fields},
        )

    def post(self, behaviour: str, *, model: str | None = None, **fields: Any) -> httpx.Response:
        body = {"model": model or self.model(behaviour), "messages": HELLO, **fields}
        return self.gateway.http(self.customer).post(CHAT, json=body)

    def plain(self, behaviour: str, *, model: str | None = None, **fields: Any) -> Told:
        response = self.post(behaviour, model=model, **fields)
        assert response.status_code == 200, response.text
        body = response.json()
        ChatCompletion.model_validate(body)
        choices = [said(choice["message"], choice) for choice in body["choices"]]
        return Told(choices, body["usage"], self.row())

    def streamed(self, behaviour: str, *, model: str | None = None, **fields: Any) -> Told:
        response = self.post(
            behaviour, model=model, stream=True, stream_options={"include_usage": True}, **fields
        )
        assert response.status_code == 200, response.text
        *events, end = [event for event in response.text.split("\n\n") if event.startswith("data: ")]
        assert end == "data: [DONE]"
        chunks = [json.loads(event.removeprefix("data: ")) for event in events]
        for chunk in chunks:
            ChatCompletionChunk.model_validate(chunk)
        *_, last = chunks
        assert last["choices"] == []
        told = Told([], last["usage"], self.row())
        for index in sorted({choice["index"] for chunk in chunks for choice in chunk["choices"]}):
            parts = [part for chunk in chunks for part in chunk["choices"] if part["index"] == index]
            told.deltas = [part["delta"] for part in parts]
            finished = [part for part in parts if part["finish_reason"]]
            assert finished == parts[-1:], "the finish reason comes once, at the end"
            told.choices.append(said(joined(told.deltas), finished[0]))
        return told

    def both(self, behaviour: str, **fields: Any) -> Told:
        """Ask plainly and as a stream: it has to be the same; the streamed one."""
        model = self.model(behaviour)
        plain = self.plain(behaviour, model=model, **fields)
        self.check_charge(plain)
        whole = self.streamed(behaviour, model=model, **fields)
        self.check_charge(whole)
        assert whole.comparable() == plain.comparable()
        return whole

    def row(self) -> dict[str, Any]:
        """The latest request's row, once it is settled."""
        rows = self.gateway.requests(self.customer)
        return settled(self.gateway, self.customer, len(rows))[-1]

    def owed(self) -> Decimal:
        """What the latest call costs, by what the provider said it used."""
        classes = read_classes(self.call)
        cost = sum(Decimal(PRICES[name]) * count for name, count in classes.items()) / Decimal(1_000_000)
        return (cost * MARKUP).quantize(Decimal("1e-10"), ROUND_CEILING)

    def check_charge(self, told: Told) -> None:
        """Hold the charge, and the usage that the client sees, against what the provider said it used."""
        classes = read_classes(self.call)
        assert told.charge == self.owed(), (classes, told.row)
        assert told.usage["completion_tokens"] == classes["output"] + classes["image_output"]
        assert told.usage["prompt_tokens"] + told.usage["completion_tokens"] == sum(classes.values())
        assert told.usage["total_tokens"] == sum(classes.values())


def said(message: Mapping[str, Any], choice: Mapping[str, Any]) -> dict[str, Any]:
    """Everything in a message, ids left out: they are another in each answer."""
    return {
        "role": message["role"],
        "content": message.get("content") or "",
        "reasoning": message.get("reasoning_content") or "",
        "refusal": message.get("refusal") or "",
        "calls": [
            (call["function"]["name"], call["function"]["arguments"])
            for call in message.get("tool_calls") or []
        ],
        "images": [image["image_url"]["url"] for image in message.get("images") or []],
        "finish_reason": choice["finish_reason"],
    }


def joined(deltas: list[dict[str, Any]]) -> dict[str, Any]:
    """A message of a stream's deltas, as OpenAI's own SDK joins them."""
    message: dict[str, Any] = {"role": deltas[0]["role"], "tool_calls": [], "images": []}
    for name in ("content", "reasoning_content", "refusal"):
        message[name] = "".join(delta.get(name) or "" for delta in deltas)
    calls: dict[int, dict[str, Any]] = {}
    for delta in deltas:
        message["images"] += delta.get("images") or []
        for piece in delta.get("tool_calls") or []:
            call = calls.setdefault(piece["index"], {"id": None, "function": {"name": "", "arguments": ""}})
            call["id"] = call["id"] or piece.get("id")
            for name, value in piece["function"].items():
                call["function"][name] += value or ""
    assert sorted(calls) == list(range(len(calls)))
    assert all(call["id"] for call in calls.values())
    message["tool_calls"] = [calls[index] for index in sorted(calls)]
    return message


def read_classes(call: Call) -> dict[str, int]:
    """What the provider said it used, in classes: read here apart from the gateway's own reading."""
    usage = call.usage
    classes = dict.fromkeys(PRICES, 0)
    if call.wire == "anthropic":
        classes["input"] = usage["input_tokens"]
        classes["cached_input"] = usage["cache_read_input_tokens"]
        classes["cache_write"] = usage["cache_creation_input_tokens"]
        classes["output"] = usage["output_tokens"]
    elif call.wire == "gemini":
        sent = {entry["modality"]: entry["tokenCount"] for entry in usage["promptTokensDetails"]}
        made = {entry["modality"]: entry["tokenCount"] for entry in usage.get("candidatesTokensDetails", ())}
        classes["cached_input"] = usage.get("cachedContentTokenCount", 0)
        classes["image_input"], classes["audio_input"] = sent.get("IMAGE", 0), sent.get("AUDIO", 0)
        apart = classes["cached_input"] + classes["image_input"] + classes["audio_input"]
        classes["input"] = usage["promptTokenCount"] - apart
        classes["image_output"] = made.get("IMAGE", 0)
        whole = usage.get("candidatesTokenCount", 0) + usage.get("thoughtsTokenCount", 0)
        classes["output"] = whole - classes["image_output"]
    else:
        details = usage.get("prompt_tokens_details", {})
        classes["cached_input"] = details.get("cached_tokens", 0)
        classes["cache_write"] = details.get("cache_write_tokens", 0)
        classes["input"] = usage["prompt_tokens"] - classes["cached_input"] - classes["cache_write"]
        classes["output"] = usage["completion_tokens"]
    return classes


@pytest.fixture
def bench(gateway: RunningGateway, provider: Provider) -> Iterator[Bench]:
    customer = gateway.customer("100")
    made = Bench(gateway, provider, customer)
    yield made
    # A key belongs in its header, whatever the wire.
    for call in gateway.simulator.calls.all():
        assert gateway.simulator.key not in call.url
        assert gateway.simulator.key not in json.dumps(call.body, default=repr)


ALL = over(list(PROVIDERS))
# A stream begins as a plain call does: where only that is looked at, one provider stands for its wire.
ONE_OF_EACH_WIRE = list({provider.wire.name: provider for provider in reversed(PROVIDERS)}.values())


@ALL
def test_capabilities_are_those_of_its_wires(provider: Provider) -> None:
    assert {Capability.PLAIN, Capability.STREAM} <= provider.capabilities
    assert (Capability.IMAGES in provider.capabilities) == (provider.images is not None)
    assert (Capability.EMBEDDINGS in provider.capabilities) == (provider.embeddings is not None)
    assert not {Capability.IMAGES, Capability.EMBEDDINGS} & provider.chat


@ALL
def test_streamed_and_plain_answers_are_one_message(bench: Bench) -> None:
    told = bench.both("echo")
    assert told.text == "You said: Hello"
    assert told.only["finish_reason"] == "stop"
    assert [call.streamed for call in bench.gateway.simulator.calls.all()] == [False, True]


@ALL
def test_stream_arrives_in_pieces(bench: Bench) -> None:
    told = bench.streamed("long-40")
    assert sum(bool(delta.get("content")) for delta in told.deltas) >= 30


@ALL
def test_bound_cuts_the_answer_and_the_charge(bench: Bench) -> None:
    told = bench.both("long-500", max_tokens=20)
    assert told.only["finish_reason"] == "length"
    assert told.usage["completion_tokens"] == 20


@ALL
def test_stop_sequence_ends_the_answer(bench: Bench) -> None:
    told = bench.both("echo", messages=[{"role": "user", "content": "one STOP two"}], stop=["STOP"])
    assert told.text == "You said: one "
    assert told.only["finish_reason"] == "stop"


@ALL
def test_filtered_answer_says_so(bench: Bench) -> None:
    told = bench.both("filtered")
    assert told.only["finish_reason"] == "content_filter"
    assert told.text
    assert "You said: Hello".startswith(told.text)


@ALL
def test_usage_beyond_the_bound_is_booked_and_takes_no_more_than_there_is(bench: Bench) -> None:
    bench.customer = bench.gateway.customer("0.001")
    response = bench.post("long-400+unbounded", max_tokens=10)
    assert response.status_code == 200
    row = bench.row()
    # 400 tokens of output alone are 0.0044 USD.
    owed = bench.owed()
    assert owed > Decimal("0.0044")
    assert money(row["charge_usd"]) == owed
    assert money(row["uncollected_usd"]) == owed - Decimal("0.001")
    assert bench.gateway.balance(bench.customer) == (0, 0)


@ALL
def test_missing_usage_is_estimated_and_charged(bench: Bench) -> None:
    for told in (bench.plain("no-usage"), bench.streamed("no-usage")):
        assert told.row["usage_estimated"] is True
        assert told.charge > 0
        assert told.usage["completion_tokens"] == 4


@over(can(Capability.CACHE))
def test_cached_tokens_are_a_class_of_their_own(bench: Bench) -> None:
    told = bench.both("cached-2")
    assert told.row["cached_input_tokens"] == 2
    assert told.usage["prompt_tokens_details"]["cached_tokens"] == 2


@over(can(Capability.REASONING))
def test_reasoning_is_told_apart_and_charged_as_output(bench: Bench) -> None:
    told = bench.both("reasoning-9", reasoning_effort="high", max_tokens=2000)
    assert told.row["reasoning_tokens"] == 9
    assert told.usage["completion_tokens_details"]["reasoning_tokens"] == 9
    assert told.only["reasoning"].startswith("Let me think")
    assert told.text == "You said: Hello"


@over(can(Capability.TOOLS))
@pytest.mark.parametrize(
    "choice", ["auto", "required", {"type": "function", "function": {"name": "get_weather"}}]
)
def test_tool_is_called(bench: Bench, choice: Any) -> None:
    told = bench.both("echo", tools=[WEATHER, CLOCK], tool_choice=choice)
    [(name, arguments)] = told.only["calls"]
    assert name == "get_weather"
    assert json.loads(arguments) == example(SCHEMA)
    assert told.only["finish_reason"] == "tool_calls"


@over(can(Capability.TOOLS))
def test_tools_are_left_alone_where_none_is_wanted(bench: Bench) -> None:
    told = bench.both("echo", tools=[WEATHER], tool_choice="none")
    assert told.only["calls"] == []
    assert told.text == "You said: Hello"


@over(can(Capability.PARALLEL_TOOLS))
def test_tools_are_called_in_parallel_and_answered(bench: Bench) -> None:
    told = bench.both("tools-parallel", tools=[WEATHER, CLOCK])
    assert [(name, json.loads(arguments)) for name, arguments in told.only["calls"]] == [
        ("get_weather", example(SCHEMA)),
        ("get_time", {}),
    ]
    answered = bench.both("echo", tools=[WEATHER, CLOCK], messages=with_results("sunny", "noon"))
    assert answered.text.startswith("You said: ")
    assert answered.only["finish_reason"] == "stop"


@over(can(Capability.PARALLEL_TOOLS))
def test_one_tool_at_a_time_is_said_or_refused_by_name(bench: Bench) -> None:
    response = bench.post("tools-parallel", tools=[WEATHER, CLOCK], parallel_tool_calls=False)
    if response.status_code == 422:
        assert response.json()["error"]["param"] == "parallel_tool_calls"
        assert bench.gateway.simulator.calls.count() == 0
    else:
        assert len(response.json()["choices"][0]["message"]["tool_calls"]) == 1


def with_results(*results: str) -> list[Any]:
    calls = [
        {"id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for index, (name, arguments) in enumerate([("get_weather", '{"city": "Oslo"}'), ("get_time", "{}")])
    ]
    answers = [
        {"role": "tool", "tool_call_id": f"call_{index}", "content": result}
        for index, result in enumerate(results)
    ]
    return [*HELLO, {"role": "assistant", "content": None, "tool_calls": calls}, *answers]


@over([provider for provider in can(Capability.TOOLS) if provider in can(Capability.REASONING)])
def test_what_was_thought_before_a_tool_was_called_goes_back_with_it(bench: Bench) -> None:
    model = bench.model("reasoning-9+tools-parallel")
    asked = {"tools": [WEATHER, CLOCK], "reasoning_effort": "high", "max_tokens": 2000}
    first = bench.post("", model=model, **asked).json()["choices"][0]["message"]
    turns = [
        *HELLO,
        first,
        *({"role": "tool", "tool_call_id": call["id"], "content": "so"} for call in first["tool_calls"]),
    ]
    # The simulator refuses signatures that were lost or changed, as Anthropic and Gemini do.
    second = bench.post("", model=model, messages=turns, **asked)
    assert second.status_code == 200, second.text
    assert second.json()["choices"][0]["message"]["content"].startswith("You said: ")


@over(can(Capability.JSON))
def test_answer_fits_the_schema(bench: Bench) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "trip", "strict": True, "schema": SCHEMA}}
    told = bench.both("echo", response_format=form)
    assert json.loads(told.text) == example(SCHEMA)


def part_of(kind: str, data: str) -> dict[str, Any]:
    match kind:
        case "image":
            return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
        case "audio":
            return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
        case "video":
            return {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{data}"}}
        case _:
            url = f"data:application/pdf;base64,{data}"
            return {"type": "file", "file": {"filename": "a.pdf", "file_data": url}}


MEDIA = {
    "image": (Capability.IMAGE_INPUT, PNG),
    "audio": (Capability.AUDIO_INPUT, WAV),
    "video": (Capability.VIDEO_INPUT, MP4),
    "file": (Capability.FILE_INPUT, PDF),
}
ARRIVES = [(provider, kind) for kind, (capability, _) in MEDIA.items() for provider in can(capability)]
REFUSED = [(provider, kind) for kind, (capability, _) in MEDIA.items() for provider in cannot(capability)]


def over_media(cases: list[tuple[Provider, str]]) -> pytest.MarkDecorator:
    ids = [f"{provider.name}-{kind}" for provider, kind in cases]
    return pytest.mark.parametrize(("provider", "kind"), cases, ids=ids)


@over_media(ARRIVES)
def test_medium_arrives_in_its_place(bench: Bench, kind: str) -> None:
    data = MEDIA[kind][1]
    content = [{"type": "text", "text": "before"}, part_of(kind, data), {"type": "text", "text": "after"}]
    told = bench.both("inventory", messages=[{"role": "user", "content": content}])
    assert json.loads(told.text) == [
        {"role": "user", "text": "before"},
        {"role": "user", kind: digest(data)},
        {"role": "user", "text": "after"},
    ]


@over_media(REFUSED)
def test_medium_that_a_wire_can_not_carry_is_refused_by_its_place(bench: Bench, kind: str) -> None:
    content = [{"type": "text", "text": "before"}, part_of(kind, MEDIA[kind][1])]
    response = bench.post("inventory", messages=[*HELLO, {"role": "user", "content": content}])
    assert response.status_code == 422, response.text
    assert response.json()["error"]["param"].startswith("messages.1.content.1")
    assert bench.gateway.simulator.calls.count() == 0
    assert bench.gateway.balance(bench.customer) == (100, 0)


NAMED: dict[Capability, tuple[dict[str, Any], str]] = {
    Capability.TOOLS: ({"tools": [WEATHER]}, "tools"),
    Capability.JSON: (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "trip", "schema": SCHEMA}}},
        "response_format",
    ),
    Capability.REASONING: ({"reasoning_effort": "high"}, "reasoning_effort"),
}
LACKING = [(provider, capability) for capability in NAMED for provider in cannot(capability)]


@pytest.mark.parametrize(
    ("provider", "capability"), LACKING, ids=[f"{provider.name}-{lacks}" for provider, lacks in LACKING]
)
def test_parameter_that_a_wire_lacks_is_refused_by_its_name(bench: Bench, capability: Capability) -> None:
    fields, param = NAMED[capability]
    response = bench.post("echo", **fields)
    assert response.status_code == 422, response.text
    assert response.json()["error"]["param"].startswith(param)
    assert bench.gateway.simulator.calls.count() == 0


@over(can(Capability.IMAGE_OUTPUT))
def test_image_is_made_within_a_chat(bench: Bench) -> None:
    told = bench.both("image", modalities=["text", "image"])
    [url] = told.only["images"]
    assert url == f"data:image/png;base64,{base64.b64encode(picture('Hello')).decode()}"
    assert told.row["image_output_tokens"] == 1290


CONVERSATION: list[Any] = [
    {"role": "system", "content": "You are terse."},
    {"role": "user", "content": "First?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": [{"type": "text", "text": "Second?"}, {"type": "text", "text": "Third?"}]},
    {"role": "user", "content": "Fourth?"},
]


@ALL
def test_whole_conversation_arrives_in_order(bench: Bench) -> None:
    told = bench.plain("inventory", messages=CONVERSATION)
    given = "".join(piece["text"] for piece in json.loads(told.text))
    places = [
        given.index(text) for text in ("You are terse.", "First?", "Yes.", "Second?", "Third?", "Fourth?")
    ]
    assert places == sorted(places)


@over(can(Capability.TOOLS))
def test_calls_and_results_arrive_in_order(bench: Bench) -> None:
    told = bench.plain("inventory", tools=[WEATHER, CLOCK], messages=with_results("sunny", "noon"))
    assert json.loads(told.text) == [
        {"role": "user", "text": "Hello"},
        {"role": "assistant", "call": "get_weather", "arguments": {"city": "Oslo"}},
        {"role": "assistant", "call": "get_time", "arguments": {}},
        {"role": "tool", "tool": "get_weather", "text": "sunny"},
        {"role": "tool", "tool": "get_time", "text": "noon"},
    ]


STATUSES = {
    400: (400, None),
    401: (502, "provider_failed"),
    403: (502, "provider_failed"),
    404: (None, None),
    408: (504, "provider_timeout"),
    413: (413, None),
    422: (422, None),
    429: (503, "provider_rate_limited"),
    500: (502, "provider_failed"),
    503: (503, "provider_unavailable"),
    504: (504, "provider_timeout"),
    529: (503, "provider_unavailable"),
}


FAILING = [
    (provider, status, stream)
    for stream in (False, True)
    for provider in (ONE_OF_EACH_WIRE if stream else PROVIDERS)
    for status in STATUSES
]


@pytest.mark.parametrize(
    ("provider", "status", "stream"),
    FAILING,
    ids=[f"{one.name}-{status}{'-stream' if stream else ''}" for one, status, stream in FAILING],
)
def test_failure_has_its_status_costs_nothing_and_shows_no_secret(
    bench: Bench, status: int, *, stream: bool
) -> None:
    response = bench.post(f"status-{status}", stream=stream)
    wanted, code = STATUSES[status]
    assert response.is_error
    error = response.json()["error"]
    if wanted is not None:
        assert response.status_code == wanted, error
    if code is not None:
        assert error["code"] == code
    if wanted is not None and wanted < 500:
        # The client's own fault: it is told who says so.
        assert bench.provider.title.removeprefix("the ") in error["message"]
    assert bench.gateway.simulator.key not in response.text
    assert bench.gateway.simulator.base_url not in response.text
    assert bench.gateway.balance(bench.customer) == (100, 0)
    assert money(bench.row()["charge_usd"]) == 0


@ALL
def test_long_prompt_and_blocked_prompt_have_openais_codes(bench: Bench) -> None:
    response = bench.post("too-long")
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
    blocked = bench.post("blocked")
    if blocked.status_code == 200:
        # A provider that answers, and bills the prompt, has its answer passed on as one that was filtered.
        assert blocked.json()["choices"][0]["finish_reason"] == "content_filter"
    else:
        assert (blocked.status_code, blocked.json()["error"]["code"]) == (400, "content_policy_violation")


@ALL
@pytest.mark.parametrize("behaviour", ["malformed", "cut", "error-in-stream"])
def test_broken_plain_answer_is_502_or_503_and_costs_nothing(bench: Bench, behaviour: str) -> None:
    response = bench.post(behaviour)
    assert response.status_code in {502, 503}
    assert bench.gateway.balance(bench.customer) == (100, 0)


@ALL
@pytest.mark.parametrize(
    "behaviour", ["cut-9+long", "cut-clean-9+long", "error-in-stream-9+long", "malformed+long"]
)
def test_cut_stream_ends_with_an_error_and_is_charged_for_what_came(bench: Bench, behaviour: str) -> None:
    response = bench.post(behaviour, stream=True)
    if response.is_error:
        # Nothing had been passed on, so that it could still be said plainly.
        assert behaviour == "malformed+long"
        assert bench.gateway.balance(bench.customer) == (100, 0)
        return
    assert "[DONE]" not in response.text
    events = [event for event in response.text.split("\n\n") if event.startswith("data: ")]
    assert "error" in json.loads(events[-1].removeprefix("data: "))
    assert bench.gateway.simulator.key not in response.text
    row = bench.row()
    # What was passed on was begun, and its prompt is paid for; what was not, is not.
    assert (money(row["charge_usd"]) > 0) == bool(events[:-1])


@over(can(Capability.EMBEDDINGS))
def test_embeddings_are_made_and_charged(bench: Bench) -> None:
    model = bench.model("echo", output=("embedding",), prices={"input": "2", "output": "0"})
    client = bench.gateway.openai(bench.customer)
    answer = client.embeddings.create(model=model, input=["one", "two", "one"], dimensions=8)
    first, second, third = (entry.embedding for entry in answer.data)
    assert first == pytest.approx(third)
    assert first != second
    assert answer.usage.prompt_tokens == 3
    assert money(bench.row()["charge_usd"]) == 3 * Decimal("0.000002") * MARKUP


@over(can(Capability.IMAGES))
def test_images_are_made_and_charged(bench: Bench) -> None:
    behaviour = "image" if bench.provider.wire.name == "gemini" else "echo"
    model = bench.model(behaviour, output=("image",))
    answer = bench.gateway.openai(bench.customer).images.generate(model=model, prompt="A red fox")
    assert answer.data
    assert base64.b64decode(answer.data[0].b64_json or "").startswith(b"\x89PNG")
    row = bench.row()
    assert row["image_output_tokens"] > 0
    assert money(row["charge_usd"]) > 0


PAIRS = [(first, second) for first in ONE_OF_EACH_WIRE for second in ONE_OF_EACH_WIRE if first != second]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("provider", "second"), PAIRS, ids=[f"{first.name}-{second.name}" for first, second in PAIRS]
)
def test_any_wire_stands_in_for_any_other_within_the_request(
    bench: Bench, second: Provider, *, stream: bool
) -> None:
    name = bench.model("echo", base_url="http://127.0.0.1:9/v1")
    other = Bench(bench.gateway, second, bench.customer)
    models = [name, other.model("echo")]
    told = (other.streamed if stream else other.plain)("", model=name, models=models)
    assert told.text == "You said: Hello"
    other.check_charge(told)
    # One route failed, though it may have been tried twice.
    [failed] = {(route["service_id"], route["fault"]) for route in told.row["failed_routes"]}
    assert failed[1] == "transient"
    assert failed[0] != told.row["service_id"]
