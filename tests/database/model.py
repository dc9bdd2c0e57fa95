"""The engine as DESIGN.md and API.md say it, in plain Python: what the SQL functions are held against.

One call at a time, in memory, with no lock. Money is Decimal in USD and never inexact: the context traps
it. A price is USD per million tokens (or per request, or per image). `decide` only looks; `admit` puts down
what it decided.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal, Inexact, InvalidOperation, localcontext
from typing import Any, NamedTuple, TypeVar
from zoneinfo import ZoneInfo

EXACT = Context(prec=200, traps=[Inexact, InvalidOperation])
TENTH_DECIMAL = 10**10
MILLION = 10**6
LEAST_OUTPUT = 16
DAY = timedelta(days=1)
NOTHING = Decimal(0)

INPUT_CLASSES = ("input", "cached_input", "cache_write", "audio_input", "image_input")
OUTPUT_CLASSES = ("output", "audio_output", "image_output")
MEDIA_CLASSES = ("audio_input", "image_input", "audio_output", "image_output")
METRICS = ("requests", "tokens", "spend_usd")

Rates = Mapping[str, Decimal]
Usage = Mapping[str, int]
Number = Decimal | int
T = TypeVar("T")


# Money


def round_up(exact: Decimal) -> Decimal:
    return (exact * TENTH_DECIMAL).to_integral_value(ROUND_CEILING) / TENTH_DECIMAL


@dataclass(frozen=True, slots=True)
class Prices:
    """What a provider takes, and what it takes for each token of a request with more input than so much."""

    rates: Rates
    tiers: tuple[tuple[int, Rates], ...] = ()
    """(input tokens, rates), in any order. What is no token costs the same for any length."""

    def for_input(self, tokens: int) -> Rates:
        reached = [(above, rates) for above, rates in self.tiers if tokens > above]
        return max(reached, key=lambda tier: tier[0])[1] if reached else self.rates

    def up_to(self, tokens: int) -> list[Rates]:
        """The rates that some request with no more input than that is charged by."""
        return [self.rates, *(rates for above, rates in self.tiers if above < tokens)]


def read_prices(prices: Mapping[str, Any]) -> Prices:
    """Prices as JSON has them, with their tiers."""
    return Prices(
        {name: Decimal(price) for name, price in prices.items() if name != "tiers"},
        tuple(
            (
                int(tier["above_input_tokens"]),
                {name: Decimal(price) for name, price in tier.items() if name != "above_input_tokens"},
            )
            for tier in prices.get("tiers", ())
        ),
    )


def price_of(rates: Rates, token_class: str) -> Decimal:
    """A class without a price of its own costs what its base class costs."""
    base = "input" if token_class in INPUT_CLASSES else "output"
    return rates.get(token_class, rates[base])


def tokens_of(usage: Usage) -> int:
    """Reasoning is inside the output."""
    return input_of(usage) + sum(usage.get(token_class, 0) for token_class in OUTPUT_CLASSES)


def input_of(usage: Usage) -> int:
    """What was cached, and what was written to a cache, was read all the same."""
    return sum(usage.get(token_class, 0) for token_class in INPUT_CLASSES)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a request is billed by, for good, from its admission on."""

    billing_mode: str
    commission_percent: Decimal
    flat_usd_per_1k_tokens: Decimal

    def charge(self, tokens: int, tokens_usd: Decimal, fixed_usd: Decimal) -> Decimal:
        """What exact costs come to for the customer, rounded once."""
        commission = 1 + self.commission_percent / 100
        if self.billing_mode == "flat":
            return round_up(tokens * self.flat_usd_per_1k_tokens / 1000 + fixed_usd * commission)
        return round_up((tokens_usd + fixed_usd) * commission)

    def bill(self, prices: Prices, usage: Usage) -> tuple[Decimal, Decimal]:
        """(cost, charge) of what was used."""
        rates = prices.for_input(input_of(usage))
        with localcontext(EXACT):
            tokens_usd = sum(
                (
                    usage.get(token_class, 0) * price_of(rates, token_class) / MILLION
                    for token_class in (*INPUT_CLASSES, *OUTPUT_CLASSES)
                ),
                NOTHING,
            )
            # a part of what was written, at a price of its own
            tokens_usd += (
                min(usage.get("cache_write_1h", 0), usage.get("cache_write", 0))
                * (
                    rates.get("cache_write_1h", price_of(rates, "cache_write"))
                    - price_of(rates, "cache_write")
                )
                / MILLION
            )
            fixed_usd = prices.rates.get("per_request", NOTHING) + usage.get("images", 0) * prices.rates.get(
                "per_image", NOTHING
            )
            return round_up(tokens_usd + fixed_usd), self.charge(tokens_of(usage), tokens_usd, fixed_usd)


