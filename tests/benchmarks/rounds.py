"""The rounds: everybody in turn, so that what the machine does meanwhile falls on all alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.benchmarks import pgbench
from tests.benchmarks.load import LoadError, check_answer, run_streams, run_wrk
from tests.benchmarks.pgbench import PLACES, SCRIPTS
from tests.benchmarks.streams import (
    AT_ONCE,
    LONG,
    PACES,
    SHORT,
    SLOW,
    SLOW_AT_ONCE,
    SLOW_SPREAD_SECONDS,
    run_paced,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.benchmarks.contenders import Contender
    from tests.benchmarks.load import Load, Streams
    from tests.benchmarks.paced import Pace
    from tests.benchmarks.pgbench import Bench, Pairs
    from tests.benchmarks.streams import PacedStreams

    Say = Callable[[str], object]

HTTP_CONNECTIONS = (1, 16)
# The curve of one hot customer, whose row every connection wants, and a sample of the many.
DATABASE_CONNECTIONS = dict(zip(PLACES, ((1, 8, 20), (1, 2, 5, 10, 20, 50)), strict=True))
WARM_UP_SECONDS = 2
_WARM_UP_STREAMS = 10
_WARM_UP_CONNECTIONS = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """How long each run takes, and how often each is made."""

    rounds: int
    seconds: int
    database_seconds: int
    streams: int
    """In each round."""

    def expected_seconds(self, contenders: int) -> float:
        """Return about how long the runs take together, without starts and installations."""
        http = contenders * len(HTTP_CONNECTIONS) * (WARM_UP_SECONDS + self.rounds * (self.seconds + 0.5))
        http += self.rounds * (self.seconds + 0.5)  # of many customers, through ourselves
        streams = contenders * self.rounds * (self.streams * 0.02 + SHORT.seconds + LONG.seconds + 1)
        streams += SLOW.seconds + SLOW_SPREAD_SECONDS + 5
        connections = [each for place in DATABASE_CONNECTIONS.values() for each in place]
        runs = [*connections * self.rounds, *[_WARM_UP_CONNECTIONS] * len(PLACES)]
        database = sum(
            pgbench.warm_up_seconds(script, each) + self.database_seconds + 0.5
            for script in SCRIPTS.values()
            for each in runs
        )
        return http + streams + database


@dataclass(slots=True)
class Figures:
    """What one contender came to, a value a round. A failure says why it has none, or none any more."""

    version: str
    failure: str | None = None
    """Of the plain calls."""
    stream_failure: str | None = None
    paced_failure: str | None = None
    """Of many streams at once."""
    loads: dict[int, list[Load]] = field(default_factory=dict)
    """By connections."""
    loads_of_many: list[Load] = field(default_factory=list)
    """At the most connections, of many customers."""
    streams: list[Streams] = field(default_factory=list)
    paced: dict[str, list[PacedStreams]] = field(default_factory=dict)
    """By the pace's model; the slow ones are read once."""
    settled: int | None = None
    """How many requests the books hold, where there are books."""


