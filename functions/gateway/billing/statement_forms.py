"""A statement as CSV (RFC 4180) and as a page to print. Both are made of what api.read_statement tells."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

TOKEN_CLASSES = (
    "input_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "audio_input_tokens",
    "image_input_tokens",
    "output_tokens",
    "reasoning_tokens",
    "audio_output_tokens",
    "image_output_tokens",
)
COLUMNS = (
    "section", "at", "what", "reference", "requests", *TOKEN_CLASSES, "images", "terms", "amount_usd",
    "recomputed_usd", "debt_change_usd",
)  # fmt: skip
"""`amount_usd` of all rows but the last comes to that of the last, the closing balance."""

# What a spreadsheet takes for a formula, or for the beginning of one when it has taken white space away.
_FORMULA = frozenset("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")


def as_csv(statement: Mapping[str, Any]) -> str:
    """Return the statement as rows of one table, with CRLF at their ends."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\r\n")
    writer.writeheader()
    writer.writerow({
        "section": "opening_balance", "at": statement["from"], "what": "balance",
        "amount_usd": statement["opening_balance_usd"], "debt_change_usd": statement["opening_debt_usd"],
    })  # fmt: skip
    for entry in statement["entries"]:
        writer.writerow({
            "section": "entry", "at": entry["at"], "what": plain(entry["kind"]),
            "reference": plain(entry["reference"]), "amount_usd": entry["amount_usd"],
            "debt_change_usd": entry["debt_change_usd"],
        })  # fmt: skip
    for line in statement["charges"]:
        writer.writerow(
            {
                "section": "charge",
                "what": plain(_model(line)),
                **{name: line[name] for name in ("requests", *TOKEN_CLASSES, "images")},
                "terms": plain(_terms(line)),
                "amount_usd": _negated(line["charge_usd"]),
                "recomputed_usd": _negated(line["recomputed_usd"]),
            }
        )
    writer.writerow({
        "section": "closing_balance", "at": statement["to"],
        "what": "balance" if statement["closed"] else "so far",
        "amount_usd": statement["closing_balance_usd"], "debt_change_usd": statement["closing_debt_usd"],
    })  # fmt: skip
    return text.getvalue()


def plain(text: str | None) -> str:
    """Return a text as a cell that no spreadsheet takes for a formula: with an apostrophe before it.

    For texts alone, which may be a stranger's: an amount is ours, and a negative one begins with a minus.
    """
    if not text:
        return ""
    return f"'{text}" if text[0] in _FORMULA or text.lstrip()[:1] in _FORMULA else text


def _model(line: Mapping[str, Any]) -> str:
    if line["model"] is None:
        return "requests of other months, by when they were charged"
    return f"{line['model']} (holds that expired)" if line["expired_holds"] else str(line["model"])


def _terms(line: Mapping[str, Any]) -> str:
    if line["billing_mode"] == "flat":
        return f"{line['flat_usd_per_1k_tokens']} USD per 1000 tokens"
    if line["prices"] is None:
        return ""
    prices = ", ".join(f"{name} {_price(price)}" for name, price in sorted(line["prices"].items()))
    return f"{prices}; +{line['commission_percent']} %"


def _price(price: Any) -> str:
    if isinstance(price, list):
        return " ".join(
            f"(above {tier['above_input_tokens']}: "
            + ", ".join(f"{name} {rate}" for name, rate in tier.items() if name != "above_input_tokens")
            + ")"
            for tier in price
        )
    return str(price)


def _negated(usd: str | None) -> str:
    if usd is None or usd == "0":
        return usd or ""
    return usd.removeprefix("-") if usd.startswith("-") else f"-{usd}"


