"""The gateway under `sam local start-api`, against the local stack: `python -m infra.sam.local`.

The functions run in containers, from the package that Lambda would get, and answer buffered: `sam local`
can't stream. Needs Docker, and an image of Lambda's Python: SLUICE_LAMBDA_IMAGE names one that Docker has
already; without it AWS's own is pulled.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.local import paths
from infra.local.postgres import EmbeddedPostgres
from infra.local.postgrest import PostgRest
from infra.local.processes import HOST, StackError, free_port, start_child, stop_child, tail
from infra.local.seeding import Seeds, seed_stack
from infra.local.serving import ThreadedServer
from infra.local.simulator import create_simulator
from infra.local.stack import DATABASE, prepare_database
from infra.local.state import StackState

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

IMAGE_VARIABLE = "SLUICE_LAMBDA_IMAGE"
PUBLIC_IMAGE = "public.ecr.aws/lambda/python:3.13"
SAM = paths.REPOSITORY / ".venv" / "sam" / "bin" / "sam"
BUILD = paths.REPOSITORY / ".aws-sam" / "local"
_RELAY = Path(__file__).with_name("relay.py")

# What the containers call the stack, and where they find its two servers there.
_STACK_HOST = "sluice-stack"
_REST_PORT = 3000
_SIMULATOR_PORT = 8001
_HTTP_ERROR = 500


@dataclass(frozen=True, slots=True)
class LocalApi:
    """A gateway that answers on `url`. `log` is what `sam local` and the functions have written."""

    url: str
    admin_key: str
    demo_key: str
    log: Path
    options: tuple[str, ...]
    """How the SAM CLI is to run a function in the same surroundings."""

    def invoke(self, function: str, event: Path) -> Any:
        """Call a function by its logical id with an event in a file. Raises StackError."""
        done = subprocess.run(
            [str(SAM), "local", "invoke", function, "--event", str(event), *self.options],
            env=_sam_environment(self.log.parent),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise StackError(f"`sam local invoke` failed:\n{done.stderr[-2000:]}")
        return json.loads(done.stdout)


@contextlib.contextmanager
def serve(image: str, directory: Path, *, port: int = 0) -> Iterator[LocalApi]:
    """Build the package, start everything, stop everything. StackError says what is in the way.

    `directory` gets the database, the sockets and the logs. Only for a process's main thread: the children
    die with it.
    """
    _check_docker(image)
    build()
    state = StackState.create()
    with contextlib.ExitStack() as stack:
        simulator = ThreadedServer(create_simulator(key=state.simulator_key))
        stack.enter_context(simulator)
        rest = _start_database(stack, directory, state)
        network = stack.enter_context(_network(image, directory, rest.port, simulator.port))
        port = port or free_port()
        log = directory / "sam.log"
        variables = directory / "variables.json"
        variables.write_text(json.dumps({"Parameters": _variables(state)}))
        options = (
            *("--template", str(BUILD / "template.yaml"), "--region", "us-east-1"),
            *("--invoke-image", image, "--skip-pull-image", "--docker-network", network),
            *("--env-vars", str(variables), "--parameter-overrides", *_parameters(machine_architecture())),
        )
        listen = ["--host", HOST, "--port", str(port), "--warm-containers", "LAZY"]
        command = [str(SAM), "local", "start-api", *listen, *options]
        process = start_child(
            command, log=log, on_owner_death=signal.SIGINT, environment=_sam_environment(directory)
        )
        stack.callback(stop_child, process, signal.SIGINT, patience=60)
        _wait(port, process, log)
        yield LocalApi(f"http://{HOST}:{port}", state.admin_key, state.demo_key, log, options)


def machine_architecture() -> str:
    """Return this machine's, by Lambda's name for it: containers of another would be emulated."""
    return "arm64" if platform.machine().lower() in {"arm64", "aarch64"} else "x86_64"


def build(target: Path = BUILD, *, architecture: str | None = None) -> None:
    """Run `sam build`, by default for this machine. StackError when it fails."""
    chosen = architecture or machine_architecture()
    done = subprocess.run(
        [str(SAM), "build", "--build-dir", str(target), "--parameter-overrides", *_parameters(chosen)],
        cwd=paths.REPOSITORY,
        env={**os.environ, "ARCHITECTURE": chosen, "SAM_CLI_TELEMETRY": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise StackError(f"`sam build` failed:\n{done.stderr[-2000:]}")


def _parameters(architecture: str) -> list[str]:
    values = {
        "Architecture": architecture,
        "SupabaseUrl": "https://local.example.com",
        "SecretArn": "arn:aws:secretsmanager:us-east-1:123456789012:secret:local",
        # A layer would have to be fetched from AWS, with an account's keys.
        "SecretsExtensionArn": "none",
    }
    return [f"{name}={value}" for name, value in values.items()]


def _variables(state: StackState) -> Mapping[str, str]:
    return {
        "SUPABASE_KEY": state.service_key,
        "SLUICE_REST_URL": f"http://{_STACK_HOST}:{_REST_PORT}",
        "SLUICE_MASTER_KEYS": json.dumps(state.master_keys),
        "SLUICE_ALLOW_PRIVATE_URLS": "true",
        "SLUICE_ALLOWED_ORIGINS": "*",
        "SLUICE_SECRET_ARN": "",
        "SLUICE_SPOOL_QUEUE_URL": "",
    }


def _sam_environment(directory: Path) -> dict[str, str]:
    # `sam local` hands the caller's AWS keys to the containers: none are to be found.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "SAM_"))}
    return {
        **kept,
        "SAM_CLI_TELEMETRY": "0",
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_EC2_METADATA_DISABLED": "true",
        "__SAM_CLI_APP_DIR": str(directory / "sam"),
    }


def _start_database(stack: contextlib.ExitStack, directory: Path, state: StackState) -> PostgRest:
    server = EmbeddedPostgres(directory / "postgres", port=free_port(), password=state.postgres_password)
    stack.enter_context(server)
    prepare_database(server, state)
    seed_stack(
        server.url(DATABASE),
        Seeds(
            admin_key=state.admin_key,
            demo_key=state.demo_key,
            simulator_url=f"http://{_STACK_HOST}:{_SIMULATOR_PORT}",
            simulator_key=state.simulator_key,
            master_keys={name: base64.b64decode(key) for name, key in state.master_keys.items()},
            provider_keys={},
        ),
    )
    rest = PostgRest(
        server.url(DATABASE, user="authenticator", password=state.authenticator_password),
        jwt_secret=state.jwt_secret,
        log=directory / "postgrest.log",
    )
    return stack.enter_context(rest)


@contextlib.contextmanager
def _network(image: str, directory: Path, rest_port: int, simulator_port: int) -> Iterator[str]:
    """Make a network of Docker's in which the stack's two servers are to be found, and yield its name."""
    name = f"sluice-{os.getpid()}"
    sockets = directory / "sockets"
    sockets.mkdir()
    host_relay = start_child(
        [
            *(sys.executable, str(_RELAY)),
            *(f"{sockets}/rest={HOST}:{rest_port}", f"{sockets}/simulator={HOST}:{simulator_port}"),
        ],
        log=directory / "relay.log",
        on_owner_death=signal.SIGTERM,
    )
    try:
        _docker("network", "create", name)
        _docker(
            *("run", "--detach", "--rm", "--name", name, "--network", name, "--network-alias", _STACK_HOST),
            *("--volume", f"{sockets}:/sockets", "--volume", f"{_RELAY}:/relay.py:ro"),
            *("--env", "LD_LIBRARY_PATH=/var/lang/lib"),
            *("--entrypoint", "/var/lang/bin/python3", image, "/relay.py"),
            *(f"0.0.0.0:{_REST_PORT}=/sockets/rest", f"0.0.0.0:{_SIMULATOR_PORT}=/sockets/simulator"),
        )
        _wait_for_relay(name)
        yield name
    finally:
        stop_child(host_relay, signal.SIGTERM)
        # Also what `sam local` may have left behind: the network can't go while they are in it.
        for container in _docker(
            "ps", "--all", "--quiet", "--filter", f"network={name}", check=False
        ).split():
            _docker("rm", "--force", container, check=False)
        _docker("network", "rm", name, check=False)


def _wait_for_relay(container: str, patience: float = 20.0) -> None:
    until = time.monotonic() + patience
    while time.monotonic() < until:
        if "ready" in _docker("logs", container):
            return
        time.sleep(0.1)
    raise StackError("the relay between the containers and the stack did not start")


def _check_docker(image: str) -> None:
    if shutil.which("docker") is None:
        raise StackError("`sam local` needs Docker: https://docs.docker.com/get-docker/")
    _docker("version")
    if not _docker("image", "inspect", image, check=False):
        if image != PUBLIC_IMAGE:
            raise StackError(f"{IMAGE_VARIABLE} names {image}, which Docker does not have")
        _docker("pull", image)
    if not SAM.exists():
        raise StackError("the SAM CLI is missing: `make .venv/.sam` installs it")


def _docker(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise StackError(f"`docker {arguments[0]}` failed: {done.stderr.strip()[-500:]}")
    return done.stdout if done.returncode == 0 else ""


def _wait(port: int, process: subprocess.Popen[bytes], log: Path, patience: float = 180.0) -> None:
    """Wait until GET /health is answered. SAM makes its image at the first call, which takes a while."""
    until = time.monotonic() + patience
    while process.poll() is None and time.monotonic() < until:
        connection = http.client.HTTPConnection(HOST, port, timeout=patience)
        try:
            connection.request("GET", "/health")
            response = connection.getresponse()
            if response.status < _HTTP_ERROR:
                return
            raise StackError(f"GET /health: {response.status}\n{tail(log, 4000)}")
        except (OSError, http.client.HTTPException):
            time.sleep(0.2)
        finally:
            connection.close()
    raise StackError(f"`sam local start-api` did not come up:\n{tail(log, 4000)}")


def main() -> int:
    """Serve until a signal; return the exit status."""
    stopped = threading.Event()
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, lambda *_: stopped.set())
    image = os.environ.get(IMAGE_VARIABLE) or PUBLIC_IMAGE
    try:
        with (
            tempfile.TemporaryDirectory(prefix="sluice-sam-") as directory,
            serve(image, Path(directory), port=int(os.environ.get("PORT") or 3000)) as api,
        ):
            print(
                f"Sluice is ready on {api.url}\n\nAdmin key: {api.admin_key}\nDemo key:  {api.demo_key}",
                flush=True,
            )
            stopped.wait()
    except StackError as error:
        print(f"sluice: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
