"""Put faults into the SQL, one at a time, and see that the tests find each.

    PYTHONPATH=functions:. .venv/bin/python -m tests.database.mutations

A fault is a change of the text of one file of sql/ that must apply exactly once. The template database
of the tests is built from the changed copy (SLUICE_TEST_SCHEMA), and tests/database runs until its first
failure: once without the generated programs, and once with nothing but them. A fault that neither finds
is a test that is missing.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from hypothesis import Phase, settings

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = REPOSITORY / "sql"
TESTS = REPOSITORY / "tests" / "database"
PROGRAMS = "test_interleavings.py"
PATIENCE = 900.0  # seconds for all tests; a fault may leave something waiting for ever

# What found it is of interest, not the least program that does: that takes minutes.
settings.register_profile("unshrunk", phases=[Phase.explicit, Phase.generate])

_FAILED = re.compile(r"^FAILED (?P<test>.+?)(?: - (?P<why>.*))?$", re.MULTILINE)
# A change that is no SQL any more would be found by anything.
_NO_FAULT = re.compile(
    r"psycopg\.errors\.(Syntax|Undefined|Ambiguous|Datatype|Cannot)\w+|^ERROR ", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Fault:
    """`old` becomes `new` in the file `sql/<file>`; `first` names the tests that are likely to find it."""

    name: str
    file: str
    old: str
    new: str
    first: tuple[str, ...]

    def apply(self, sources: Path) -> None:
        """Change a copy of sql/; ValueError if the text is not there exactly once."""
        path = sources / self.file
        text = path.read_text(encoding="utf-8")
        if text.count(self.old) != 1:
            raise ValueError(f"{self.name}: {text.count(self.old)} places in {self.file} to put it, not one")
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the tests said of a fault. `test` is None where none of them failed."""

    test: str | None
    why: str
    seconds: float


ADMIT = "functions/admit_request.sql"
SETTLE = "functions/settle_request.sql"
EXPIRE = "functions/expire_holds.sql"
COUNT = "functions/correct_counters.sql"
MONEY = "functions/money.sql"
ROLLUP = "functions/add_to_rollup.sql"
CLOSE = "functions/close_usage.sql"
ROTATE = "functions/rotate_key.sql"
CREATE_KEY = "functions/create_key.sql"
BOUNDS = "functions/key_bounds.sql"
CROSS = "functions/record_crossings.sql"
DELIVER = "functions/deliver_events.sql"
PUBLISH = "functions/publish_events.sql"
TELL = "functions/raise_money_events.sql"
HEALTH = "functions/record_health.sql"
CANDIDATES = "functions/resolve_candidates.sql"
PAYMENTS = "functions/record_payment_event.sql"
BOOK = "functions/book_payments.sql"
STATEMENTS = "functions/read_statement.sql"