# The page.

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
table { border-collapse: collapse; width: 100%; }
caption { text-align: left; font-weight: 600; padding: .25rem 0; }
th, td { border-bottom: 1px solid #8886; padding: .35rem .5rem; text-align: left; vertical-align: top; }
th.n, td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.sum > * { border-top: 2px solid; font-weight: 600; }
small { color: GrayText; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
@media print {
  :root { color-scheme: light; }
  body { margin: 0; max-width: none; font-size: 10pt; }
  thead { display: table-header-group; }
  tr { break-inside: avoid; }
  @page { margin: 15mm; }
}
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_SUMS = (
    ("Paid in", "credits_usd", False),
    ("Corrections", "corrections_usd", False),
    ("Refunds and disputes", "reversals_usd", False),
    ("Paid of the debt", "debt_payments_usd", False),
    ("Charges", "charges_usd", True),
)


def as_page(statement: Mapping[str, Any]) -> str:
    """Return the statement as a page that needs nothing else: no script, no picture, no font."""
    title = f"Statement {statement['month']}, customer {statement['customer_id']}"
    kind = "" if statement["closed"] else " (so far)"
    sums = [
        ("Opening balance", statement["opening_balance_usd"]),
        *((name, _negated(statement[key]) if out else statement[key]) for name, key, out in _SUMS),
    ]
    summary = [_row((name, usd)) for name, usd in sums]
    summary.append(_row(("Closing balance", statement["closing_balance_usd"]), kind="sum"))
    if statement["opening_debt_usd"] != "0" or statement["closing_debt_usd"] != "0":
        summary.append(_row(("Owed at the beginning", statement["opening_debt_usd"])))
        summary.append(_row(("Owed at the end", statement["closing_debt_usd"])))
    charges = [
        _row(
            (
                _model(line),
                line["requests"],
                *(_tokens(line, *names) for _, names in _SHOWN_TOKENS),
                line["charge_usd"],
            ),
            small=_terms(line),
        )
        for line in statement["charges"]
    ]
    charges.append(_row(("Total", *[""] * (1 + len(_SHOWN_TOKENS)), statement["charges_usd"]), kind="sum"))
    entries = [
        _row((entry["at"], entry["kind"], entry["reference"] or "", entry["amount_usd"]), texts=3)
        for entry in statement["entries"]
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>"
        f"<h1>{escape(title)}{kind}</h1>"
        f"<p>{escape(str(statement['from']))} to {escape(str(statement['to']))}, "
        f"in the time zone {escape(statement['time_zone'])}. All amounts in US dollars.</p>"
        f"<h2>Summary</h2>{_table(('', 'USD'), summary)}"
        f"<h2>Charges by model</h2>{_table(_CHARGE_COLUMNS, charges)}"
        + (f"<h2>Payments and corrections</h2>{_table(_ENTRY_COLUMNS, entries, texts=3)}" if entries else "")
        + f"<p><small>{escape(_checked(statement['check']))}</small></p></main></body></html>\n"
    )


_SHOWN_TOKENS = (
    ("Input", ("input_tokens", "audio_input_tokens", "image_input_tokens")),
    ("Cached input", ("cached_input_tokens",)),
    ("Cache writes", ("cache_write_tokens",)),
    ("Output", ("output_tokens", "audio_output_tokens", "image_output_tokens")),
)
_CHARGE_COLUMNS = ("Model", "Requests", *(name for name, _ in _SHOWN_TOKENS), "USD")
_ENTRY_COLUMNS = ("When", "What", "Reference", "USD")


def _tokens(line: Mapping[str, Any], *names: str) -> int:
    return sum(int(line[name]) for name in names)


def _checked(check: Mapping[str, Any]) -> str:
    balance = "" if check["balance_agrees"] else " The entries do not come to the closing balance."
    if check["source"] == "sums":
        return (
            "The request log of this month was dropped: the charges by model are from the sums that are "
            f"kept, which go by when a request was admitted.{balance}"
        )
    if check["differing"]:
        return (
            f"Computed anew from the prices that were pinned, {check['differing']} of {check['requests']} "
            f"requests differ, by {check['difference_usd']} USD in all.{balance}"
        )
    return (
        f"Each of the {check['requests']} charges was computed anew from the prices that were pinned when "
        f"its request was admitted, and agrees to the last digit.{balance}"
    )


def _table(names: Sequence[str], rows: Iterable[str], *, texts: int = 1) -> str:
    head = "".join(
        f'<th scope="col"{_class(number, texts)}>{escape(name)}</th>' for number, name in enumerate(names)
    )
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _row(cells: Sequence[Any], *, texts: int = 1, kind: str = "", small: str = "") -> str:
    notes = f"<br><small>{escape(small)}</small>" if small else ""
    made = "".join(
        f"<td{_class(number, texts)}>{escape(str(cell))}{notes if number == 0 else ''}</td>"
        for number, cell in enumerate(cells)
    )
    return f'<tr class="{kind}">{made}</tr>' if kind else f"<tr>{made}</tr>"


def _class(number: int, texts: int) -> str:
    return "" if number < texts else ' class="n"'
