"""The context of an invocation, with the attributes that the managed Python runtime gives it."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.runtime.runtime_api import Invocation


@dataclass(frozen=True, slots=True)
class LambdaContext:
    """What a function may ask about its invocation.

    https://docs.aws.amazon.com/lambda/latest/dg/python-context.html
    """

    aws_request_id: str
    deadline_ms: int
    invoked_function_arn: str | None = None
    function_name: str | None = None
    function_version: str | None = None
    memory_limit_in_mb: str | None = None
    log_group_name: str | None = None
    log_stream_name: str | None = None
    tenant_id: str | None = None
    client_context: SimpleNamespace | None = field(default=None, repr=False)
    identity: SimpleNamespace = field(default_factory=lambda: _identity(None), repr=False)

    @classmethod
    def of(cls, invocation: Invocation, environ: Mapping[str, str] | None = None) -> Self:
        """Return the context of an invocation. Raises ValueError where its headers are not in order."""
        environ = os.environ if environ is None else environ
        return cls(
            aws_request_id=invocation.request_id,
            deadline_ms=invocation.deadline_ms,
            invoked_function_arn=invocation.function_arn,
            function_name=environ.get("AWS_LAMBDA_FUNCTION_NAME"),
            function_version=environ.get("AWS_LAMBDA_FUNCTION_VERSION"),
            memory_limit_in_mb=environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE"),
            log_group_name=environ.get("AWS_LAMBDA_LOG_GROUP_NAME"),
            log_stream_name=environ.get("AWS_LAMBDA_LOG_STREAM_NAME"),
            tenant_id=invocation.tenant_id,
            client_context=_client_context(_document(invocation.client_context)),
            identity=_identity(_document(invocation.cognito_identity)),
        )

    def get_remaining_time_in_millis(self) -> int:
        """Return how long the platform still lets the function run; 0 when it is over."""
        return max(self.deadline_ms - int(time.time() * 1000), 0)

    def log(self, message: object) -> None:
        """Write a line to the function's log as it is."""
        sys.stdout.write(f"{message}\n")


def _document(header: str | None) -> dict[str, Any] | None:
    if not header:
        return None
    document = json.loads(header)
    if not isinstance(document, dict):
        raise ValueError("the invocation's context is no JSON object")  # noqa: TRY004 - malformed input
    return document


def _client_context(document: dict[str, Any] | None) -> SimpleNamespace | None:
    if document is None:
        return None
    client = document.get("client")
    fields = ("installation_id", "app_title", "app_version_name", "app_version_code", "app_package_name")
    return SimpleNamespace(
        custom=document.get("custom"),
        env=document.get("env"),
        client=SimpleNamespace(**{name: client.get(name) for name in fields})
        if isinstance(client, dict)
        else None,
    )


def _identity(document: dict[str, Any] | None) -> SimpleNamespace:
    known = document or {}
    return SimpleNamespace(
        cognito_identity_id=known.get("cognitoIdentityId"),
        cognito_identity_pool_id=known.get("cognitoIdentityPoolId"),
    )
