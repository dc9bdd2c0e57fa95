"""The function's secret: from the extension, from the service where that fails, under the environment."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest

from gateway.runtime.process import current_process
from gateway.runtime.secrets import with_secret
from gateway.settings import Settings, SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator

ARN = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:sluice/prod-AbC/dEf"
KEYS = {"one": base64.b64encode(b"1" * 32).decode()}
SECRET = {"SUPABASE_KEY": "sb_secret_of_the_test", "SLUICE_MASTER_KEYS": json.dumps(KEYS)}


class Extension(HTTPServer):
    """Stands in for the AWS Parameters and Secrets extension."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.token = "the-session-token"
        self.secret: Any = json.dumps(SECRET)
        self.not_ready = 0
        self.asked = 0

    @property
    def environment(self) -> dict[str, str]:
        return {
            "SLUICE_SECRET_ARN": ARN,
            "PARAMETERS_SECRETS_EXTENSION_HTTP_PORT": str(self.server_port),
            "AWS_SESSION_TOKEN": self.token,
        }


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        extension = self.server
        assert isinstance(extension, Extension)
        extension.asked += 1
        url = urlsplit(self.path)
        if extension.not_ready:
            extension.not_ready -= 1
            self._send(400, b"not ready to serve traffic, please wait")
        elif self.headers["X-Aws-Parameters-Secrets-Token"] != extension.token:
            self._send(400, b"bad session token or header key")
        elif (url.path, parse_qs(url.query)) != ("/secretsmanager/get", {"secretId": [ARN]}):
            self._send(404, b"")
        else:
            self._send(200, json.dumps({"ARN": ARN, "SecretString": extension.secret}).encode())

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_parts: Any) -> None:
        pass


@pytest.fixture
def extension() -> Iterator[Extension]:
    with Extension() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def no_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets Manager is nowhere: a port that nobody listens at."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", f"http://127.0.0.1:{port}")
    for name, value in _CREDENTIALS.items():
        monkeypatch.setenv(name, value)


_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "eu-central-1",
}


def test_without_a_secret_the_environment_is_what_it_is() -> None:
    environ = {"SUPABASE_KEY": "k", "SLUICE_SECRET_ARN": " "}
    assert with_secret(environ) is environ


def test_the_secret_becomes_settings(extension: Extension) -> None:
    settings = Settings.from_environment(
        with_secret({**extension.environment, "SUPABASE_URL": "https://project.supabase.co"})
    )
    assert settings.supabase_key.get_secret_value() == SECRET["SUPABASE_KEY"]
    assert settings.master_keys == {"one": b"1" * 32}
    assert extension.asked == 1


async def test_a_process_is_started_with_the_secret_that_is_fetched_once(
    extension: Extension, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**extension.environment, "SUPABASE_URL": "https://project.supabase.co"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SUPABASE_KEY", raising=False)
    current_process.cache_clear()
    try:
        process = current_process()
        assert current_process() is process
        assert process.settings.supabase_key.get_secret_value() == SECRET["SUPABASE_KEY"]
        assert extension.asked == 1
        await process.aclose()
    finally:
        current_process.cache_clear()


def test_a_variable_that_is_set_wins_and_an_empty_one_does_not(extension: Extension) -> None:
    merged = with_secret(
        {**extension.environment, "SUPABASE_KEY": "of the environment", "SLUICE_MASTER_KEYS": " "}
    )
    assert merged["SUPABASE_KEY"] == "of the environment"
    assert merged["SLUICE_MASTER_KEYS"] == SECRET["SLUICE_MASTER_KEYS"]


def test_master_keys_may_be_json_inside_the_secret(extension: Extension) -> None:
    extension.secret = json.dumps({**SECRET, "SLUICE_MASTER_KEYS": KEYS})
    assert json.loads(with_secret(extension.environment)["SLUICE_MASTER_KEYS"]) == KEYS


def test_an_extension_that_is_still_starting_is_asked_again(extension: Extension) -> None:
    extension.not_ready = 3
    assert with_secret(extension.environment)["SUPABASE_KEY"] == SECRET["SUPABASE_KEY"]
    assert extension.asked == 4


def test_under_snapstart_the_token_is_the_containers(extension: Extension) -> None:
    environ = {**extension.environment, "AWS_CONTAINER_AUTHORIZATION_TOKEN": extension.token}
    del environ["AWS_SESSION_TOKEN"]
    assert with_secret(environ)["SUPABASE_KEY"] == SECRET["SUPABASE_KEY"]


@pytest.mark.parametrize("token", [None, "a token that the extension does not know"])
def test_the_service_is_asked_where_the_extension_refuses(
    extension: Extension, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", f"http://{host}:{port}")
        for name, value in _CREDENTIALS.items():
            monkeypatch.setenv(name, value)
        client = boto3.client("secretsmanager")
        arn = client.create_secret(Name=f"sluice/{bool(token)}", SecretString=json.dumps(SECRET))["ARN"]
        environ = {**extension.environment, "SLUICE_SECRET_ARN": arn, "AWS_SESSION_TOKEN": token or ""}
        assert with_secret(environ)["SUPABASE_KEY"] == SECRET["SUPABASE_KEY"]
        client.close()
    finally:
        server.stop()


@pytest.mark.usefixtures("no_service")
def test_a_secret_that_nobody_gives_is_one_clear_error(extension: Extension) -> None:
    extension.token = "another"
    with pytest.raises(SettingsError, match=r"SLUICE_SECRET_ARN.*HTTP 400.*EndpointConnectionError"):
        with_secret({**extension.environment, "AWS_SESSION_TOKEN": "wrong"})


@pytest.mark.parametrize("secret", ["sb_secret_alone", "[1]", '{"SUPABASE_KEY": "cut'])
def test_a_secret_that_is_no_object_is_an_error_that_does_not_show_it(
    extension: Extension, secret: str
) -> None:
    extension.secret = secret
    with pytest.raises(SettingsError, match="must be a JSON object") as caught:
        with_secret(extension.environment)
    assert secret not in str(caught.value)
    assert caught.value.__cause__ is None