# Time


def window_start(per: str, at: datetime, zone: str) -> datetime:
    local = at.astimezone(ZoneInfo(zone)).replace(microsecond=0, second=0)
    if per != "minute":
        local = local.replace(minute=0)
    if per in {"day", "month"}:
        local = local.replace(hour=0, fold=0)
    if per == "month":
        local = local.replace(day=1)
    return local.astimezone(UTC)


def window_end(per: str, start: datetime, zone: str) -> datetime:
    if per == "minute":
        return start + timedelta(minutes=1)
    if per == "hour":
        return start + timedelta(hours=1)
    # any moment in the middle of the next one lies in it, whatever the clocks do
    return window_start(per, start + (DAY * 1.5 if per == "day" else DAY * 45), zone)


# The world


@dataclass(slots=True)
class Settings:
    commission_percent: Decimal = Decimal(5)
    billing_mode: str = "markup"
    flat_usd_per_1k_tokens: Decimal = Decimal("0.02")
    default_max_output_tokens: int = 8192
    default_requests_per_minute: int | None = 60
    default_tokens_per_minute: int | None = None
    expired_hold_policy: str = "release"
    credit_value_usd: Decimal = Decimal("0.00002")

    def terms(self) -> Terms:
        return Terms(self.billing_mode, self.commission_percent, self.flat_usd_per_1k_tokens)


@dataclass(frozen=True, slots=True)
class LanguageModel:
    id: int
    name: str
    context_length: int
    max_output_tokens: int | None
    routes: tuple[tuple[int, int], ...]
    """(service, route), in the order of the services' priorities."""


@dataclass(slots=True)
class Customer:
    id: int
    zone: str
    active: bool = True
    balance: Decimal = NOTHING
    held: Decimal = NOTHING
    debt: Decimal = NOTHING

    @property
    def free(self) -> Decimal:
        return self.balance - self.held


class Entry(NamedTuple):
    """A line of the ledger."""

    kind: str
    amount: Decimal
    balance_after: Decimal
    request_id: str | None
    reference: str | None
    debt_change: Decimal | None = None


@dataclass(slots=True)
class Payment:
    """What was told of a payment, in cents, and what of it is in the books, in USD."""

    id: str
    customer_id: int | None = None
    paid: int | None = None
    refunded_in_all: int = 0
    refunds: dict[str, tuple[int, bool]] = field(default_factory=dict)
    """(amount, whether it failed)"""
    disputes: dict[str, tuple[int, str, str]] = field(default_factory=dict)
    """(amount, when it was last withdrawn, when it was last given back)"""
    credited: Decimal = NOTHING
    refunded: Decimal = NOTHING
    disputed: Decimal = NOTHING


class Subject(NamedTuple):
    """Whose limit: with a key the model's id, 0 for all of them, -1 for each by itself."""

    kind: str
    id: int
    model_id: int = 0


class CounterKey(NamedTuple):
    subject: str
    subject_id: int
    model_id: int
    per: str


class Amounts(NamedTuple):
    requests: int
    tokens: int
    spend_usd: Decimal


UNUSED = Amounts(0, 0, NOTHING)


@dataclass(slots=True)
class Counter:
    start: datetime
    used: Amounts


@dataclass(frozen=True, slots=True)
class Limit:
    """One window of one counter as a request meets it."""

    counter: CounterKey
    start: datetime
    end: datetime
    hard: Mapping[str, Number | None]
    soft: Mapping[str, Number | None]
    used: Amounts

    def applies_to(self, candidate: Candidate) -> bool:
        if self.counter.subject == "service":
            return self.counter.subject_id == candidate.service_id
        return self.counter.model_id in {0, candidate.model_id}

    def left(self, metric: str) -> Number | None:
        hard = self.hard[metric]
        return None if hard is None else hard - getattr(self.used, metric)


