"""What has to be done every minute: settlements replayed, holds ended, partitions made, events delivered."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from gateway.alert_topic import TopicChannel
from gateway.database.client import DatabaseAwayError, DatabaseError
from gateway.outbox import Outbox
from gateway.spool import replay_messages
from gateway.webhooks import WebhookChannel, WebhookSender

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.runtime.process import Process

BATCH = 500
"""Holds that end in one transaction: small enough not to keep a customer's account locked for long."""
LEDGER_CHECK_SECONDS = 3600
"""How long after one check of the books the next begins. It reads what the open month has booked."""
CLOSINGS = 30
"""Days of usage that one run closes at most, where nobody has for long: figures are exact all the same."""


@dataclass(slots=True)
class Sweep:
    """What one run has done. Money is exact, in USD."""

    settlements_replayed: int = 0
    holds_expired: int = 0
    charged_usd: Decimal = Decimal(0)
    released_usd: Decimal = Decimal(0)
    partitions_made: tuple[str, ...] = ()
    idempotency_keys_forgotten: int = 0
    retired_secrets_forgotten: int = 0
    usage_rows_closed: int = 0
    provider_costs_compared: int = 0
    ledger_months_closed: tuple[str, ...] = ()
    log_months_dropped: tuple[str, ...] = ()
    events_delivered: int = 0
    events_failed: int = 0
    events_published: int = 0
    events_not_published: int = 0
    events_forgotten: int = 0
    ledger_ok: bool | None = None
    """None: the check was not due."""

    def as_json(self) -> dict[str, Any]:
        """Return it with amounts as decimal text."""
        return {
            **asdict(self),
            "charged_usd": f"{self.charged_usd:f}",
            "released_usd": f"{self.released_usd:f}",
            "partitions_made": list(self.partitions_made),
            "ledger_months_closed": list(self.ledger_months_closed),
            "log_months_dropped": list(self.log_months_dropped),
        }


async def answer(process: Process, event: Mapping[str, Any]) -> dict[str, Any]:
    """Do what a Lambda event asks for: replay a batch of the settlement queue, or do all of it, once.

    A batch is answered with the messages that have to stay in the queue, as SQS takes it from a function with
    ReportBatchItemFailures. Raises what `run_once` raises.
    """
    if "Records" in event:
        left = await replay_messages(event["Records"], process.database, process.logger)
        return {"batchItemFailures": [{"itemIdentifier": identity} for identity in left]}
    return (await run_once(process)).as_json()


async def run_once(process: Process) -> Sweep:
    """Do all of it, once. Safe to run in several places at the same time.

    A step that fails does not keep the others from being done: it is logged, and at the end the DatabaseError
    of the first is raised, for whoever runs this to see. DatabaseAwayError ends the run at once.
    """
    sweep = Sweep()
    failures: list[DatabaseError] = []
    for step in _STEPS:
        try:
            await step(process, sweep)
        except DatabaseAwayError:
            raise
        except DatabaseError as error:
            process.logger.exception("A step of the maintenance failed.")
            failures.append(error)
    if failures:
        raise failures[0]
    return sweep


async def _replay(process: Process, sweep: Sweep) -> None:
    sweep.settlements_replayed = await process.spool.replay(process.database)


async def _expire(process: Process, sweep: Sweep) -> None:
    while (told := await process.database.expire_holds(limit=BATCH))["expired"]:
        sweep.holds_expired += told["expired"]
        sweep.charged_usd += Decimal(told["charged_usd"])
        sweep.released_usd += Decimal(told["released_usd"])
    if sweep.holds_expired:
        # Each is a call that the operator may have paid for and, under the policy "release", nobody else.
        process.logger.warning("Holds have expired that nobody settled.", extra={"sweep": sweep.as_json()})


async def _make_partitions(process: Process, sweep: Sweep) -> None:
    sweep.partitions_made = tuple(await process.database.create_request_partitions())


async def _forget(process: Process, sweep: Sweep) -> None:
    sweep.idempotency_keys_forgotten = await process.database.forget_idempotency_keys()


async def _forget_secrets(process: Process, sweep: Sweep) -> None:
    sweep.retired_secrets_forgotten = await process.database.forget_retired_secrets()


async def _keep_books(process: Process, sweep: Sweep) -> None:
    told = await process.database.close_ledger()
    if told["disagree"]:
        process.logger.error("The books disagree: GET /admin/ledger/check says where. A month stays open.")
    elif told["closed"]:
        sweep.ledger_months_closed = (told["closed"],)
    dropped = (await process.database.drop_request_partitions())["dropped"]
    if dropped:
        sweep.log_months_dropped = (dropped,)


async def _close_usage(process: Process, sweep: Sweep) -> None:
    for _ in range(CLOSINGS):
        told = await process.database.close_usage()
        sweep.usage_rows_closed += told.get("rows", 0) + told.get("late", 0)
        if not told["behind"]:
            return


async def _compare_costs(process: Process, sweep: Sweep) -> None:
    sweep.provider_costs_compared = await process.database.compare_provider_costs()


async def _forget_events(process: Process, sweep: Sweep) -> None:
    sweep.events_forgotten = await process.database.forget_events()


async def _deliver_events(process: Process, sweep: Sweep) -> None:
    # At the same time, so that neither waits for the other's receiver.
    outcomes = await asyncio.gather(
        _deliver_to_webhook(process, sweep), _publish_to_topic(process, sweep), return_exceptions=True
    )
    for outcome in outcomes:
        if outcome is not None:
            raise outcome


async def _deliver_to_webhook(process: Process, sweep: Sweep) -> None:
    async with process.open_webhooks_http() as http:
        channel = WebhookChannel(process.database, WebhookSender(process.settings, http))
        done = await Outbox(channel, process.logger).deliver()
    sweep.events_delivered, sweep.events_failed = done.delivered, done.failed


async def _publish_to_topic(process: Process, sweep: Sweep) -> None:
    channel = TopicChannel(process.database, process.settings.alert_topic_arn)
    done = await Outbox(channel, process.logger).deliver()
    sweep.events_published, sweep.events_not_published = done.delivered, done.failed


async def _watch_ledger(process: Process, sweep: Sweep) -> None:
    if not await process.database.claim_ledger_check(every_seconds=LEDGER_CHECK_SECONDS):
        return
    sweep.ledger_ok = (await process.database.watch_ledger())["ok"]
    if not sweep.ledger_ok:
        process.logger.error("The books disagree: GET /admin/ledger/check says where.")


# In this order: a settlement in time is better than one after its hold has expired, and a receiver of events
# that is slow keeps nobody waiting. Each writes into the Sweep what it has done.
_STEPS = (
    _replay,
    _expire,
    _make_partitions,
    _forget,
    _forget_secrets,
    _close_usage,
    _compare_costs,
    _forget_events,
    _deliver_events,
    _keep_books,
    _watch_ledger,
)
