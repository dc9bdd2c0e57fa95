"""Events on their way to the operator's SNS topic: over PostgREST, PostgreSQL and moto's SNS."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from gateway import alert_topic, outbox
from gateway.alert_topic import subject_line
from gateway.database.rpc import Database
from gateway.maintenance import run_once
from gateway.runtime.process import Process
from gateway.schemas.answers.admin import SystemMonitor
from tests.fixtures.management import Management, management
from tests.fixtures.queue import REGION, sqs_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

__all__ = ["management", "sqs_server"]


@dataclass(slots=True)
class Topic:
    """A topic and a queue that is subscribed to it."""

    sns: Any
    sqs: Any
    arn: str
    queue_url: str

    def messages(self) -> list[dict[str, Any]]:
        """What has come since the last look, as SNS wraps it."""
        found: list[dict[str, Any]] = []
        while messages := self.sqs.receive_message(QueueUrl=self.queue_url, MaxNumberOfMessages=10).get(
            "Messages"
        ):
            for message in messages:
                self.sqs.delete_message(QueueUrl=self.queue_url, ReceiptHandle=message["ReceiptHandle"])
                found.append(json.loads(message["Body"]))
        return found

    def subscribe(self) -> None:
        queue = self.sqs.get_queue_attributes(QueueUrl=self.queue_url, AttributeNames=["QueueArn"])
        self.sns.subscribe(TopicArn=self.arn, Protocol="sqs", Endpoint=queue["Attributes"]["QueueArn"])


@pytest.fixture
def topic(sqs_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Topic]:
    environment = {
        "AWS_ENDPOINT_URL_SNS": sqs_server,
        "AWS_ENDPOINT_URL_SQS": sqs_server,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        # The topic's own is to be used.
        "AWS_DEFAULT_REGION": "us-west-2",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    alert_topic._client.cache_clear()
    sns, sqs = boto3.client("sns", region_name=REGION), boto3.client("sqs", region_name=REGION)
    arn = sns.create_topic(Name="alerts")["TopicArn"]
    made = Topic(sns, sqs, arn, sqs.create_queue(QueueName="of-alerts")["QueueUrl"])
    made.subscribe()
    yield made
    sns.delete_topic(TopicArn=arn)
    sqs.delete_queue(QueueUrl=made.queue_url)
    sns.close()
    sqs.close()
    alert_topic._client(REGION).close()
    alert_topic._client.cache_clear()


@pytest.fixture
async def published(management: Management, topic: Topic) -> AsyncIterator[Process]:
    """A maintenance process with the topic, which it has told the database of, and an empty outbox."""
    changed = {"alert_topic_arn": topic.arn}
    process = Process.start(management.process.settings.model_copy(update=changed))
    management.connection.execute("delete from gateway.events")
    await run_once(process)
    yield process
    await run_once(management.process)  # which has none
    await process.aclose()


def raise_event(management: Management, subject: str = "key:12") -> str:
    event = management.value(
        "select gateway.raise_event('limit.soft_crossed', %s, jsonb_build_object('id', 12))", subject
    )
    return f"evt_{event.hex}"


def let_time_pass(management: Management) -> None:
    management.connection.execute(
        "update gateway.topic_deliveries set claimed_until = claimed_until - interval '1 day',"
        " next_attempt_at = next_attempt_at - interval '1 day'"
    )


def deliveries(management: Management) -> list[tuple[Any, ...]]:
    return management.query(
        "select attempts, delivered_at is not null, last_status, last_error from gateway.topic_deliveries"
    )


async def test_the_topic_gets_each_event_once(
    management: Management, published: Process, topic: Topic
) -> None:
    identity = raise_event(management)
    sweep = await run_once(published)
    assert (sweep.events_published, sweep.events_not_published) == (1, 0)
    assert (await run_once(published)).events_published == 0
    [envelope] = topic.messages()
    message = json.loads(envelope["Message"])
    assert list(message) == ["id", "type", "created_at", "data"]
    assert (message["id"], message["type"], message["data"]) == (identity, "limit.soft_crossed", {"id": 12})
    assert envelope["Subject"] == "Sluice: limit.soft_crossed (key:12)"
    assert {name: value["Value"] for name, value in envelope["MessageAttributes"].items()} == {
        "kind": "limit.soft_crossed",
        "subject": "key:12",
    }
    assert deliveries(management) == [(1, True, 200, None)]


async def test_an_event_is_published_until_the_topic_takes_it(
    management: Management, published: Process, topic: Topic
) -> None:
    identity = raise_event(management)
    topic.sns.delete_topic(TopicArn=topic.arn)
    sweep = await run_once(published)
    assert (sweep.events_published, sweep.events_not_published) == (0, 1)
    [(attempts, delivered, status, error)] = deliveries(management)
    assert (attempts, delivered, status) == (1, False, 404)
    assert error.startswith("NotFound")
    assert (await run_once(published)).events_not_published == 0  # not before its time
    figures = await management.ok("GET", "/admin/monitor")
    SystemMonitor.model_validate(figures)
    shown = figures["data"]["webhook"]["topic"]
    assert (shown["topic_set"], shown["waiting"], shown["undelivered"][0]["id"]) == (True, 1, identity)
    topic.sns.create_topic(Name="alerts")
    topic.subscribe()
    let_time_pass(management)
    assert (await run_once(published)).events_published == 1
    assert [json.loads(envelope["Message"])["id"] for envelope in topic.messages()] == [identity]


async def test_one_that_the_topic_refuses_keeps_no_other(
    management: Management, published: Process, topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = raise_event(management, "refused")
    raised = {raise_event(management, f"key:{number}") for number in range(10)}
    client = alert_topic._client(REGION)
    real = client.publish

    def publish(**message: Any) -> Any:
        if message["MessageAttributes"]["subject"]["StringValue"] == "refused":
            message["TopicArn"] += "-of-nobody"
        return real(**message)

    monkeypatch.setattr(client, "publish", publish)
    sweep = await run_once(published)
    assert (sweep.events_published, sweep.events_not_published) == (10, 1)
    assert {json.loads(envelope["Message"])["id"] for envelope in topic.messages()} == raised
    assert refused not in raised


async def test_a_topic_that_cannot_be_reached_is_told_of(
    management: Management, published: Process, monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
) -> None:
    alert_topic._client.cache_clear()
    monkeypatch.setenv("AWS_ENDPOINT_URL_SNS", f"http://127.0.0.1:{unused_tcp_port}")
    raise_event(management)
    assert (await run_once(published)).events_not_published == 1
    [(attempts, delivered, status, error)] = deliveries(management)
    assert (attempts, delivered, status) == (1, False, None)
    assert error.startswith("EndpointConnectionError: ")


async def test_maintainers_at_once_publish_each_event_once(
    management: Management, published: Process, topic: Topic
) -> None:
    raised = sorted(raise_event(management, f"key:{number}") for number in range(30))
    sweeps = await asyncio.gather(*(run_once(published) for _ in range(4)))
    assert sum(sweep.events_published for sweep in sweeps) == len(raised)
    assert sorted(json.loads(envelope["Message"])["id"] for envelope in topic.messages()) == raised


async def test_what_has_waited_for_a_day_comes_by_bounded_runs(
    management: Management, published: Process, topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "MOST_IN_A_RUN", 2 * outbox.AT_A_TIME)
    for number in range(5 * outbox.AT_A_TIME):
        raise_event(management, f"key:{number}")
    counts = [(await run_once(published)).events_published for _ in range(4)]
    assert counts == [2 * outbox.AT_A_TIME, 2 * outbox.AT_A_TIME, outbox.AT_A_TIME, 0]
    assert len(topic.messages()) == 5 * outbox.AT_A_TIME


async def test_without_a_topic_nothing_is_claimed(
    management: Management, published: Process, topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_args: object, **_options: object) -> None:
        raise AssertionError

    monkeypatch.setattr(Database, "finish_topic_delivery", refuse)
    await run_once(management.process)
    raise_event(management)
    await run_once(management.process)
    assert deliveries(management) == []
    assert topic.messages() == []
    await run_once(published)


@pytest.mark.parametrize(
    ("subject", "line"),
    [
        ("key:12", "Sluice: balance.low (key:12)"),
        ("a\nb\x7fü", "Sluice: balance.low (ab)"),
        ("x" * 200, "Sluice: balance.low (" + "x" * 79),
    ],
)
def test_subject_lines_are_what_sns_takes(subject: str, line: str) -> None:
    assert subject_line("balance.low", subject) == line
    assert len(line) <= 100