@dataclass(slots=True)
class Counted:
    """What a request stands for in a counter now, of the window that it was admitted in."""

    counter: CounterKey
    start: datetime
    amounts: Amounts


@dataclass(frozen=True, slots=True)
class Candidate:
    model_id: int
    model_name: str
    service_id: int
    route_id: int
    prices: Prices
    input_bound: int
    output_bound: int = 0
    hold_usd: Decimal = NOTHING
    cost_bound_usd: Decimal = NOTHING


@dataclass(slots=True)
class Request:
    id: str
    customer_id: int
    key_id: int
    terms: Terms
    hold: Decimal
    candidates: tuple[Candidate, ...]
    counted: list[Counted]
    idempotency_key: str | None
    bucket: datetime
    model_id: int
    service_id: int | None = None
    lapsed: int | None = None
    """Which of the leases that ran out, in their order."""
    state: str = "held"
    outcome: str | None = None
    usage: Usage | None = None
    cost: Decimal = NOTHING
    charge: Decimal = NOTHING
    collected: Decimal = NOTHING

    @property
    def uncollected(self) -> Decimal:
        return self.charge - self.collected


@dataclass(slots=True)
class Keyed:
    """An Idempotency-Key that was sent."""

    request_id: str
    body: str
    charged: bool = False
    freed: bool = False
    age: timedelta = timedelta()


# What is asked, and what is answered


@dataclass(frozen=True, slots=True)
class Call:
    key_id: int
    models: tuple[str, ...]
    input_bound: int | None = 1000
    max_output_tokens: int | None = 500
    choices: int = 1
    media_output: bool = False
    idempotency_key: str | None = None
    body: str = "body"


class Excess(NamedTuple):
    """A limit that refuses."""

    subject: str
    metric: str
    per: str
    limit: Decimal
    end: datetime
    never: bool