FAULTS = (
    # payments, debts and statements
    Fault(
        "a payment is credited by every event that tells of it",
        PAYMENTS,
        "if p_payment.paid_minor > 0 and p_payment.credited_usd = 0 then",
        "if p_payment.paid_minor > 0 then",
        ("test_payments",),
    ),
    Fault(
        "an event counts as often as it comes",
        PAYMENTS,
        "    if not found then\n        perform set_config('gateway.engine', 'off', true);",
        "    if false then\n        perform set_config('gateway.engine', 'off', true);",
        ("test_payments",),
    ),
    Fault(
        "the last sum of refunds that was told counts, and not the greatest",
        PAYMENTS,
        "refunded_minor = greatest(refunded_minor, (p_event ->> 'refunded_minor')::bigint)",
        "refunded_minor = coalesce((p_event ->> 'refunded_minor')::bigint, refunded_minor)",
        ("test_payments",),
    ),
    Fault(
        "a refund that failed is none that was told of",
        PAYMENTS,
        "- v_live - v_failed, 0)) * 0.01",
        "- v_live, 0)) * 0.01",
        ("test_payments",),
    ),
    Fault(
        "a dispute that was won is taken back by an older event",
        PAYMENTS,
        "returned_at = greatest(d.returned_at, excluded.returned_at);",
        "returned_at = excluded.returned_at;",
        ("test_payments",),
    ),
    Fault(
        "a dispute that was won once is never lost",
        PAYMENTS,
        "withdrawn_at > coalesce(returned_at, '-infinity')",
        "withdrawn_at is not null and returned_at is null",
        ("test_payments",),
    ),
    Fault(
        "refund and dispute take more than was paid",
        PAYMENTS,
        "least(coalesce(sum(amount_minor), 0) * 0.01, p_payment.credited_usd - v_refund)",
        "least(coalesce(sum(amount_minor), 0) * 0.01, p_payment.credited_usd)",
        ("test_payments",),
    ),
    Fault(
        "a refund does not wait for whoever holds the account",
        PAYMENTS,
        "    where customer_id = coalesce(v_payment.customer_id, (p_event ->> 'customer_id')::bigint)\n"
        "    for update;",
        "    where customer_id = coalesce(v_payment.customer_id, (p_event ->> 'customer_id')::bigint);",
        ("test_payments",),
    ),
    Fault(
        "what a reversal can't take is forgotten",
        BOOK,
        "balance_usd = balance_usd - v_taken, debt_usd = debt_usd + p_usd - v_taken",
        "balance_usd = balance_usd - v_taken",
        ("test_payments",),
    ),
    Fault(
        "a top-up leaves the debt as it is",
        BOOK,
        "select least(debt_usd, p_usd) into v_paid",
        "select 0 into v_paid",
        ("test_payments",),
    ),
    Fault(
        "who owes may go on",
        ADMIT,
        "if v_account.debt_usd > 0 then",
        "if v_account.debt_usd > 1000 then",
        ("test_refusals",),
    ),
    Fault(
        "what a settlement releases does not go to the debt",
        SETTLE,
        "if v_account.debt_usd > 0 then  -- it gets what is released",
        "if false then",
        ("test_payments",),
    ),
    Fault(
        "the entry that is the first of a month is in none",
        STATEMENTS,
        "select e.id - 1 from gateway.ledger_entries as e",
        "select e.id from gateway.ledger_entries as e",
        ("test_statements",),
    ),
    Fault(
        "a statement takes the commission of today",
        STATEMENTS,
        "v_commission constant numeric := 1 + p_request.commission_percent * 0.01;",
        "v_commission constant numeric := 1 + (select commission_percent from gateway.settings) * 0.01;",
        ("test_statements",),
    ),
    # keys
    Fault(
        "a replaced secret is admitted for ever",
        ADMIT,
        "where r.secret_hash = decode(p_key_hash, 'hex') and r.expires_at > v_at;",
        "where r.secret_hash = decode(p_key_hash, 'hex');",
        ("test_keys",),
    ),
    Fault(
        "a rotation without grace leaves the older secrets",
        ROTATE,
        "delete from gateway.retired_secrets where key_id = v_key.id;",
        "null;",
        ("test_keys",),
    ),
    Fault(
        "what a key does is not counted under its maker's limits",
        ADMIT,
        "if cardinality(p_maker_key_ids) > 0 then",
        "if cardinality(p_maker_key_ids) > 1 then",
        ("test_keys",),
    ),
    Fault(
        "a key that was revoked a moment ago makes another",
        CREATE_KEY,
        "elsif gateway.is_stopped(v_maker) then",
        "elsif v_maker.id is null then",
        ("test_keys",),
    ),
    Fault(
        "two keys lock each other in any order",
        BOUNDS,
        "where id = any (p_key_ids) order by id for update",
        "where id = any (p_key_ids) order by array_position(p_key_ids, id) for update",
        ("test_keys",),
    ),
    # images and embeddings
    Fault(
        "a chat model is asked for an image",
        ADMIT,
        "if not p_output = any (v_candidate.output_modalities) then",
        "if p_output <> 'text' and v_candidate.output_modalities = '{}' then",
        ("test_media_hold",),
    ),
    Fault(
        "an image's bound that is absent holds nothing",
        ADMIT,
        "if (p_output_bounds ->> v_candidate.provider) is null or",
        "if",
        ("test_media_hold",),
    ),
    Fault(
        "several texts to embed are held for as one",
        ADMIT,
        "when p_output = 'text' or p_input_tokens_bound is null then",
        "when true then",
        ("test_media_hold",),
    ),
    Fault(
        "images to edit are held for as text",
        ADMIT,
        "coalesce(p_media_input, p_input_tokens_bound is null), p_media_output)",
        "p_input_tokens_bound is null, p_media_output)",
        ("test_media_hold",),
    ),
    Fault(
        "a provider that makes no images is asked for one",
        ADMIT,
        " or not p_output_bounds ? v_candidate.provider;",
        ";",
        ("test_media_hold",),
    ),
    # the hold
    Fault(
        "the hold is not compared with the free balance",
        ADMIT,
        "elsif v_candidate.hold_usd > v_free then",
        "elsif false then",
        ("test_hold",),
    ),
    Fault(
        "the account is read without being locked",
        ADMIT,
        "select * into v_account from gateway.accounts where customer_id = v_key.customer_id for update;",
        "select * into v_account from gateway.accounts where customer_id = v_key.customer_id;",
        ("test_races",),
    ),
    Fault(
        "no constraint covers the holds",
        "tables/accounts.sql",
        "check (balance_usd - held_usd >= 0)",
        "check (balance_usd - held_usd >= -1000000)",
        ("test_constraints",),
    ),
    Fault(
        "the ledger would take two charges of a request",
        "tables/ledger_entries.sql",
        "create unique index ledger_one_entry_per_request",
        "create index ledger_one_entry_per_request",
        ("test_constraints",),
    ),
    Fault(
        "the first candidate is held, not the dearest",
        ADMIT,
        "v_hold := greatest(v_hold, v_candidate.hold_usd);",
        "v_hold := case when v_hold > 0 then v_hold else v_candidate.hold_usd end;",
        ("test_hold",),
    ),
    Fault(
        "the hold forgets that each choice may be as long",
        ADMIT,
        "gateway.round_up_usd(v_fixed + v_candidate.output_bound * p_choices * v_rate_out)",
        "gateway.round_up_usd(v_fixed + v_candidate.output_bound * v_rate_out)",
        ("test_hold",),
    ),
    Fault(
        "a suspended customer is served",
        ADMIT,
        "elsif not v_key.customer_active then",
        "elsif false then",
        ("test_refusals",),
    ),
    # the limits
    Fault(
        "one request more than the limit",
        ADMIT,
        "if v_requests_left < 1 or",
        "if v_requests_left < 0 or",
        ("test_limits",),
    ),
    Fault(
        "a token limit that is met exactly refuses",
        ADMIT,
        "v_tokens > v_tokens_left",
        "v_tokens >= v_tokens_left",
        ("test_limits",),
    ),
    Fault(
        "a spending limit that is met exactly refuses",
        ADMIT,
        "v_candidate.hold_usd > v_spend_left",
        "v_candidate.hold_usd >= v_spend_left",
        ("test_limits",),
    ),
    Fault(
        "a service's spending limit is on the charge",
        ADMIT,
        "case when v_limit.subject = 'service' then v_candidate.cost_bound_usd else v_candidate.hold_usd end",
        "v_candidate.hold_usd",
        ("test_limits",),
    ),
    Fault(
        "the counters are read without being locked",
        ADMIT,
        "and c.per = v_limit.per\n            for update;",
        "and c.per = v_limit.per;",
        ("test_races",),
    ),
    Fault(
        "a new window goes on from the old one's tokens",
        ADMIT,
        "tokens = case when c.window_start = v_limit.window_start then c.tokens else 0 end + v_tokens",
        "tokens = c.tokens + v_tokens",
        ("test_limits",),
    ),
    Fault(
        "the windows' days are all UTC's",
        ADMIT,
        "case when v_row.service_id is not null then 'UTC' else p_time_zone end",
        "'UTC'",
        ("test_limits",),
    ),
    Fault(
        "a refused request is counted",
        ADMIT,
        "    if v_refusal is not null then\n",
        "    if v_refusal is not null then\n"
        "        update gateway.limit_counters as c set requests = c.requests + 1\n"
        "        from unnest(v_limits) as l\n"
        "        where (c.subject, c.subject_id, c.model_id, c.per)"
        " = (l.subject, l.subject_id, l.model_id, l.per);\n",
        ("test_refusals",),
    ),
    Fault(
        "the settlement forgets the counters",
        SETTLE,
        "if cardinality(v_request.counted) > 0 then",
        "if false then",
        ("test_limits",),
    ),
    Fault(
        "a service that did not answer is not given back what it counted",
        SETTLE,
        "then v_counted.subject_id is not distinct from v_request.service_id",
        "then true",
        ("test_limits",),
    ),
    Fault(
        "the expiry forgets the counters",
        EXPIRE,
        "0, -x.tokens,",
        "0, 0,",
        ("test_expiry",),
    ),
    Fault(
        "a correction meets a later window",
        COUNT,
        "and c.per = v_correction.per and c.window_start = v_correction.window_start",
        "and c.per = v_correction.per",
        ("test_limits",),
    ),
    # the soft marks
    Fault(
        "no admission marks a counter",
        ADMIT,
        "set marked = true",
        "set marked = false",
        ("test_crossings",),
    ),
    Fault(
        "what others still hold is taken for used",
        CROSS,
        "where r.state = 'held' and",
        "where false and",
        ("test_crossings",),
    ),
    Fault(
        "the request that ends is taken for running",
        CROSS,
        "r.xmax is distinct from pg_current_xact_id()::xid",
        "true",
        ("test_crossings",),
    ),
    Fault(
        "a new window is marked as the old one was",
        ADMIT,
        "marked = c.marked and c.window_start = v_limit.window_start",
        "marked = c.marked",
        ("test_crossings",),
    ),
    Fault(
        "what runs of other windows is taken for this one's",
        CROSS,
        "(x.subject, x.subject_id, x.model_id, x.per, x.window_start)\n"
        "            = (p_counter.subject, p_counter.subject_id, p_counter.model_id, p_counter.per,"
        " p_counter.window_start);",
        "(x.subject, x.subject_id, x.model_id, x.per)\n"
        "            = (p_counter.subject, p_counter.subject_id, p_counter.model_id, p_counter.per);",
        ("test_crossings",),
    ),
    Fault(
        "a marked window that turns is forgotten",
        ADMIT,
        "and c.marked and c.window_start < v_limit.window_start",
        "and false",
        ("test_crossings",),
    ),
    Fault(
        "a window that turned is not corrected",
        COUNT,
        "if v_counter.window_start > v_correction.window_start then",
        "if false then",
        ("test_crossings",),
    ),
    Fault(
        "what goes beyond the bound crosses nothing",
        COUNT,
        "v_near or v_marked or v_correction.tokens > 0 or v_correction.spend_usd > 0",
        "v_near or v_marked",
        ("test_crossings",),
    ),
    Fault(
        "a request crosses the mark of a model that may not answer it",
        ADMIT,
        "(l.model_id = 0 or not exists (select from unnest(v_candidates) as c"
        " where c.model_id <> l.model_id))",
        "true",
        ("test_crossings",),
    ),
    # the outbox
    Fault(
        "two maintainers claim one delivery",
        DELIVER,
        "        limit p_limit\n        for update skip locked\n",
        "        limit p_limit\n",
        ("test_events",),
    ),
    Fault(
        "one whose claim ran out speaks for its successor",
        DELIVER,
        "(attempts = p_attempt and next_attempt_at is not null)",
        "next_attempt_at is not null",
        ("test_events",),
    ),
    # what is told of money
    Fault(
        "a balance at its mark is told of as low",
        TELL,
        "v_account.balance_usd < v_account.low_mark_usd then",
        "v_account.balance_usd <= v_account.low_mark_usd then",
        ("test_alerts",),
    ),
    Fault(
        "the settlement compares with what it has already taken",
        SETTLE,
        "and v_account.balance_usd + v_take + v_paid >= v_account.low_mark_usd",
        "and v_account.balance_usd >= v_account.low_mark_usd",
        ("test_alerts",),
    ),
    Fault(
        "every settlement below the mark is told of",
        TELL,
        "if p_before_usd >= v_account.low_mark_usd and v_account.balance_usd",
        "if v_account.balance_usd",
        ("test_alerts",),
    ),
    Fault(
        "the customer's own mark is not told to the account",
        ADMIT,
        "coalesce(v_key.low_balance_usd, v_settings.low_balance_usd)",
        "v_settings.low_balance_usd",
        ("test_alerts",),
    ),
    Fault(
        "an expired hold that is charged is not told of as a low balance",
        EXPIRE,
        "v_account.balance_usd + v_charge + v_account.paid_usd);",
        "v_account.balance_usd + v_account.paid_usd);",
        ("test_alerts",),
    ),
    Fault(
        "a refund is not told of as a low balance",
        "functions/book_payments.sql",
        "    perform gateway.record_balance(p_customer_id, v_account.balance_usd);\n",
        "",
        ("test_alerts",),
    ),
    Fault(
        "every refusal for money is told of",
        TELL,
        "on conflict do nothing;\n    if found then",
        "on conflict do nothing;\n    if true then",
        ("test_alerts",),
    ),
    Fault(
        "who pays in is never told of as exhausted again",
        "functions/book_payments.sql",
        "    delete from gateway.exhausted_accounts where customer_id = p_customer_id;\n",
        "",
        ("test_alerts",),
    ),
    Fault(
        "a call that is merely too long is told of as exhaustion",
        ADMIT,
        "(v_refusal ->> 'affordable_output_tokens')::bigint < c_least_output",
        "true",
        ("test_alerts",),
    ),
    Fault(
        "who owes is not told of as exhausted",
        ADMIT,
        "if v_refusal ->> 'refusal' = 'customer_in_debt'\n",
        "if false\n",
        ("test_alerts",),
    ),
    Fault(
        "what could not be collected is not told of",
        SETTLE,
        "    if v_request.uncollected_usd > 0 then\n",
        "    if false then\n",
        ("test_alerts",),
    ),
    Fault(
        "holds that were charged are told of as the operator's loss",
        EXPIRE,
        "    if v_released > 0 then\n",
        "    if true then\n",
        ("test_alerts",),
    ),
    Fault(
        "a finding in the books is told of anew as balances move",
        "functions/watch_ledger.sql",
        "m.customer_id, m.balance_usd - m.ledger_usd,",
        "m.customer_id, m.balance_usd,",
        ("test_alerts",),
    ),
    Fault(
        "two checks at once are both told what the first has found",
        "functions/watch_ledger.sql",
        "select * into v_state from gateway.maintenance_state for update;",
        "select * into v_state from gateway.maintenance_state;",
        ("test_alerts",),
    ),
    Fault(
        "the check of the books is told to be due every minute",
        "functions/watch_ledger.sql",
        "make_interval(secs => p_every_seconds)",
        "make_interval(secs => 0)",
        ("test_alerts",),
    ),
    Fault(
        "two maintainers are told to publish the same event",
        PUBLISH,
        "        limit p_limit\n        for update skip locked\n",
        "        limit p_limit\n",
        ("test_alerts",),
    ),
    Fault(
        "the topic's outbox is told by one whose claim ran out",
        PUBLISH,
        "(attempts = p_attempt and next_attempt_at is not null)",
        "next_attempt_at is not null",
        ("test_alerts",),
    ),
    # the operator's lists
    Fault(
        "what came late is nobody's charge",
        "functions/list_top_customers.sql",
        "where late and bucket >= v_start",
        "where false and bucket >= v_start",
        ("test_operator_lists",),
    ),
    Fault(
        "what is closed is charged twice to whom was charged the most",
        "functions/list_top_customers.sql",
        "where bucket >= greatest(v_closed_until, v_start)",
        "where bucket >= v_start",
        ("test_operator_lists",),
    ),
    Fault(
        "events of one moment fall between two pages",
        "functions/manage_events.sql",
        "(e.at, e.id) < (v_before.at, v_before.id)",
        "e.at < v_before.at",
        ("test_operator_lists",),
    ),
    Fault(
        "an event that was given up is listed as waiting",
        "functions/manage_events.sql",
        "                        when d.next_attempt_at is not null then 'waiting'\n",
        "                        when d.delivered_at is null then 'waiting'\n",
        ("test_operator_lists",),
    ),
    # the closing of usage
    Fault(
        "a settlement does not hold the bucket that it adds to",
        ROLLUP,
        "        perform pg_advisory_xact_lock_shared(gateway.bucket_lock(p_row.bucket));\n",
        "",
        ("test_figures",),
    ),
    Fault(
        "the closing takes a bucket that is being added to",
        CLOSE,
        "        and pg_try_advisory_xact_lock(gateway.bucket_lock(v_until))\n",
        "",
        ("test_figures",),
    ),
    Fault(
        "what comes after the closing is in no day",
        ROLLUP,
        "p_row.late := coalesce("
        "p_row.bucket < (select c.closed_until from gateway.usage_closing as c), false);",
        "p_row.late := false;",
        ("test_figures",),
    ),
    Fault(
        "what came late is added at every closing",
        CLOSE,
        "        v_row.late := false;\n",
        "",
        ("test_figures",),
    ),
    Fault(
        "rollups are not kept where they are to be kept for ever",
        CLOSE,
        "when s.usage_detail_days is not null\n",
        "when true\n",
        ("test_figures",),
    ),
    Fault(
        "everybody's days are UTC's",
        CLOSE,
        "else date_trunc('day', r.bucket at time zone c.time_zone)",
        "else date_trunc('day', r.bucket at time zone 'UTC')",
        ("test_figures",),
    ),
    Fault(
        "a change of zone leaves the days of the old one",
        CLOSE,
        "when (old.time_zone is distinct from new.time_zone)",
        "when (false)",
        ("test_figures",),
    ),
    Fault(
        "a change of zone counts what came late twice",
        CLOSE,
        "                and not r.late\n        ), false);",
        "        ), false);",
        ("test_figures",),
    ),
    Fault(
        "who came since the closing is not among the busiest",
        "functions/read_admin_monitor.sql",
        "        union\n        select customer_id, key_id from live_keys\n",
        "",
        ("test_figures",),
    ),
    Fault(
        "a request that the client got wrong is its provider's failure",
        ROLLUP,
        "where f ->> 'fault' is distinct from 'client'",
        "where true",
        ("test_figures",),
    ),
    # the price
    Fault(
        "rounded half up",
        MONEY,
        "ceil(p_exact * 10000000000) * 0.0000000001",
        "round(p_exact, 10)",
        ("test_billing",),
    ),
    Fault(
        "rounded twice: the charge is made from the rounded cost",
        SETTLE,
        "else (v_exact_tokens + v_exact_fixed) * v_commission",
        "else v_request.cost_usd * v_commission",
        ("test_billing",),
    ),
    Fault(
        "the price is read at the settlement",
        SETTLE,
        "v_exact_tokens := gateway.tokens_cost_usd(v_route -> 'prices', v_usage);",
        "v_exact_tokens := gateway.tokens_cost_usd((select to_jsonb(p) from gateway.prices as p"
        " join gateway.routes as r on r.offer_id = p.offer_id where r.id = (v_route ->> 'route_id')::bigint"
        " order by p.id desc limit 1), v_usage);",
        ("test_billing",),
    ),
    Fault(
        "the commission is read at the settlement",
        SETTLE,
        "v_commission := 1 + v_request.commission_percent * 0.01;",
        "v_commission := 1 + (select commission_percent from gateway.settings) * 0.01;",
        ("test_billing",),
    ),
    Fault(
        "a class without a price of its own is free",
        MONEY,
        "coalesce((v_rates ->> 'cached_input')::numeric, v_input)",
        "coalesce((v_rates ->> 'cached_input')::numeric, 0)",
        ("test_billing",),
    ),
    # the price of a long prompt
    Fault(
        "the first tier is passed over",
        MONEY,
        "with ordinality order by ordinality loop",
        "with ordinality where ordinality > 1 order by ordinality loop",
        ("test_price_tiers",),
    ),
    Fault(
        "a tier begins at its threshold, not above it",
        MONEY,
        "exit when p_input_tokens <= (",
        "exit when p_input_tokens < (",
        ("test_price_tiers",),
    ),
    Fault(
        "what was cached does not count for the length",
        MONEY,
        "gateway.tier_of_prices(p_prices, gateway.input_tokens(p_usage))",
        "gateway.tier_of_prices(p_prices, coalesce((p_usage ->> 'input')::bigint, 0))",
        ("test_price_tiers",),
    ),
    Fault(
        "the answer counts for the length",
        MONEY,
        "gateway.tier_of_prices(p_prices, gateway.input_tokens(p_usage))",
        "gateway.tier_of_prices(p_prices, gateway.total_tokens(p_usage))",
        ("test_price_tiers",),
    ),
    Fault(
        "a long prompt is held for as a short one",
        ADMIT,
        "if v_candidate.prices ? 'tiers' then",
        "if false then",
        ("test_price_tiers",),
    ),
    Fault(
        "a short prompt is held for as a long one",
        CANDIDATES,
        "(value ->> 'above_input_tokens')::bigint < p_candidate.input_bound",
        "true",
        ("test_price_tiers",),
    ),
    Fault(
        "the hold reaches a tier one token late",
        CANDIDATES,
        "(value ->> 'above_input_tokens')::bigint < p_candidate.input_bound",
        "(value ->> 'above_input_tokens')::bigint < p_candidate.input_bound - 1",
        ("test_price_tiers",),
    ),
    Fault(
        "the hold reaches a tier one token early",
        CANDIDATES,
        "(value ->> 'above_input_tokens')::bigint < p_candidate.input_bound",
        "(value ->> 'above_input_tokens')::bigint <= p_candidate.input_bound",
        ("test_price_tiers",),
    ),
    Fault(
        "a cheaper tier makes the hold less",
        CANDIDATES,
        "        p_candidate.input_rate := greatest(\n            p_candidate.input_rate,\n",
        "        p_candidate.input_rate := greatest(\n            0,\n",
        ("test_price_tiers",),
    ),
    Fault(
        "a dearer answer to a long prompt is not held for",
        CANDIDATES,
        "(v_tier ->> 'output')::numeric,\n",
        "0,\n",
        ("test_price_tiers",),
    ),
    Fault(
        "media in a long prompt are held for as text",
        CANDIDATES,
        "case when p_media_input then greatest((v_tier",
        "case when false then greatest((v_tier",
        ("test_price_tiers",),
    ),
    Fault(
        "a cache of an hour in a long prompt is held for as one of minutes",
        CANDIDATES,
        "case when p_cache_write_1h then (v_tier ->> 'cache_write_1h')::numeric end",
        "null",
        ("test_price_tiers",),
    ),
    Fault(
        "an edit of a price loses its tiers",
        "functions/guards.sql",
        "            new.tiers);",
        "            null);",
        ("test_price_tiers",),
    ),
    Fault(
        "a tier may lack a class of its price",
        "tables/prices.sql",
        "where c.rate is not null and not v_tier ? c.name",
        "where false",
        ("test_price_tiers",),
    ),
    Fault(
        "two tiers may begin at one length",
        "tables/prices.sql",
        "not between v_above + 1 and",
        "not between v_above and",
        ("test_price_tiers",),
    ),
    Fault(
        "a list that changes nothing but tiers changes nothing",
        "functions/import_prices.sql",
        "where e.key <> 'above_input_tokens'\n                group by 1",
        "where false\n                group by 1",
        ("test_price_import",),
    ),
    Fault(
        "a list at a moment of another keeps that one's tiers",
        "functions/import_prices.sql",
        ", tiers = excluded.tiers",
        "",
        ("test_price_import",),
    ),
    Fault(
        "a service's own price gives way to the general one",
        "functions/resolve_candidates.sql",
        "order by v.service_id is null, v.effective_from desc",
        "order by v.effective_from desc",
        ("test_billing",),
    ),
    # the settlement
    Fault(
        "what was held is charged, not what was used",
        SETTLE,
        "    v_due := v_request.charge_usd - v_before;",
        "    v_request.charge_usd := case when v_usage is null then 0 else v_request.hold_usd end;\n"
        "    v_due := v_request.charge_usd - v_before;",
        ("test_billing",),
    ),
    Fault(
        "a failed request keeps its hold",
        SETTLE,
        "v_release := case when v_late then 0 else v_request.hold_usd end;",
        "v_release := case when v_late or v_usage is null then 0 else v_request.hold_usd end;",
        ("test_billing",),
    ),
    Fault(
        "a charge is taken whole without a look at what is free",
        SETTLE,
        " and balance_usd - held_usd + v_release >= v_due",
        "",
        ("test_billing",),
    ),
    Fault(
        "whoever owes pays the charge alone",
        SETTLE,
        "and debt_usd = 0 and balance_usd",
        "and balance_usd",
        ("test_payments",),
    ),
    Fault(
        "no rule says that a charge lowers the balance",
        "functions/row_rules.sql",
        "when p_kind = 'charge' and p_amount_usd >= 0 then",
        "when false then",
        ("test_constraints",),
    ),
    Fault(
        "a settlement takes what others hold",
        SETTLE,
        "v_take := least(v_due, v_account.balance_usd - v_account.held_usd + v_release);",
        "v_take := least(v_due, v_account.balance_usd);",
        ("test_billing",),
    ),
    Fault(
        "a second settlement charges again",
        SETTLE,
        "if v_request.state = 'settled' then",
        "if false then",
        ("test_expiry",),
    ),
    Fault(
        "the request is read without being locked",
        SETTLE,
        "and state <> 'refused'\n    for update;",
        "and state <> 'refused';",
        ("test_races",),
    ),
    Fault(
        "a late settlement is charged whole beside the expired hold's charge",
        SETTLE,
        "v_due := v_request.charge_usd - v_before;",
        "v_due := v_request.charge_usd;",
        ("test_expiry",),
    ),
    Fault(
        "a late settlement leaves the expired request in the rollup",
        SETTLE,
        "if v_late then  -- what its expiry counted",
        "if false then",
        ("test_expiry",),
    ),
    Fault(
        "the ledger tells the balance before the charge",
        SETTLE,
        "-v_take, v_account.balance_usd + v_paid, v_request.id",
        "-v_take, v_account.balance_usd + v_paid + v_take, v_request.id",
        ("test_ledger", "test_billing"),
    ),
    # the expiry
    Fault(
        "the sweeper waits for who is settling",
        EXPIRE,
        "for update skip locked",
        "for update",
        ("test_races", "test_expiry"),
    ),
    Fault(
        "two sweepers end a hold twice",
        EXPIRE,
        "        limit p_limit\n        for update skip locked\n",
        "        limit p_limit\n",
        ("test_races",),
    ),
    Fault(
        "a charged expiry does not count in the rollup",
        EXPIRE,
        "null, 1, 1, '{}', 0, v_charge, 0, null)",
        "null, 1, 1, '{}', 0, 0, 0, null)",
        ("test_expiry",),
    ),
    # the Idempotency-Key
    Fault(
        "a failed request does not free its Idempotency-Key",
        SETTLE,
        "charged = v_usage is not null, freed = v_usage is null",
        "charged = v_usage is not null, freed = false",
        ("test_idempotency",),
    ),
    Fault(
        "an expired request does not free its Idempotency-Key",
        EXPIRE,
        "freed = v_charge = 0",
        "freed = false",
        ("test_expiry",),
    ),
    Fault(
        "a refused request keeps its Idempotency-Key",
        ADMIT,
        "        if v_idempotency_is_new then\n",
        "        if false then\n",
        ("test_idempotency",),
    ),
    Fault(
        "who asks again pays for the late one too",
        SETTLE,
        "if v_late and v_asked_again then",
        "if false then",
        ("test_expiry",),
    ),
    Fault(
        "an admission is answered before it is on the disk",
        ADMIT,
        "    perform set_config('gateway.engine', 'on', true);\n    if p_idempotency_key is not null and not",
        "    perform set_config('synchronous_commit', 'off', true);\n"
        "    perform set_config('gateway.engine', 'on', true);\n    if p_idempotency_key is not null and not",
        ("test_refusals",),
    ),
    # the order of locks
    Fault(
        "the settlement locks the account before the counters",
        SETTLE,
        "    if cardinality(v_request.counted) > 0 then",
        "    perform 1 from gateway.accounts where customer_id = v_request.customer_id for update;\n"
        "    if cardinality(v_request.counted) > 0 then",
        ("test_races",),
    ),
    Fault(
        "counters are locked in any order",
        ADMIT,
        "            order by l.subject, l.subject_id, l.model_id, l.per\n        );",
        "            order by random()\n        );",
        ("test_races",),
    ),
    Fault(
        "a maker's counters are locked before the key's own, whatever their order",
        ADMIT,
        "            order by l.subject, l.subject_id, l.model_id, l.per\n        );",
        "        );",
        ("test_lock_order",),
    ),
    Fault(
        "counters are corrected in any order",
        COUNT,
        "order by x.subject, x.subject_id, x.model_id, x.per",
        "order by random()",
        ("test_races",),
    ),
    Fault(
        "the sweeper locks accounts as they come",
        EXPIRE,
        "    order by customer_id\n    for update;",
        "    order by random()\n    for update;",
        ("test_lock_order",),
    ),
    # the operator's money
    Fault(
        "a correction takes what is held",
        "functions/add_credits.sql",
        "v_account.balance_usd - v_account.held_usd < -v_amount",
        "v_account.balance_usd < -v_amount",
        ("test_ledger", "test_races"),
    ),
    Fault(
        "a reference is credited twice when two come at once",
        "functions/add_credits.sql",
        "where customer_id = v_customer_id for update;",
        "where customer_id = v_customer_id;",
        ("test_races",),
    ),
    # the months of the books
    Fault(
        "a month is closed over books that disagree",
        "functions/close_ledger.sql",
        "if not (api.check_ledger() ->> 'ok')::boolean then",
        "if false then",
        ("test_ledger_months",),
    ),
    Fault(
        "a checkpoint takes in what came after its month",
        "functions/close_ledger.sql",
        " and e.created_at < p_end",
        "",
        ("test_ledger_months",),
    ),
    Fault(
        "a check leaves out late settlements of closed months",
        "functions/check_ledger.sql",
        "        from doubtful as d\n        where (select",
        "        from doubtful as d\n"
        "        where d.id in (select id from gateway.requests where admitted_at >= v_open_from)"
        " and (select",
        ("test_ledger_months",),
    ),
    Fault(
        "a check adds up what a checkpoint has already",
        "functions/check_ledger.sql",
        "(a.customer_id, coalesce(c.through_entry_id, 0)) and l.customer_id",
        "(a.customer_id, coalesce(c.through_entry_id, 0) - 1) and l.customer_id",
        ("test_ledger_months",),
    ),
    Fault(
        "a log is dropped with what still runs in it",
        "functions/drop_request_partitions.sql",
        "elsif exists (select from gateway.requests where state = 'held'",
        "elsif false and exists (select from gateway.requests where state = 'held'",
        ("test_ledger_months",),
    ),
    Fault(
        "a log is dropped one month early",
        "functions/drop_request_partitions.sql",
        "make_interval(months => log_retention_months)",
        "make_interval(months => log_retention_months - 1)",
        ("test_ledger_months",),
    ),
    # people
    Fault(
        "an erased customer is paid in to at the same moment",
        "functions/manage_customers.sql",
        "    perform 1 from gateway.accounts where customer_id = p_id for update;\n",
        "",
        ("test_erasure",),
    ),
    Fault(
        "the notes of an erased customer stay",
        "functions/manage_customers.sql",
        "    update gateway.ledger_entries set note = null",
        "    update gateway.ledger_entries set note = note",
        ("test_erasure",),
    ),
    Fault(
        "the log of an erased customer can be written anew",
        "functions/erasure.sql",
        "        v_allowed.after := gateway.without_person(old.after, old.entity);",
        "        v_allowed.after := new.after;",
        ("test_erasure",),
    ),
    Fault(
        "a limit is lost beside the removal of another",
        "functions/set_limits.sql",
        "on conflict (key_id, customer_id, service_id, model_id, each_model, per)"
        " do update set per = excluded.per\n"
        "        returning * into v_limit;",
        "on conflict do nothing;\n"
        "        select * into v_limit from gateway.limits\n"
        "        where (key_id, customer_id, service_id, model_id, each_model, per)\n"
        "            is not distinct from"
        " (v_key_id, p_customer_id, v_service_id, v_model_id, p_each_model, v_per)\n"
        "        for update;",
        (),
    ),
    # services that fail
    Fault(
        "a service that is set aside is tried as before",
        CANDIDATES,
        "order by coalesce(h.is_aside, false), case",
        "order by case",
        ("test_service_health",),
    ),
    Fault(
        "of services aside the one that failed last is tried first",
        CANDIDATES,
        "case when h.is_aside then h.last_failure_at end,",
        "case when h.is_aside then h.last_failure_at end desc nulls last,",
        ("test_service_health",),
    ),
    Fault(
        "everybody probes a service",
        ADMIT,
        "exit when not v_candidates[1].probe_due\n            or gateway",
        "exit when v_candidates[1].probe_due\n            or gateway",
        ("test_service_health",),
    ),
    Fault(
        "a probe is nobody's own",
        HEALTH,
        "and (probing_until is null or probing_until <= p_at)",
        "and true",
        ("test_service_health",),
    ),
    Fault(
        "a probe that tells nothing is waited for, for ever",
        HEALTH,
        "set probing_until = p_at + interval '30 seconds'",
        "set probing_until = 'infinity'",
        ("test_service_health",),
    ),
    Fault(
        "what failed long ago counts as in a row",
        HEALTH,
        "v_at > v_health.last_failure_at + c_apart",
        "false",
        ("test_service_health",),
    ),
    Fault(
        "a service comes back for as long as before",
        HEALTH,
        "* power(2, least(v_health.set_asides - 1, 10))",
        "* 1",
        ("test_service_health",),
    ),
    Fault(
        "a service is set aside for hours",
        HEALTH,
        "                c_longest,\n",
        "                interval '1 day',\n",
        ("test_service_health",),
    ),
    Fault(
        "what runs adds to what is set aside",
        HEALTH,
        "            or v_health.set_aside_until >= greatest(v_at, v_until);",
        "            or false;",
        ("test_service_health",),
    ),
    Fault(
        "a client's mistakes set a service aside",
        HEALTH,
        "where fault in ('transient', 'operator', 'protocol') and",
        "where fault is not null and",
        ("test_service_health",),
    ),
    Fault(
        "a service that answered in the end has failed",
        HEALTH,
        " and service_id is distinct from p_answered_service_id",
        "",
        ("test_service_health",),
    ),
    Fault(
        "an old stream brings a service back",
        HEALTH,
        "(set_aside_until is null or last_failure_at < p_at)",
        "true",
        ("test_service_health",),
    ),
    Fault(
        "an answer waits for whoever counts a failure",
        HEALTH,
        "        order by route_id\n        for update skip locked\n    loop",
        "        order by route_id\n        for update\n    loop",
        ("test_service_health",),
    ),
    Fault(
        "a rate limit is a failure",
        HEALTH,
        "v_counts := v_failed.status is distinct from 429 or v_failed.fault = 'operator' or v_until is null;",
        "v_counts := true;",
        ("test_service_health",),
    ),
    Fault(
        "a model that is unknown there takes the whole service with it",
        HEALTH,
        "gateway.number_of(f.told -> 'status', 0, 999) = 404\n                    or",
        "false\n                    or",
        ("test_service_health",),
    ),
    Fault(
        "a late settlement sets a service aside",
        HEALTH,
        "        continue when v_at < clock_timestamp() - c_oldest;\n",
        "",
        ("test_service_health",),
    ),
    Fault(
        "a failure counts from its settlement",
        HEALTH,
        "v_at := p_request.admitted_at + make_interval(secs => v_failed.after_ms * 0.001);",
        "v_at := clock_timestamp();",
        ("test_service_health",),
    ),
    Fault(
        "nobody is told of a service that is back",
        HEALTH,
        "if v_health.set_asides > 0 then\n            perform",
        "if false then\n            perform",
        ("test_service_health",),
    ),
)


