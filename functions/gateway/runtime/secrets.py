"""The function's secret, read at run time: what stands in a function's configuration can be read there.

The AWS Parameters and Secrets extension serves it over HTTP on the loopback. That is asked first: it needs no
library, and boto3 alone takes longer to import than everything else that the chat function needs.
https://docs.aws.amazon.com/secretsmanager/latest/userguide/retrieving-secrets_lambda.html
"""

from __future__ import annotations

import http.client
import json
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from gateway.settings import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

SECRET_ARN = "SLUICE_SECRET_ARN"  # noqa: S105 - a variable's name

_PORT = "PARAMETERS_SECRETS_EXTENSION_HTTP_PORT"
_DEFAULT_PORT = 2773
# The second is what SnapStart gives in place of the first.
_TOKENS = ("AWS_SESSION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN")
_SECONDS = 5.0
"""How long one answer of the extension's may take: it may have to ask the service first."""
_NOT_READY_SECONDS = 3.0
"""How long an extension that is still starting is asked again."""
_PAUSE_SECONDS = 0.05
_OK = 200
_SERVER_ERROR = 500


class _ExtensionError(Exception):
    """The extension gave no secret."""


def with_secret(environ: Mapping[str, str]) -> Mapping[str, str]:
    """Return the environment with the secret's values under it: a variable that is set wins.

    The secret that SLUICE_SECRET_ARN names is a JSON object; without the variable there is none. Blocks, once
    in a process's life, for one call on the loopback. Raises SettingsError, which shows no value.
    """
    arn = environ.get(SECRET_ARN, "").strip()
    if not arn:
        return environ
    given = {name: value for name, value in environ.items() if value.strip()}
    return {**_values(_read(arn, environ)), **given}


def _read(arn: str, environ: Mapping[str, str]) -> str:
    try:
        return _ask_extension(arn, environ)
    except _ExtensionError as refused:
        # Under SnapStart the extension may not know the only token that there is; and an operator may have
        # left it out. The service itself is then asked.
        try:
            return _ask_service(arn)
        except Exception as error:  # noqa: BLE001 - of a library without a common base
            raise SettingsError(
                f"{SECRET_ARN}: the secret can't be read: the extension: {refused}; "
                f"the service: {type(error).__name__}: {error}"
            ) from None


def _ask_extension(arn: str, environ: Mapping[str, str]) -> str:
    token = next((environ[name] for name in _TOKENS if environ.get(name)), None)
    if token is None:
        raise _ExtensionError("there is no session token")
    port = int(environ.get(_PORT) or _DEFAULT_PORT)
    path = f"/secretsmanager/get?secretId={quote(arn, safe='')}"
    until = time.monotonic() + _NOT_READY_SECONDS
    while True:
        status, body = _get(port, path, token)
        if status == _OK:
            break
        # An extension that is not ready yet answers 400 and says so.
        starting = status >= _SERVER_ERROR or b"not ready" in body
        if not starting or time.monotonic() >= until:
            raise _ExtensionError(f"HTTP {status}")
        time.sleep(_PAUSE_SECONDS)
    try:
        secret = json.loads(body)["SecretString"]
    except (ValueError, KeyError, TypeError):
        raise _ExtensionError("an answer without a SecretString") from None
    return str(secret)


def _get(port: int, path: str, token: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("localhost", port, timeout=_SECONDS)
    try:
        connection.request("GET", path, headers={"X-Aws-Parameters-Secrets-Token": token})
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        raise _ExtensionError(type(error).__name__) from None
    finally:
        connection.close()


def _ask_service(arn: str) -> str:
    import boto3  # noqa: PLC0415 - the runtime's; slow to import
    from botocore.config import Config  # noqa: PLC0415

    patience = Config(
        connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 3, "mode": "standard"}
    )
    client = boto3.session.Session().client("secretsmanager", config=patience)
    try:
        return str(client.get_secret_value(SecretId=arn)["SecretString"])
    finally:
        client.close()


def _values(secret: str) -> dict[str, str]:
    try:
        named: Any = json.loads(secret)
    except ValueError:
        named = None
    if not isinstance(named, dict):
        raise SettingsError(f"{SECRET_ARN}: the secret must be a JSON object of variables")
    # SLUICE_MASTER_KEYS is JSON itself, and may stand there as such.
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in named.items()}
