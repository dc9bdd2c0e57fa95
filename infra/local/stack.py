"""The local stack: PostgreSQL, PostgREST, the simulator and every function, started and stopped as one."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import psycopg

from gateway import auth
from gateway.settings import Settings, SettingsError
from infra.local import paths
from infra.local.database import create_database, create_roles, migrate, seed
from infra.local.local_models import LocalModelServer
from infra.local.maintenance import Sweeper
from infra.local.postgres import EmbeddedPostgres
from infra.local.postgrest import PostgRest
from infra.local.processes import HOST, ExclusiveLock, StackError, listening_socket
from infra.local.seeding import Seeds, provider_keys, seed_stack
from infra.local.server import STOP_SIGNALS, Gateway, load_functions, serve
from infra.local.serving import ThreadedServer
from infra.local.simulator import create_simulator
from infra.local.state import StackState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

DATABASE = "sluice"
_LARGEST_PORT = 65535


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What the user chose by PORT, DATA_DIR, ADMIN_KEY and SUPABASE_URL."""

    port: int
    data_dir: Path
    admin_key: str | None
    hosted: bool
    """Whether a Supabase project is used instead of the embedded database."""
    local_models: str = ""
    """The models to serve beside, as SLUICE_LOCAL_MODELS has them; empty for none."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """Read the options; StackError names the one that is bad."""
        port = environ.get("PORT", "").strip() or "8000"
        if not port.isdecimal() or not 0 < int(port) <= _LARGEST_PORT:
            raise StackError(f"PORT must be a number from 1 to {_LARGEST_PORT}, not {port!r}")
        admin_key = environ.get("ADMIN_KEY", "").strip() or None
        if admin_key is not None and not auth.may_be_key(admin_key):
            raise StackError(
                f"ADMIN_KEY can't be used: it needs {auth.MIN_CHOSEN_CHARS} to {auth.MAX_CHOSEN_CHARS} "
                "printable characters, or is to be one that `sluice new-key` made"
            )
        hosted = bool(environ.get("SUPABASE_URL", "").strip())
        models = (environ.get("LOCAL_MODELS") or environ.get("SLUICE_LOCAL_MODELS") or "").strip()
        return cls(int(port), _data_dir(environ), admin_key, hosted, models)


@dataclass(frozen=True, slots=True)
class RunningStack:
    """What a user needs once it listens. The keys are None with a project of one's own."""

    url: str
    admin_key: str | None
    demo_key: str | None
    services: tuple[str, ...]


Step = contextlib.AbstractContextManager[object]


def run_stack(
    options: StackOptions, *, step: Callable[[str], Step], ready: Callable[[RunningStack], object]
) -> None:
    """Start everything, serve until a signal says stop, stop everything.

    `step` wraps each thing that takes long, `ready` is called once requests are answered. StackError says
    what kept it from starting. Only for a process's main thread: the children die with it.
    """
    with contextlib.ExitStack() as stack:
        ignore_more_signals = stack.enter_context(_stop_by_signals())
        listener = stack.enter_context(_listener(options.port))
        refusal = f"another `make dev` runs on {options.data_dir}: stop it, or choose another DATA_DIR"
        stack.enter_context(ExclusiveLock(options.data_dir / "stack.lock", refusal))
        url = f"http://{HOST}:{options.port}"
        if options.hosted:
            running = RunningStack(url, None, None, ())
        else:
            running = _start_backend(stack, options, url, step)
        try:
            settings = Settings.from_environment()
        except SettingsError as error:
            raise StackError(str(error)) from error
        stack.enter_context(Sweeper(settings))
        with step("Loading the functions"):
            gateway = Gateway(load_functions())
        serve(gateway, listener, ready=lambda: ready(running))
        ignore_more_signals()


