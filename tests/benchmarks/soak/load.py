"""A mixed load: customers who are served, refused, cut off and impatient, in a loop with pauses."""

from __future__ import annotations

import asyncio
import collections
import random
import uuid
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from tests.e2e.callers import Outcome, call, open_client, question

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    import httpx

    from tests.e2e.world import World
    from tests.fixtures.gateway import Customer

CALLERS = 16
_STREAM_CHUNKS = 40
_TOP_UP = "0.0004"
_NOBODY = "http://127.0.0.1:9/v1"
_LONGEST_PAUSE = 10.0
_SHORTEST_PAUSE = 0.005


@dataclass(frozen=True, slots=True)
class Told:
    """What a client knows of a call that may have cost something."""

    action: str
    status: int | None
    whole: bool
    left: bool
    charge_usd: Decimal | None
    """What it was told; None where it wasn't."""


@dataclass(slots=True)
class Ledger:
    """What the clients saw."""

    calls: collections.Counter[str] = field(default_factory=collections.Counter)
    """By action and status: `plain 200`."""
    told: dict[str, Told] = field(default_factory=dict)
    """By request id."""
    surprises: list[str] = field(default_factory=list)
    """Answers that an action must not have, hangs and broken connections."""

    @property
    def total(self) -> int:
        return sum(self.calls.values())

    def note(self, action: str, outcome: Outcome, expected: frozenset[int | None]) -> None:
        """Keep what a call came to."""
        self.calls[f"{action} {'left' if outcome.left else outcome.status}"] += 1
        if outcome.hung or outcome.broken or not outcome.sent or outcome.status not in expected:
            self.surprises.append(
                f"{action}: status {outcome.status}, hung {outcome.hung}, broken {outcome.broken}, "
                f"{str(outcome.body)[:300]}"
            )
        if outcome.request_id is not None:
            self.told[outcome.request_id] = Told(
                action, outcome.status, outcome.done, outcome.left, _charge(outcome)
            )


def _charge(outcome: Outcome) -> Decimal | None:
    if outcome.status != 200 or not outcome.done or outcome.error_event is not None:
        return None
    usage = outcome.gateway_usage
    return Decimal(usage["charge_usd"]) if "charge_usd" in usage else None


@dataclass(frozen=True, slots=True)
class _Action:
    weight: int
    run: Callable[[random.Random], Awaitable[Outcome]]
    expected: frozenset[int | None]