def tests_in_order(first: tuple[str, ...]) -> list[Path]:
    """The single rules' tests, the likely ones before the rest."""
    found = sorted(path for path in TESTS.glob("test_*.py") if path.name != PROGRAMS)
    found = [path for path in found if path.stem not in {"test_mutations", "test_bootstrap", "test_seeding"}]
    return sorted(found, key=lambda path: first.index(path.stem) if path.stem in first else len(first))


def run_tests(schema: Path, tests: list[Path]) -> Verdict:
    """Run tests on databases built from this schema.sql, until one fails."""
    command = [
        sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider",
        "-p", "tests.database.mutations", "--hypothesis-profile=unshrunk", *map(str, tests),
    ]  # fmt: skip
    environment = {
        **os.environ,
        "SLUICE_TEST_SCHEMA": str(schema),
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY / "functions"), str(REPOSITORY)]),
        "COLUMNS": "400",
    }
    began = time.monotonic()
    ran = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    seconds = time.monotonic() - began
    if ran.returncode == 0:
        return Verdict(None, "", seconds)
    failed = _FAILED.search(ran.stdout)
    if ran.returncode != 1 or failed is None or _NO_FAULT.search(ran.stdout):
        raise RuntimeError(f"that is no fault but nonsense:\n{ran.stdout[-4000:]}{ran.stderr[-1000:]}")
    return Verdict(Path(failed["test"]).name, failed["why"] or "", seconds)


