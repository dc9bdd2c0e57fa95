"""`sluice prices`: the price lists in force, and files of them brought in."""

from __future__ import annotations

import csv
import io
from pathlib import Path  # noqa: TC003 - typer reads it
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from infra.operator.api import Api, Connection, OperatorError, RefusedError
from infra.operator.tables import moment, print_json, print_table, usd
from infra.operator.users import AsJson  # noqa: TC001 - typer reads it

if TYPE_CHECKING:
    from collections.abc import Iterator

prices = typer.Typer(no_args_is_help=True, help="What providers take: list, and bring in from a file.")

BATCH_LINES = 250
_CLASSES = ("input", "cached_input", "cache_write", "cache_write_1h", "output", "per_image", "per_request")
_SHOWN_CHANGES = 40


@prices.command("list")
def list_prices(
    model: Annotated[str | None, typer.Option(help="Of this model: every version, the newest first.")] = None,
    most: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List versions of prices, the newest first, in USD per million tokens."""
    with Api(Connection.from_environment()) as api:
        found = list(api.rows("/admin/prices", most=most, model=model))
    if as_json:
        print_json(found)
        return
    print_table(
        ["model", "provider", "from", "prompt", *(name.replace("_", " ") for name in _CLASSES)],
        [
            [
                row["model"],
                row["provider"],
                moment(row["effective_from"]),
                f"> {rates['above_input_tokens']:,}" if rates is not row else "",
                *(usd(rates.get(name)) for name in _CLASSES),
            ]
            for row in found
            for rates in (row, *row.get("tiers", ()))
        ],
        empty="No prices.",
    )


@prices.command("import")
def import_prices(
    path: Annotated[Path, typer.Argument(help="A CSV file in the form of sql/catalogue/models.csv.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask whether to go on.")] = False,
) -> None:
    """Bring in a price list: show the difference first, then import all of it or nothing."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError(f"{path} can't be read: {error}") from error
    with Api(Connection.from_environment()) as api:
        changes = _compare(api, text)
        _print_changes(changes)
        something = changes["models_added"] or changes["offers_added"] or changes["prices_changed"]
        if dry_run or not something:
            return
        if not yes:
            typer.confirm("Import all of it?", abort=True)
        with Console(stderr=True).status("Importing …"):
            told = _send(api, text, dry_run=False)
    print(f"{told['lines']:,} lines are in force.")


def _compare(api: Api, text: str) -> dict[str, Any]:
    """Ask for the difference in batches, so that a long file shows how far it is."""
    total: dict[str, Any] = {
        "lines": 0,
        "models_added": [],
        "offers_added": [],
        "prices_changed": [],
        "unchanged": 0,
    }
    batches = list(_batches(text))
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("Comparing", total=sum(size for _, _, size in batches))
        for batch, skipped, size in batches:
            try:
                told = _send(api, batch, dry_run=True)
            except RefusedError as error:
                raise _in_file(error, skipped) from error
            for name, value in told.items():
                if name in total:
                    total[name] = total[name] + value
            progress.advance(task, size)
    return total


def _batches(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield parts of the file, each under its header; the lines before each part, and its records.

    A model's lines stay in one part, wherever they stand: together they are its offers and their tiers.
    """
    reader = csv.reader(io.StringIO(text, newline=""))
    header = next(reader, None)
    if not header:
        raise OperatorError("the file is empty")
    column = next((at for at, name in enumerate(header) if name.strip() == "model"), 0)
    before = line = reader.line_num
    read: list[tuple[str, int, list[str]]] = []
    for record in reader:
        if record:
            read.append((record[column].strip() if column < len(record) else "", line, record))
        line = reader.line_num
    last = {model: at for at, (model, _, _) in enumerate(read)}
    records: list[list[str]] = []
    open_until = -1
    for at, (model, begins, record) in enumerate(read):
        if len(records) >= BATCH_LINES and at > open_until:
            yield _written(header, records), before - 1, len(records)
            records, before = [], begins
        open_until = max(open_until, last[model])
        records.append(record)
    if records:
        yield _written(header, records), before - 1, len(records)


def _written(header: list[str], records: list[list[str]]) -> str:
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\n").writerows([header, *records])
    return out.getvalue()


def _send(api: Api, text: str, *, dry_run: bool) -> dict[str, Any]:
    response = api.send(
        "POST",
        "/admin/prices/import",
        params={"dry_run": "true" if dry_run else "false"},
        content=text.encode(),
        headers={"content-type": "text/csv; charset=utf-8"},
    )
    told: dict[str, Any] = response.json()
    return told


def _in_file(error: RefusedError, skipped: int) -> OperatorError:
    """Say the line of the file in place of the batch's."""
    parts = (error.param or "").split(".")
    if skipped and len(parts) > 1 and parts[0] == "lines" and parts[1].isdecimal():
        line = int(parts[1])
        message = str(error).replace(f"line {line}", f"line {line + skipped}")
        return OperatorError(message.replace(f"lines.{line}", f"lines.{line + skipped}"))
    return error


def _print_changes(changes: dict[str, Any]) -> None:
    added, offers, changed = (changes[name] for name in ("models_added", "offers_added", "prices_changed"))
    print(
        f"{changes['lines']:,} lines: {len(added):,} new models, {len(offers):,} new offers, "
        f"{len(changed):,} changed prices, {changes['unchanged']:,} unchanged"
    )
    if changed:
        print_table(
            ["model", "provider", "class", "now", "then"],
            [
                [row["model"], row["provider"], name, usd(step["old"]), usd(step["new"])]
                for row in changed[:_SHOWN_CHANGES]
                for name, step in row["changes"].items()
            ],
            empty="",
        )
        if len(changed) > _SHOWN_CHANGES:
            print(f"… and {len(changed) - _SHOWN_CHANGES:,} more")