class HttpRounds:
    """Loads each contender in turn, round by round. What fails drops out, with its reason kept."""

    def __init__(self, contenders: Sequence[Contender], plan: Plan, say: Say) -> None:
        self.figures = {each.name: Figures(each.version) for each in contenders}
        self._contenders = contenders
        self._plan = plan
        self._say = say

    def run(self) -> None:
        """Fill in the figures. The answers of each are checked before the first run and after the last."""
        contenders, rounds = self._contenders, self._plan.rounds
        for contender in contenders:
            self._say(f"checking and warming up {contender.name}")
            self._attempt(contender, self._open)
            self._attempt_streams(contender, self._open_streams)
            self._attempt_paced(contender, self._open_paced)
        for number in range(rounds):
            turn = number % len(contenders)
            order = [*contenders[turn:], *contenders[:turn]]
            for connections in HTTP_CONNECTIONS:
                self._say(f"round {number + 1} of {rounds}, {connections} connections")
                for contender in order:
                    self._attempt(contender, self._load, connections)
            for contender in order:
                self._attempt(contender, self._load_of_many)
            self._say(f"round {number + 1} of {rounds}, streams")
            for contender in order:
                self._attempt_streams(contender, self._stream)
            self._say(f"round {number + 1} of {rounds}, {AT_ONCE} streams at once")
            for contender in order:
                self._attempt_paced(contender, self._paced)
        for contender in contenders:
            self._attempt(contender, self._close)
            self._attempt_streams(contender, self._close_streams)

    def run_slow(self, contender: Contender) -> None:
        """Read hundreds of slow streams at once, and hold the books to all paced streams of the run."""
        self._say(f"{SLOW_AT_ONCE} slow streams at once through {contender.name}")
        self._attempt_paced(contender, self._slow)

    def _attempt(self, contender: Contender, step: Callable[..., None], *arguments: int) -> None:
        found = self.figures[contender.name]
        if found.failure is None:
            try:
                step(contender, *arguments)
            except LoadError as error:
                found.failure = str(error)

    def _attempt_streams(self, contender: Contender, step: Callable[[Contender], None]) -> None:
        found = self.figures[contender.name]
        if found.stream_failure is None:
            try:
                step(contender)
            except LoadError as error:
                found.stream_failure = str(error)

    def _attempt_paced(self, contender: Contender, step: Callable[[Contender], None]) -> None:
        found = self.figures[contender.name]
        if found.paced_failure is None:
            try:
                step(contender)
            except LoadError as error:
                found.paced_failure = str(error)

    def _open(self, contender: Contender) -> None:
        check_answer(contender.plain)
        for connections in HTTP_CONNECTIONS:
            run_wrk(contender.plain, connections=connections, seconds=WARM_UP_SECONDS, watched={})

    def _open_streams(self, contender: Contender) -> None:
        run_streams(contender.stream, count=_WARM_UP_STREAMS)

    def _load(self, contender: Contender, connections: int) -> None:
        ran = run_wrk(
            contender.plain, connections=connections, seconds=self._plan.seconds, watched=contender.watched
        )
        self.figures[contender.name].loads.setdefault(connections, []).append(ran)

    def _load_of_many(self, contender: Contender) -> None:
        if contender.plain_of_many is not None:
            ran = run_wrk(
                contender.plain_of_many,
                connections=HTTP_CONNECTIONS[-1],
                seconds=self._plan.seconds,
                watched=contender.watched,
            )
            self.figures[contender.name].loads_of_many.append(ran)

    def _stream(self, contender: Contender) -> None:
        ran = run_streams(contender.stream, count=self._plan.streams)
        self.figures[contender.name].streams.append(ran)

    def _open_paced(self, contender: Contender) -> None:
        self._read(contender, SHORT, AT_ONCE)

    def _paced(self, contender: Contender) -> None:
        for pace in (SHORT, LONG):
            self._read(contender, pace, AT_ONCE)

    def _slow(self, contender: Contender) -> None:
        self._read(contender, SLOW, SLOW_AT_ONCE, SLOW_SPREAD_SECONDS)
        if contender.check_streams is not None:
            paced = self.figures[contender.name].paced
            for pace in PACES:
                contender.check_streams(pace, sum(each.streams for each in paced[pace.model]))

    def _read(self, contender: Contender, pace: Pace, count: int, spread_seconds: float = 0.0) -> None:
        ran = run_paced(
            contender.paced,
            pace,
            count=count,
            watched=contender.watched,
            spread_seconds=spread_seconds,
        )
        self.figures[contender.name].paced.setdefault(pace.model, []).append(ran)

    def _close(self, contender: Contender) -> None:
        check_answer(contender.plain)
        if contender.check_books is not None:
            found = self.figures[contender.name]
            found.settled = contender.check_books()
            answered = sum(load.requests for loads in found.loads.values() for load in loads)
            answered += sum(load.requests for load in found.loads_of_many)
            answered += sum(each.streams for each in found.streams)
            answered += sum(each.streams for runs in found.paced.values() for each in runs)
            if found.settled < answered:
                raise LoadError(f"{answered} requests were answered and {found.settled} are in the books")

    def _close_streams(self, contender: Contender) -> None:
        check_answer(contender.stream)


PairFigures = dict[str, dict[str, dict[int, list["Pairs"]]]]
"""By place, script and connections; a value a round."""


def run_database(bench: Bench, plan: Plan, say: Say) -> PairFigures:
    """Run the scripts in turn, round by round, and check the books. Raises LoadError."""
    for script in SCRIPTS.values():
        for customers in PLACES.values():
            bench.run(
                script,
                customers=customers,
                connections=_WARM_UP_CONNECTIONS,
                seconds=plan.database_seconds,
            )
    found: PairFigures = {place: {name: {} for name in SCRIPTS} for place in PLACES}
    for number in range(plan.rounds):
        for connections in sorted({each for place in DATABASE_CONNECTIONS.values() for each in place}):
            say(f"round {number + 1} of {plan.rounds}, database, {connections} connections")
            runs = [
                (place, name)
                for place in PLACES
                if connections in DATABASE_CONNECTIONS[place]
                for name in SCRIPTS
            ]
            turn = number % len(runs)
            for place, name in [*runs[turn:], *runs[:turn]]:
                ran = bench.run(
                    SCRIPTS[name],
                    customers=PLACES[place],
                    connections=connections,
                    seconds=plan.database_seconds,
                )
                found[place][name].setdefault(connections, []).append(ran)
    bench.check()
    return found