def find(fault: Fault, *, programs: bool) -> Verdict:
    """Which test finds a fault: of the single rules, or of the generated programs."""
    with tempfile.TemporaryDirectory(prefix="sluice-fault-") as directory:
        sources = Path(directory) / "sql"
        shutil.copytree(SOURCES, sources)
        fault.apply(sources)
        tests = [TESTS / PROGRAMS] if programs else tests_in_order(fault.first)
        return run_tests(sources / "schema.sql", tests)


def main(arguments: list[str] | None = None) -> int:
    """Print a table of the faults and of what found them; 1 if one was found by nothing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="faults whose name holds this")
    parser.add_argument("--suite", choices=["both", "rules", "programs"], default="both")
    parser.add_argument("--no-baseline", action="store_true", help="don't first see that all passes as it is")
    options = parser.parse_args(arguments)
    suites = {"rules": [False], "programs": [True], "both": [False, True]}[options.suite]
    if not options.no_baseline:
        whole = run_tests(SOURCES / "schema.sql", [*tests_in_order(()), TESTS / PROGRAMS])
        if whole.test is not None:
            print(f"Without any fault {whole.test} fails: {whole.why}")
            return 1
        print(f"Without a fault all passes ({whole.seconds:.0f} s).", flush=True)
    missed = 0
    for fault in FAULTS:
        if options.only not in fault.name:
            continue
        verdicts = [find(fault, programs=programs) for programs in suites]
        missed += all(verdict.test is None for verdict in verdicts)
        print(f"{fault.name}  ({fault.file})", flush=True)
        for programs, verdict in zip(suites, verdicts, strict=True):
            suite = "programs" if programs else "rules"
            print(
                f"    {suite:8}  {verdict.seconds:4.0f} s  {verdict.test or 'NOT FOUND'}  {verdict.why[:150]}"
            )
    print(f"{missed} not found" if missed else "each was found")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