def _start_backend(
    stack: contextlib.ExitStack, options: StackOptions, url: str, step: Callable[[str], Step]
) -> RunningStack:
    """Start what the functions talk to and put its addresses and keys into the environment."""
    state = StackState.load(options.data_dir, avoid=options.port)
    server = EmbeddedPostgres(
        options.data_dir / "postgres", port=state.postgres_port, password=state.postgres_password
    )
    with step("Starting PostgreSQL"):
        stack.enter_context(server)
    with step("Bringing the database up to date"):
        prepare_database(server, state)
    simulator = ThreadedServer(create_simulator(key=state.simulator_key), port=state.simulator_port)
    stack.enter_context(simulator)
    served = None
    if options.local_models:
        with step("Loading the local models"):
            taken = (options.port, state.postgres_port, state.postgrest_port, state.simulator_port)
            served = stack.enter_context(
                LocalModelServer(options.local_models, options.data_dir / "local-models.log", avoid=taken)
            )
    admin_key = options.admin_key or state.admin_key
    master_keys = {name: base64.b64decode(key) for name, key in state.master_keys.items()}
    with step("Seeding the demo"):
        services = seed_stack(
            server.url(DATABASE),
            Seeds(
                admin_key=admin_key,
                demo_key=state.demo_key,
                simulator_url=simulator.url,
                simulator_key=state.simulator_key,
                master_keys=master_keys,
                provider_keys=provider_keys(os.environ),
                local_models=None if served is None else served.seed(),
            ),
        )
    rest = PostgRest(
        server.url(DATABASE, user="authenticator", password=state.authenticator_password),
        jwt_secret=state.jwt_secret,
        log=options.data_dir / "postgrest.log",
        port=state.postgrest_port,
    )
    with step("Starting PostgREST"):
        stack.enter_context(rest)
    os.environ.update(
        {
            "SLUICE_REST_URL": rest.url,
            "SUPABASE_KEY": state.service_key,
            "SLUICE_MASTER_KEYS": json.dumps(state.master_keys),
            "SLUICE_ALLOW_PRIVATE_URLS": "true",
            "SLUICE_SPOOL_DIR": str(options.data_dir / "spool"),
        }
    )
    os.environ.setdefault("SLUICE_ALLOWED_ORIGINS", "*")
    os.environ.setdefault("SLUICE_PUBLIC_URL", url)
    return RunningStack(url, admin_key, state.demo_key, tuple(services))


def prepare_database(server: EmbeddedPostgres, state: StackState) -> None:
    """Make the roles and the database where they lack, and apply the migrations and the seed."""
    create_roles(server.url(), authenticator_password=state.authenticator_password)
    with contextlib.suppress(psycopg.errors.DuplicateDatabase):
        create_database(server.url(), DATABASE)
    migrate(server.url(DATABASE))
    seed(server.url(DATABASE))


def local_state(environ: Mapping[str, str]) -> StackState | None:
    """Return what the stack in DATA_DIR keeps; None where there is none. StackError if it is unreadable."""
    return StackState.read(_data_dir(environ))


def database_url(environ: Mapping[str, str]) -> str:
    """Return the URL that the commands work on: DATABASE_URL, else the running local stack's."""
    if given := environ.get("DATABASE_URL", "").strip():
        return given
    state = local_state(environ)
    if state is None:
        raise StackError("set DATABASE_URL to the project's connection string, or start `make dev` first")
    server = EmbeddedPostgres(
        _data_dir(environ) / "postgres", port=state.postgres_port, password=state.postgres_password
    )
    return server.url(DATABASE)


def _data_dir(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("DATA_DIR", "").strip() or paths.REPOSITORY / ".sluice").resolve()


@contextlib.contextmanager
def _listener(port: int) -> Iterator[socket.socket]:
    """Take the port before anything is started, but don't listen: clients are refused until we are ready."""
    with listening_socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError as error:
            raise StackError(
                f"port {port} is in use: choose another, as in `PORT={port + 1} make dev`"
            ) from error
        yield listener


@contextlib.contextmanager
def _stop_by_signals() -> Iterator[Callable[[], None]]:
    """Turn a signal to stop into a SystemExit that unwinds everything; yield what makes signals harmless."""

    def stop(_number: int, _frame: object) -> None:
        ignore_more()
        raise SystemExit(0)

    def ignore_more() -> None:
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_IGN)

    before = {each: signal.signal(each, stop) for each in STOP_SIGNALS}
    try:
        yield ignore_more
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