class MixedLoad:
    """The customers, the models and what is done with them.

    `pause` is how long a caller waits between two calls, on average: the way to make the load lighter.
    """

    def __init__(self, world: World, url: str, *, seed: int) -> None:
        self.ledger = Ledger()
        self.pause = 0.2
        self._world = world
        self._url = url
        self._seed = seed
        self._client: httpx.AsyncClient | None = None
        operator = world.operator
        self._rich = [operator.customer("1000") for _ in range(6)]
        for customer in self._rich:
            # Hard limits that nobody reaches, soft marks that everybody crosses.
            operator.call(
                "set_limits",
                p_customer_id=customer.id,
                p_rate_limits={
                    "requests_per_hour": 10_000_000,
                    "tokens_per_day": 10**10,
                    "spend_usd_per_day": "900",
                },
                p_warn={"requests_per_hour": 20, "tokens_per_day": 500, "spend_usd_per_day": "0.001"},
            )
        self._poor = operator.customer("0.000001")
        self._hurried = operator.customer("10", requests_per_minute=30)
        self._capped = operator.customer("10")
        operator.call(
            "set_limits", p_customer_id=self._capped.id, p_rate_limits={"spend_usd_per_minute": "0.0005"}
        )
        self._hand_to_mouth = operator.customer(_TOP_UP)
        self._echo = operator.model("echo")
        self._slow = operator.model("echo+slow-300ms")
        self._drip = operator.model("long+drip-25ms")
        self._uncounted = operator.model("long+drip-25ms+no-usage")
        self._failing = operator.model("status-500")
        self._busy = operator.model("status-429")
        self._cut = operator.model("long+cut-5+drip-25ms")
        # Nobody listens at the first of its two services.
        self._half_away = operator.model("echo", base_url=_NOBODY, priority=1)
        operator.service(self._half_away, priority=200)
        self._actions = self._all()

    @property
    def customers(self) -> list[Customer]:
        """Everybody."""
        return [*self._rich, self._poor, self._hurried, self._capped, self._hand_to_mouth]

    def _all(self) -> dict[str, _Action]:
        def served(*more: int) -> frozenset[int | None]:
            return frozenset({200, *more})

        return {
            "plain": _Action(30, self._plain, served()),
            "stream": _Action(14, self._stream(self._drip), served()),
            "stream without usage": _Action(4, self._stream(self._uncounted), served()),
            "stream that is left": _Action(12, self._leave_stream, served()),
            "plain that is left": _Action(4, self._leave_plain, frozenset({None, 200})),
            "stream that the provider cuts": _Action(3, self._stream(self._cut), served()),
            "fallback to another service": _Action(4, self._ask(self._half_away), served()),
            "fallback to another model": _Action(3, self._fall_back, served()),
            "provider that fails": _Action(1, self._ask(self._failing), frozenset({502})),
            "provider that is busy": _Action(1, self._ask(self._busy), frozenset({503})),
            "no money": _Action(4, self._ask(self._echo, self._poor), frozenset({402})),
            "from hand to mouth": _Action(5, self._spend_or_top_up, served(402)),
            "over a rate": _Action(4, self._ask(self._echo, self._hurried), served(429)),
            "over a spending limit": _Action(4, self._ask(self._echo, self._capped), served(402, 429)),
            "bad input": _Action(3, self._bad_input, frozenset({422})),
            "unknown model": _Action(3, self._ask("nobody/nothing"), frozenset({404})),
            "unknown key": _Action(3, self._unknown_key, frozenset({401})),
            "idempotency key twice": _Action(4, self._twice, served(409)),
        }

    async def run(self, seconds: float) -> None:
        """Let every caller call until the time is over, and the calls that run then end."""
        self._client = open_client(4 * CALLERS)
        until = asyncio.get_running_loop().time() + seconds
        async with self._client, asyncio.TaskGroup() as group:
            for number in range(CALLERS):
                group.create_task(self._call_until(until, random.Random(self._seed + number)))  # noqa: S311 - to mix
        self._seed += CALLERS

    async def probe(self) -> None:
        """Make one call, which makes the gateway look after the connections that it keeps."""
        async with open_client(1) as client:
            body = question(self._echo, max_tokens=20)
            outcome = await call(client, self._url, self._rich[0].key, body)
            self.ledger.note("probe", outcome, frozenset({200}))

    def adapt(self, busy: float, target: float) -> None:
        """Make the pauses longer or shorter, so that the load comes to `target` of the machine's time."""
        change = min(max(busy / target, 0.5), 2.0)
        self.pause = min(max(self.pause * change, _SHORTEST_PAUSE), _LONGEST_PAUSE)

    async def _call_until(self, until: float, chance: random.Random) -> None:
        names = list(self._actions)
        weights = [self._actions[name].weight for name in names]
        while asyncio.get_running_loop().time() < until:
            [name] = chance.choices(names, weights)
            action = self._actions[name]
            outcome = await action.run(chance)
            self.ledger.note(name, outcome, action.expected)
            await asyncio.sleep(chance.expovariate(1 / self.pause))

    # What is done

    async def _call(self, customer: Customer | str, body: Mapping[str, Any], **options: Any) -> Outcome:
        assert self._client is not None
        key = customer if isinstance(customer, str) else customer.key
        return await call(self._client, self._url, key, body, **options)

    def _ask(
        self, model: str, customer: Customer | None = None
    ) -> Callable[[random.Random], Awaitable[Outcome]]:
        async def ask(chance: random.Random) -> Outcome:
            body = question(model, _text(chance), stream=chance.random() < 0.3, max_tokens=50)
            return await self._call(customer or chance.choice(self._rich), body)

        return ask

    async def _plain(self, chance: random.Random) -> Outcome:
        body = question(self._echo, _text(chance), max_tokens=200)
        return await self._call(chance.choice(self._rich), body)

    def _stream(self, model: str) -> Callable[[random.Random], Awaitable[Outcome]]:
        async def stream(chance: random.Random) -> Outcome:
            body = question(model, _text(chance), stream=True, max_tokens=chance.randint(10, _STREAM_CHUNKS))
            return await self._call(chance.choice(self._rich), body)

        return stream

    async def _leave_stream(self, chance: random.Random) -> Outcome:
        body = question(self._drip, _text(chance), stream=True, max_tokens=_STREAM_CHUNKS)
        leave_after = chance.randint(0, _STREAM_CHUNKS - 5)
        return await self._call(chance.choice(self._rich), body, leave_after=leave_after)

    async def _leave_plain(self, chance: random.Random) -> Outcome:
        """Go away before the answer, or while it comes."""
        body = question(self._slow, _text(chance), max_tokens=50)
        try:
            async with asyncio.timeout(chance.uniform(0.0, 0.4)):
                return await self._call(chance.choice(self._rich), body)
        except TimeoutError:
            return Outcome(left=True)

    async def _fall_back(self, chance: random.Random) -> Outcome:
        body = question(self._failing, _text(chance), models=[self._echo], max_tokens=50)
        return await self._call(chance.choice(self._rich), body)

    async def _spend_or_top_up(self, chance: random.Random) -> Outcome:
        if chance.random() < 0.2:
            await asyncio.to_thread(
                self._world.operator.call,
                "add_credits",
                p_customer_id=self._hand_to_mouth.id,
                p_usd=Decimal(_TOP_UP),
            )
        body = question(self._echo, _text(chance), max_tokens=100)
        return await self._call(self._hand_to_mouth, body)

    async def _bad_input(self, chance: random.Random) -> Outcome:
        wrong: dict[str, Any] = chance.choice(
            [{"temperature": "hot"}, {"messages": []}, {"max_tokens": -1}, {"n": 0}, {"stream": "yes"}]
        )
        return await self._call(chance.choice(self._rich), {**question(self._echo), **wrong})

    async def _unknown_key(self, chance: random.Random) -> Outcome:
        return await self._call(f"sk_{chance.randbytes(24).hex()}", question(self._echo))

    async def _twice(self, chance: random.Random) -> Outcome:
        """The same call twice at once, and once more: one is served, the others are conflicts."""
        customer, key = chance.choice(self._rich), str(uuid.UUID(bytes=chance.randbytes(16)))
        body = question(self._slow, _text(chance), stream=chance.random() < 0.3, max_tokens=50)
        one, other = await asyncio.gather(
            *(self._call(customer, body, idempotency_key=key) for _ in range(2))
        )
        again = await self._call(customer, body, idempotency_key=key)
        first, second = sorted((one, other), key=lambda outcome: outcome.status or 0)
        self.ledger.note("idempotency key twice, the second", second, frozenset({409}))
        self.ledger.note("idempotency key once more", again, frozenset({409}))
        if first.status != 200:
            self.ledger.surprises.append(f"of two calls with one idempotency key none was served: {first}")
        return first


def _text(chance: random.Random) -> str:
    return " ".join(chance.choice(_WORDS) for _ in range(chance.randint(3, 60)))


_TEXT = "a balance that is held before the call goes out is never overdrawn however many calls run at once"
_WORDS = _TEXT.split()
