"""The operator's SNS topic: the events that the webhook gets, for mail, chat and pagers that AWS knows of.

A message is the event's JSON, as the webhook is sent it. Its attributes `kind` and `subject` are what a
subscription's filter policy may go by.
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any

from gateway import json_text
from gateway.outbox import LEASE_SECONDS, MOST_ERROR_CHARS, Attempt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.database.rpc import Database

MOST_SUBJECT_CHARS = 100
"""SNS takes no longer subject, and none but printable ASCII (its API's reference, Publish)."""


def subject_line(kind: str, subject: str) -> str:
    """Return what a mail about the event is headed by."""
    line = f"Sluice: {kind} ({subject})"
    return "".join(char for char in line if " " <= char <= "~")[:MOST_SUBJECT_CHARS]


class TopicChannel:
    """Publishes to a topic. With no topic it claims nothing, and says so to the database."""

    def __init__(self, database: Database, topic_arn: str | None) -> None:
        self._database = database
        self._topic_arn = topic_arn

    async def claim(self, limit: int) -> Sequence[Mapping[str, Any]]:
        told = await self._database.claim_topic_deliveries(
            self._topic_arn, limit=limit, lease_seconds=LEASE_SECONDS
        )
        claimed: list[Mapping[str, Any]] = told["deliveries"]
        return claimed

    async def send(self, delivery: Mapping[str, Any]) -> Attempt:
        return await asyncio.to_thread(self._publish, delivery)

    async def finish(self, delivery: Mapping[str, Any], attempt: Attempt) -> str:
        told = await self._database.finish_topic_delivery(
            delivery["event_id"],
            attempt=delivery["attempt"],
            delivered=attempt.delivered,
            status=attempt.status,
            error=attempt.error,
        )
        state: str = told["state"]
        return state

    def _publish(self, delivery: Mapping[str, Any]) -> Attempt:
        # Only where there is something to publish: boto3 is Lambda's own, and takes half a second to import.
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        message = {name: delivery[name] for name in ("id", "type", "created_at", "data")}
        try:
            told = _client((self._topic_arn or "").split(":")[3]).publish(
                TopicArn=self._topic_arn,
                Subject=subject_line(delivery["type"], delivery["subject"]),
                Message=json_text.dump(message).decode(),
                MessageAttributes={
                    "kind": {"DataType": "String", "StringValue": delivery["type"]},
                    "subject": {"DataType": "String", "StringValue": delivery["subject"]},
                },
            )
        except ClientError as error:
            fault = error.response.get("Error", {})
            return Attempt(
                error.response.get("ResponseMetadata", {}).get("HTTPStatusCode"),
                f"{fault.get('Code')}: {fault.get('Message')}"[:MOST_ERROR_CHARS],
            )
        except BotoCoreError as error:
            return Attempt(None, f"{type(error).__name__}: {error}"[:MOST_ERROR_CHARS])
        return Attempt(told["ResponseMetadata"]["HTTPStatusCode"], None)


@functools.cache
def _client(region: str) -> Any:
    """Return the client of a region: safe to be used by several threads, and dear to make."""
    import boto3  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415

    # One attempt: the outbox has its own, at longer distances.
    patience = Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 1})
    return boto3.session.Session().client("sns", region_name=region, config=patience)