@dataclass(frozen=True, slots=True)
class Decision:
    refusal: str | None = None
    first_request_id: str | None = None
    excesses: tuple[Excess, ...] = ()
    """Any of these may be told: they are equally to the point."""
    needed_usd: Decimal | None = None
    available_usd: Decimal | None = None
    affordable_output_tokens: int | None = None
    candidates: tuple[Candidate, ...] = ()
    hold_usd: Decimal = NOTHING
    counted: tuple[tuple[CounterKey, datetime, Amounts], ...] = ()
    limits: tuple[Limit, ...] = ()
    """Those that the answer's headers tell of, with this request counted if it was admitted."""

    @property
    def tightest(self) -> dict[str, Number | None]:
        """What is left for the client of requests and tokens."""
        left: dict[str, Number | None] = {}
        for metric in ("requests", "tokens"):
            found = [
                limit.left(metric)
                for limit in self.limits
                if limit.counter.subject != "service" and limit.hard[metric] is not None
            ]
            least = _least(found)
            left[metric] = None if least is None else max(least, 0)
        return left

    @property
    def warnings(self) -> list[str]:
        found: set[str] = set()
        for limit in self.limits:
            for metric in METRICS:
                soft = limit.soft[metric]
                if (
                    limit.counter.subject != "service"
                    and soft is not None
                    and getattr(limit.used, metric) > soft
                ):
                    found.add(f"{metric}_per_{limit.counter.per}")
        return sorted(found)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a settlement answers with."""

    already: bool
    tokens: int
    cost: Decimal
    charge: Decimal
    uncollected: Decimal
    balance_after: Decimal


def _least(values: Iterable[Number | None]) -> Number | None:
    return min((value for value in values if value is not None), default=None)


@dataclass(slots=True)
class Model:
    """All that the database knows of the engine's doings."""

    models: dict[str, LanguageModel]
    keys: dict[int, int]
    """Whose each key is."""
    customers: dict[int, Customer]
    prices: dict[tuple[str, int | None], Prices]
    """What is in force for a model, on one service or (None) on any."""
    settings: Settings = field(default_factory=Settings)
    limits: dict[tuple[Subject, str], dict[str, Number]] = field(default_factory=dict)
    counters: dict[CounterKey, Counter] = field(default_factory=dict)
    requests: dict[str, Request] = field(default_factory=dict)
    ledger: dict[int, list[Entry]] = field(default_factory=lambda: defaultdict(list))
    keyed: dict[tuple[int, str], Keyed] = field(default_factory=dict)
    refusals: dict[tuple[int, int, str], int] = field(default_factory=lambda: defaultdict(int))
    lapses: int = 0
    payments: dict[str, Payment] = field(default_factory=dict)
    payment_events: set[str] = field(default_factory=set)

    def trial(self, act: Callable[[Model], T]) -> T:
        """What `act` would come to, without its doing anything here."""
        return act(copy.deepcopy(self))

    # Admission

    def decide(self, call: Call, at: datetime) -> Decision:
        """Whether a call that comes at this moment is admitted, and on which terms."""
        with localcontext(EXACT):
            return self._decide(call, at)

    def _decide(self, call: Call, at: datetime) -> Decision:
        customer = self.customers[self.keys[call.key_id]]
        if not customer.active:
            return Decision("customer_suspended")
        keyed = self.keyed.get((call.key_id, call.idempotency_key)) if call.idempotency_key else None
        if keyed is not None and not keyed.freed and keyed.age < DAY:
            if keyed.body != call.body:
                refusal = "idempotency_mismatch"
            else:
                refusal = "idempotency_reused" if keyed.charged else "idempotency_running"
            return Decision(refusal, first_request_id=keyed.request_id)

        considered = self._candidates(call)
        limits = self._applicable_limits(call.key_id, customer, considered, at)
        if customer.debt:
            return Decision("customer_in_debt", limits=tuple(limits))
        fitting: list[Candidate] = []
        first_refusal: Decision | None = None
        for candidate in considered:
            applying = [limit for limit in limits if limit.applies_to(candidate)]
            bounded = self._bounded(
                candidate, call, applying, customer.free, fitting[0].output_bound if fitting else None
            )
            refusal_of_it = self._refusal(bounded, call, applying, customer.free)
            if refusal_of_it is None:
                fitting.append(bounded)
            else:
                first_refusal = first_refusal or refusal_of_it
        if not fitting:
            assert first_refusal is not None
            return replace(first_refusal, limits=tuple(limits))

        counted = []
        shown = []
        for limit in limits:
            counting = [candidate for candidate in fitting if limit.applies_to(candidate)]
            if not counting:
                continue
            amounts = Amounts(
                1,
                max(candidate.input_bound + candidate.output_bound * call.choices for candidate in counting),
                max(
                    candidate.cost_bound_usd if limit.counter.subject == "service" else candidate.hold_usd
                    for candidate in counting
                ),
            )
            counted.append((limit.counter, limit.start, amounts))
            shown.append(replace(limit, used=added(limit.used, amounts)))
        return Decision(
            candidates=tuple(fitting),
            hold_usd=max(candidate.hold_usd for candidate in fitting),
            counted=tuple(counted),
            limits=tuple(shown),
        )

    def limits_on(self, call: Call, at: datetime) -> list[Limit]:
        """Every limit that a call falls under at this moment."""
        customer = self.customers[self.keys[call.key_id]]
        return self._applicable_limits(call.key_id, customer, self._candidates(call), at)

    def _candidates(self, call: Call) -> list[Candidate]:
        found = []
        for name in dict.fromkeys(call.models):
            model = self.models[name]
            bound = model.context_length
            if call.input_bound is not None:
                bound = min(bound, call.input_bound)
            for service_id, route_id in model.routes:
                prices = self.prices.get((name, service_id), self.prices[name, None])
                found.append(Candidate(model.id, name, service_id, route_id, prices, bound))
        return found

    def _applicable_limits(
        self, key_id: int, customer: Customer, considered: Sequence[Candidate], at: datetime
    ) -> list[Limit]:
        found: list[Limit] = []

        def add(counter: CounterKey, row: Mapping[str, Number | None]) -> None:
            if all(value is None for value in row.values()):
                return
            zone = "UTC" if counter.subject == "service" else customer.zone
            start = window_start(counter.per, at, zone)
            known = self.counters.get(counter)
            used = UNUSED
            if known is not None and known.start >= start:  # one that waited over the turn joins the newer
                start, used = known.start, known.used
            found.append(
                Limit(
                    counter,
                    start,
                    window_end(counter.per, start, zone),
                    {metric: row.get(metric) for metric in METRICS},
                    {metric: row.get(f"warn_{metric}") for metric in METRICS},
                    used,
                )
            )

        services = {candidate.service_id for candidate in considered}
        for per in ("minute", "hour", "day", "month"):
            own = self.limits.get((Subject("key", key_id), per), {})
            add(CounterKey("key", key_id, 0, per), own)
            defaults = {}
            if per == "minute":
                defaults = {
                    metric: value
                    for metric, value in (
                        ("requests", self.settings.default_requests_per_minute),
                        ("tokens", self.settings.default_tokens_per_minute),
                    )
                    if value is not None and metric not in own
                }
            each = self.limits.get((Subject("key", key_id, -1), per), {})
            for model_id in {candidate.model_id for candidate in considered}:
                named = self.limits.get((Subject("key", key_id, model_id), per), {})
                add(CounterKey("key", key_id, model_id, per), {**defaults, **each, **named})
            add(
                CounterKey("customer", customer.id, 0, per),
                self.limits.get((Subject("customer", customer.id), per), {}),
            )
            for service_id in services:
                add(
                    CounterKey("service", service_id, 0, per),
                    self.limits.get((Subject("service", service_id), per), {}),
                )
        return found

    def _bounded(
        self,
        candidate: Candidate,
        call: Call,
        limits: Sequence[Limit],
        free: Decimal,
        bound_so_far: int | None,
    ) -> Candidate:
        """The candidate with its output bound and what it may cost at most."""
        output = call.max_output_tokens
        if output is None:
            most = _least(
                (
                    bound_so_far,
                    self._model(candidate.model_id).max_output_tokens,
                    self.settings.default_max_output_tokens,
                )
            )
            assert most is not None
            allowed = [most]
            tokens_left = _least(limit.left("tokens") for limit in limits)
            if tokens_left is not None:
                allowed.append((tokens_left - candidate.input_bound) // call.choices)
            spend_left = _least(
                limit.left("spend_usd") for limit in limits if limit.counter.subject != "service"
            )
            affordable = self._affordable(
                candidate, call, free if spend_left is None else min(free, spend_left)
            )
            if affordable is not None:
                allowed.append(affordable)
            output = int(max(min(LEAST_OUTPUT, most), min(allowed)))
        cost, charge = self._most(candidate, call, output)
        return replace(candidate, output_bound=output, hold_usd=charge, cost_bound_usd=cost)

    def _most(self, candidate: Candidate, call: Call, output: int) -> tuple[Decimal, Decimal]:
        """(cost, charge) if all goes as dear as it can: each token of the dearest class that may occur."""
        media_input = call.input_bound is None
        reachable = candidate.prices.up_to(candidate.input_bound)
        input_rate = max(
            rates[name]
            for rates in reachable
            for name in INPUT_CLASSES
            if name in rates and (media_input or name not in MEDIA_CLASSES)
        )
        output_rate = max(
            rates[name]
            for rates in reachable
            for name in OUTPUT_CLASSES
            if name in rates and (call.media_output or name not in MEDIA_CLASSES)
        )
        tokens_usd = (candidate.input_bound * input_rate + output * call.choices * output_rate) / MILLION
        fixed_usd = candidate.prices.rates.get("per_request", NOTHING)
        if call.media_output:
            fixed_usd += call.choices * candidate.prices.rates.get("per_image", NOTHING)
        tokens = candidate.input_bound + output * call.choices
        return round_up(tokens_usd + fixed_usd), self.settings.terms().charge(tokens, tokens_usd, fixed_usd)

    def _affordable(self, candidate: Candidate, call: Call, money: Number) -> int | None:
        """The most output tokens of each choice whose hold this money covers; None if they cost nothing.

        Below zero where not even the input is covered. By bisection on the hold itself: no second formula.
        """
        if self._most(candidate, call, 0)[1] == self._most(candidate, call, 10**12)[1]:
            return None
        if self._most(candidate, call, 0)[1] > money:
            return -1
        low, high = 0, 10**12
        while high - low > 1:
            middle = (low + high) // 2
            if self._most(candidate, call, middle)[1] <= money:
                low = middle
            else:
                high = middle
        return low

    def _refusal(
        self, candidate: Candidate, call: Call, limits: Sequence[Limit], free: Decimal
    ) -> Decision | None:
        """Why this candidate can't be taken; None if it can."""
        tokens = candidate.input_bound + candidate.output_bound * call.choices
        excesses = []
        for limit in limits:
            spend = candidate.cost_bound_usd if limit.counter.subject == "service" else candidate.hold_usd
            for metric, needed in (("requests", 1), ("tokens", tokens), ("spend_usd", spend)):
                hard = limit.hard[metric]
                if hard is None or (metric == "spend_usd" and needed == 0):
                    continue
                if getattr(limit.used, metric) + needed > hard:
                    excesses.append(
                        Excess(
                            limit.counter.subject,
                            metric,
                            limit.counter.per,
                            Decimal(hard),
                            limit.end,
                            needed > hard,
                        )
                    )
        if excesses:
            # what no window can ever admit, or else the one to wait for: the last to end
            foremost = max((excess.never, excess.end) for excess in excesses)
            return Decision(
                "rate_limit_exceeded",
                excesses=tuple(excess for excess in excesses if (excess.never, excess.end) == foremost),
            )
        if candidate.hold_usd > free:
            affordable = self._affordable(candidate, call, free)
            return Decision(
                "insufficient_credits",
                needed_usd=candidate.hold_usd,
                available_usd=free,
                affordable_output_tokens=0
                if affordable is None
                else max(min(affordable, candidate.output_bound), 0),
            )
        return None

    def _model(self, model_id: int) -> LanguageModel:
        return next(model for model in self.models.values() if model.id == model_id)

    def admit(self, call: Call, decision: Decision, request_id: str, at: datetime) -> None:
        """Put a decision down."""
        customer = self.customers[self.keys[call.key_id]]
        if decision.refusal is not None:
            self.refusals[customer.id, call.key_id, decision.refusal] += 1
            return
        customer.held += decision.hold_usd
        request = Request(
            id=request_id,
            customer_id=customer.id,
            key_id=call.key_id,
            terms=self.settings.terms(),
            hold=decision.hold_usd,
            candidates=decision.candidates,
            counted=[Counted(counter, start, amounts) for counter, start, amounts in decision.counted],
            idempotency_key=call.idempotency_key,
            bucket=at.replace(minute=at.minute // 15 * 15, second=0, microsecond=0),
            model_id=decision.candidates[0].model_id,
        )
        self.requests[request_id] = request
        for counted in request.counted:
            known = self.counters.get(counted.counter)
            used = known.used if known is not None and known.start == counted.start else UNUSED
            self.counters[counted.counter] = Counter(counted.start, added(used, counted.amounts))
        if call.idempotency_key is not None:
            self.keyed[call.key_id, call.idempotency_key] = Keyed(request_id, call.body)

    # The end of a request

    def settle(self, request_id: str, outcome: str, route: int, usage: Usage | None) -> Receipt:
        """Charge what was used, free what was held, give back what was counted too much."""
        request = self.requests[request_id]
        customer = self.customers[request.customer_id]
        if request.state == "settled":
            return self._receipt(request, customer, already=True)
        late = request.state == "expired"
        if usage is not None:
            candidate = request.candidates[route]
            request.model_id, request.service_id = candidate.model_id, candidate.service_id
            request.cost, request.charge = request.terms.bill(candidate.prices, usage)
        else:
            request.cost = request.charge = NOTHING
        request.state, request.outcome, request.usage = "settled", outcome, usage

        asked_again = self._keyed_settled(request, charged=usage is not None)
        for counted in request.counted:
            if counted.counter.subject == "service":
                answered = counted.counter.subject_id == request.service_id
                spend = request.cost
            else:
                answered = counted.counter.model_id in {0, request.model_id}
                spend = request.charge
            now = Amounts(counted.amounts.requests, tokens_of(usage or {}), spend) if answered else UNUSED
            self._recount(counted, now)

        if not late:
            customer.held -= request.hold
        due = request.charge - request.collected
        take = min(due, customer.free)
        if late and asked_again:  # the client has paid for this with its second request
            take = min(take, NOTHING)
        self._book(customer, "late_settlement" if late else "charge", -take, request_id=request_id)
        self._pay_debt(customer)
        request.collected += take
        return self._receipt(request, customer, already=False)

    def _receipt(self, request: Request, customer: Customer, *, already: bool) -> Receipt:
        return Receipt(
            already,
            tokens_of(request.usage or {}),
            request.cost,
            request.charge,
            request.uncollected,
            customer.balance,
        )

    def _keyed_settled(self, request: Request, *, charged: bool) -> bool:
        """Whether the client has sent the Idempotency-Key again meanwhile."""
        if request.idempotency_key is None:
            return False
        keyed = self.keyed.get((request.key_id, request.idempotency_key))
        if keyed is None:
            return False
        if keyed.request_id == request.id or keyed.freed:
            keyed.request_id, keyed.charged, keyed.freed = request.id, charged, not charged
            return False
        return True

    def _recount(self, counted: Counted, amounts: Amounts) -> None:
        """Let a request stand for `amounts`, where the window that admitted it still runs."""
        known = self.counters[counted.counter]
        if known.start == counted.start:
            known.used = added(without(known.used, counted.amounts), amounts)
            assert all(figure >= 0 for figure in known.used), f"{counted.counter} counts less than nothing"
        counted.amounts = amounts

    def expire(self, limit: int, passing_over: frozenset[str] = frozenset()) -> list[str]:
        """End the oldest holds whose lease has run out, but those that somebody else is ending; their ids."""
        due = [
            request
            for request in sorted(self.requests.values(), key=lambda request: request.lapsed or 0)
            if request.state == "held" and request.lapsed is not None and request.id not in passing_over
        ][:limit]
        for request in due:
            customer = self.customers[request.customer_id]
            request.state = "expired"
            if self.settings.expired_hold_policy == "charge":
                request.charge = request.collected = request.hold
            customer.held -= request.hold
            self._book(customer, "charge", -request.charge, request_id=request.id)
            self._pay_debt(customer)
            for counted in request.counted:
                spend = NOTHING if counted.counter.subject == "service" else request.charge
                self._recount(counted, Amounts(counted.amounts.requests, 0, spend))
            if request.idempotency_key is not None:
                keyed = self.keyed.get((request.key_id, request.idempotency_key))
                if keyed is not None and keyed.request_id == request.id:
                    keyed.charged, keyed.freed = request.charge > 0, request.charge == 0
        return [request.id for request in due]

    # The operator

    def _book(
        self,
        customer: Customer,
        kind: str,
        amount: Decimal,
        *,
        request_id: str | None = None,
        reference: str | None = None,
    ) -> None:
        if amount:
            customer.balance += amount
            assert customer.free >= 0
            self.ledger[customer.id].append(Entry(kind, amount, customer.balance, request_id, reference))

    def add_credits(self, customer_id: int, usd: Decimal, reference: str | None) -> str:
        """credited, duplicate, or what is wrong."""
        customer = self.customers[customer_id]
        for entry in self.ledger[customer_id]:
            if reference is not None and entry.reference == reference:
                return "duplicate" if entry.amount == usd else "reference_conflict"
        if customer.free + usd < 0:
            return "more_than_free"
        self._book(customer, "credit" if usd > 0 else "correction", usd, reference=reference)
        self._pay_debt(customer)
        return "credited"

    # Payments

    def _pay_debt(self, customer: Customer) -> None:
        """Whoever owes has nothing free."""
        paid = min(customer.debt, customer.free)
        if paid:
            customer.balance -= paid
            customer.debt -= paid
            self.ledger[customer.id].append(Entry("debt_payment", -paid, customer.balance, None, None, -paid))

    def pay(self, event_id: str, payment_id: str, told: Mapping[str, Any]) -> str:
        """Take in an event: recorded, or duplicate."""
        payment = self.payments.setdefault(payment_id, Payment(payment_id))
        if event_id in self.payment_events:
            return "duplicate"
        self.payment_events.add(event_id)
        if "paid_minor" in told:
            payment.customer_id = payment.customer_id or told["customer_id"]
            payment.paid = told["paid_minor"] if payment.paid is None else payment.paid
        payment.refunded_in_all = max(payment.refunded_in_all, told.get("refunded_minor", 0))
        if refund := told.get("refund"):
            amount, failed = payment.refunds.get(refund["id"], (0, False))
            payment.refunds[refund["id"]] = (
                max(amount, refund["amount_minor"]),
                failed or refund["failed"],
            )
        if dispute := told.get("dispute"):
            amount, withdrawn, returned = payment.disputes.get(dispute["id"], (0, "", ""))
            payment.disputes[dispute["id"]] = (
                max(amount, dispute["amount_minor"]),
                max(withdrawn, told["created"] if dispute["withdrawn"] else ""),
                max(returned, told["created"] if dispute["returned"] else ""),
            )
        self._reconcile(payment)
        return "recorded"

    def _reconcile(self, payment: Payment) -> None:
        if payment.paid is None or payment.customer_id is None:
            return
        customer = self.customers[payment.customer_id]
        if not payment.credited:
            payment.credited = Decimal(payment.paid) / 100
            self._book(customer, "credit", payment.credited, reference=f"stripe:{payment.id}")
            self._pay_debt(customer)
        known = sum(amount for amount, _ in payment.refunds.values())
        failed = sum(amount for amount, has_failed in payment.refunds.values() if has_failed)
        refunded = min(Decimal(max(payment.refunded_in_all, known) - failed) / 100, payment.credited)
        taken = sum(
            amount for amount, withdrawn, returned in payment.disputes.values() if withdrawn > returned
        )
        disputed = min(Decimal(taken) / 100, payment.credited - refunded)
        changes = [("refund", refunded - payment.refunded), ("dispute", disputed - payment.disputed)]
        payment.refunded, payment.disputed = refunded, disputed
        for kind, usd in sorted(changes, key=lambda change: change[1]):
            if usd < 0:
                self._book(customer, "reinstatement", -usd)
                self._pay_debt(customer)
            elif usd > 0:
                free = min(customer.free, usd)
                customer.balance -= free
                customer.debt += usd - free
                self.ledger[customer.id].append(
                    Entry(kind, -free, customer.balance, None, None, usd - free or None)
                )

    def set_limit(self, subject: Subject, metric: str, per: str, most: Number | None) -> None:
        """A limit brings a soft mark at 80 percent, and takes it along when it goes."""
        row = self.limits.setdefault((subject, per), {})
        if most is None:
            row.pop(metric, None)
            row.pop(f"warn_{metric}", None)
        else:
            row[metric] = most
            mark = most * Decimal("0.8")
            row[f"warn_{metric}"] = (
                mark if metric == "spend_usd" else int(mark.to_integral_value(ROUND_FLOOR))
            )

    def set_mark(self, subject: Subject, metric: str, per: str, mark: Number | None) -> None:
        row = self.limits.setdefault((subject, per), {})
        row.pop(f"warn_{metric}", None)
        if mark is not None:
            row[f"warn_{metric}"] = mark

    # Time

    def lapse(self, request_id: str) -> None:
        self.lapses += 1
        self.requests[request_id].lapsed = self.lapses

    def pass_time(self, windows: Sequence[str], by: timedelta) -> None:
        """These windows, and all that was counted in them, are now of the past."""
        for key, counter in self.counters.items():
            if key.per in windows:
                counter.start -= by
        for request in self.requests.values():
            for counted in request.counted:
                if counted.counter.per in windows:
                    counted.start -= by
        if "day" in windows:
            for keyed in self.keyed.values():
                keyed.age += by

    def forget_keys(self) -> int:
        old = [key for key, keyed in self.keyed.items() if keyed.age >= DAY]
        for key in old:
            del self.keyed[key]
        return len(old)

    # Sums

    def rollups(self) -> dict[tuple[int, datetime, int, int, int], dict[str, Number]]:
        """What the ended requests come to, by customer, quarter of an hour, key, model and service."""
        found: dict[tuple[int, datetime, int, int, int], dict[str, Number]] = {}
        for request in self.requests.values():
            if request.state == "held":
                continue
            key = (
                request.customer_id,
                request.bucket,
                request.key_id,
                request.model_id,
                request.service_id or 0,
            )
            usage = request.usage or {}
            row = found.setdefault(key, defaultdict(int))
            row["requests"] += 1
            row["errors"] += request.state == "expired" or request.outcome == "failed"
            for name in ("input", "cached_input", "cache_write", "output", "reasoning"):
                row[f"{name}_tokens"] += usage.get(name, 0)
            row["total_tokens"] += tokens_of(usage)
            row["cost_usd"] += request.cost
            row["charge_usd"] += request.charge
            row["uncollected_usd"] += request.uncollected
        return found


def added(first: Amounts, second: Amounts) -> Amounts:
    return Amounts(
        first.requests + second.requests,
        first.tokens + second.tokens,
        first.spend_usd + second.spend_usd,
    )


def without(first: Amounts, second: Amounts) -> Amounts:
    return Amounts(
        first.requests - second.requests,
        first.tokens - second.tokens,
        first.spend_usd - second.spend_usd,
    )
