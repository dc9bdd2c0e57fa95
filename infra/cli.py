"""The operator's command line: `.venv/bin/sluice --help`."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING, Annotated

import psycopg
import typer
from rich.console import Console

from infra.local.processes import StackError
from infra.operator.api import OperatorError
from infra.operator.billing import payments, show_statement
from infra.operator.doctor import doctor
from infra.operator.keys import keys
from infra.operator.prices import prices
from infra.operator.usage import show_usage
from infra.operator.users import credit, users

if TYPE_CHECKING:
    from collections.abc import Iterator

    from infra.local.stack import RunningStack

# A traceback with local values could show a secret.
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
_console = Console(stderr=True)
_CURL = """\
curl {url}/v1/chat/completions \\
  -H "Authorization: Bearer {key}" \\
  -H "Content-Type: application/json" \\
  -d '{{"model": "sim/echo", "messages": [{{"role": "user", "content": "Hello"}}]}}'"""


@contextlib.contextmanager
def _step(name: str) -> Iterator[None]:
    """Show what is under way: a spinner on a terminal, a line elsewhere."""
    start = time.monotonic()
    if not _console.is_terminal:
        print(f"{name} …", file=sys.stderr, flush=True)
        yield
        return
    with _console.status(f"{name} …"):
        yield
    _console.print(f"[green]✓[/green] {name} [dim]{time.monotonic() - start:.1f} s[/dim]")


def _welcome(stack: RunningStack) -> None:
    # Plain prints: what is to be pasted must not be wrapped.
    print(f"Sluice is ready on {stack.url}")
    if stack.admin_key:
        print(f"\nAdmin key: {stack.admin_key}")
    if stack.demo_key:
        print(f"Demo key:  {stack.demo_key}")
        print(f"Services:  {', '.join(stack.services)}")
        print(f"\n{_CURL.format(url=stack.url, key=stack.demo_key)}\n", flush=True)
    else:
        print(f'\ncurl {stack.url}/v1/models -H "Authorization: Bearer $SLUICE_KEY"\n', flush=True)


@app.command()
def dev() -> None:
    """Run the whole gateway here. PORT, DATA_DIR, ADMIN_KEY and SUPABASE_URL are honoured."""
    from infra.local.stack import StackOptions, run_stack  # noqa: PLC0415 - the other commands start at once

    run_stack(StackOptions.from_environment(os.environ), step=_step, ready=_welcome)


@app.command(name="migrate")
def migrate_database() -> None:
    """Apply the migrations that the database at DATABASE_URL lacks."""
    from infra.local.database import migrate  # noqa: PLC0415
    from infra.local.stack import database_url  # noqa: PLC0415

    url = database_url(os.environ)
    done = migrate(url, applying=lambda migration: print(f"applying {migration.path.name}", flush=True))
    print(f"{len(done)} applied" if done else "the database is up to date")


@app.command()
def admin_key(
    name: Annotated[
        str, typer.Option(help="What the key is called in lists and in the audit log.")
    ] = "operator",
) -> None:
    """Make an admin key for the database at DATABASE_URL and print it, once: only its hash is kept."""
    from gateway.auth import new_key  # noqa: PLC0415
    from infra.local.seeding import create_admin_key  # noqa: PLC0415
    from infra.local.stack import database_url  # noqa: PLC0415

    key = new_key()
    create_admin_key(database_url(os.environ), key, name)
    print(key)


@app.command()
def new_key() -> None:
    """Print a fresh key that no database knows, for ADMIN_KEY."""
    from gateway.auth import new_key as make  # noqa: PLC0415

    print(make())


@app.command()
def drift() -> None:
    """Fail with a diff when supabase/migrations/ does not build what sql/ describes."""
    from infra.local.drift import check  # noqa: PLC0415

    found = check()
    if found:
        print(found)
        print("\nsupabase/migrations/ and sql/ differ: write the migration, or mend sql/", file=sys.stderr)
        raise typer.Exit(1)
    print("supabase/migrations/ builds what sql/ describes")


@app.command()
def simulator(port: Annotated[int, typer.Option(help="Where it listens on 127.0.0.1.")] = 8001) -> None:
    """Run the provider simulator alone, with no key."""
    import uvicorn  # noqa: PLC0415

    from infra.local.simulator import create_simulator  # noqa: PLC0415

    uvicorn.run(create_simulator(), host="127.0.0.1", port=port, log_level="warning", access_log=False)


app.add_typer(users, name="users")
app.add_typer(credit, name="credits")
app.add_typer(keys, name="keys")
app.add_typer(prices, name="prices")
app.add_typer(payments, name="payments")
app.command(name="statements")(show_statement)
app.command(name="usage")(show_usage)
app.command()(doctor)


def main() -> None:
    """Run the command; what the user can put right ends it with one line."""
    try:
        app(prog_name="sluice")
    except (StackError, OperatorError, psycopg.OperationalError) as error:
        print(f"sluice: {error}", file=sys.stderr, flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
