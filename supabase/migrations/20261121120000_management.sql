drop function gateway.applicable_limits(bigint, bigint, bigint[], bigint[], text, timestamptz);

drop function gateway.add_to_rollup(gateway.requests, bigint, bigint, integer, integer, jsonb, numeric, numeric, numeric, integer);

drop function api.check_ledger();

drop function gateway.inherit_limits(bigint, bigint, bigint, jsonb);

drop function api.create_key(bigint, text, text, text, text[], bigint[], bigint[], timestamptz, bigint, text, jsonb, bigint);

drop function api.list_keys(integer, bigint, bigint, bigint);

drop function api.list_catalogue(integer, bigint, bigint);

-- The settings of sign-up, events and retention
alter table gateway.settings
    add column auth_sign_up text not null default 'link' constraint settings_auth_sign_up_check check (auth_sign_up in ('off', 'link', 'create')),
    add column webhook_url text constraint settings_webhook_url_check check (webhook_url ~ '^https?://[^/@]+(/|$)' and length(webhook_url) <= 2000),
    add column webhook_secret text constraint settings_webhook_secret_check check (webhook_secret ~ '^v[0-9]+\.'),
    add column log_retention_months integer constraint settings_log_retention_months_check check (log_retention_months between 2 and 1200),
    add column usage_detail_days integer default 93 constraint settings_usage_detail_days_check check (usage_detail_days between 35 and 36600),
    add constraint settings_webhook_is_signed check (webhook_url is null or webhook_secret is not null);

-- The check of the books reads sums from the index
drop index gateway.ledger_customer_idx;
create index ledger_customer_idx on gateway.ledger_entries (customer_id, id) include (amount_usd);

-- Erasing a person
alter table gateway.customers
    add column erased_at timestamptz,
    add column auth_user_id uuid constraint customers_auth_user_id_key unique,
    add constraint customers_erased_is_nobody check (erased_at is null or (not active and email is null and company is null));
drop trigger refuse_change on gateway.audit_log;
drop trigger refuse_change on gateway.ledger_entries;

-- Rollups: all classes of tokens, times by bins, failures of services, and what came after the closing
alter table gateway.usage_rollups
    add column audio_input_tokens bigint not null default 0,
    add column image_input_tokens bigint not null default 0,
    add column audio_output_tokens bigint not null default 0,
    add column image_output_tokens bigint not null default 0,
    add column images bigint not null default 0,
    add column failures bigint not null default 0,
    add column latencies bigint not null default 0,
    add column time_to_first_token_ms bigint not null default 0,
    add column first_tokens bigint not null default 0,
    add column latency_counts integer[] not null default '{}',
    add column first_token_counts integer[] not null default '{}',
    add column last_failure_at timestamptz,
    add column late boolean not null default false,
    drop constraint usage_rollups_pkey,
    add constraint usage_rollups_pkey primary key (customer_id, bucket, key_id, model_id, service_id, late);
-- What the rollups that there are lack comes from the log; failures of services are counted from now on.
do $$
begin
    perform set_config('gateway.engine', 'on', true);
    update gateway.usage_rollups as r
    set audio_input_tokens = l.audio_input_tokens, image_input_tokens = l.image_input_tokens,
        audio_output_tokens = l.audio_output_tokens, image_output_tokens = l.image_output_tokens, images = l.images,
        latencies = l.latencies, time_to_first_token_ms = l.time_to_first_token_ms, first_tokens = l.first_tokens,
        latency_counts = l.counts[1]::integer[], first_token_counts = l.counts[2]::integer[]
    from (
        select g.*, array(
            select coalesce((
                -- an array whose subscripts are the bins, as text
                select '[' || min(n.bin) || ':' || max(n.bin) || ']={' || string_agg(n.count::text, ',' order by n.bin) || '}'
                from (
                    select b.bin, count(m.bin)
                    from (select min(bin) as first, max(bin) as last from unnest(t.bins) as bin) as span
                    cross join generate_series(span.first, span.last) as b (bin)
                    left join unnest(t.bins) as m (bin) on m.bin = b.bin
                    group by b.bin
                ) as n
            ), '{}')
            from (values (1, g.latency_bins), (2, g.first_token_bins)) as t (place, bins)
            order by t.place
        ) as counts
        from (
            select date_bin('15 minutes', q.admitted_at, '2000-01-01 00:00+00'::timestamptz) as bucket, q.customer_id, q.key_id, q.model_id,
                coalesce(q.service_id, 0) as service_id,
                coalesce(sum(q.audio_input_tokens), 0) as audio_input_tokens, coalesce(sum(q.image_input_tokens), 0) as image_input_tokens,
                coalesce(sum(q.audio_output_tokens), 0) as audio_output_tokens, coalesce(sum(q.image_output_tokens), 0) as image_output_tokens,
                coalesce(sum(q.images), 0) as images, count(q.latency_ms) as latencies,
                coalesce(sum(q.time_to_first_token_ms), 0) as time_to_first_token_ms, count(q.time_to_first_token_ms) as first_tokens,
                array_agg(floor(ln(greatest(q.latency_ms, 1)::double precision) * (4 / ln(2::double precision)) + 0.000000001)::integer)
                    filter (where q.latency_ms is not null) as latency_bins,
                array_agg(floor(ln(greatest(q.time_to_first_token_ms, 1)::double precision) * (4 / ln(2::double precision)) + 0.000000001)::integer)
                    filter (where q.time_to_first_token_ms is not null) as first_token_bins
            from gateway.requests as q
            where q.state in ('settled', 'expired')
            group by 1, 2, 3, 4, 5
        ) as g
    ) as l
    where (r.customer_id, r.bucket, r.key_id, r.model_id, r.service_id) = (l.customer_id, l.bucket, l.key_id, l.model_id, l.service_id);
    perform set_config('gateway.engine', 'off', true);
end
$$;

-- Soft marks that are crossed
alter table gateway.limit_counters add column marked boolean not null default false;

alter table gateway.api_keys
    add column maker_key_ids bigint[] not null default '{}',
    add constraint api_keys_makers check (cardinality(maker_key_ids) <= 8 and array_position(maker_key_ids, null) is null);

-- The partitions that are there: new ones are made with their policy
do $$
declare
    v_partition regclass;
begin
    for v_partition in
        select inhrelid from pg_catalog.pg_inherits
        where inhparent = 'gateway.requests'::regclass and inhrelid <> 'gateway.requests_default'::regclass
    loop
        execute format('create policy nobody on %s as restrictive to public using (false)', v_partition);
    end loop;
end
$$;

-- Nobody but its owner has anything to do there, either.
create schema legacy;

revoke all on schema legacy from public;

comment on schema legacy is 'Read-only views under the names that other gateways'' documents use (users, usage_records, rate_limits, pricing, api_usage …), for people who come from there. Exposed to nobody.';

comment on column gateway.settings.auth_sign_up is 'What a Supabase Auth token does whose person is no customer yet: off (refused), link (to the customer with its confirmed address), create (a customer, where none has the address).';

comment on column gateway.settings.webhook_url is 'Where events are sent; empty: nowhere.';

comment on column gateway.settings.webhook_secret is 'What events are signed with, AES-256-GCM under a master key that this database never sees. Never plain text: the check refuses it.';

comment on column gateway.settings.log_retention_months is 'Whole months of the request log that are kept beside the current one; empty: all, for ever. The books, checkpoints and sums of older months stay.';

comment on column gateway.settings.usage_detail_days is 'For how many days usage is kept by the quarter of an hour, for charts by the hour; empty: for ever. By day and month it is kept for ever.';

comment on column gateway.customers.erased_at is 'When the person behind it was erased, for good: api.erase_customer does it. The row and the books stay.';

comment on column gateway.customers.auth_user_id is 'The person''s id in Supabase Auth, once one of its access tokens was linked; empty: none.';

comment on column gateway.api_keys.maker_key_ids is 'The key that made it, that one''s maker, and so on, the first of them first; {}: made by an admin or a customer in person. Their limits count its requests, too.';

create table gateway.retired_secrets (
    secret_hash bytea primary key check (length(secret_hash) = 32),
    key_id bigint not null references gateway.api_keys,
    expires_at timestamptz not null
);

create index retired_secrets_key_idx on gateway.retired_secrets (key_id);

create index retired_secrets_expires_idx on gateway.retired_secrets (expires_at);

alter table gateway.retired_secrets enable row level security;

comment on table gateway.retired_secrets is 'Secrets that were replaced and still work for a while. Looked at only when api_keys knows no such secret. Written by api.rotate_key; delete a row to end a secret at once.';

comment on column gateway.retired_secrets.secret_hash is 'SHA-256 of the whole key, as in api_keys.';

comment on column gateway.retired_secrets.key_id is 'Whose secret it was. The key''s own state, scopes and expiry hold for it too.';

comment on column gateway.retired_secrets.expires_at is 'Refused from here on.';

comment on column gateway.limit_counters.marked is 'Whether requests have reserved beyond a soft mark of the window: their settlements look whether what is really used is beyond it, too.';

-- What went beyond a soft mark. No foreign keys: a crossing is written while the counters and the account are locked, and must wait for nobody.
create table gateway.limit_crossings (
    subject text not null check (subject in ('key', 'customer', 'service')),
    subject_id bigint not null,
    model_id bigint not null default 0,
    per text not null check (per in ('minute', 'hour', 'day', 'month')),
    window_start timestamptz not null,
    metric text not null check (metric in ('requests', 'tokens', 'spend_usd')),
    mark numeric(30, 10) not null check (mark >= 0),
    used numeric(30, 10) not null,
    customer_id bigint,
    at timestamptz not null default clock_timestamp(),
    primary key (subject, subject_id, model_id, per, window_start, metric),
    constraint limit_crossings_are_beyond check (used > mark),
    constraint limit_crossings_customer check (subject <> 'service' or customer_id is null)
);

create index limit_crossings_at_idx on gateway.limit_crossings (at);

create index limit_crossings_customer_idx on gateway.limit_crossings (customer_id, at) where customer_id is not null;

alter table gateway.limit_crossings enable row level security;

comment on table gateway.limit_crossings is 'Soft marks that were crossed, by what was really used: once for each window. Written by the engine''s functions.';

comment on column gateway.limit_crossings.subject is 'key, customer or service.';

comment on column gateway.limit_crossings.subject_id is 'Its id.';

comment on column gateway.limit_crossings.model_id is 'With a key: the one model whose use crossed its mark; 0: all together.';

comment on column gateway.limit_crossings.per is 'The window''s length.';

comment on column gateway.limit_crossings.window_start is 'Start of the window.';

comment on column gateway.limit_crossings.metric is 'requests, tokens or spend_usd.';

comment on column gateway.limit_crossings.mark is 'The soft mark, as it was then.';

comment on column gateway.limit_crossings.used is 'What was used when the crossing was seen; running requests are not in it.';

comment on column gateway.limit_crossings.customer_id is 'The customer, or the key''s; empty for a service, which is the operator''s affair.';

comment on column gateway.limit_crossings.at is 'When it was seen: for requests at the admission, else when the request that crossed was settled.';

create table gateway.turned_windows (
    subject text not null check (subject in ('key', 'customer', 'service')),
    subject_id bigint not null,
    model_id bigint not null,
    per text not null check (per in ('minute', 'hour', 'day', 'month')),
    window_start timestamptz not null,
    requests bigint not null check (requests >= 0),
    tokens bigint not null check (tokens >= 0),
    spend_usd numeric(20, 10) not null check (spend_usd >= 0),
    turned_at timestamptz not null default clock_timestamp(),
    primary key (subject, subject_id, model_id, per, window_start)
);

create index turned_windows_turned_idx on gateway.turned_windows (turned_at);

alter table gateway.turned_windows enable row level security;

comment on table gateway.turned_windows is 'Counters of windows that passed while they were marked: what still ran then may yet carry them beyond a soft mark. Kept for a day.';

comment on column gateway.turned_windows.subject is 'As in limit_counters.';

comment on column gateway.turned_windows.subject_id is 'As in limit_counters.';

comment on column gateway.turned_windows.model_id is 'As in limit_counters.';

comment on column gateway.turned_windows.per is 'As in limit_counters.';

comment on column gateway.turned_windows.window_start is 'Start of the window that has passed.';

comment on column gateway.turned_windows.requests is 'Requests admitted in the window.';

comment on column gateway.turned_windows.tokens is 'Tokens used in the window; those of requests that still run at their bound.';

comment on column gateway.turned_windows.spend_usd is 'USD used in the window; those of requests that still run at their hold.';

comment on column gateway.turned_windows.turned_at is 'When the first request of a newer window came.';

create index requests_admitted_idx on gateway.requests (admitted_at desc, id);

-- Why providers failed: of the few requests whose routes did. No update is made dearer: state is in an index already.
create index requests_failed_idx on gateway.requests (admitted_at) where failed_routes is not null;

-- What was paid in, without the charges, which are many.
create index ledger_paid_idx on gateway.ledger_entries (customer_id) include (amount_usd) where request_id is null;

create table gateway.ledger_months (
    month date primary key constraint ledger_months_begin check (extract(day from month) = 1),
    closed_at timestamptz not null default clock_timestamp(),
    log_dropped_at timestamptz,
    booked_requests bigint,
    collected_usd numeric(24, 10),
    constraint ledger_months_dropped_are_counted
        check (num_nonnulls(log_dropped_at, booked_requests, collected_usd) in (0, 3))
);

alter table gateway.ledger_months enable row level security;

comment on table gateway.ledger_months is 'The months (UTC) whose books are closed: they agreed, and were summed up into ledger_checkpoints. Every month up to the last one here is. Written by the engine''s functions only.';

comment on column gateway.ledger_months.month is 'Its first day.';

comment on column gateway.ledger_months.closed_at is 'When it was closed.';

comment on column gateway.ledger_months.log_dropped_at is 'When the month''s part of the request log was dropped, by the setting log_retention_months; empty: it is there.';

comment on column gateway.ledger_months.booked_requests is 'How many requests of the dropped log had money taken for them.';

comment on column gateway.ledger_months.collected_usd is 'What was taken for them: the entries that name a request which is not in the log any more come to this.';

create table gateway.ledger_checkpoints (
    customer_id bigint not null references gateway.accounts,
    month date not null,
    through_entry_id bigint not null,
    entries bigint not null check (entries > 0),
    balance_usd numeric(20, 10) not null,
    primary key (customer_id, month)
);

alter table gateway.ledger_checkpoints enable row level security;

comment on table gateway.ledger_checkpoints is 'A customer''s balance at the end of each month in which it had entries, so that a check of the books costs the same however long they are. Written by the engine''s functions only.';

comment on column gateway.ledger_checkpoints.customer_id is 'Whose account.';

comment on column gateway.ledger_checkpoints.month is 'The first day of the month (UTC).';

comment on column gateway.ledger_checkpoints.through_entry_id is 'The last of the customer''s entries that is in it. A customer''s entries are numbered under the lock of its account, so that none with a smaller number can turn up later.';

comment on column gateway.ledger_checkpoints.entries is 'How many entries came since the checkpoint before.';

comment on column gateway.ledger_checkpoints.balance_usd is 'Sum of the customer''s entries so far.';

create index usage_rollups_late_idx on gateway.usage_rollups (customer_id) where late;

comment on column gateway.usage_rollups.audio_input_tokens is 'Audio tokens read.';

comment on column gateway.usage_rollups.image_input_tokens is 'Image tokens read.';

comment on column gateway.usage_rollups.audio_output_tokens is 'Audio tokens answered.';

comment on column gateway.usage_rollups.image_output_tokens is 'Image tokens answered.';

comment on column gateway.usage_rollups.images is 'Images made.';

comment on column gateway.usage_rollups.failures is 'Attempts through the service that failed, whoever answered in the end.';

comment on column gateway.usage_rollups.latencies is 'How many latencies are in that sum: an expired request has none.';

comment on column gateway.usage_rollups.time_to_first_token_ms is 'Sum of the times to the first token, in milliseconds.';

comment on column gateway.usage_rollups.first_tokens is 'How many are in that sum: an answer that was not streamed has none.';

comment on column gateway.usage_rollups.latency_counts is 'How many latencies lie in which bin of gateway.time_bin; the subscripts are the bins in use, empty within counts as 0.';

comment on column gateway.usage_rollups.first_token_counts is 'The same of the times to the first token.';

comment on column gateway.usage_rollups.last_failure_at is 'When the last request was admitted for which the service failed.';

comment on column gateway.usage_rollups.late is 'True: came when its bucket had been closed already, and is added to usage_periods by the next closing.';

-- The closed tier of analytics: what usage_rollups' finished quarters of an hour come to by day and month, each by itself for every question
-- that is asked, so that a chart reads a row for each point, however many requests there were. Written by api.close_usage alone.
create table gateway.usage_periods (
    customer_id bigint not null,
    per text not null constraint usage_periods_per_check check (per in ('quarter', 'day', 'month')),
    grouped_by text not null
        constraint usage_periods_grouped_by_check check (grouped_by in ('all', 'key', 'model', 'service', 'key_model', 'key_service')),
    period timestamp not null,
    key_id bigint not null default 0,
    model_id bigint not null default 0,
    service_id bigint not null default 0,
    requests bigint not null default 0,
    errors bigint not null default 0,
    failures bigint not null default 0,
    input_tokens bigint not null default 0,
    cached_input_tokens bigint not null default 0,
    cache_write_tokens bigint not null default 0,
    audio_input_tokens bigint not null default 0,
    image_input_tokens bigint not null default 0,
    output_tokens bigint not null default 0,
    reasoning_tokens bigint not null default 0,
    audio_output_tokens bigint not null default 0,
    image_output_tokens bigint not null default 0,
    images bigint not null default 0,
    total_tokens bigint not null default 0,
    cost_usd numeric(24, 10) not null default 0,
    charge_usd numeric(24, 10) not null default 0,
    uncollected_usd numeric(24, 10) not null default 0,
    latency_ms bigint not null default 0,
    latencies bigint not null default 0,
    time_to_first_token_ms bigint not null default 0,
    first_tokens bigint not null default 0,
    latency_counts integer[] not null default '{}',
    first_token_counts integer[] not null default '{}',
    last_request_at timestamptz not null,
    last_failure_at timestamptz,
    constraint usage_periods_pkey primary key (customer_id, per, grouped_by, period, key_id, model_id, service_id)
) with (fillfactor = 70);

create index usage_periods_quarter_idx on gateway.usage_periods (period) where per = 'quarter';

alter table gateway.usage_periods enable row level security;

comment on table gateway.usage_periods is 'Sums of usage_rollups by day and month, for every way in which they are asked for. Kept for ever, quarters of an hour excepted. Written by the engine''s functions only.';

comment on column gateway.usage_periods.customer_id is 'Whose requests; 0: everybody''s.';

comment on column gateway.usage_periods.per is 'day or month; quarter (of an hour) of everybody''s alone.';

comment on column gateway.usage_periods.grouped_by is 'What the row is a sum of: all, or one key, model, service, key and model, key and service.';

comment on column gateway.usage_periods.period is 'Start of the period, by the clock of the time zone that the customer had when it was closed; everybody''s by UTC''s.';

comment on column gateway.usage_periods.key_id is 'With which key; 0: with any.';

comment on column gateway.usage_periods.model_id is 'Of which model; 0: of any.';

comment on column gateway.usage_periods.service_id is 'Answered by which service; 0: by none, or, where rows are not grouped by service, by any.';

comment on column gateway.usage_periods.requests is 'Requests that have ended.';

comment on column gateway.usage_periods.errors is 'Of these, those that failed or expired.';

comment on column gateway.usage_periods.failures is 'Attempts through the service that failed, whoever answered in the end.';

comment on column gateway.usage_periods.input_tokens is 'Input tokens in no other class.';

comment on column gateway.usage_periods.cached_input_tokens is 'Input tokens read from a cache.';

comment on column gateway.usage_periods.cache_write_tokens is 'Input tokens written to a cache.';

comment on column gateway.usage_periods.audio_input_tokens is 'Audio tokens read.';

comment on column gateway.usage_periods.image_input_tokens is 'Image tokens read.';

comment on column gateway.usage_periods.output_tokens is 'Output tokens in no other class.';

comment on column gateway.usage_periods.reasoning_tokens is 'Of the output tokens, those spent on reasoning.';

comment on column gateway.usage_periods.audio_output_tokens is 'Audio tokens answered.';

comment on column gateway.usage_periods.image_output_tokens is 'Image tokens answered.';

comment on column gateway.usage_periods.images is 'Images made.';

comment on column gateway.usage_periods.total_tokens is 'Tokens of all classes.';

comment on column gateway.usage_periods.cost_usd is 'What the providers take.';

comment on column gateway.usage_periods.charge_usd is 'What the customer owes.';

comment on column gateway.usage_periods.uncollected_usd is 'Of the charge, what could not be taken.';

comment on column gateway.usage_periods.latency_ms is 'Sum of the latencies, in milliseconds.';

comment on column gateway.usage_periods.latencies is 'How many latencies are in that sum: an expired request has none.';

comment on column gateway.usage_periods.time_to_first_token_ms is 'Sum of the times to the first token, in milliseconds.';

comment on column gateway.usage_periods.first_tokens is 'How many are in that sum: an answer that was not streamed has none.';

comment on column gateway.usage_periods.latency_counts is 'How many latencies lie in which bin of gateway.time_bin; the subscripts are the bins in use, empty within counts as 0.';

comment on column gateway.usage_periods.first_token_counts is 'The same of the times to the first token.';

comment on column gateway.usage_periods.last_request_at is 'When the last of them was admitted.';

comment on column gateway.usage_periods.last_failure_at is 'When the last request was admitted for which the service failed.';

-- Narrow, because the admin monitor looks through a day of it.
create table gateway.key_days (
    day date not null,
    customer_id bigint not null,
    key_id bigint not null,
    requests bigint not null,
    total_tokens bigint not null,
    charge_usd numeric(24, 10) not null,
    constraint key_days_pkey primary key (day, customer_id, key_id)
) with (fillfactor = 70);

create index key_days_tokens_idx on gateway.key_days (day, total_tokens desc);

alter table gateway.key_days enable row level security;

comment on table gateway.key_days is 'What each key used on each day of UTC: who is active, and who uses the most. Kept as long as usage_rollups. Written by the engine''s functions only.';

comment on column gateway.key_days.day is 'The day, in UTC.';

comment on column gateway.key_days.customer_id is 'Whose key.';

comment on column gateway.key_days.key_id is 'The key.';

comment on column gateway.key_days.requests is 'Requests that have ended.';

comment on column gateway.key_days.total_tokens is 'Tokens of all classes.';

comment on column gateway.key_days.charge_usd is 'What the customer owes.';

create table gateway.active_days (
    day date not null,
    customers bigint not null,
    constraint active_days_pkey primary key (day)
);

alter table gateway.active_days enable row level security;

comment on table gateway.active_days is 'How many customers have rows in key_days, by day, so that nobody has to count them. Written by the engine''s functions only.';

comment on column gateway.active_days.day is 'The day, in UTC.';

comment on column gateway.active_days.customers is 'Customers with a request that has ended and was admitted on that day.';

create table gateway.usage_closing (
    singleton boolean primary key default true constraint usage_closing_singleton_check check (singleton),
    closed_until timestamptz not null default date_bin('15 minutes', now(), '2000-01-01 00:00+00'::timestamptz),
    kept_from timestamptz not null default '-infinity'
);

insert into gateway.usage_closing (closed_until)
select coalesce(min(bucket), date_bin('15 minutes', now(), '2000-01-01 00:00+00'::timestamptz)) from gateway.usage_rollups;

alter table gateway.usage_closing enable row level security;

comment on table gateway.usage_closing is 'How far usage is closed: exactly one row. Written by the engine''s functions only.';

comment on column gateway.usage_closing.singleton is 'Always true: there is one row.';

comment on column gateway.usage_closing.closed_until is 'Buckets before it are in usage_periods, from it on in usage_rollups alone. Late rows of usage_rollups are not in usage_periods yet, whatever their bucket.';

comment on column gateway.usage_closing.kept_from is 'usage_rollups is complete from here on; older rows have been deleted by the setting usage_detail_days.';

create index refusal_rollups_bucket_idx on gateway.refusal_rollups (bucket);

create index audit_log_actor_idx on gateway.audit_log (actor, id);

create index audit_log_at_idx on gateway.audit_log (at);

-- The outbox: what happened that an operator wants to hear of, and how far the telling has come.
create table gateway.events (
    id uuid primary key default gen_random_uuid(),
    at timestamptz not null default clock_timestamp(),
    kind text not null check (kind ~ '^[a-z_]+(\.[a-z_]+)+$'),
    customer_id bigint,
    subject text not null,
    data jsonb not null check (jsonb_typeof(data) = 'object'),
    dedupe_key text constraint events_dedupe_key unique
);

create index events_at_idx on gateway.events (at);

alter table gateway.events enable row level security;

comment on table gateway.events is 'What happened that an operator wants to hear of. Ids and figures only: nothing of a person, no secret, no content. Kept for 90 days.';

comment on column gateway.events.id is 'Identifies the event; its webhook-id is evt_ and these hexadecimal digits.';

comment on column gateway.events.at is 'When it happened.';

comment on column gateway.events.kind is 'What happened, such as limit.soft_crossed.';

comment on column gateway.events.customer_id is 'Whom it is about, where it is about a customer.';

comment on column gateway.events.subject is 'What it is about, such as key:12.';

comment on column gateway.events.data is 'The particulars, as the webhook is sent them.';

comment on column gateway.events.dedupe_key is 'A second event with it is not written; empty: every one is.';

create table gateway.event_deliveries (
    event_id uuid primary key references gateway.events on delete cascade,
    attempts integer not null default 0 check (attempts >= 0),
    next_attempt_at timestamptz default clock_timestamp(),
    claimed_until timestamptz,
    delivered_at timestamptz,
    last_status integer,
    last_error text,
    constraint event_deliveries_end check (delivered_at is null or next_attempt_at is null)
);

create index event_deliveries_due_idx on gateway.event_deliveries (next_attempt_at) where next_attempt_at is not null;

create index event_deliveries_delivered_idx on gateway.event_deliveries (delivered_at) where delivered_at is not null;

create index event_deliveries_given_up_idx on gateway.event_deliveries (event_id) where delivered_at is null and next_attempt_at is null;

alter table gateway.event_deliveries enable row level security;

comment on table gateway.event_deliveries is 'The sending of an event to the webhook; events that came while no webhook was set have none. To send one again, set next_attempt_at to now() and delivered_at to null.';

comment on column gateway.event_deliveries.event_id is 'The event.';

comment on column gateway.event_deliveries.attempts is 'How often it was sent, or was about to be.';

comment on column gateway.event_deliveries.next_attempt_at is 'When it is due; empty: it was delivered, or given up.';

comment on column gateway.event_deliveries.claimed_until is 'Until then a maintainer is at it, and no other takes it.';

comment on column gateway.event_deliveries.delivered_at is 'When the receiver took it (answered 2xx).';

comment on column gateway.event_deliveries.last_status is 'HTTP status of the last attempt; empty: there was no answer.';

comment on column gateway.event_deliveries.last_error is 'What was wrong with the last attempt.';

-- Here and in windows.sql: PL/pgSQL with a search_path of its own costs an admission and its settlement no more than SQL that is
-- inlined (2.90 and 2.75 ms of CPU the pair, measured); SQL with one is not inlined and is planned at every call: 8 % more.

-- The one place where money is rounded.
create or replace function gateway.round_up_usd(p_exact numeric) returns numeric
language plpgsql immutable parallel safe set search_path = ''
as $$
begin
    return ceil(p_exact * 10000000000) * 0.0000000001;
end
$$;

create or replace function gateway.show_credits(p_usd numeric, p_credit_value_usd numeric) returns numeric
language plpgsql immutable parallel safe set search_path = ''
as $$
begin
    return trim_scale(floor(p_usd / p_credit_value_usd * 10000) * 0.0001);
end
$$;

create or replace function gateway.show_usd(p_usd numeric) returns text
language plpgsql immutable parallel safe set search_path = ''
as $$
begin
    return trim_scale(p_usd)::text;
end
$$;

create or replace function gateway.tokens_cost_usd(p_prices jsonb, p_usage jsonb) returns numeric
language plpgsql immutable parallel safe set search_path = ''
as $$
declare
    v_input constant numeric := (p_prices ->> 'input')::numeric;
    v_output constant numeric := (p_prices ->> 'output')::numeric;
begin
    return (
        coalesce((p_usage ->> 'input')::bigint, 0) * v_input
        + coalesce((p_usage ->> 'cached_input')::bigint, 0) * coalesce((p_prices ->> 'cached_input')::numeric, v_input)
        + coalesce((p_usage ->> 'cache_write')::bigint, 0) * coalesce((p_prices ->> 'cache_write')::numeric, v_input)
        + coalesce((p_usage ->> 'audio_input')::bigint, 0) * coalesce((p_prices ->> 'audio_input')::numeric, v_input)
        + coalesce((p_usage ->> 'image_input')::bigint, 0) * coalesce((p_prices ->> 'image_input')::numeric, v_input)
        + coalesce((p_usage ->> 'output')::bigint, 0) * v_output
        + coalesce((p_usage ->> 'audio_output')::bigint, 0) * coalesce((p_prices ->> 'audio_output')::numeric, v_output)
        + coalesce((p_usage ->> 'image_output')::bigint, 0) * coalesce((p_prices ->> 'image_output')::numeric, v_output)
    ) * 0.000001;
end
$$;

create or replace function gateway.fixed_cost_usd(p_prices jsonb, p_usage jsonb) returns numeric
language plpgsql immutable parallel safe set search_path = ''
as $$
begin
    return coalesce((p_prices ->> 'per_request')::numeric, 0)
        + coalesce((p_usage ->> 'images')::bigint, 0) * coalesce((p_prices ->> 'per_image')::numeric, 0);
end
$$;

create or replace function gateway.total_tokens(p_usage jsonb) returns bigint
language plpgsql immutable parallel safe set search_path = ''
as $$
begin
    return coalesce((p_usage ->> 'input')::bigint, 0) + coalesce((p_usage ->> 'cached_input')::bigint, 0)
        + coalesce((p_usage ->> 'cache_write')::bigint, 0) + coalesce((p_usage ->> 'audio_input')::bigint, 0)
        + coalesce((p_usage ->> 'image_input')::bigint, 0) + coalesce((p_usage ->> 'output')::bigint, 0)
        + coalesce((p_usage ->> 'audio_output')::bigint, 0) + coalesce((p_usage ->> 'image_output')::bigint, 0);
end
$$;

create or replace function gateway.window_start(p_per text, p_at timestamptz, p_time_zone text) returns timestamptz
language plpgsql stable parallel safe set search_path = ''
as $$
begin
    return date_trunc(p_per, p_at, p_time_zone);
end
$$;

create or replace function gateway.window_end(p_per text, p_start timestamptz, p_time_zone text) returns timestamptz
language plpgsql stable parallel safe set search_path = ''
as $$
begin
    return case
        when p_per in ('minute', 'hour') then p_start + ('1 ' || p_per)::interval
        -- truncated again: where clocks change at midnight a day may begin at one o'clock, but only that day
        else date_trunc(p_per, (p_start at time zone p_time_zone) + ('1 ' || p_per)::interval) at time zone p_time_zone
    end;
end
$$;

create or replace function gateway.rollup_bucket(p_at timestamptz) returns timestamptz
language plpgsql immutable parallel safe set search_path = ''
as $$
begin
    return date_bin('15 minutes', p_at, '2000-01-01 00:00+00'::timestamptz);
end
$$;

create or replace function gateway.record_audit() returns trigger
language plpgsql security definer set search_path = ''
as $$
declare
    v_old jsonb := case when tg_op <> 'INSERT' then to_jsonb(old) end;
    v_new jsonb := case when tg_op <> 'DELETE' then to_jsonb(new) end;
    v_id text := coalesce(v_new ->> 'id', v_old ->> 'id', v_old ->> 'key_id', '1');
    v_before jsonb := v_old;
    v_after jsonb := v_new;
    v_secret text;
begin
    if tg_op = 'UPDATE' then
        select coalesce(jsonb_object_agg(o.key, o.value), '{}'), coalesce(jsonb_object_agg(o.key, v_new -> o.key), '{}')
        into v_before, v_after
        from jsonb_each(v_old) as o
        where o.value is distinct from v_new -> o.key;
        if v_after = '{}' then
            return null;
        end if;
    end if;
    foreach v_secret in array array['secret_hash', 'provider_key', 'webhook_secret'] loop
        if v_before ->> v_secret is not null then
            v_before := v_before || jsonb_build_object(v_secret, '(not shown)');
        end if;
        if v_after ->> v_secret is not null then
            v_after := v_after || jsonb_build_object(v_secret, '(not shown)');
        end if;
    end loop;
    insert into gateway.audit_log (actor, action, entity, entity_id, before, after)
    values (coalesce(nullif(current_setting('gateway.actor', true), ''), session_user), lower(tg_op), tg_table_name, v_id, v_before, v_after);
    return null;
end
$$;

create trigger refuse_change before delete or truncate on gateway.ledger_entries
    for each statement execute function gateway.refuse_change();

create trigger refuse_hand_edit before insert or update or delete or truncate on gateway.ledger_months
    for each statement execute function gateway.refuse_hand_edit();

create trigger refuse_hand_edit before insert or update or delete or truncate on gateway.ledger_checkpoints
    for each statement execute function gateway.refuse_hand_edit();

create trigger refuse_hand_edit before insert or update or truncate on gateway.retired_secrets
    for each statement execute function gateway.refuse_hand_edit();

create trigger refuse_change before update or truncate on gateway.events
    for each statement execute function gateway.refuse_change();

create trigger refuse_change before update or truncate on gateway.limit_crossings
    for each statement execute function gateway.refuse_change();

-- Written by triggers alone: no hand adds what nobody did.
create trigger refuse_hand_edit before insert on gateway.audit_log
    for each statement when (pg_trigger_depth() = 0) execute function gateway.refuse_hand_edit();

create trigger refuse_change before delete or truncate on gateway.audit_log
    for each statement execute function gateway.refuse_change();

-- A secret that still worked and that a hand has ended, by the key's id; those whose time is over are forgotten in silence.
create trigger record_audit after delete on gateway.retired_secrets for each row
    when (old.expires_at > now() and current_setting('gateway.engine', true) is distinct from 'on')
    execute function gateway.record_audit();

-- A person can be erased from what otherwise stays as it was written. What may change then is decided here by the rows themselves, not by
-- who asks: only of customers that are erased, and only personal data to nothing.

create function gateway.without_person(p_row jsonb, p_entity text) returns jsonb
language plpgsql immutable set search_path = ''
as $$
begin
    return coalesce((
        select jsonb_object_agg(r.key, case when r.key = any (personal.columns) and r.value <> 'null' then to_jsonb('(erased)'::text) else r.value end)
        from jsonb_each(p_row) as r
        cross join (
            select case p_entity
                when 'customers' then array['name', 'username', 'email', 'company', 'auth_user_id']
                when 'api_keys' then array['name']
            end as columns
        ) as personal
    ), p_row);
end
$$;

comment on function gateway.without_person(jsonb, text) is 'A row as the audit log keeps it, with (erased) in place of what tells the person: of customers and of api_keys.';

revoke all on function gateway.without_person(jsonb, text) from public;

create function gateway.is_erased(p_entity text, p_entity_id text) returns boolean
language plpgsql stable set search_path = ''
as $$
begin
    return exists (
        select from gateway.customers as c
        where c.erased_at is not null
            and c.id = case p_entity
                when 'customers' then p_entity_id::bigint
                when 'api_keys' then (select k.customer_id from gateway.api_keys as k where k.id = p_entity_id::bigint)
            end
    );
end
$$;

comment on function gateway.is_erased(text, text) is 'Whether a row of customers or api_keys, as the audit log names it, is of a customer that is erased.';

revoke all on function gateway.is_erased(text, text) from public;

create function gateway.guard_audit_log() returns trigger
language plpgsql set search_path = ''
as $$
declare
    v_allowed gateway.audit_log := old;
begin
    if gateway.is_erased(old.entity, old.entity_id) then
        v_allowed.before := gateway.without_person(old.before, old.entity);
        v_allowed.after := gateway.without_person(old.after, old.entity);
    end if;
    -- What the person did themselves. Set by api.erase_customer, for its own transaction.
    if old.actor = 'user ' || current_setting('gateway.erased_user', true) and new.actor = 'user (erased)' then
        v_allowed.actor := new.actor;
    end if;
    if new is distinct from v_allowed then
        raise exception 'update on gateway.audit_log is refused: what was written stays' using errcode = 'restrict_violation';
    end if;
    return new;
end
$$;

comment on function gateway.guard_audit_log() is 'Trigger: what was written stays, but for the personal data of a customer that is erased.';

revoke all on function gateway.guard_audit_log() from public;

create function gateway.guard_ledger() returns trigger
language plpgsql set search_path = ''
as $$
declare
    v_allowed gateway.ledger_entries := old;
begin
    if old.request_id is null and gateway.is_erased('customers', old.customer_id::text) then
        v_allowed.note := null;
    end if;
    if new is distinct from v_allowed then
        raise exception 'update on gateway.ledger_entries is refused: what was written stays' using errcode = 'restrict_violation';
    end if;
    return new;
end
$$;

comment on function gateway.guard_ledger() is 'Trigger: what was written stays, but for the notes of a customer that is erased.';

revoke all on function gateway.guard_ledger() from public;

create function gateway.guard_erased() returns trigger
language plpgsql set search_path = ''
as $$
begin
    if current_setting('gateway.engine', true) is distinct from 'on' then
        raise exception 'customer % is erased, or is to be, and that is not done by hand', old.id
            using errcode = 'restrict_violation', hint = 'To erase a person call api.erase_customer; it can''t be undone.';
    end if;
    return new;
end
$$;

comment on function gateway.guard_erased() is 'Trigger: a customer is erased by the function for it, whole and for good.';

revoke all on function gateway.guard_erased() from public;

create function gateway.refuse_key_of_erased() returns trigger
language plpgsql set search_path = ''
as $$
declare
    v_erased_at timestamptz;
begin
    -- Locked, so that of an erasure and a new key at once the later one sees the earlier.
    select erased_at into v_erased_at from gateway.customers where id = new.customer_id for key share;
    if v_erased_at is not null then
        raise exception 'customer % is erased', new.customer_id using errcode = 'restrict_violation';
    end if;
    return new;
end
$$;

comment on function gateway.refuse_key_of_erased() is 'Trigger: an erased customer gets no key any more.';

revoke all on function gateway.refuse_key_of_erased() from public;

create trigger guard_audit_log before update on gateway.audit_log for each row execute function gateway.guard_audit_log();

create trigger guard_ledger before update on gateway.ledger_entries for each row execute function gateway.guard_ledger();

create trigger guard_erased before insert or update on gateway.customers for each row when (new.erased_at is not null) execute function gateway.guard_erased();

create trigger guard_erased_undone before update on gateway.customers
    for each row when (old.erased_at is not null and new.erased_at is null) execute function gateway.guard_erased();

create trigger refuse_key_of_erased before insert or update of customer_id on gateway.api_keys
    for each row execute function gateway.refuse_key_of_erased();

-- api.create_request_partitions: makes the request log's monthly partitions from this month to p_months ahead, and of earlier months where
-- the default partition has requests of them.
-- Returns the names of those that it made. Locks the default partition, and so the log, only when it makes one. For maintenance.
-- The default partition is a safety net, so that a missed job never refuses a request; its rows move out here.
create or replace function api.create_request_partitions(p_months integer default 3) returns text[]
language plpgsql security definer set search_path = ''
as $$
declare
    v_month date;
    v_name text;
    v_from timestamptz;
    v_to timestamptz;
    v_made text[] := '{}'::text[];
begin
    perform set_config('gateway.engine', 'on', true);
    foreach v_month in array array(
        select date_trunc('month', now() at time zone 'UTC') + make_interval(months => i) from generate_series(0, p_months) as i
        union
        select date_trunc('month', admitted_at at time zone 'UTC') from gateway.requests_default
        order by 1
    ) loop
        v_name := 'requests_' || to_char(v_month, 'YYYY_MM');
        v_from := v_month::timestamp at time zone 'UTC';
        v_to := (v_month + interval '1 month') at time zone 'UTC';
        if to_regclass('gateway.' || v_name) is null then
            -- In this order, so that two makers don't make the same one, and that nothing enters the default partition while it is emptied.
            lock table only gateway.requests in share update exclusive mode;
            lock table gateway.requests_default in access exclusive mode;
            continue when to_regclass('gateway.' || v_name) is not null;
            execute format('create table gateway.%I (like gateway.requests including defaults including constraints)', v_name);
            execute format('alter table gateway.%I enable row level security', v_name);
            execute format('create policy nobody on gateway.%I as restrictive to public using (false)', v_name);
            execute format('comment on table gateway.%I is %L', v_name, 'Requests of ' || to_char(v_month, 'YYYY-MM') || ' (UTC): a partition of gateway.requests.');
            execute format('with moved as (delete from gateway.requests_default where admitted_at >= %L and admitted_at < %L returning *) '
                           'insert into gateway.%I select * from moved', v_from, v_to, v_name);
            execute format('alter table gateway.requests attach partition gateway.%I for values from (%L) to (%L)', v_name, v_from, v_to);
            execute format('create trigger refuse_hand_edit before insert or update or delete or truncate on gateway.%I '
                           'for each statement execute function gateway.refuse_hand_edit()', v_name);
            v_made := v_made || v_name;
        end if;
    end loop;
    perform set_config('gateway.engine', 'off', true);
    return v_made;
end
$$;

-- gateway.raise_event: writes an event, and puts it in line for the webhook where one is set. Returns its id; null where one with
-- p_dedupe_key is there already. In the transaction of what it tells of: both are there, or neither.
-- For whoever writes the kind: to be called last, as a second one with the same p_dedupe_key waits for the first to commit.
create function gateway.raise_event(
    p_kind text, p_subject text, p_data jsonb, p_dedupe_key text default null, p_customer_id bigint default null
) returns uuid
language plpgsql set search_path = ''
as $$
declare
    v_id uuid;
begin
    insert into gateway.events (kind, subject, data, dedupe_key, customer_id)
    values (p_kind, p_subject, p_data, p_dedupe_key, p_customer_id)
    on conflict (dedupe_key) do nothing
    returning id into v_id;
    if v_id is not null then
        insert into gateway.event_deliveries (event_id)
        select v_id from gateway.settings where webhook_url is not null;
    end if;
    return v_id;
end
$$;

comment on function gateway.raise_event(text, text, jsonb, text, bigint) is 'Writes an event, once for each dedupe key, and puts it in line for the webhook.';

revoke all on function gateway.raise_event(text, text, jsonb, text, bigint) from public;

-- Soft marks: what is really used of a window goes beyond one, once.
--
-- Counters hold the running requests at their bound, some times what they will use; a bound that is given back has crossed nothing. So:
-- 1. api.admit_request marks a counter (limit_counters.marked) whose reservation goes beyond a mark. Nothing can cross before that, but by a
--    provider that bills beyond the bound, which gateway.correct_counters sees by itself.
-- 2. Where a request ends that is counted by a marked counter, gateway.correct_counters looks closer: at what is counted, less what still runs.
--    Nobody else pays for it.
-- 3. Where a window turns while it is marked, its counter is kept in gateway.turned_windows: what ran then may yet carry it beyond the mark.
-- 4. Requests are used when they are admitted: that crossing is recorded then, unless another model's counter or a service's may give it back.
-- All of it under the lock of the counter, so that a crossing is found once.

create function gateway.soft_marks(p_subject text, p_subject_id bigint, p_model_id bigint, p_per text) returns gateway.limits
language plpgsql stable set search_path = ''
as $$
declare
    v_found gateway.limits;
    v_each gateway.limits;
begin
    if p_subject = 'customer' then
        select * into v_found from gateway.limits where customer_id = p_subject_id and per = p_per;
    elsif p_subject = 'service' then
        select * into v_found from gateway.limits where service_id = p_subject_id and per = p_per;
    elsif p_model_id = 0 then
        select * into v_found from gateway.limits where key_id = p_subject_id and model_id is null and not each_model and per = p_per;
    else
        select * into v_found from gateway.limits where key_id = p_subject_id and model_id = p_model_id and per = p_per;
        select * into v_each from gateway.limits where key_id = p_subject_id and each_model and per = p_per;
        v_found.warn_requests := coalesce(v_found.warn_requests, v_each.warn_requests);
        v_found.warn_tokens := coalesce(v_found.warn_tokens, v_each.warn_tokens);
        v_found.warn_spend_usd := coalesce(v_found.warn_spend_usd, v_each.warn_spend_usd);
    end if;
    return v_found;
end
$$;

comment on function gateway.soft_marks(text, bigint, bigint, text) is 'The soft marks that hold for a counter now, as gateway.applicable_limits has them.';

revoke all on function gateway.soft_marks(text, bigint, bigint, text) from public;

-- Costs a look at each running request: only for a window that is beyond a mark by its bounds, and not by what is known to be used.
-- A request that this transaction has locked is the one that it ends, and runs no more: its row says so (xmax), by the transaction's own id, so
-- that whoever ends requests does it at the outermost level, not below a savepoint.
create function gateway.still_running(p_counter gateway.counted, p_customer_id bigint) returns gateway.counted
language plpgsql set search_path = ''
as $$
begin
    select coalesce(sum(x.requests), 0), coalesce(sum(x.tokens), 0), coalesce(sum(x.spend_usd), 0)
    into p_counter.requests, p_counter.tokens, p_counter.spend_usd
    from gateway.requests as r
    cross join unnest(r.counted) as x
    where r.state = 'held' and r.xmax is distinct from pg_current_xact_id()::xid
        and (r.customer_id = p_customer_id or p_customer_id is null)
        and (x.subject, x.subject_id, x.model_id, x.per, x.window_start)
            = (p_counter.subject, p_counter.subject_id, p_counter.model_id, p_counter.per, p_counter.window_start);
    return p_counter;
end
$$;

comment on function gateway.still_running(gateway.counted, bigint) is 'What the requests that run now have reserved of a window. p_customer_id null: of all customers.';

revoke all on function gateway.still_running(gateway.counted, bigint) from public;

create function gateway.record_crossing(
    p_subject text, p_subject_id bigint, p_model_id bigint, p_per text, p_window_start timestamptz, p_metric text, p_mark numeric, p_used numeric
) returns void
language plpgsql set search_path = ''
as $$
declare
    v_customer_id bigint := case p_subject
        when 'customer' then p_subject_id
        when 'key' then (select k.customer_id from gateway.api_keys as k where k.id = p_subject_id)
    end;
begin
    insert into gateway.limit_crossings (subject, subject_id, model_id, per, window_start, metric, mark, used, customer_id)
    values (p_subject, p_subject_id, p_model_id, p_per, p_window_start, p_metric, p_mark, p_used, v_customer_id)
    on conflict do nothing;
    if found then
        perform gateway.raise_event('limit.soft_crossed', p_subject || ':' || p_subject_id, jsonb_build_object(
            'subject', p_subject, 'id', p_subject_id, 'customer_id', v_customer_id,
            'model', (select m.name from gateway.models as m where m.id = p_model_id),
            'limit', p_metric || '_per_' || p_per, 'window_start', p_window_start,
            'mark', gateway.show_metric(p_metric, p_mark), 'used', gateway.show_metric(p_metric, p_used)
        ), null, v_customer_id);
    end if;
end
$$;

comment on function gateway.record_crossing(text, bigint, bigint, text, timestamptz, text, numeric, numeric) is 'Writes that a soft mark was crossed, and its event, unless that is known of this window.';

revoke all on function gateway.record_crossing(text, bigint, bigint, text, timestamptz, text, numeric, numeric) from public;

create function gateway.show_metric(p_metric text, p_amount numeric) returns jsonb
language plpgsql stable set search_path = ''
as $$
begin
    return case p_metric when 'spend_usd' then to_jsonb(gateway.show_usd(p_amount)) else to_jsonb(p_amount::bigint) end;
end
$$;

comment on function gateway.show_metric(text, numeric) is 'A figure of a limit as JSON: USD as exact text, requests and tokens as numbers.';

revoke all on function gateway.show_metric(text, numeric) from public;

create function gateway.record_crossings(p_counted gateway.counted[]) returns void
language plpgsql set search_path = ''
as $$
declare
    v_counter gateway.counted;
    v_marks gateway.limits;
    v_running gateway.counted;
    v_metric record;
begin
    for v_counter in
        select x.subject, x.subject_id, x.model_id, x.per, x.window_start, w.requests, w.tokens, w.spend_usd
        from unnest(p_counted) as x
        cross join lateral (
            select c.requests, c.tokens, c.spend_usd
            from gateway.limit_counters as c
            where (c.subject, c.subject_id, c.model_id, c.per, c.window_start) = (x.subject, x.subject_id, x.model_id, x.per, x.window_start)
            union all
            select t.requests, t.tokens, t.spend_usd
            from gateway.turned_windows as t
            where (t.subject, t.subject_id, t.model_id, t.per, t.window_start) = (x.subject, x.subject_id, x.model_id, x.per, x.window_start)
        ) as w
    loop
        v_marks := gateway.soft_marks(v_counter.subject, v_counter.subject_id, v_counter.model_id, v_counter.per);
        v_running := null;
        for v_metric in
            select m.name, m.mark, m.counted
            from (values
                ('requests', v_marks.warn_requests::numeric, v_counter.requests::numeric),
                ('tokens', v_marks.warn_tokens, v_counter.tokens),
                ('spend_usd', v_marks.warn_spend_usd, v_counter.spend_usd)
            ) as m (name, mark, counted)
            where m.counted > m.mark and not exists (
                select from gateway.limit_crossings as k
                where (k.subject, k.subject_id, k.model_id, k.per, k.window_start, k.metric)
                    = (v_counter.subject, v_counter.subject_id, v_counter.model_id, v_counter.per, v_counter.window_start, m.name)
            )
        loop
            if v_running is null then
                v_running := gateway.still_running(v_counter, case v_counter.subject
                    when 'customer' then v_counter.subject_id
                    when 'key' then (select k.customer_id from gateway.api_keys as k where k.id = v_counter.subject_id)
                end);
            end if;
            v_metric.counted := v_metric.counted - case v_metric.name
                when 'requests' then v_running.requests when 'tokens' then v_running.tokens else v_running.spend_usd
            end;
            if v_metric.counted > v_metric.mark then
                perform gateway.record_crossing(
                    v_counter.subject, v_counter.subject_id, v_counter.model_id, v_counter.per, v_counter.window_start,
                    v_metric.name, v_metric.mark, v_metric.counted);
            end if;
        end loop;
    end loop;
end
$$;

comment on function gateway.record_crossings(gateway.counted[]) is 'Records the soft marks that these windows have crossed by what is really used. Their counters are to be locked.';

revoke all on function gateway.record_crossings(gateway.counted[]) from public;

-- gateway.correct_counters: adds (possibly negative) amounts to the counters of the windows that admitted a request.
-- A window that has passed is left alone, unless it was kept for its soft marks: its counter counts another one by now. Locks the counters in
-- key order, which is the order of every function here, so that no two wait for each other in a circle.
-- Where a soft mark may have been crossed it looks closer (record_crossings.sql): the counter is marked, or a request used more than its bound.
create or replace function gateway.correct_counters(p_corrections gateway.counted[]) returns void
language plpgsql set search_path = ''
as $$
declare
    v_near boolean;
    v_turned boolean;
begin
    select bool_or(l.near), bool_or(l.turned) into v_near, v_turned
    from (
        select c.window_start = x.window_start and (c.marked or x.tokens > 0 or x.spend_usd > 0) as near, c.window_start > x.window_start as turned
        from gateway.limit_counters as c
        join unnest(p_corrections) as x
            on (c.subject, c.subject_id, c.model_id, c.per) = (x.subject, x.subject_id, x.model_id, x.per)
        order by c.subject, c.subject_id, c.model_id, c.per
        for update of c
    ) as l;

    -- greatest(): an operator may have set a counter back by hand, and a settlement must not fail for it.
    update gateway.limit_counters as c
    set requests = greatest(c.requests + x.requests, 0),
        tokens = greatest(c.tokens + x.tokens, 0),
        spend_usd = greatest(c.spend_usd + x.spend_usd, 0)
    from (
        select subject, subject_id, model_id, per, window_start,
            sum(requests)::bigint as requests, sum(tokens)::bigint as tokens, sum(spend_usd) as spend_usd
        from unnest(p_corrections)
        group by subject, subject_id, model_id, per, window_start
    ) as x
    where (c.subject, c.subject_id, c.model_id, c.per, c.window_start) = (x.subject, x.subject_id, x.model_id, x.per, x.window_start)
        and (x.requests <> 0 or x.tokens <> 0 or x.spend_usd <> 0);

    if v_turned then
        update gateway.turned_windows as t
        set requests = greatest(t.requests + x.requests, 0),
            tokens = greatest(t.tokens + x.tokens, 0),
            spend_usd = greatest(t.spend_usd + x.spend_usd, 0)
        from (
            select subject, subject_id, model_id, per, window_start,
                sum(requests)::bigint as requests, sum(tokens)::bigint as tokens, sum(spend_usd) as spend_usd
            from unnest(p_corrections)
            group by subject, subject_id, model_id, per, window_start
        ) as x
        where (t.subject, t.subject_id, t.model_id, t.per, t.window_start) = (x.subject, x.subject_id, x.model_id, x.per, x.window_start);
        v_near := v_near or found;
    end if;
    if v_near then
        perform gateway.record_crossings(p_corrections);
    end if;
end
$$;

comment on function gateway.correct_counters(gateway.counted[]) is 'Adds amounts to the counters of the windows named, where they still run or are kept.';

-- gateway.resolve_candidates: the routes that a request for these models might take, in the order in which to try them: by the
-- client's order of models, then priority, then at random by weight. A model that has no usable route gives one row without a
-- route; a route without a price in force gives one without prices. Reads only. PL/pgSQL, here and below on the chat path, because it
-- keeps its plans: a SQL function with a search_path of its own is planned anew at every call.
create or replace function gateway.resolve_candidates(
    p_models text[], p_model_id bigint, p_provider text, p_allowed_services bigint[], p_media_input boolean, p_media_output boolean
) returns setof gateway.candidate
language plpgsql stable set search_path = ''
as $$
begin
    return query
    with wanted as (
        select w.name, w.position from unnest(p_models) with ordinality as w (name, position)
    ),
    resolved as (
        -- the whole string, or the id
        select w.position, m.id, p_provider as provider
        from wanted as w
        join gateway.models as m on m.name = w.name and m.active
        union all
        select 0, m.id, p_provider from gateway.models as m where m.id = p_model_id and m.active
        union all
        -- only then provider/model, and under a named provider the provider's own name of the model; ours goes before it
        select n.position, o.model_id, n.provider
        from (
            select w.position, coalesce(p_provider, split_part(w.name, '/', 1)) as provider,
                case when p_provider is null then substr(w.name, strpos(w.name, '/') + 1) else w.name end as name
            from wanted as w
            -- a name of the catalogue that nobody serves here, such as OpenRouter's openai/gpt-4o, does not hide openai's gpt-4o
            where (p_provider is not null or strpos(w.name, '/') > 1)
                and not exists (
                    select
                    from gateway.models as whole
                    join gateway.offers as sold on sold.model_id = whole.id
                    join gateway.routes as way on way.offer_id = sold.id and way.active
                    join gateway.services as seller on seller.id = way.service_id and seller.active
                    where whole.name = w.name and whole.active
                        and (p_provider is null or sold.provider = p_provider)
                        and (p_allowed_services is null or seller.id = any (p_allowed_services))
                )
        ) as n
        cross join lateral (
            select found.model_id
            from (
                select o.model_id, 1 as rank
                from gateway.models as m
                join gateway.offers as o on o.model_id = m.id and o.provider = n.provider
                where m.name = n.name and m.active
                union all
                select o.model_id, 2
                from gateway.offers as o
                join gateway.models as m on m.id = o.model_id and m.active
                where o.provider = n.provider and o.upstream_model = n.name
            ) as found
            order by found.rank, found.model_id
            limit 1
        ) as o
    )
    select
        m.id, m.name, m.context_length, m.max_output_tokens,
        r.id, s.id, s.name, s.provider, s.base_url, s.provider_key, o.upstream_model,
        p.prices,
        case
            when p_media_input then greatest(p.input, p.cached_input, p.cache_write, p.audio_input, p.image_input)
            else greatest(p.input, p.cached_input, p.cache_write)
        end * 0.000001,
        case when p_media_output then greatest(p.output, p.audio_output, p.image_output) else p.output end * 0.000001,
        p.per_request,
        null::bigint, null::bigint, null::numeric, null::numeric
    from (select distinct on (id) position, id, provider from resolved order by id, position) as wanted_model
    join gateway.models as m on m.id = wanted_model.id
    left join (
        gateway.offers as o
        join gateway.routes as r on r.offer_id = o.id and r.active
        join gateway.services as s on s.id = r.service_id and s.active
    ) on o.model_id = m.id
        and (wanted_model.provider is null or o.provider = wanted_model.provider)
        and (p_allowed_services is null or s.id = any (p_allowed_services))
    left join lateral (
        select v.input, v.cached_input, v.cache_write, v.audio_input, v.image_input, v.output, v.audio_output, v.image_output,
            coalesce(v.per_request, 0) as per_request,
            jsonb_strip_nulls(jsonb_build_object(
                'input', v.input, 'cached_input', v.cached_input, 'cache_write', v.cache_write, 'audio_input', v.audio_input,
                'image_input', v.image_input, 'output', v.output, 'audio_output', v.audio_output, 'image_output', v.image_output,
                'per_request', v.per_request, 'per_image', v.per_image)) as prices
        from gateway.prices as v
        where v.offer_id = o.id and (v.service_id = s.id or v.service_id is null) and v.effective_from <= clock_timestamp()
        order by v.service_id is null, v.effective_from desc
        limit 1
    ) as p on true
    order by wanted_model.position, coalesce(r.priority, s.priority), -ln(1 - random()) / r.weight;
end
$$;

-- A limited key must not multiply its limits by making keys: what these do counts as its own. Only rows of the maker's own bind; the
-- system's default is for each key by itself.
create function gateway.limits_of_makers(
    p_maker_key_ids bigint[], p_model_ids bigint[], p_time_zone text, p_at timestamptz
) returns gateway.limit_state[]
language plpgsql stable set search_path = ''
as $$
begin
    return (
        with of_makers as (
            select * from gateway.limits where key_id = any (p_maker_key_ids)
        ),
        found as (
            select l.key_id, 0::bigint as model_id, l.per,
                l.requests, l.tokens, l.spend_usd, l.warn_requests, l.warn_tokens, l.warn_spend_usd
            from of_makers as l
            where l.model_id is null and not l.each_model
            union all
            select o.key_id, m.id, o.per,
                coalesce(x.requests, e.requests), coalesce(x.tokens, e.tokens), coalesce(x.spend_usd, e.spend_usd),
                coalesce(x.warn_requests, e.warn_requests), coalesce(x.warn_tokens, e.warn_tokens), coalesce(x.warn_spend_usd, e.warn_spend_usd)
            from (select distinct l.key_id, l.per from of_makers as l where l.model_id is not null or l.each_model) as o
            cross join unnest(p_model_ids) as m (id)
            left join of_makers as x on x.key_id = o.key_id and x.per = o.per and x.model_id = m.id
            left join of_makers as e on e.key_id = o.key_id and e.per = o.per and e.each_model
        )
        select coalesce(array_agg(
            ('key', f.key_id, f.model_id, f.per, w.start, gateway.window_end(f.per, w.start, p_time_zone),
             f.requests, f.tokens, f.spend_usd, f.warn_requests, f.warn_tokens, f.warn_spend_usd, 0, 0, 0)::gateway.limit_state
            order by f.key_id, f.model_id, f.per
        ), '{}')
        from found as f
        cross join lateral (select gateway.window_start(f.per, p_at, p_time_zone) as start) as w
        where num_nonnulls(f.requests, f.tokens, f.spend_usd, f.warn_requests, f.warn_tokens, f.warn_spend_usd) > 0
    );
end
$$;

comment on function gateway.limits_of_makers(bigint[], bigint[], text, timestamptz) is 'The limits of the keys that made a key: its requests fall under them, too. Usage is not filled in.';

revoke all on function gateway.limits_of_makers(bigint[], bigint[], text, timestamptz) from public;

create function gateway.applicable_limits(
    p_key_id bigint, p_customer_id bigint, p_model_ids bigint[], p_service_ids bigint[], p_time_zone text, p_at timestamptz,
    p_maker_key_ids bigint[]
) returns gateway.limit_state[]
language plpgsql stable set search_path = ''
as $$
declare
    v_of_makers gateway.limit_state[] := '{}'::gateway.limit_state[];
begin
    if cardinality(p_maker_key_ids) > 0 then
        v_of_makers := gateway.limits_of_makers(p_maker_key_ids, p_model_ids, p_time_zone, p_at);
    end if;
    return v_of_makers || (
        with settings as (
            select default_requests_per_minute, default_tokens_per_minute from gateway.settings
        ),
        of_key as (
            select * from gateway.limits where key_id = p_key_id
        ),
        found as (
            select 'key' as subject, p_key_id as subject_id, 0::bigint as model_id, l.per,
                l.requests, l.tokens, l.spend_usd, l.warn_requests, l.warn_tokens, l.warn_spend_usd
            from of_key as l
            where l.model_id is null and not l.each_model
            union all
            -- for each model by itself: the row that names it, then the key's row for each model, then the system's default, which
            -- gives way to whatever the key's own rows say of the same window
            select 'key', p_key_id, m.id, w.per,
                coalesce(x.requests, e.requests, case when w.per = 'minute' and k.requests is null then s.default_requests_per_minute end),
                coalesce(x.tokens, e.tokens, case when w.per = 'minute' and k.tokens is null then s.default_tokens_per_minute end),
                coalesce(x.spend_usd, e.spend_usd),
                coalesce(x.warn_requests, e.warn_requests), coalesce(x.warn_tokens, e.warn_tokens), coalesce(x.warn_spend_usd, e.warn_spend_usd)
            from settings as s
            cross join unnest(p_model_ids) as m (id)
            cross join (values ('minute'), ('hour'), ('day'), ('month')) as w (per)
            left join of_key as x on x.model_id = m.id and x.per = w.per
            left join of_key as e on e.each_model and e.per = w.per
            left join of_key as k on k.model_id is null and not k.each_model and k.per = w.per
            union all
            select 'customer', p_customer_id, 0, l.per, l.requests, l.tokens, l.spend_usd, l.warn_requests, l.warn_tokens, l.warn_spend_usd
            from gateway.limits as l
            where l.customer_id = p_customer_id
            union all
            select 'service', l.service_id, 0, l.per, l.requests, l.tokens, l.spend_usd, l.warn_requests, l.warn_tokens, l.warn_spend_usd
            from gateway.limits as l
            where l.service_id = any (p_service_ids)
        )
        select coalesce(array_agg(
            (subject, subject_id, model_id, per, window_start,
             gateway.window_end(per, window_start, time_zone),
             requests, tokens, spend_usd, warn_requests, warn_tokens, warn_spend_usd, 0, 0, 0)::gateway.limit_state
            order by subject, subject_id, model_id, per
        ), '{}')
        from (
            select f.*, z.time_zone, gateway.window_start(f.per, p_at, z.time_zone) as window_start
            from found as f
            cross join lateral (select case when f.subject = 'service' then 'UTC' else p_time_zone end as time_zone) as z
            where num_nonnulls(f.requests, f.tokens, f.spend_usd, f.warn_requests, f.warn_tokens, f.warn_spend_usd) > 0
        ) as windowed
    );
end
$$;

comment on function gateway.applicable_limits(bigint, bigint, bigint[], bigint[], text, timestamptz, bigint[]) is 'The limits that a request of a key falls under, those of the keys that made it included. Usage is not filled in.';

revoke all on function gateway.applicable_limits(bigint, bigint, bigint[], bigint[], text, timestamptz, bigint[]) from public;

-- api.admit_request: decides, in one transaction, whether a request may go to a provider, and holds its whole upper bound.
--
-- Returns a row either way. {"admitted": true, "request_id", "admitted_at", …, "max_output_tokens", "candidates": [the routes to
-- try, in order, with the sealed provider keys]}, or {"admitted": false, "refusal": code, …}. A refusal consumes nothing.
--
-- The hold: for each candidate, input bound × its dearest input price + output bound × its dearest output price + what is fixed,
-- with the commission (or at the flat price), rounded up; of the candidates the dearest. The input bound is p_input_tokens_bound or,
-- where that is null, the model's context length. The output bound is p_max_output_tokens × p_choices or, where the client named
-- none, what the model, the setting, the balance and the limits allow; below 16 the request is refused. Input that holds media
-- is not bounded here: p_input_tokens_bound is to be null for it, for then the media classes' prices count.
--
-- Locks, in this order: the idempotency key, the limit counters (in key order), the account. Everything else is only read.
-- Generic plans: through PostgREST the planner otherwise plans anew at each call, which took 1.5 ms of the 3.4 (measured).
create or replace function api.admit_request(
    p_key_hash text,
    p_request_id text,
    p_models text[],
    p_endpoint text,
    p_lease_seconds integer,
    p_input_tokens_bound bigint default null,
    p_max_output_tokens bigint default null,
    p_choices integer default 1,
    p_streamed boolean default false,
    p_model_id bigint default null,
    p_provider text default null,
    p_username text default null,
    p_media_output boolean default false,
    p_idempotency_key text default null,
    p_body_hash text default null
) returns jsonb
language plpgsql security definer set search_path = '' set plan_cache_mode = force_generic_plan
as $$
declare
    c_least_output constant bigint := 16;
    c_most_tokens constant bigint := 1000000000000;  -- beyond any model and any balance, and far from overflow
    v_at timestamptz := clock_timestamp();
    v_key record;
    v_settings gateway.settings;
    v_requested text := left(coalesce(p_models[1], p_model_id::text, ''), 300);
    v_commission numeric;
    v_found boolean := false;
    v_allowed boolean := false;
    v_routed boolean := false;
    v_candidate gateway.candidate;
    v_resolved gateway.candidate[] := '{}'::gateway.candidate[];
    v_candidates gateway.candidate[] := '{}'::gateway.candidate[];
    v_idempotency gateway.idempotency_keys;
    v_idempotency_is_new boolean := false;
    v_limits gateway.limit_state[];
    v_limit gateway.limit_state;
    v_account gateway.accounts;
    v_free numeric;
    v_rate_in numeric;
    v_rate_out numeric;
    v_fixed numeric;
    v_bound bigint;
    v_least bigint;
    v_tokens bigint;
    v_requests_left bigint;
    v_tokens_left bigint;
    v_spend_left numeric;
    v_cost_left numeric;
    v_reason jsonb;
    v_refusal jsonb;
    v_hold numeric := 0;
    v_counted gateway.counted[] := '{}'::gateway.counted[];
    v_fresh boolean := false;
    v_beyond boolean;
    v_warnings text[];
begin
    -- In SQL an absent bound passes every comparison: it has to be refused here or it would hold nothing.
    if p_choices is null or p_choices < 1 or p_max_output_tokens < 0 or p_input_tokens_bound < 0 or p_lease_seconds is null then
        raise exception 'choices, tokens and lease are to be numbers, not negative ones' using errcode = 'invalid_parameter_value';
    end if;
    if p_max_output_tokens > c_most_tokens / p_choices then
        p_max_output_tokens := c_most_tokens / p_choices;
    end if;
    if p_input_tokens_bound > c_most_tokens then
        p_input_tokens_bound := c_most_tokens;
    end if;

    select k.id, k.customer_id, k.prefix, k.scopes, k.allowed_models, k.allowed_services, k.active, k.expires_at, k.maker_key_ids,
        c.active as customer_active, c.username, c.time_zone
    into v_key
    from gateway.api_keys as k
    left join gateway.customers as c on c.id = k.customer_id
    where k.secret_hash = decode(p_key_hash, 'hex');
    if v_key.id is null then  -- a secret that was replaced, in its grace
        select k.id, k.customer_id, k.prefix, k.scopes, k.allowed_models, k.allowed_services, k.active, k.expires_at, k.maker_key_ids,
            c.active as customer_active, c.username, c.time_zone
        into v_key
        from gateway.retired_secrets as r
        join gateway.api_keys as k on k.id = r.key_id
        left join gateway.customers as c on c.id = k.customer_id
        where r.secret_hash = decode(p_key_hash, 'hex') and r.expires_at > v_at;
    end if;

    <<admission>>
    begin
        if v_key.id is null then
            return jsonb_build_object('admitted', false, 'refusal', 'unknown_key');
        elsif v_key.active is not true then
            v_refusal := jsonb_build_object('refusal', 'inactive_key');
            exit admission;
        elsif v_key.expires_at <= v_at then
            v_refusal := jsonb_build_object('refusal', 'expired_key');
            exit admission;
        elsif v_key.customer_id is null or not 'chat' = any (v_key.scopes) then
            v_refusal := jsonb_build_object('refusal', 'scope_missing', 'scope', 'chat');
            exit admission;
        elsif p_username is not null and p_username is distinct from v_key.username then
            v_refusal := jsonb_build_object('refusal', 'wrong_user');
            exit admission;
        elsif not v_key.customer_active then
            v_refusal := jsonb_build_object('refusal', 'customer_suspended');
            exit admission;
        end if;

        select * into v_settings from gateway.settings;
        v_commission := 1 + v_settings.commission_percent * 0.01;

        for v_candidate in
            select * from gateway.resolve_candidates(p_models, p_model_id, p_provider, v_key.allowed_services,
                                                     p_input_tokens_bound is null, p_media_output)
        loop
            v_found := true;
            continue when v_key.allowed_models is not null and not v_candidate.model_id = any (v_key.allowed_models);
            v_allowed := true;
            continue when v_candidate.route_id is null;
            v_routed := true;
            continue when v_candidate.prices is null;
            v_candidate.input_bound := least(p_input_tokens_bound, v_candidate.context_length);
            if v_candidate.input_bound is null then
                v_reason := coalesce(v_reason, jsonb_build_object('refusal', 'input_unbounded', 'model', v_candidate.model_name));
                continue;
            end if;
            v_resolved := v_resolved || v_candidate;
        end loop;
        if cardinality(v_resolved) = 0 then
            v_refusal := case
                when not v_found then jsonb_build_object('refusal', 'model_not_found')
                when not v_allowed then jsonb_build_object('refusal', 'model_not_allowed')
                when not v_routed then jsonb_build_object('refusal', 'model_not_served')
                else coalesce(v_reason, jsonb_build_object('refusal', 'model_not_priced'))
            end || jsonb_build_object('model', v_requested);
            exit admission;
        end if;

        v_reason := null;  -- of a candidate that could not be considered; what refuses those that could is of more use

        if p_idempotency_key is not null then
            perform set_config('gateway.engine', 'on', true);
            loop
                insert into gateway.idempotency_keys (key_id, idempotency_key, body_hash, request_id)
                values (v_key.id, p_idempotency_key, decode(p_body_hash, 'hex'), p_request_id)
                on conflict do nothing;
                v_idempotency_is_new := found;
                exit when v_idempotency_is_new;
                select * into v_idempotency from gateway.idempotency_keys
                where key_id = v_key.id and idempotency_key = p_idempotency_key
                for update;
                exit when found;  -- else it was forgotten in between
            end loop;
            -- one that is free is taken over below, when nothing can refuse the request any more
            if not v_idempotency_is_new and not v_idempotency.freed and v_idempotency.created_at >= v_at - interval '24 hours' then
                v_refusal := jsonb_build_object('refusal', case
                    when v_idempotency.body_hash is distinct from decode(p_body_hash, 'hex') then 'idempotency_mismatch'
                    when v_idempotency.charged then 'idempotency_reused'
                    else 'idempotency_running'
                end, 'first_request_id', v_idempotency.request_id);
                exit admission;
            end if;
        end if;

        v_limits := gateway.applicable_limits(
            v_key.id, v_key.customer_id,
            array(select distinct r.model_id from unnest(v_resolved) as r), array(select distinct r.service_id from unnest(v_resolved) as r),
            v_key.time_zone, v_at, v_key.maker_key_ids);
        if cardinality(v_limits) > 0 then
            v_limits := gateway.lock_counters(v_limits);
        end if;
        select * into v_account from gateway.accounts where customer_id = v_key.customer_id for update;
        v_free := v_account.balance_usd - v_account.held_usd;

        foreach v_candidate in array v_resolved loop
            -- what the limits leave to this candidate: those of the key and the customer, of the key and its model, of its service,
            -- whose spending limit is on its cost
            v_requests_left := null;
            v_tokens_left := null;
            v_spend_left := null;
            v_cost_left := null;
            foreach v_limit in array v_limits loop
                v_fresh := v_fresh or v_limit.used_requests = 0;
                continue when v_limit.subject = 'service' and v_limit.subject_id <> v_candidate.service_id;
                continue when v_limit.model_id not in (0, v_candidate.model_id);
                v_requests_left := least(v_requests_left, v_limit.requests - v_limit.used_requests);
                v_tokens_left := least(v_tokens_left, v_limit.tokens - v_limit.used_tokens);
                if v_limit.subject = 'service' then
                    v_cost_left := least(v_cost_left, v_limit.spend_usd - v_limit.used_spend_usd);
                else
                    v_spend_left := least(v_spend_left, v_limit.spend_usd - v_limit.used_spend_usd);
                end if;
            end loop;

            if p_media_output then  -- an image for each choice
                v_candidate.fixed_usd := v_candidate.fixed_usd + p_choices * coalesce((v_candidate.prices ->> 'per_image')::numeric, 0);
            end if;
            v_rate_in := v_candidate.input_rate * v_commission;
            v_rate_out := v_candidate.output_rate * v_commission;
            if v_settings.billing_mode = 'flat' then
                v_rate_in := v_settings.flat_usd_per_1k_tokens * 0.001;
                v_rate_out := v_rate_in;
            end if;
            v_fixed := v_candidate.fixed_usd * v_commission + v_candidate.input_bound * v_rate_in;

            if p_max_output_tokens is not null then
                v_candidate.output_bound := p_max_output_tokens;
            else
                v_candidate.output_bound := least(v_bound, v_candidate.max_output_tokens, v_settings.default_max_output_tokens);
                v_least := least(c_least_output, v_candidate.output_bound);
                v_candidate.output_bound := greatest(v_least, least(
                    v_candidate.output_bound,
                    div(v_tokens_left - v_candidate.input_bound, p_choices),
                    case when v_rate_out > 0 then div(least(v_free, v_spend_left) - v_fixed, v_rate_out * p_choices) end));
            end if;
            v_tokens := v_candidate.input_bound + v_candidate.output_bound * p_choices;
            v_candidate.hold_usd := gateway.round_up_usd(v_fixed + v_candidate.output_bound * p_choices * v_rate_out);
            v_candidate.cost_bound_usd := gateway.round_up_usd(
                v_candidate.fixed_usd + v_candidate.input_bound * v_candidate.input_rate
                + v_candidate.output_bound * p_choices * v_candidate.output_rate);

            if v_requests_left < 1 or v_tokens > v_tokens_left
                or (v_candidate.hold_usd > v_spend_left and v_candidate.hold_usd > 0)
                or (v_candidate.cost_bound_usd > v_cost_left and v_candidate.cost_bound_usd > 0) then
                v_reason := coalesce(v_reason, gateway.describe_excess(
                    v_limits, v_candidate.service_id, v_candidate.model_id, v_tokens, v_candidate.hold_usd, v_candidate.cost_bound_usd, v_at));
                continue;
            elsif v_candidate.hold_usd > v_free then
                v_reason := coalesce(v_reason, jsonb_build_object(
                    'refusal', 'insufficient_credits',
                    'needed_usd', gateway.show_usd(v_candidate.hold_usd),
                    'available_usd', gateway.show_usd(v_free),
                    'affordable_output_tokens', case
                        when v_rate_out > 0
                            then greatest(least(div(v_free - v_fixed, v_rate_out * p_choices), v_candidate.output_bound), 0)::bigint
                        else 0
                    end));
                continue;
            end if;

            -- the first candidate that fits sets the bound; a dearer one further down is kept if it can be afforded at that
            v_bound := coalesce(v_bound, v_candidate.output_bound);
            v_hold := greatest(v_hold, v_candidate.hold_usd);
            v_candidates := v_candidates || v_candidate;
        end loop;
        if cardinality(v_candidates) = 0 then
            v_refusal := v_reason;
            exit admission;
        end if;
    end admission;

    if v_refusal is not null then
        if v_idempotency_is_new then
            delete from gateway.idempotency_keys
            where key_id = v_key.id and idempotency_key = p_idempotency_key;
        end if;
        perform set_config('gateway.engine', 'on', true);
        if v_key.customer_id is not null then
            perform gateway.record_refusal(p_request_id, v_key.customer_id, v_key.id, v_requested, p_endpoint, p_streamed, v_refusal ->> 'refusal');
        end if;
        perform set_config('gateway.engine', 'off', true);
        return v_refusal || jsonb_build_object(
            'admitted', false, 'key_prefix', v_key.prefix, 'rate_limits', gateway.describe_limits(v_limits, v_at));
    end if;

    -- a limit of a model or a service reserves what its own candidates may use; the settlement gives back what they did not
    select coalesce(array_agg((
        l.subject, l.subject_id, l.model_id, l.per, l.window_start, 1, u.tokens, u.spend_usd
    )::gateway.counted), '{}')
    into v_counted
    from unnest(v_limits) as l
    cross join lateral (
        select max(c.input_bound + c.output_bound * p_choices) as tokens,
            max(case when l.subject = 'service' then c.cost_bound_usd else c.hold_usd end) as spend_usd
        from unnest(v_candidates) as c
        where (l.subject <> 'service' or c.service_id = l.subject_id) and (l.model_id = 0 or c.model_id = l.model_id)
    ) as u
    where u.tokens is not null;

    perform set_config('gateway.engine', 'on', true);
    if p_idempotency_key is not null and not v_idempotency_is_new then
        update gateway.idempotency_keys
        set body_hash = decode(p_body_hash, 'hex'), request_id = p_request_id, charged = false, freed = false, created_at = v_at
        where key_id = v_key.id and idempotency_key = p_idempotency_key;
    end if;
    if v_fresh then  -- a window that was marked has passed: what still runs of it is yet to be seen (record_crossings.sql)
        insert into gateway.turned_windows (subject, subject_id, model_id, per, window_start, requests, tokens, spend_usd)
        select c.subject, c.subject_id, c.model_id, c.per, c.window_start, c.requests, c.tokens, c.spend_usd
        from gateway.limit_counters as c
        join unnest(v_counted) as x on (c.subject, c.subject_id, c.model_id, c.per) = (x.subject, x.subject_id, x.model_id, x.per)
        where c.marked and c.window_start < x.window_start
        on conflict do nothing;
    end if;
    update gateway.limit_counters as c
    set requests = case when c.window_start = x.window_start then c.requests else 0 end + x.requests,
        tokens = case when c.window_start = x.window_start then c.tokens else 0 end + x.tokens,
        spend_usd = case when c.window_start = x.window_start then c.spend_usd else 0 end + x.spend_usd,
        window_start = x.window_start,
        marked = c.marked and c.window_start = x.window_start
    from unnest(v_counted) as x
    where (c.subject, c.subject_id, c.model_id, c.per) = (x.subject, x.subject_id, x.model_id, x.per);

    update gateway.accounts set held_usd = held_usd + v_hold where customer_id = v_key.customer_id;

    insert into gateway.requests (
        id, admitted_at, customer_id, key_id, model_id, requested_model, endpoint, streamed, state, hold_usd, lease_until,
        input_tokens_bound, output_tokens_bound, billing_mode, commission_percent, flat_usd_per_1k_tokens, routes, counted, idempotency_key)
    select p_request_id, v_at, v_key.customer_id, v_key.id, v_candidates[1].model_id, v_requested, p_endpoint, p_streamed, 'held',
        v_hold, v_at + make_interval(secs => p_lease_seconds),
        max(c.input_bound), max(c.output_bound) * p_choices,
        v_settings.billing_mode, v_settings.commission_percent, v_settings.flat_usd_per_1k_tokens,
        jsonb_agg(jsonb_build_object('route_id', c.route_id, 'service_id', c.service_id, 'model_id', c.model_id,
                                     'provider', c.provider, 'upstream_model', c.upstream_model, 'prices', c.prices)),
        v_counted, p_idempotency_key
    from unnest(v_candidates) as c;
    perform set_config('gateway.engine', 'off', true);

    -- what the client is told counts this request
    select array_agg((
        l.subject, l.subject_id, l.model_id, l.per, l.window_start, l.window_end, l.requests, l.tokens, l.spend_usd,
        l.warn_requests, l.warn_tokens, l.warn_spend_usd,
        l.used_requests + x.requests, l.used_tokens + x.tokens, l.used_spend_usd + x.spend_usd
    )::gateway.limit_state)
    into v_limits
    from unnest(v_limits) as l
    join unnest(v_counted) as x on (x.subject, x.subject_id, x.model_id, x.per) = (l.subject, l.subject_id, l.model_id, l.per);

    select array_agg(distinct w.name) filter (where l.subject <> 'service'), count(*) > 0 into v_warnings, v_beyond
    from unnest(v_limits) as l
    cross join lateral (values
        (case when l.used_requests > l.warn_requests then 'requests_per_' || l.per end),
        (case when l.used_tokens > l.warn_tokens then 'tokens_per_' || l.per end),
        (case when l.used_spend_usd > l.warn_spend_usd then 'spend_usd_per_' || l.per end)
    ) as w (name)
    where w.name is not null;

    if v_beyond then
        -- from here on the settlements of the window look whether what is really used is beyond the mark, too (record_crossings.sql)
        update gateway.limit_counters as c
        set marked = true
        from unnest(v_limits) as l
        where (c.subject, c.subject_id, c.model_id, c.per) = (l.subject, l.subject_id, l.model_id, l.per) and not c.marked
            and (l.used_requests > l.warn_requests or l.used_tokens > l.warn_tokens or l.used_spend_usd > l.warn_spend_usd);
        -- requests are used by being admitted, but where another model may answer, whose counter would keep this one instead
        for v_limit in
            select * from unnest(v_limits) as l
            where l.subject <> 'service' and l.used_requests > l.warn_requests and l.used_requests - 1 <= l.warn_requests
                and (l.model_id = 0 or not exists (select from unnest(v_candidates) as c where c.model_id <> l.model_id))
        loop
            perform gateway.record_crossing(
                v_limit.subject, v_limit.subject_id, v_limit.model_id, v_limit.per, v_limit.window_start,
                'requests', v_limit.warn_requests, v_limit.used_requests);
        end loop;
    end if;

    return jsonb_build_object(
        'admitted', true,
        'request_id', p_request_id,
        'admitted_at', v_at,
        'key_id', v_key.id,
        'key_prefix', v_key.prefix,
        'customer_id', v_key.customer_id,
        'max_output_tokens', v_bound,
        'hold_usd', gateway.show_usd(v_hold),
        'rate_limits', gateway.describe_limits(v_limits, v_at),
        'warnings', coalesce(to_jsonb(v_warnings), '[]'),
        'candidates', (
            select jsonb_agg(jsonb_build_object(
                'route_id', c.route_id, 'service_id', c.service_id, 'service_name', c.service_name, 'provider', c.provider,
                'base_url', c.base_url, 'provider_key', c.provider_key, 'model', c.model_name, 'upstream_model', c.upstream_model,
                'max_output_tokens', c.output_bound))
            from unnest(v_candidates) as c
        )
    );
end
$$;

-- Times are counted in bins, so that percentiles of any sum of rows come from the sum of their counts. A bin's upper end is 2^(1/4) of its lower
-- end, and what is read back is its geometric middle: at most 9.1 % (2^(1/8)) off, or half a millisecond. Arrays hold the bins that
-- are in use: PostgreSQL extends them at either end, and what lies between is null, which counts as 0.

create function gateway.time_bin(p_ms integer) returns integer
language plpgsql immutable parallel safe set search_path = ''
as $$
begin
    return floor(ln(greatest(p_ms, 1)::double precision) * (4 / ln(2::double precision)) + 0.000000001)::integer;
end
$$;

comment on function gateway.time_bin(integer) is 'The bin of a time in milliseconds: from 2^(bin/4) up to 2^((bin+1)/4). Whatever is less than a millisecond is in bin 0.';

revoke all on function gateway.time_bin(integer) from public;

create function gateway.time_of_bin(p_bin integer) returns integer
language plpgsql immutable parallel safe set search_path = ''
as $$
begin
    return round(power(2::double precision, (p_bin + 0.5) / 4))::integer;
end
$$;

comment on function gateway.time_of_bin(integer) is 'The geometric middle of a bin, in milliseconds.';

revoke all on function gateway.time_of_bin(integer) from public;

create function gateway.add_counts(p_counts integer[], p_more integer[]) returns integer[]
language plpgsql immutable parallel safe set search_path = ''
as $$
begin
    if p_more is null or p_more = '{}' then
        return p_counts;
    elsif p_counts is null or p_counts = '{}' then
        return p_more;
    end if;
    for v_bin in array_lower(p_more, 1) .. array_upper(p_more, 1) loop
        if p_more[v_bin] is not null then
            p_counts[v_bin] := coalesce(p_counts[v_bin], 0) + p_more[v_bin];
        end if;
    end loop;
    return p_counts;
end
$$;

comment on function gateway.add_counts(integer[], integer[]) is 'The sum of two rows of counts, bin by bin.';

revoke all on function gateway.add_counts(integer[], integer[]) from public;

-- Wrapped, because rows of counts have bounds of their own, and an array of arrays can't.
create type gateway.time_counts as (counts integer[]);

comment on type gateway.time_counts is 'One row of counts.';

-- No aggregate: it could not have a search_path, which is what Supabase's advisor asks of every function, and takes as long.
create function gateway.sum_counts(p_rows gateway.time_counts[]) returns integer[]
language plpgsql immutable parallel safe set search_path = ''
as $$
declare
    v_sum integer[] := '{}'::integer[];
    v_row gateway.time_counts;
    v_bin integer;
    v_count integer;
begin
    if cardinality(p_rows) = 1 then
        return coalesce(p_rows[1].counts, v_sum);  -- as nearly always in a chart
    end if;
    foreach v_row in array coalesce(p_rows, '{}'::gateway.time_counts[]) loop
        continue when v_row.counts is null or v_row.counts = '{}'::integer[];
        v_bin := array_lower(v_row.counts, 1) - 1;
        foreach v_count in array v_row.counts loop
            v_bin := v_bin + 1;
            continue when v_count is null;
            v_sum[v_bin] := coalesce(v_sum[v_bin], 0) + v_count;
        end loop;
    end loop;
    return v_sum;
end
$$;

comment on function gateway.sum_counts(gateway.time_counts[]) is 'The sum of rows of counts, bin by bin.';

revoke all on function gateway.sum_counts(gateway.time_counts[]) from public;

-- Called twice for each point of a chart, so it walks the bins once and computes their middles (as time_of_bin does) in place: 7 µs.
create function gateway.describe_times(p_counts integer[], p_sum bigint, p_times bigint) returns jsonb
language plpgsql immutable parallel safe set search_path = ''
as $$
declare
    v_wanted bigint := (p_times + 1) / 2;
    v_bin integer := array_lower(p_counts, 1) - 1;
    v_count integer;
    v_seen bigint := 0;
    v_p50 integer;
begin
    if p_counts is null or p_counts = '{}'::integer[] or coalesce(p_times, 0) = 0 then
        return '{"p50": null, "p95": null, "average": null}'::jsonb;
    end if;
    foreach v_count in array p_counts loop
        v_bin := v_bin + 1;
        v_seen := v_seen + coalesce(v_count, 0);
        continue when v_seen < v_wanted;
        if v_p50 is null then
            v_p50 := round(power(2::double precision, (v_bin + 0.5) / 4))::integer;
            v_wanted := (p_times * 95 + 99) / 100;
            continue when v_seen < v_wanted;
        end if;
        return jsonb_build_object(
            'p50', v_p50, 'p95', round(power(2::double precision, (v_bin + 0.5) / 4))::integer, 'average', p_sum / p_times);
    end loop;
    return null::jsonb;  -- counts that do not come to p_times
end
$$;

comment on function gateway.describe_times(integer[], bigint, bigint) is 'The percentiles of counted times and their average, in milliseconds, given their sum and how many they are. Nulls where there are none.';

revoke all on function gateway.describe_times(integer[], bigint, bigint) from public;

create function gateway.bucket_lock(p_bucket timestamptz) returns bigint
language plpgsql immutable parallel safe set search_path = ''
as $$
begin
    return 5836::bigint << 32 | (extract(epoch from p_bucket - '2000-01-01 00:00+00'::timestamptz) / 900)::bigint;
end
$$;

comment on function gateway.bucket_lock(timestamptz) is 'The advisory lock of a bucket: shared by those who add to it, exclusive to who closes it.';

revoke all on function gateway.bucket_lock(timestamptz) from public;

-- Holds the bucket's lock, shared, until its transaction ends, so that what it adds is either seen by the closing of the bucket, or finds it
-- closed and is marked as late. The closing never waits for that lock, and takes no bucket before it is two minutes past: no settlement
-- in time waits for it either. Relies on the isolation level read committed, which is that of every caller.
create function gateway.merge_rollup(p_row gateway.usage_rollups, p_closing boolean default false) returns void
language plpgsql set search_path = ''
as $$
begin
    if not p_closing then
        perform pg_advisory_xact_lock_shared(gateway.bucket_lock(p_row.bucket));
        if p_row.bucket + interval '17 minutes' <= clock_timestamp() then
            -- a statement after the lock, so that it sees a closing that has ended meanwhile
            p_row.late := coalesce(p_row.bucket < (select c.closed_until from gateway.usage_closing as c), false);
        end if;
    end if;
    insert into gateway.usage_rollups as r
    select p_row.*
    on conflict (customer_id, bucket, key_id, model_id, service_id, late) do update set
        requests = r.requests + excluded.requests,
        errors = r.errors + excluded.errors,
        failures = r.failures + excluded.failures,
        input_tokens = r.input_tokens + excluded.input_tokens,
        cached_input_tokens = r.cached_input_tokens + excluded.cached_input_tokens,
        cache_write_tokens = r.cache_write_tokens + excluded.cache_write_tokens,
        audio_input_tokens = r.audio_input_tokens + excluded.audio_input_tokens,
        image_input_tokens = r.image_input_tokens + excluded.image_input_tokens,
        output_tokens = r.output_tokens + excluded.output_tokens,
        reasoning_tokens = r.reasoning_tokens + excluded.reasoning_tokens,
        audio_output_tokens = r.audio_output_tokens + excluded.audio_output_tokens,
        image_output_tokens = r.image_output_tokens + excluded.image_output_tokens,
        images = r.images + excluded.images,
        total_tokens = r.total_tokens + excluded.total_tokens,
        cost_usd = r.cost_usd + excluded.cost_usd,
        charge_usd = r.charge_usd + excluded.charge_usd,
        uncollected_usd = r.uncollected_usd + excluded.uncollected_usd,
        latency_ms = r.latency_ms + excluded.latency_ms,
        latencies = r.latencies + excluded.latencies,
        time_to_first_token_ms = r.time_to_first_token_ms + excluded.time_to_first_token_ms,
        first_tokens = r.first_tokens + excluded.first_tokens,
        latency_counts = gateway.add_counts(r.latency_counts, excluded.latency_counts),
        first_token_counts = gateway.add_counts(r.first_token_counts, excluded.first_token_counts),
        last_request_at = greatest(r.last_request_at, excluded.last_request_at),
        last_failure_at = greatest(r.last_failure_at, excluded.last_failure_at);
end
$$;

comment on function gateway.merge_rollup(gateway.usage_rollups, boolean) is 'Adds a row to the rollups: as a late one where its bucket has been closed, unless it is the closing itself that adds it.';

revoke all on function gateway.merge_rollup(gateway.usage_rollups, boolean) from public;

create function gateway.add_to_rollup(
    p_request gateway.requests, p_model_id bigint, p_service_id bigint, p_requests integer, p_errors integer, p_usage jsonb,
    p_cost_usd numeric, p_charge_usd numeric, p_uncollected_usd numeric, p_latency_ms integer, p_time_to_first_token_ms integer default null
) returns void
language plpgsql set search_path = ''
as $$
declare
    v_row gateway.usage_rollups;
begin
    v_row.bucket := gateway.rollup_bucket(p_request.admitted_at);
    v_row.customer_id := p_request.customer_id;
    v_row.key_id := p_request.key_id;
    v_row.model_id := p_model_id;
    v_row.service_id := coalesce(p_service_id, 0);
    v_row.requests := p_requests;
    v_row.errors := p_errors;
    v_row.failures := 0;
    v_row.input_tokens := coalesce((p_usage ->> 'input')::bigint, 0);
    v_row.cached_input_tokens := coalesce((p_usage ->> 'cached_input')::bigint, 0);
    v_row.cache_write_tokens := coalesce((p_usage ->> 'cache_write')::bigint, 0);
    v_row.audio_input_tokens := coalesce((p_usage ->> 'audio_input')::bigint, 0);
    v_row.image_input_tokens := coalesce((p_usage ->> 'image_input')::bigint, 0);
    v_row.output_tokens := coalesce((p_usage ->> 'output')::bigint, 0);
    v_row.reasoning_tokens := coalesce((p_usage ->> 'reasoning')::bigint, 0);
    v_row.audio_output_tokens := coalesce((p_usage ->> 'audio_output')::bigint, 0);
    v_row.image_output_tokens := coalesce((p_usage ->> 'image_output')::bigint, 0);
    v_row.images := coalesce((p_usage ->> 'images')::bigint, 0);
    v_row.total_tokens := gateway.total_tokens(p_usage);
    v_row.cost_usd := p_cost_usd;
    v_row.charge_usd := p_charge_usd;
    v_row.uncollected_usd := p_uncollected_usd;
    v_row.latency_ms := coalesce(p_latency_ms, 0);
    v_row.latencies := num_nonnulls(p_latency_ms);
    v_row.time_to_first_token_ms := coalesce(p_time_to_first_token_ms, 0);
    v_row.first_tokens := num_nonnulls(p_time_to_first_token_ms);
    v_row.latency_counts := case when p_latency_ms is null then '{}' else array_fill(1, array[1], array[gateway.time_bin(p_latency_ms)]) end;
    v_row.first_token_counts := case when p_time_to_first_token_ms is null then '{}'
        else array_fill(1, array[1], array[gateway.time_bin(p_time_to_first_token_ms)]) end;
    v_row.last_request_at := p_request.admitted_at;
    v_row.late := false;
    perform gateway.merge_rollup(v_row);
end
$$;

comment on function gateway.add_to_rollup(gateway.requests, bigint, bigint, integer, integer, jsonb, numeric, numeric, numeric, integer, integer) is 'Adds one request, or a correction of one, to its rollup.';

revoke all on function gateway.add_to_rollup(gateway.requests, bigint, bigint, integer, integer, jsonb, numeric, numeric, numeric, integer, integer) from public;

-- A request that the client got wrong says nothing of the service that refused it.
create function gateway.add_failures(p_request gateway.requests, p_failed_routes jsonb) returns void
language plpgsql set search_path = ''
as $$
declare
    v_failed record;
    v_row gateway.usage_rollups;
begin
    for v_failed in
        select (r ->> 'service_id')::bigint as service_id, coalesce((r ->> 'model_id')::bigint, 0) as model_id, count(*) as failures
        from jsonb_array_elements(p_failed_routes) as f
        join jsonb_array_elements(p_request.routes) as r on r -> 'route_id' = f -> 'route_id'
        where f ->> 'fault' is distinct from 'client'
        group by 1, 2
        order by 1, 2
    loop
        v_row := jsonb_populate_record(v_row, jsonb_build_object(
            'requests', 0, 'errors', 0, 'failures', v_failed.failures,
            'input_tokens', 0, 'cached_input_tokens', 0, 'cache_write_tokens', 0, 'audio_input_tokens', 0, 'image_input_tokens', 0,
            'output_tokens', 0, 'reasoning_tokens', 0, 'audio_output_tokens', 0, 'image_output_tokens', 0, 'images', 0, 'total_tokens', 0,
            'cost_usd', 0, 'charge_usd', 0, 'uncollected_usd', 0, 'latency_ms', 0, 'latencies', 0, 'time_to_first_token_ms', 0,
            'first_tokens', 0,
            'latency_counts', '{}', 'first_token_counts', '{}', 'late', false, 'bucket', gateway.rollup_bucket(p_request.admitted_at),
            'customer_id', p_request.customer_id, 'key_id', p_request.key_id, 'model_id', v_failed.model_id, 'service_id', v_failed.service_id,
            'last_request_at', p_request.admitted_at, 'last_failure_at', p_request.admitted_at));
        perform gateway.merge_rollup(v_row);
    end loop;
end
$$;

comment on function gateway.add_failures(gateway.requests, jsonb) is 'Counts the routes that failed before a request ended, by their services.';

revoke all on function gateway.add_failures(gateway.requests, jsonb) from public;

-- api.settle_request: ends a request, once. Charges what was used at the prices that the route was admitted under, frees the hold,
-- corrects the counters of the windows that admitted it, writes ledger and rollup.
--
-- p_settlement: {"request_id", "admitted_at", "outcome": succeeded | failed | cancelled | cut, "route_id": of the route that
-- answered, "usage": tokens by disjoint class, or null if nothing is to be charged, "usage_estimated", "status", "error_code",
-- "finish_reason", "latency_ms", "time_to_first_token_ms", "provider_request_id", "provider_cost_usd", "failed_routes"}.
-- The whole of it in one document, so that a settlement that could not be made can be kept and replayed as it is.
--
-- Idempotent: a second call changes nothing and answers the same with "already": true. A hold that expired meanwhile is settled
-- late, once, by an adjustment. Never fails for money: what the balance can't give is booked as uncollected_usd, and what a provider
-- claims beyond all measure is cut to what the books can hold.
-- {"status": "unknown_request"} where there is no such request.
-- Locks, in this order: the request, its idempotency key, the limit counters (in key order), the account.
-- Generic plans, as for api.admit_request: 1.5 -> 1.0 ms a call.
create or replace function api.settle_request(p_settlement jsonb) returns jsonb
language plpgsql security definer set search_path = '' set plan_cache_mode = force_generic_plan
as $$
declare
    c_most_usd constant numeric := 9999999999.9999999999;
    v_request gateway.requests;
    v_first_model_id bigint;
    v_usage jsonb := case when p_settlement -> 'usage' <> 'null' then gateway.tame_usage(p_settlement -> 'usage') end;
    v_claimed_usd numeric := (p_settlement ->> 'provider_cost_usd')::numeric;
    v_route jsonb;
    v_tokens bigint;
    v_late boolean;
    v_exact_tokens numeric;
    v_exact_fixed numeric;
    v_commission numeric;
    v_account gateway.accounts;
    v_before numeric;
    v_due numeric;
    v_take numeric;
    v_asked_again boolean := false;
    v_outcome text := p_settlement ->> 'outcome';
begin
    select * into v_request
    from gateway.requests
    where id = p_settlement ->> 'request_id' and admitted_at = (p_settlement ->> 'admitted_at')::timestamptz and state <> 'refused'
    for update;
    if v_request.id is null then
        return jsonb_build_object('status', 'unknown_request');
    end if;
    if v_request.state = 'settled' then
        return gateway.describe_settlement(
            v_request,
            coalesce(v_request.input_tokens, 0) + coalesce(v_request.cached_input_tokens, 0) + coalesce(v_request.cache_write_tokens, 0)
            + coalesce(v_request.audio_input_tokens, 0) + coalesce(v_request.image_input_tokens, 0) + coalesce(v_request.output_tokens, 0)
            + coalesce(v_request.audio_output_tokens, 0) + coalesce(v_request.image_output_tokens, 0),
            (select balance_usd from gateway.accounts where customer_id = v_request.customer_id),
            true);
    end if;
    v_first_model_id := v_request.model_id;
    v_late := v_request.state = 'expired';
    v_before := v_request.collected_usd;  -- what an expired hold was charged, where the policy is to charge

    if v_usage is not null then
        select r into v_route
        from jsonb_array_elements(v_request.routes) as r
        where (r ->> 'route_id')::bigint = (p_settlement ->> 'route_id')::bigint;
        if v_route is null then
            raise exception 'request % was not admitted to this route', v_request.id using errcode = 'invalid_parameter_value';
        end if;
        v_exact_tokens := gateway.tokens_cost_usd(v_route -> 'prices', v_usage);
        v_exact_fixed := gateway.fixed_cost_usd(v_route -> 'prices', v_usage);
        v_commission := 1 + v_request.commission_percent * 0.01;
        v_tokens := gateway.total_tokens(v_usage);
        v_request.cost_usd := least(gateway.round_up_usd(v_exact_tokens + v_exact_fixed), c_most_usd);
        v_request.charge_usd := least(gateway.round_up_usd(case v_request.billing_mode
            when 'flat' then v_tokens * v_request.flat_usd_per_1k_tokens * 0.001 + v_exact_fixed * v_commission
            else (v_exact_tokens + v_exact_fixed) * v_commission
        end), c_most_usd);
        v_request.model_id := (v_route ->> 'model_id')::bigint;
        v_request.service_id := (v_route ->> 'service_id')::bigint;
    else
        v_tokens := 0;
        v_request.cost_usd := 0;
        v_request.charge_usd := 0;
    end if;

    perform set_config('gateway.engine', 'on', true);
    if v_request.idempotency_key is not null then
        -- Its own key, or one that its expiry freed and that nobody has taken since or has failed with. Kept when it is freed: a hold that
        -- expired under it may still be charged, and must then be found by the next one who asks.
        update gateway.idempotency_keys
        set request_id = v_request.id, charged = v_usage is not null, freed = v_usage is null
        where (key_id, idempotency_key) = (v_request.key_id, v_request.idempotency_key) and (request_id = v_request.id or freed);
        -- or else the client has asked again meanwhile: it is not to pay twice
        v_asked_again := not found and exists (
            select from gateway.idempotency_keys as i
            where (i.key_id, i.idempotency_key) = (v_request.key_id, v_request.idempotency_key)
        );
    end if;
    if cardinality(v_request.counted) > 0 then
        -- limits of a model or a service that did not answer get everything back; the first model keeps a failed request's count
        perform gateway.correct_counters(array(
            select (
                x.subject, x.subject_id, x.model_id, x.per, x.window_start,
                case when used.it then 0 else -x.requests end,
                case when used.it then v_tokens else 0 end - x.tokens,
                case when not used.it then 0 when x.subject = 'service' then v_request.cost_usd else v_request.charge_usd end - x.spend_usd
            )::gateway.counted
            from unnest(v_request.counted) as x
            cross join lateral (
                select case
                    when x.subject = 'service' then x.subject_id is not distinct from v_request.service_id
                    else x.model_id in (0, v_request.model_id)
                end as it
            ) as used
        ));
    end if;

    select * into v_account from gateway.accounts where customer_id = v_request.customer_id for update;
    v_due := v_request.charge_usd - v_before;
    v_take := least(v_due, v_account.balance_usd - v_account.held_usd + case when v_late then 0 else v_request.hold_usd end);
    if v_late and v_asked_again then
        v_take := least(v_take, 0);
    end if;
    update gateway.accounts
    set balance_usd = balance_usd - v_take, held_usd = held_usd - case when v_late then 0 else v_request.hold_usd end
    where customer_id = v_request.customer_id
    returning * into v_account;
    if v_take <> 0 then
        insert into gateway.ledger_entries (customer_id, kind, amount_usd, balance_after_usd, request_id, actor)
        values (v_request.customer_id, case when v_late then 'late_settlement' else 'charge' end, -v_take, v_account.balance_usd, v_request.id, 'gateway');
    end if;
    v_request.collected_usd := v_before + v_take;
    v_request.uncollected_usd := v_request.charge_usd - v_request.collected_usd;

    if v_late then  -- what its expiry counted
        perform gateway.add_to_rollup(v_request, v_first_model_id, null, -1, -1, '{}', 0, -v_before, 0, null);
    end if;
    perform gateway.add_to_rollup(
        v_request, v_request.model_id, v_request.service_id, 1, case when v_outcome = 'failed' then 1 else 0 end, coalesce(v_usage, '{}'),
        v_request.cost_usd, v_request.charge_usd, v_request.uncollected_usd, (p_settlement ->> 'latency_ms')::integer,
        (p_settlement ->> 'time_to_first_token_ms')::integer);
    if jsonb_typeof(p_settlement -> 'failed_routes') = 'array' then
        perform gateway.add_failures(v_request, p_settlement -> 'failed_routes');
    end if;

    update gateway.requests
    set state = 'settled', outcome = v_outcome,
        model_id = v_request.model_id, service_id = v_request.service_id,
        cost_usd = v_request.cost_usd, charge_usd = v_request.charge_usd,
        collected_usd = v_request.collected_usd, uncollected_usd = v_request.uncollected_usd,
        input_tokens = (v_usage ->> 'input')::bigint, cached_input_tokens = (v_usage ->> 'cached_input')::bigint,
        cache_write_tokens = (v_usage ->> 'cache_write')::bigint, audio_input_tokens = (v_usage ->> 'audio_input')::bigint,
        image_input_tokens = (v_usage ->> 'image_input')::bigint, output_tokens = (v_usage ->> 'output')::bigint,
        reasoning_tokens = (v_usage ->> 'reasoning')::bigint, audio_output_tokens = (v_usage ->> 'audio_output')::bigint,
        image_output_tokens = (v_usage ->> 'image_output')::bigint, images = (v_usage ->> 'images')::bigint,
        usage_estimated = coalesce((p_settlement ->> 'usage_estimated')::boolean, false),
        failed_routes = nullif(p_settlement -> 'failed_routes', 'null'),
        status = (p_settlement ->> 'status')::integer, error_code = p_settlement ->> 'error_code',
        finish_reason = p_settlement ->> 'finish_reason',
        latency_ms = (p_settlement ->> 'latency_ms')::integer,
        time_to_first_token_ms = (p_settlement ->> 'time_to_first_token_ms')::integer,
        provider_request_id = p_settlement ->> 'provider_request_id',
        provider_cost_usd = case when abs(v_claimed_usd) <= c_most_usd then v_claimed_usd end,
        settled_at = clock_timestamp()
    where id = v_request.id and admitted_at = v_request.admitted_at;
    perform set_config('gateway.engine', 'off', true);

    return gateway.describe_settlement(v_request, v_tokens, v_account.balance_usd, false);
end
$$;

-- The entries of each customer since its last checkpoint, by the index from account to account, whatever the planner thinks of how many they
-- are: a scan would read the whole of the books for each account, and so would the primary key where a customer's checkpoint is old. For
-- that the condition is on both columns at once.
create function gateway.recent_entries() returns table (customer_id bigint, request_id text, amount_usd numeric)
language plpgsql stable set search_path = '' set enable_seqscan = off
as $$
begin
    return query
    select a.customer_id, e.request_id, e.amount_usd
    from gateway.accounts as a
    left join lateral (
        select p.through_entry_id from gateway.ledger_checkpoints as p where p.customer_id = a.customer_id order by p.month desc limit 1
    ) as c on true
    cross join lateral (
        select l.request_id, l.amount_usd
        from gateway.ledger_entries as l
        where (l.customer_id, l.id) > (a.customer_id, coalesce(c.through_entry_id, 0)) and l.customer_id <= a.customer_id
        offset 0
    ) as e;
end
$$;

comment on function gateway.recent_entries() is 'The entries of each customer since its last checkpoint.';

revoke all on function gateway.recent_entries() from public;

-- gateway.count_misbooked: requests whose entries do not come to what was collected for them, and entries for requests that are not there.
-- Of the months that are not closed yet, and whatever else the entries since then name; with p_full of all times. There the requests of
-- dropped logs, which nobody can look up any more, are held to their months' sums.
create function gateway.count_misbooked(p_full boolean) returns bigint
language plpgsql stable set search_path = ''
as $$
declare
    v_open_from timestamptz := coalesce((select (max(month) + interval '1 month') at time zone 'UTC' from gateway.ledger_months), '-infinity');
begin
    if p_full then
        return (
            with doubtful as (
                select r.id as in_log, b.total
                from (select id, collected_usd from gateway.requests where collected_usd <> 0) as r
                full join (
                    select request_id, -sum(amount_usd) as total
                    from gateway.ledger_entries
                    where request_id is not null
                    group by request_id
                    having sum(amount_usd) <> 0
                ) as b on b.request_id = r.id
                where r.collected_usd is distinct from b.total
            )
            select d.in_log + case
                when (d.gone, d.total) = (m.gone, m.total) then 0
                else greatest(abs(d.gone - m.gone), 1)
            end
            from (
                select count(in_log) as in_log, count(*) - count(in_log) as gone, coalesce(sum(total) filter (where in_log is null), 0) as total
                from doubtful
            ) as d
            cross join (
                select coalesce(sum(booked_requests), 0)::bigint as gone, coalesce(sum(collected_usd), 0) as total from gateway.ledger_months
            ) as m
        );
    end if;
    return (
        with doubtful as (
            select coalesce(r.id, b.request_id) as id
            from (select id, collected_usd from gateway.requests where collected_usd <> 0 and admitted_at >= v_open_from) as r
            full join (
                select e.request_id, -sum(e.amount_usd) as total
                from gateway.recent_entries() as e
                where e.request_id is not null
                group by e.request_id
                having sum(e.amount_usd) <> 0
            ) as b on b.request_id = r.id
            where r.collected_usd is distinct from b.total
        )
        -- A late settlement may name a request of a closed month: each is looked at whole.
        select count(*)
        from doubtful as d
        where (select coalesce(sum(r.collected_usd), 0) from gateway.requests as r where r.id = d.id)
            <> (select coalesce(-sum(e.amount_usd), 0) from gateway.ledger_entries as e where e.request_id = d.id)
    );
end
$$;

comment on function gateway.count_misbooked(boolean) is 'Requests whose entries do not come to what was collected for them.';

revoke all on function gateway.count_misbooked(boolean) from public;

-- api.check_ledger: recomputes every balance from the ledger, every hold from the running requests, and every request's charge from its
-- entries. It goes on from each customer's last checkpoint, so that it costs the same however old the books are; with p_full from the first
-- entry, and proves the checkpoints as well. {"ok", "full", "accounts", "closed_through": last closed month or null,
-- "mismatches": [{customer_id, balance_usd, ledger_usd, held_usd, requests_held_usd}, …at most 100], "misbooked_requests": n,
-- "wrong_checkpoints": n or null, "orphan_holds": n (their lease has run out and nobody ended them)}. Reads one snapshot; locks nothing.
create function api.check_ledger(p_full boolean default false) returns jsonb
language plpgsql stable security definer set search_path = '' set statement_timeout = '120s' set plan_cache_mode = force_custom_plan
as $$
declare
    v_misbooked bigint := gateway.count_misbooked(p_full);
    v_wrong_checkpoints bigint;
begin
    if p_full then
        v_wrong_checkpoints := (
            select count(*)
            from (
                select c.*, lag(c.balance_usd, 1, 0) over of_customer as before_usd, lag(c.through_entry_id, 1, 0) over of_customer as after_entry_id
                from gateway.ledger_checkpoints as c
                window of_customer as (partition by c.customer_id order by c.month)
            ) as c
            cross join lateral (
                select count(*) as entries, coalesce(sum(e.amount_usd), 0) as total, max(e.id) as last_id
                from gateway.ledger_entries as e
                where e.customer_id = c.customer_id and e.id > c.after_entry_id and e.id <= c.through_entry_id
            ) as e
            where (e.entries, e.last_id, c.before_usd + e.total) is distinct from (c.entries, c.through_entry_id, c.balance_usd)
        );
    end if;
    return (
        with entries as (
            select c.customer_id, sum(c.amount_usd) as total
            from (
                select e.customer_id, e.amount_usd from gateway.ledger_entries as e where p_full
                union all
                select e.customer_id, e.amount_usd from gateway.recent_entries() as e where not p_full
                union all
                select a.customer_id, c.balance_usd
                from gateway.accounts as a
                cross join lateral (
                    select p.balance_usd from gateway.ledger_checkpoints as p where p.customer_id = a.customer_id order by p.month desc limit 1
                ) as c
                where not p_full
            ) as c
            group by c.customer_id
        ),
        holds as (
            select customer_id, sum(hold_usd) as total, count(*) filter (where lease_until < now()) as orphans
            from gateway.requests
            where state = 'held'
            group by customer_id
        ),
        mismatches as (
            select a.customer_id, a.balance_usd, coalesce(e.total, 0) as ledger_usd, a.held_usd, coalesce(h.total, 0) as requests_held_usd
            from gateway.accounts as a
            left join entries as e using (customer_id)
            left join holds as h using (customer_id)
            where a.balance_usd <> coalesce(e.total, 0) or a.held_usd <> coalesce(h.total, 0)
        )
        select jsonb_build_object(
            'ok', not exists (select from mismatches) and v_misbooked = 0 and coalesce(v_wrong_checkpoints, 0) = 0,
            'full', p_full,
            'accounts', (select count(*) from gateway.accounts),
            'closed_through', (select to_char(max(month), 'YYYY-MM') from gateway.ledger_months),
            'mismatches', coalesce((
                select jsonb_agg(jsonb_build_object(
                    'customer_id', m.customer_id, 'balance_usd', gateway.show_usd(m.balance_usd), 'ledger_usd', gateway.show_usd(m.ledger_usd),
                    'held_usd', gateway.show_usd(m.held_usd), 'requests_held_usd', gateway.show_usd(m.requests_held_usd)))
                from (select * from mismatches order by customer_id limit 100) as m
            ), '[]'),
            'misbooked_requests', v_misbooked,
            'wrong_checkpoints', v_wrong_checkpoints,
            'orphan_holds', coalesce((select sum(orphans) from holds), 0))
    );
end
$$;

revoke all on function api.check_ledger(boolean) from public;

grant execute on function api.check_ledger(boolean) to service_role;

comment on function api.check_ledger(boolean) is 'Recomputes every balance from the ledger and every hold from the running requests, from the last checkpoints on or whole.';

create function gateway.write_checkpoints(p_month date, p_end timestamptz) returns void
language plpgsql set search_path = '' set enable_seqscan = off
as $$
begin
    insert into gateway.ledger_checkpoints (customer_id, month, through_entry_id, entries, balance_usd)
    select a.customer_id, p_month, t.entry_id, n.entries, coalesce(c.balance_usd, 0) + n.total
    from gateway.accounts as a
    left join lateral (
        select p.through_entry_id, p.balance_usd from gateway.ledger_checkpoints as p where p.customer_id = a.customer_id order by p.month desc limit 1
    ) as c on true
    cross join lateral (
        select e.id as entry_id
        from gateway.ledger_entries as e
        where (e.customer_id, e.id) > (a.customer_id, coalesce(c.through_entry_id, 0)) and e.customer_id <= a.customer_id and e.created_at < p_end
        order by e.customer_id desc, e.id desc
        limit 1
    ) as t
    cross join lateral (
        select count(*) as entries, sum(e.amount_usd) as total
        from gateway.ledger_entries as e
        where (e.customer_id, e.id) > (a.customer_id, coalesce(c.through_entry_id, 0)) and (e.customer_id, e.id) <= (a.customer_id, t.entry_id)
        offset 0
    ) as n;
end
$$;

comment on function gateway.write_checkpoints(date, timestamptz) is 'Writes what each customer''s entries of a month, and those left over from before, come to.';

revoke all on function gateway.write_checkpoints(date, timestamptz) from public;

-- api.close_ledger: closes the oldest month (UTC) that is over by a day and not closed yet, if the books agree: writes each customer's balance
-- at its end into ledger_checkpoints. What is booked later, and if it is for a request of that month, counts from then on. For maintenance.
-- {"closed": "2026-10" or null, "disagree": whether it had to be left open, because check_ledger finds fault}. Locks no account: a customer's
-- entries are numbered under the lock of its account, so that those which can be seen have none missing between them.
create function api.close_ledger() returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '300s'
as $$
declare
    v_month date := coalesce(
        (select (max(month) + interval '1 month')::date from gateway.ledger_months),
        (select date_trunc('month', created_at at time zone 'UTC')::date from gateway.ledger_entries order by id limit 1));
    v_end timestamptz := (v_month + interval '1 month') at time zone 'UTC';
begin
    if v_end is null or v_end + interval '1 day' > clock_timestamp() then
        return jsonb_build_object('closed', null, 'disagree', false);
    end if;
    -- Nobody waits for another who does the same.
    if not pg_try_advisory_xact_lock(hashtext('gateway.close_ledger')) then
        return jsonb_build_object('closed', null, 'disagree', false);
    end if;
    if exists (select from gateway.ledger_months where month = v_month) then  -- another has, since
        return jsonb_build_object('closed', null, 'disagree', false);
    end if;
    if not (api.check_ledger() ->> 'ok')::boolean then
        return jsonb_build_object('closed', null, 'disagree', true);
    end if;
    perform set_config('gateway.engine', 'on', true);
    insert into gateway.ledger_months (month) values (v_month);
    perform gateway.write_checkpoints(v_month, v_end);
    perform set_config('gateway.engine', 'off', true);
    return jsonb_build_object('closed', to_char(v_month, 'YYYY-MM'), 'disagree', false);
end
$$;

revoke all on function api.close_ledger() from public;

grant execute on function api.close_ledger() to service_role;

comment on function api.close_ledger() is 'Closes the books of a month that is over.';

-- api.drop_request_partitions: drops the oldest month of the request log that is older than the setting log_retention_months allows: that many
-- whole months are kept beside the current one. Only once nothing can be missed: the month's books are closed, nothing of it is running, each
-- of its requests is booked as it was charged, and no entry since the last checkpoints names one. What they come to is written down first.
-- Books, sums and the record of who nears a limit stay. For maintenance; one month a call.
-- {"dropped": "2026-08" or null, "waits": null | "not_closed" | "holds" | "misbooked" | "late_entries" | "busy"}. Locks the log for a moment,
-- and waits two seconds at most for that: the next call tries again.
create function api.drop_request_partitions() returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '300s'
as $$
declare
    v_month date;
    v_name text;
    v_from timestamptz;
    v_to timestamptz;
    v_requests bigint;
    v_collected_usd numeric;
    v_last_entry_id bigint;
    v_late boolean;
begin
    select to_date(c.relname, '"requests_"YYYY_MM'), c.relname into v_month, v_name
    from pg_inherits as i
    join pg_class as c on c.oid = i.inhrelid
    where i.inhparent = 'gateway.requests'::regclass and c.relname ~ '^requests_\d{4}_\d\d$'
    order by c.relname
    limit 1;
    if v_month is null or v_month >= (
        select date_trunc('month', now() at time zone 'UTC') - make_interval(months => log_retention_months) from gateway.settings
    ) is not false then
        return jsonb_build_object('dropped', null, 'waits', null);
    end if;
    v_from := v_month::timestamp at time zone 'UTC';
    v_to := (v_month + interval '1 month') at time zone 'UTC';
    if not exists (select from gateway.ledger_months where month = v_month) then
        return jsonb_build_object('dropped', null, 'waits', 'not_closed');
    elsif exists (select from gateway.requests where state = 'held' and admitted_at >= v_from and admitted_at < v_to) then
        return jsonb_build_object('dropped', null, 'waits', 'holds');
    end if;
    v_last_entry_id := (select max(id) from gateway.ledger_entries);
    if exists (
        select from gateway.recent_entries() as e
        join gateway.requests as r on r.id = e.request_id and r.admitted_at >= v_from and r.admitted_at < v_to
    ) then
        return jsonb_build_object('dropped', null, 'waits', 'late_entries');
    end if;
    begin
        perform set_config('lock_timeout', '2s', true);
        -- As api.create_request_partitions: only one at a time makes or drops one. Reading and writing go on.
        lock table only gateway.requests in share update exclusive mode;
        select count(*), coalesce(sum(r.collected_usd), 0) into v_requests, v_collected_usd
        from gateway.requests as r
        where r.collected_usd <> 0 and r.admitted_at >= v_from and r.admitted_at < v_to;
        if exists (
            select from gateway.requests as r
            where r.admitted_at >= v_from and r.admitted_at < v_to
                and r.collected_usd <> (select coalesce(-sum(e.amount_usd), 0) from gateway.ledger_entries as e where e.request_id = r.id)
        ) then
            return jsonb_build_object('dropped', null, 'waits', 'misbooked');
        end if;
        execute format('alter table gateway.requests detach partition gateway.%I', v_name);
        -- Nobody writes to it any more. What came since it was looked at has left an entry: among the last, and with a smaller number than the
        -- last one of then only where its transaction was running at that moment.
        execute format(
            'select exists (select from gateway.ledger_entries as e join gateway.%I as r on r.id = e.request_id where e.id > $1 - 100000 and '
            'e.id > (select coalesce(max(c.through_entry_id), 0) from gateway.ledger_checkpoints as c where c.customer_id = e.customer_id))', v_name)
            into v_late using v_last_entry_id;
        if v_late then
            raise exception using errcode = 'no_data_found';
        end if;
        perform set_config('gateway.engine', 'on', true);
        update gateway.ledger_months
        set log_dropped_at = clock_timestamp(), booked_requests = v_requests, collected_usd = v_collected_usd
        where month = v_month;
        perform set_config('gateway.engine', 'off', true);
        execute format('drop table gateway.%I', v_name);
    exception
        when no_data_found then  -- attached again
            return jsonb_build_object('dropped', null, 'waits', 'late_entries');
        when lock_not_available then
            return jsonb_build_object('dropped', null, 'waits', 'busy');
    end;
    return jsonb_build_object('dropped', to_char(v_month, 'YYYY-MM'), 'waits', null);
end
$$;

revoke all on function api.drop_request_partitions() from public;

grant execute on function api.drop_request_partitions() to service_role;

comment on function api.drop_request_partitions() is 'Drops the oldest month of the request log, where the settings say so and the books need it no more.';

-- gateway.fold_usage: adds rows of the rollups to usage_periods: to those of their customers or, with p_of_all, to everybody's, and to
-- key_days and active_days. Its callers hold the row of usage_closing: nobody else writes here. Rows are summed by day first, and only
-- then for every grouping.
create function gateway.fold_usage(p_rows gateway.usage_rollups[], p_of_all boolean) returns void
language plpgsql set search_path = ''
as $$
begin
    insert into gateway.usage_periods as p (
        customer_id, per, grouped_by, period, key_id, model_id, service_id,
        requests, errors, failures, input_tokens, cached_input_tokens, cache_write_tokens, audio_input_tokens, image_input_tokens,
        output_tokens, reasoning_tokens, audio_output_tokens, image_output_tokens, images, total_tokens, cost_usd, charge_usd,
        uncollected_usd, latency_ms, latencies, time_to_first_token_ms, first_tokens, latency_counts, first_token_counts, last_request_at,
        last_failure_at)
    with by_day as materialized (
        select
            case when p_of_all then 0 else c.id end as customer_id,
            case
                when p_of_all then r.bucket at time zone 'UTC'
                else date_trunc('day', r.bucket at time zone c.time_zone)
            end as period,
            case when p_of_all then 0 else r.key_id end as key_id,
            r.model_id,
            r.service_id,
            sum(r.requests) as requests, sum(r.errors) as errors, sum(r.failures) as failures, sum(r.input_tokens) as input_tokens,
            sum(r.cached_input_tokens) as cached_input_tokens, sum(r.cache_write_tokens) as cache_write_tokens,
            sum(r.audio_input_tokens) as audio_input_tokens, sum(r.image_input_tokens) as image_input_tokens,
            sum(r.output_tokens) as output_tokens, sum(r.reasoning_tokens) as reasoning_tokens,
            sum(r.audio_output_tokens) as audio_output_tokens, sum(r.image_output_tokens) as image_output_tokens, sum(r.images) as images,
            sum(r.total_tokens) as total_tokens, sum(r.cost_usd) as cost_usd, sum(r.charge_usd) as charge_usd,
            sum(r.uncollected_usd) as uncollected_usd, sum(r.latency_ms) as latency_ms, sum(r.latencies) as latencies,
            sum(r.time_to_first_token_ms) as time_to_first_token_ms, sum(r.first_tokens) as first_tokens,
            gateway.sum_counts(array_agg(row(r.latency_counts)::gateway.time_counts)) as latency_counts,
            gateway.sum_counts(array_agg(row(r.first_token_counts)::gateway.time_counts)) as first_token_counts,
            max(r.last_request_at) as last_request_at, max(r.last_failure_at) as last_failure_at
        from unnest(p_rows) as r
        join gateway.customers as c on c.id = r.customer_id
        group by 1, 2, 3, 4, 5
    ),
    by_period as (
        select v.per, d.customer_id, case v.per when 'quarter' then d.period else date_trunc(v.per, d.period) end as period,
            d.key_id, d.model_id, d.service_id,
            d.requests, d.errors, d.failures, d.input_tokens, d.cached_input_tokens, d.cache_write_tokens, d.audio_input_tokens,
            d.image_input_tokens, d.output_tokens, d.reasoning_tokens, d.audio_output_tokens, d.image_output_tokens, d.images,
            d.total_tokens, d.cost_usd, d.charge_usd, d.uncollected_usd, d.latency_ms, d.latencies, d.time_to_first_token_ms,
            d.first_tokens, d.latency_counts, d.first_token_counts, d.last_request_at, d.last_failure_at
        from by_day as d
        join (values ('quarter', true), ('day', true), ('day', false), ('month', true), ('month', false)) as v (per, of_all)
            on v.of_all = p_of_all
    ),
    grouped as (
        select d.customer_id, d.per, d.period,
            case grouping(d.key_id, d.model_id, d.service_id)
                when 7 then 'all' when 3 then 'key' when 5 then 'model' when 6 then 'service' when 1 then 'key_model' when 2 then 'key_service'
            end as grouped_by,
            coalesce(d.key_id, 0) as key_id, coalesce(d.model_id, 0) as model_id, coalesce(d.service_id, 0) as service_id,
            sum(d.requests) as requests, sum(d.errors) as errors, sum(d.failures) as failures, sum(d.input_tokens) as input_tokens,
            sum(d.cached_input_tokens) as cached_input_tokens, sum(d.cache_write_tokens) as cache_write_tokens,
            sum(d.audio_input_tokens) as audio_input_tokens, sum(d.image_input_tokens) as image_input_tokens,
            sum(d.output_tokens) as output_tokens, sum(d.reasoning_tokens) as reasoning_tokens,
            sum(d.audio_output_tokens) as audio_output_tokens, sum(d.image_output_tokens) as image_output_tokens, sum(d.images) as images,
            sum(d.total_tokens) as total_tokens, sum(d.cost_usd) as cost_usd, sum(d.charge_usd) as charge_usd,
            sum(d.uncollected_usd) as uncollected_usd, sum(d.latency_ms) as latency_ms, sum(d.latencies) as latencies,
            sum(d.time_to_first_token_ms) as time_to_first_token_ms, sum(d.first_tokens) as first_tokens,
            gateway.sum_counts(array_agg(row(d.latency_counts)::gateway.time_counts)) as latency_counts,
            gateway.sum_counts(array_agg(row(d.first_token_counts)::gateway.time_counts)) as first_token_counts,
            max(d.last_request_at) as last_request_at, max(d.last_failure_at) as last_failure_at
        from by_period as d
        group by grouping sets (
            (d.customer_id, d.per, d.period), (d.customer_id, d.per, d.period, d.key_id), (d.customer_id, d.per, d.period, d.model_id),
            (d.customer_id, d.per, d.period, d.service_id), (d.customer_id, d.per, d.period, d.key_id, d.model_id),
            (d.customer_id, d.per, d.period, d.key_id, d.service_id))
    )
    select g.customer_id, g.per, g.grouped_by, g.period, g.key_id, g.model_id, g.service_id,
        g.requests, g.errors, g.failures, g.input_tokens, g.cached_input_tokens, g.cache_write_tokens, g.audio_input_tokens,
        g.image_input_tokens, g.output_tokens, g.reasoning_tokens, g.audio_output_tokens, g.image_output_tokens, g.images, g.total_tokens,
        g.cost_usd, g.charge_usd, g.uncollected_usd, g.latency_ms, g.latencies, g.time_to_first_token_ms, g.first_tokens, g.latency_counts,
        g.first_token_counts, g.last_request_at, g.last_failure_at
    from grouped as g
    where not p_of_all or g.grouped_by in ('all', 'model', 'service')
    on conflict (customer_id, per, grouped_by, period, key_id, model_id, service_id) do update set
        requests = p.requests + excluded.requests,
        errors = p.errors + excluded.errors,
        failures = p.failures + excluded.failures,
        input_tokens = p.input_tokens + excluded.input_tokens,
        cached_input_tokens = p.cached_input_tokens + excluded.cached_input_tokens,
        cache_write_tokens = p.cache_write_tokens + excluded.cache_write_tokens,
        audio_input_tokens = p.audio_input_tokens + excluded.audio_input_tokens,
        image_input_tokens = p.image_input_tokens + excluded.image_input_tokens,
        output_tokens = p.output_tokens + excluded.output_tokens,
        reasoning_tokens = p.reasoning_tokens + excluded.reasoning_tokens,
        audio_output_tokens = p.audio_output_tokens + excluded.audio_output_tokens,
        image_output_tokens = p.image_output_tokens + excluded.image_output_tokens,
        images = p.images + excluded.images,
        total_tokens = p.total_tokens + excluded.total_tokens,
        cost_usd = p.cost_usd + excluded.cost_usd,
        charge_usd = p.charge_usd + excluded.charge_usd,
        uncollected_usd = p.uncollected_usd + excluded.uncollected_usd,
        latency_ms = p.latency_ms + excluded.latency_ms,
        latencies = p.latencies + excluded.latencies,
        time_to_first_token_ms = p.time_to_first_token_ms + excluded.time_to_first_token_ms,
        first_tokens = p.first_tokens + excluded.first_tokens,
        latency_counts = gateway.add_counts(p.latency_counts, excluded.latency_counts),
        first_token_counts = gateway.add_counts(p.first_token_counts, excluded.first_token_counts),
        last_request_at = greatest(p.last_request_at, excluded.last_request_at),
        last_failure_at = greatest(p.last_failure_at, excluded.last_failure_at);
    if p_of_all then
        insert into gateway.active_days as a (day, customers)
        select n.day, count(*)
        from (select distinct (r.bucket at time zone 'UTC')::date as day, r.customer_id from unnest(p_rows) as r where r.requests > 0) as n
        where not exists (select from gateway.key_days as d where d.day = n.day and d.customer_id = n.customer_id)
        group by n.day
        on conflict (day) do update set customers = a.customers + excluded.customers;
        insert into gateway.key_days as d (day, customer_id, key_id, requests, total_tokens, charge_usd)
        select (r.bucket at time zone 'UTC')::date, r.customer_id, r.key_id, sum(r.requests), sum(r.total_tokens), sum(r.charge_usd)
        from unnest(p_rows) as r
        where (r.requests, r.total_tokens, r.charge_usd) <> (0, 0, 0)
        group by 1, 2, 3
        on conflict (day, customer_id, key_id) do update set
            requests = d.requests + excluded.requests,
            total_tokens = d.total_tokens + excluded.total_tokens,
            charge_usd = d.charge_usd + excluded.charge_usd;
    end if;
end
$$;

comment on function gateway.fold_usage(gateway.usage_rollups[], boolean) is 'Adds rows of the rollups to the closed tier.';

revoke all on function gateway.fold_usage(gateway.usage_rollups[], boolean) from public;

-- api.close_usage: adds the buckets that ended two minutes ago or earlier, and what has come late, to usage_periods, and deletes rollups older
-- than the setting usage_detail_days. One transaction; at most a day of buckets and, from the second bucket on, p_limit rows, so that what was
-- not closed for weeks is closed by as many calls: "behind" says that there is more to do. For the maintenance function, every minute.
-- About 0.2 ms for each row.
-- {"closed_until", "rows", "late", "deleted", "behind"}; {"busy": true, "behind": false} where another one is at it.
-- Locks the row of usage_closing, and of each bucket its advisory lock; waits for nobody: what is in use is left for the next time.
create function api.close_usage(p_limit integer default 10000) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '120s'
as $$
declare
    c_most_buckets constant integer := 96;
    v_closing gateway.usage_closing;
    v_due timestamptz := gateway.rollup_bucket(clock_timestamp() - interval '2 minutes');
    v_until timestamptz;
    v_kept_from timestamptz;
    v_count bigint := 0;
    v_rows gateway.usage_rollups[];
    v_late gateway.usage_rollups[];
    v_row gateway.usage_rollups;
    v_deleted integer;
begin
    select * into v_closing from gateway.usage_closing for update skip locked;
    if not found then
        return jsonb_build_object('busy', true, 'behind', false);
    end if;
    v_until := v_closing.closed_until;
    while v_until < v_due and v_until < v_closing.closed_until + c_most_buckets * interval '15 minutes' and v_count < p_limit
        and pg_try_advisory_xact_lock(gateway.bucket_lock(v_until))
    loop
        v_count := v_count + (select count(*) from gateway.usage_rollups where bucket = v_until);
        v_until := v_until + interval '15 minutes';
    end loop;

    perform set_config('gateway.engine', 'on', true);
    v_rows := array(
        select r from gateway.usage_rollups as r where r.bucket >= v_closing.closed_until and r.bucket < v_until and not r.late
    );
    with gone as (
        delete from gateway.usage_rollups as r
        where r.ctid = any (array(select l.ctid from gateway.usage_rollups as l where l.late limit p_limit for update skip locked))
        returning r as late_row
    )
    select coalesce(array_agg(late_row), '{}') into v_late from gone;
    foreach v_row in array v_late loop
        v_row.late := false;
        perform gateway.merge_rollup(v_row, p_closing => true);
    end loop;
    perform gateway.fold_usage(v_rows || v_late, of_all) from (values (false), (true)) as v (of_all);
    -- never what is not closed yet
    select greatest(v_closing.kept_from, case
        when s.usage_detail_days is not null
        then least(date_trunc('day', now() - make_interval(days => s.usage_detail_days), 'UTC'), v_until)
    end)
    into v_kept_from
    from gateway.settings as s;
    delete from gateway.usage_rollups
    where ctid = any (array(
        select r.ctid from gateway.usage_rollups as r
        where r.bucket < v_kept_from and not r.late
        order by r.bucket
        limit p_limit
        for update skip locked
    ));
    get diagnostics v_deleted = row_count;
    delete from gateway.usage_periods where per = 'quarter' and period < v_kept_from at time zone 'UTC';
    delete from gateway.key_days where day < (v_kept_from at time zone 'UTC')::date;
    delete from gateway.active_days where day < (v_kept_from at time zone 'UTC')::date;
    update gateway.usage_closing set closed_until = v_until, kept_from = v_kept_from;
    perform set_config('gateway.engine', 'off', true);
    return jsonb_build_object(
        'closed_until', v_until, 'rows', cardinality(v_rows), 'late', cardinality(v_late), 'deleted', v_deleted,
        'behind', (v_until < v_due and v_until > v_closing.closed_until) or cardinality(v_late) >= p_limit or v_deleted >= p_limit);
end
$$;

revoke all on function api.close_usage(integer) from public;

grant execute on function api.close_usage(integer) to service_role;

comment on function api.close_usage(integer) is 'Adds the quarters of an hour that are over to the sums by day and month; the maintenance function calls it every minute.';

-- A customer's days are those of its zone. When that changes, they are made anew as far back as there are rollups; older days, and the
-- months that they are in, stay as they were closed. Waits for a closing that is under way.
create function gateway.move_usage_to_zone() returns trigger
language plpgsql security definer set search_path = ''
as $$
declare
    v_engine text := coalesce(current_setting('gateway.engine', true), '');
    v_closing gateway.usage_closing;
    v_first date;
    v_from timestamptz;
begin
    select * into v_closing from gateway.usage_closing for update;
    perform set_config('gateway.engine', 'on', true);
    -- the first day of the old zone that is in the rollups whole
    v_first := case when isfinite(v_closing.kept_from) then (v_closing.kept_from at time zone old.time_zone)::date + 1 else '-infinity' end;
    delete from gateway.usage_periods where customer_id = new.id and per = 'day' and period >= v_first;
    v_from := (
        select min(bucket) from gateway.usage_rollups where customer_id = new.id and (bucket at time zone old.time_zone)::date >= v_first
    );
    while v_from < v_closing.closed_until loop
        perform gateway.fold_usage(array(
            select r
            from gateway.usage_rollups as r
            where r.customer_id = new.id and r.bucket >= v_from and r.bucket < least(v_from + interval '7 days', v_closing.closed_until)
                and not r.late
        ), false);
        v_from := v_from + interval '7 days';
    end loop;
    -- months are what their days come to
    delete from gateway.usage_periods where customer_id = new.id and per = 'month';
    insert into gateway.usage_periods (
        customer_id, per, grouped_by, period, key_id, model_id, service_id,
        requests, errors, failures, input_tokens, cached_input_tokens, cache_write_tokens, audio_input_tokens, image_input_tokens,
        output_tokens, reasoning_tokens, audio_output_tokens, image_output_tokens, images, total_tokens, cost_usd, charge_usd,
        uncollected_usd, latency_ms, latencies, time_to_first_token_ms, first_tokens, latency_counts, first_token_counts, last_request_at,
        last_failure_at)
    select d.customer_id, 'month', d.grouped_by, date_trunc('month', d.period), d.key_id, d.model_id, d.service_id,
        sum(d.requests) as requests, sum(d.errors) as errors, sum(d.failures) as failures, sum(d.input_tokens) as input_tokens,
        sum(d.cached_input_tokens) as cached_input_tokens, sum(d.cache_write_tokens) as cache_write_tokens,
        sum(d.audio_input_tokens) as audio_input_tokens, sum(d.image_input_tokens) as image_input_tokens,
        sum(d.output_tokens) as output_tokens, sum(d.reasoning_tokens) as reasoning_tokens,
        sum(d.audio_output_tokens) as audio_output_tokens, sum(d.image_output_tokens) as image_output_tokens, sum(d.images) as images,
        sum(d.total_tokens) as total_tokens, sum(d.cost_usd) as cost_usd, sum(d.charge_usd) as charge_usd,
        sum(d.uncollected_usd) as uncollected_usd, sum(d.latency_ms) as latency_ms, sum(d.latencies) as latencies,
        sum(d.time_to_first_token_ms) as time_to_first_token_ms, sum(d.first_tokens) as first_tokens,
        gateway.sum_counts(array_agg(row(d.latency_counts)::gateway.time_counts)) as latency_counts,
        gateway.sum_counts(array_agg(row(d.first_token_counts)::gateway.time_counts)) as first_token_counts,
        max(d.last_request_at) as last_request_at, max(d.last_failure_at) as last_failure_at
    from gateway.usage_periods as d
    where d.customer_id = new.id and d.per = 'day'
    group by d.customer_id, d.grouped_by, date_trunc('month', d.period), d.key_id, d.model_id, d.service_id;
    perform set_config('gateway.engine', v_engine, true);
    return null;
end
$$;

comment on function gateway.move_usage_to_zone() is 'Trigger: the closed days and months of a customer whose time zone changes are made anew.';

revoke all on function gateway.move_usage_to_zone() from public;

create trigger move_usage_to_zone after update of time_zone on gateway.customers
    for each row when (old.time_zone is distinct from new.time_zone) execute function gateway.move_usage_to_zone();

create trigger refuse_hand_edit before insert or update or delete or truncate on gateway.usage_periods
    for each statement execute function gateway.refuse_hand_edit();

create trigger refuse_hand_edit before insert or update or delete or truncate on gateway.key_days
    for each statement execute function gateway.refuse_hand_edit();

create trigger refuse_hand_edit before insert or update or delete or truncate on gateway.active_days
    for each statement execute function gateway.refuse_hand_edit();

create trigger refuse_hand_edit before insert or update or delete or truncate on gateway.usage_closing
    for each statement execute function gateway.refuse_hand_edit();

create function gateway.find_live_usage(p_customer_id bigint, p_from timestamptz, p_live_from timestamptz, p_to timestamptz)
returns setof gateway.usage_rollups
language plpgsql stable set search_path = '' rows 100
as $$
begin
    if p_customer_id is null then
        return query select * from gateway.usage_rollups where bucket >= p_live_from and bucket < p_to;
        return query select * from gateway.usage_rollups where late and bucket >= p_from and bucket < p_live_from;
    else
        return query select * from gateway.usage_rollups where customer_id = p_customer_id and bucket >= p_live_from and bucket < p_to;
        return query select * from gateway.usage_rollups where customer_id = p_customer_id and late and bucket >= p_from and bucket < p_live_from;
    end if;
end
$$;

comment on function gateway.find_live_usage(bigint, timestamptz, timestamptz, timestamptz) is 'Rollups from p_live_from up to p_to and, of those before it, the late ones from p_from on; of one customer, or null: of all.';

revoke all on function gateway.find_live_usage(bigint, timestamptz, timestamptz, timestamptz) from public;

-- gateway.find_usage: rows that come to the usage of a customer (null: of all) from p_from up to p_to, both of which have to be ends of a
-- p_per (hour, day, month) in p_time_zone. Days and months of the customer's own zone (UTC for all) come from usage_periods and, since the last closing, from
-- usage_rollups; everything else comes from quarters of an hour, as far back as these are kept. A row is of a day or month, whose start by
-- the clock of the zone is its period, or of a quarter of an hour, whose start in UTC it is. Exact at any time: it is one snapshot.
create function gateway.find_usage(
    p_customer_id bigint, p_key_id bigint, p_per text, p_grouped_by text, p_time_zone text, p_from timestamptz, p_to timestamptz
) returns setof gateway.usage_periods
language plpgsql stable set search_path = '' rows 100
as $$
declare
    v_closed_until timestamptz := coalesce((select closed_until from gateway.usage_closing), '-infinity');
    v_own_zone text := coalesce((select time_zone from gateway.customers where id = p_customer_id), 'UTC');
    v_live_from timestamptz := p_from;
begin
    if p_per <> 'hour' and p_time_zone = v_own_zone then
        return query
        select *
        from gateway.usage_periods
        where customer_id = coalesce(p_customer_id, 0) and per = p_per and grouped_by = p_grouped_by
            and period >= p_from at time zone p_time_zone and period < p_to at time zone p_time_zone
            and (p_key_id is null or key_id = p_key_id);
        v_live_from := greatest(p_from, v_closed_until);
    elsif p_customer_id is null then
        return query
        select *
        from gateway.usage_periods
        where customer_id = 0 and per = 'quarter' and grouped_by = p_grouped_by
            and period >= p_from at time zone 'UTC' and period < p_to at time zone 'UTC';
        v_live_from := greatest(p_from, v_closed_until);
    end if;
    return query
    select coalesce(p_customer_id, 0), 'quarter', p_grouped_by, r.bucket at time zone 'UTC', r.key_id, r.model_id, r.service_id,
        r.requests, r.errors, r.failures, r.input_tokens, r.cached_input_tokens, r.cache_write_tokens, r.audio_input_tokens,
        r.image_input_tokens, r.output_tokens, r.reasoning_tokens, r.audio_output_tokens, r.image_output_tokens, r.images, r.total_tokens,
        r.cost_usd, r.charge_usd, r.uncollected_usd, r.latency_ms, r.latencies, r.time_to_first_token_ms, r.first_tokens, r.latency_counts,
        r.first_token_counts, r.last_request_at, r.last_failure_at
    from gateway.find_live_usage(p_customer_id, p_from, v_live_from, p_to) as r
    where p_key_id is null or r.key_id = p_key_id;
end
$$;

comment on function gateway.find_usage(bigint, bigint, text, text, text, timestamptz, timestamptz) is 'Rows that come to the usage of a time: closed ones and what has come since.';

revoke all on function gateway.find_usage(bigint, bigint, text, text, text, timestamptz, timestamptz) from public;

-- Midnight may be skipped or come twice where clocks change; noon does not.
create function gateway.day_start(p_day timestamp, p_time_zone text) returns timestamptz
language plpgsql stable parallel safe set search_path = ''
as $$
begin
    return date_trunc('day', (date_trunc('day', p_day) + interval '12 hours') at time zone p_time_zone, p_time_zone);
end
$$;

comment on function gateway.day_start(timestamp, text) is 'The first moment of a day in a time zone.';

revoke all on function gateway.day_start(timestamp, text) from public;

-- api.read_usage: usage by hour, day or month. p_customer_id null: of all customers. p_key_id: of one key alone, which has to be the customer's.
-- Every interval that any moment from p_from up to p_to lies in, whole, oldest first; those in which nothing was used are there too, with
-- zeros; grouped, each group that occurs at all has a row for each interval. p_group_by: model | key | provider (requests that no provider
-- answered are in the group null); by key only of one customer. p_time_zone: null for the customer's (UTC for all).
--
-- [{"start", "end", "group": a model's name, a key's prefix or a provider, "group_id": the model's or key's id, "requests": that have ended,
-- "errors": of these, failed or expired, "tokens": {by class, and images}, "total_tokens", "cost_usd", "charge_usd", "uncollected_usd",
-- "latency_ms": {"p50", "p95", "average"}, "time_to_first_token_ms": {the same}}]
-- Percentiles are at most 9.1 % off, and null where there is nothing. p_for_customer: the cost is null in flat mode.
-- Hours, and days in any other zone than the customer's own, are known as far back as the setting usage_detail_days. Where a customer has
-- changed its zone, days from before that time are those of the old one.
-- Costs what the intervals and groups are, however many requests there were. Reads only.
create function api.read_usage(
    p_from timestamptz, p_to timestamptz, p_interval text, p_customer_id bigint default null, p_key_id bigint default null,
    p_group_by text default null, p_time_zone text default null, p_for_customer boolean default false
) returns jsonb
language plpgsql stable security definer set search_path = '' set plan_cache_mode = force_generic_plan
as $$
declare
    c_most_intervals constant integer := 10000;
    v_time_zone text := coalesce(p_time_zone, (select c.time_zone from gateway.customers as c where c.id = p_customer_id), 'UTC');
    v_from timestamptz;
    v_to timestamptz;
    v_grouped_by text;
    v_show_cost boolean := not p_for_customer or (select s.billing_mode = 'markup' from gateway.settings as s);
    v_found jsonb;
begin
    if p_interval is null or p_interval not in ('hour', 'day', 'month') or p_group_by not in ('model', 'key', 'provider')
        or p_from is null or p_to is null or not (isfinite(p_from) and isfinite(p_to))
        or (p_customer_id is null and (p_group_by = 'key' or p_key_id is not null))
        or p_to - p_from > c_most_intervals * (case p_interval when 'hour' then interval '1 hour' else interval '1 day' end)
    then
        raise exception 'no such interval, grouping or time' using errcode = 'invalid_parameter_value';
    end if;
    if p_from >= p_to then
        return '[]'::jsonb;
    end if;
    v_from := gateway.window_start(p_interval, p_from, v_time_zone);
    v_to := gateway.window_end(p_interval, gateway.window_start(p_interval, p_to - interval '1 microsecond', v_time_zone), v_time_zone);
    v_grouped_by := case
        when p_group_by is null then case when p_key_id is null then 'all' else 'key' end
        when p_group_by = 'key' then 'key'
        else case when p_key_id is null then '' else 'key_' end || case p_group_by when 'provider' then 'service' else 'model' end
    end;

    with starts as (
        select distinct date_trunc('hour', q, v_time_zone) as start
        from generate_series(v_from, v_to - interval '15 minutes', interval '15 minutes') as q
        where p_interval = 'hour'
        union all
        select gateway.day_start(d, v_time_zone)
        from generate_series(date_trunc(p_interval, v_from at time zone v_time_zone), (v_to - interval '1 microsecond') at time zone v_time_zone,
                             ('1 ' || p_interval)::interval) as d
        where p_interval <> 'hour'
    ),
    intervals as (
        select start, coalesce(lead(start) over (order by start), v_to) as stop from starts
    ),
    found as materialized (
        select
            case
                when u.per = 'quarter' then gateway.window_start(p_interval, u.period at time zone 'UTC', v_time_zone)
                else gateway.day_start(u.period, v_time_zone)
            end as start,
            case p_group_by when 'model' then u.model_id when 'key' then u.key_id else 0 end as group_id,
            case when p_group_by = 'provider' then coalesce(s.provider, '') else '' end as provider,
            sum(u.requests) as requests, sum(u.errors) as errors, sum(u.failures) as failures, sum(u.input_tokens) as input_tokens,
            sum(u.cached_input_tokens) as cached_input_tokens, sum(u.cache_write_tokens) as cache_write_tokens,
            sum(u.audio_input_tokens) as audio_input_tokens, sum(u.image_input_tokens) as image_input_tokens,
            sum(u.output_tokens) as output_tokens, sum(u.reasoning_tokens) as reasoning_tokens,
            sum(u.audio_output_tokens) as audio_output_tokens, sum(u.image_output_tokens) as image_output_tokens, sum(u.images) as images,
            sum(u.total_tokens) as total_tokens, sum(u.cost_usd) as cost_usd, sum(u.charge_usd) as charge_usd,
            sum(u.uncollected_usd) as uncollected_usd, sum(u.latency_ms) as latency_ms, sum(u.latencies) as latencies,
            sum(u.time_to_first_token_ms) as time_to_first_token_ms, sum(u.first_tokens) as first_tokens,
            gateway.sum_counts(array_agg(row(u.latency_counts)::gateway.time_counts)) as latency_counts,
            gateway.sum_counts(array_agg(row(u.first_token_counts)::gateway.time_counts)) as first_token_counts,
            max(u.last_request_at) as last_request_at, max(u.last_failure_at) as last_failure_at
        from gateway.find_usage(p_customer_id, p_key_id, p_interval, v_grouped_by, v_time_zone, v_from, v_to) as u
        left join gateway.services as s on p_group_by = 'provider' and s.id = u.service_id
        group by 1, 2, 3
    ),
    groups as (
        -- looked up one by one: a join would read all keys that there are
        select g.group_id, g.provider, case p_group_by
            when 'model' then (select m.name from gateway.models as m where m.id = g.group_id)
            when 'key' then (select k.prefix from gateway.api_keys as k where k.id = g.group_id)
            else nullif(g.provider, '')
        end as name
        from (
            select distinct f.group_id, f.provider from found as f
            union
            select 0, '' where p_group_by is null
        ) as g
    )
    select coalesce(jsonb_agg(
        jsonb_build_object(
            'start', i.start, 'end', i.stop, 'group', g.name, 'group_id', nullif(g.group_id, 0),
            'requests', coalesce(f.requests, 0), 'errors', coalesce(f.errors, 0),
            'tokens', jsonb_build_object(
                'input', coalesce(f.input_tokens, 0), 'cached_input', coalesce(f.cached_input_tokens, 0),
                'cache_write', coalesce(f.cache_write_tokens, 0), 'audio_input', coalesce(f.audio_input_tokens, 0),
                'image_input', coalesce(f.image_input_tokens, 0), 'output', coalesce(f.output_tokens, 0),
                'reasoning', coalesce(f.reasoning_tokens, 0), 'audio_output', coalesce(f.audio_output_tokens, 0),
                'image_output', coalesce(f.image_output_tokens, 0), 'images', coalesce(f.images, 0)),
            'total_tokens', coalesce(f.total_tokens, 0),
            'cost_usd', case when v_show_cost then gateway.show_usd(coalesce(f.cost_usd, 0)) end,
            'charge_usd', gateway.show_usd(coalesce(f.charge_usd, 0)),
            'uncollected_usd', gateway.show_usd(coalesce(f.uncollected_usd, 0)),
            'latency_ms', gateway.describe_times(f.latency_counts, f.latency_ms::bigint, f.latencies::bigint),
            'time_to_first_token_ms', gateway.describe_times(f.first_token_counts, f.time_to_first_token_ms::bigint, f.first_tokens::bigint))
        order by i.start, g.name nulls last, g.group_id
    ), '[]')
    into v_found
    from intervals as i
    cross join groups as g
    left join found as f on f.start = i.start and f.group_id = g.group_id and f.provider = g.provider;
    return v_found;
end
$$;

revoke all on function api.read_usage(timestamptz, timestamptz, text, bigint, bigint, text, text, boolean) from public;

grant execute on function api.read_usage(timestamptz, timestamptz, text, bigint, bigint, text, text, boolean) to service_role;

comment on function api.read_usage(timestamptz, timestamptz, text, bigint, bigint, text, text, boolean) is 'Usage by hour, day or month, as a whole or by model, key or provider.';

-- api.read_monitor: what a customer (or one key of it) has used: ever, today and this month, by the customer's clock.
-- {"total_requests", "total_tokens", "total_charge_usd", "requests_today", …, "requests_this_month", …, "average_tokens_per_request",
-- "most_used_model": this month's by requests, or if there were none, ever's, "last_request_time", "average_latency_ms": this month's, "latency_ms",
-- "time_to_first_token_ms": percentiles, this month's, "input_tokens", "output_tokens": of all classes, ever, "errors", "cost_usd",
-- "cost_today_usd", "cost_this_month_usd": null in flat mode}; null where there is no such customer. Requests that still run are not in it.
-- Reads the months that there are, and what came since the last closing.
create function api.read_monitor(p_customer_id bigint, p_key_id bigint default null) returns jsonb
language plpgsql stable security definer set search_path = '' set plan_cache_mode = force_generic_plan
as $$
declare
    v_time_zone text := (select time_zone from gateway.customers where id = p_customer_id);
    v_show_cost boolean := (select billing_mode = 'markup' from gateway.settings);
    v_day timestamptz := gateway.window_start('day', now(), v_time_zone);
    v_month timestamptz := gateway.window_start('month', now(), v_time_zone);
    v_model text;
    v_found jsonb;
begin
    if v_time_zone is null then
        return null;
    end if;
    select (select m.name from gateway.models as m where m.id = used.model_id) into v_model
    from (
        select u.model_id, coalesce(sum(u.requests) filter (where x.this_month), 0) as this_month, sum(u.requests) as ever
        from gateway.find_usage(p_customer_id, p_key_id, 'month', case when p_key_id is null then 'model' else 'key_model' end, v_time_zone,
                                '-infinity', 'infinity') as u
        cross join lateral (
            select case u.per when 'quarter' then u.period at time zone 'UTC' >= v_month else u.period >= v_month at time zone v_time_zone end as this_month
        ) as x
        group by u.model_id
    ) as used
    order by used.this_month desc, used.ever desc, used.model_id
    limit 1;

    with used as (
        select 'ever' as time, u.*
        from gateway.find_usage(p_customer_id, p_key_id, 'month', case when p_key_id is null then 'all' else 'key' end, v_time_zone,
                                '-infinity', 'infinity') as u
        union all
        select 'day', u.*
        from gateway.find_usage(p_customer_id, p_key_id, 'day', case when p_key_id is null then 'all' else 'key' end, v_time_zone,
                                v_day, gateway.window_end('day', v_day, v_time_zone)) as u
    ),
    timed as materialized (
        select u.*, u.time = 'ever' as ever, u.time = 'day' as day,
            u.time = 'ever' and case u.per
                when 'quarter' then u.period at time zone 'UTC' >= v_month
                else u.period >= v_month at time zone v_time_zone
            end as month
        from used as u
    ),
    sums as (
        select
            coalesce(sum(requests) filter (where ever), 0) as requests, coalesce(sum(requests) filter (where month), 0) as requests_month,
            coalesce(sum(requests) filter (where day), 0) as requests_day,
            coalesce(sum(total_tokens) filter (where ever), 0) as tokens, coalesce(sum(total_tokens) filter (where month), 0) as tokens_month,
            coalesce(sum(total_tokens) filter (where day), 0) as tokens_day,
            coalesce(sum(charge_usd) filter (where ever), 0) as charge, coalesce(sum(charge_usd) filter (where month), 0) as charge_month,
            coalesce(sum(charge_usd) filter (where day), 0) as charge_day,
            coalesce(sum(cost_usd) filter (where ever), 0) as cost, coalesce(sum(cost_usd) filter (where month), 0) as cost_month,
            coalesce(sum(cost_usd) filter (where day), 0) as cost_day,
            coalesce(sum(errors) filter (where ever), 0) as errors,
            coalesce(sum(output_tokens + audio_output_tokens + image_output_tokens) filter (where ever), 0) as output_tokens,
            sum(latency_ms) filter (where month) as latency_ms, sum(latencies) filter (where month) as latencies,
            gateway.sum_counts(array_agg(row(latency_counts)::gateway.time_counts) filter (where month)) as latency_counts,
            sum(time_to_first_token_ms) filter (where month) as first_token_ms, sum(first_tokens) filter (where month) as first_tokens,
            gateway.sum_counts(array_agg(row(first_token_counts)::gateway.time_counts) filter (where month)) as first_token_counts,
            max(last_request_at) as last_request_at
        from timed
    )
    select jsonb_build_object(
        'total_requests', requests, 'total_tokens', tokens, 'total_charge_usd', gateway.show_usd(charge),
        'requests_today', requests_day, 'tokens_today', tokens_day, 'charge_today_usd', gateway.show_usd(charge_day),
        'requests_this_month', requests_month, 'tokens_this_month', tokens_month, 'charge_this_month_usd', gateway.show_usd(charge_month),
        'average_tokens_per_request', coalesce(round(tokens / nullif(requests, 0), 2), 0),
        'most_used_model', v_model,
        'last_request_time', last_request_at,
        'average_latency_ms', round(latency_ms / nullif(latencies, 0), 1),
        'latency_ms', gateway.describe_times(latency_counts, latency_ms::bigint, latencies::bigint),
        'time_to_first_token_ms', gateway.describe_times(first_token_counts, first_token_ms::bigint, first_tokens::bigint),
        'input_tokens', tokens - output_tokens, 'output_tokens', output_tokens, 'errors', errors,
        'cost_usd', case when v_show_cost then gateway.show_usd(cost) end,
        'cost_today_usd', case when v_show_cost then gateway.show_usd(cost_day) end,
        'cost_this_month_usd', case when v_show_cost then gateway.show_usd(cost_month) end)
    into v_found
    from sums;
    return v_found;
end
$$;

revoke all on function api.read_monitor(bigint, bigint) from public;

grant execute on function api.read_monitor(bigint, bigint) to service_role;

comment on function api.read_monitor(bigint, bigint) is 'What a customer or a key has used: ever, today and this month.';

-- api.read_totals: what a customer has used, ever: {"input_tokens", "output_tokens": of all classes, "total_tokens", "cost_usd", "charge_usd"};
-- null where there is no such customer. In flat mode the cost is null. Reads the months that there are, and what came since the last closing.
create function api.read_totals(p_customer_id bigint) returns jsonb
language plpgsql stable security definer set search_path = '' set plan_cache_mode = force_generic_plan
as $$
begin
    return (
        select jsonb_build_object(
            'input_tokens', t.tokens - t.output_tokens, 'output_tokens', t.output_tokens, 'total_tokens', t.tokens,
            'cost_usd', case when s.billing_mode = 'markup' then gateway.show_usd(t.cost) end, 'charge_usd', gateway.show_usd(t.charge))
        from gateway.customers as c
        cross join gateway.settings as s
        cross join lateral (
            select coalesce(sum(u.total_tokens), 0) as tokens,
                coalesce(sum(u.output_tokens + u.audio_output_tokens + u.image_output_tokens), 0) as output_tokens,
                coalesce(sum(u.cost_usd), 0) as cost, coalesce(sum(u.charge_usd), 0) as charge
            from gateway.find_usage(c.id, null, 'month', 'all', c.time_zone, '-infinity', 'infinity') as u
        ) as t
        where c.id = p_customer_id
    );
end
$$;

revoke all on function api.read_totals(bigint) from public;

grant execute on function api.read_totals(bigint) to service_role;

comment on function api.read_totals(bigint) is 'What a customer has used, ever.';

-- api.read_admin_monitor: the whole system today, by UTC. {"total_users", "active_users_today", "total_requests_today", "total_tokens_today",
-- "total_charge_today_usd", "cost_today_usd", "margin_today_usd": what was collected less the cost, "uncollected_today_usd", "errors_today",
-- "refusals_today", "top_users_by_usage": the ten keys with the most tokens today, "recent_activity": the last ten requests of the last 31
-- days, "providers": the services that are not deleted, with today's attempts, failures and percentiles of the latency of what they
-- answered, "held": what runs now}.
-- Requests count when they have ended, on the day on which they were admitted. Costs what has come since the last closing, and the same
-- however long the log is. Reads only.
create function api.read_admin_monitor() returns jsonb
language plpgsql stable security definer set search_path = '' set plan_cache_mode = force_generic_plan
as $$
declare
    v_start timestamptz := date_trunc('day', now(), 'UTC');
    v_day date := now() at time zone 'UTC';
    v_closed_until timestamptz := coalesce((select closed_until from gateway.usage_closing), '-infinity'::timestamptz);
    v_since timestamptz := greatest(v_closed_until, v_start);
    v_found jsonb;
    v_recent jsonb;
begin
    with live as materialized (
        select customer_id, key_id, service_id, requests, errors, failures, total_tokens, cost_usd, charge_usd, uncollected_usd, latency_ms, latencies, time_to_first_token_ms,
            first_tokens, latency_counts, first_token_counts, last_failure_at
        from gateway.usage_rollups
        where bucket >= v_since and bucket < 'infinity'  -- a range, which the planner takes for a short one
        union all
        select customer_id, key_id, service_id, requests, errors, failures, total_tokens, cost_usd, charge_usd, uncollected_usd, latency_ms, latencies, time_to_first_token_ms,
            first_tokens, latency_counts, first_token_counts, last_failure_at
        from gateway.usage_rollups
        where late and bucket >= v_start and bucket < v_since
    ),
    live_keys as materialized (
        select customer_id, key_id, sum(requests) as requests, sum(total_tokens) as total_tokens, sum(charge_usd) as charge_usd
        from live
        group by customer_id, key_id
        having sum(requests) > 0
    ),
    by_service as materialized (
        select u.service_id, sum(u.requests) as requests, sum(u.errors) as errors, sum(u.failures) as failures,
            sum(u.total_tokens) as total_tokens, sum(u.cost_usd) as cost_usd, sum(u.charge_usd) as charge_usd,
            sum(u.uncollected_usd) as uncollected_usd, sum(u.latency_ms) as latency_ms, sum(u.latencies) as latencies,
            sum(u.time_to_first_token_ms) as first_token_ms, sum(u.first_tokens) as first_tokens,
            gateway.sum_counts(array_agg(row(u.latency_counts)::gateway.time_counts)) as latency_counts,
            gateway.sum_counts(array_agg(row(u.first_token_counts)::gateway.time_counts)) as first_token_counts,
            max(u.last_failure_at) as last_failure_at
        from (
            select service_id, requests, errors, failures, total_tokens, cost_usd, charge_usd, uncollected_usd, latency_ms, latencies, time_to_first_token_ms,
            first_tokens, latency_counts, first_token_counts, last_failure_at
            from gateway.usage_periods
            where customer_id = 0 and per = 'day' and grouped_by = 'service' and period = v_day::timestamp
            union all
            select service_id, requests, errors, failures, total_tokens, cost_usd, charge_usd, uncollected_usd, latency_ms, latencies, time_to_first_token_ms,
            first_tokens, latency_counts, first_token_counts, last_failure_at
            from live
        ) as u
        group by u.service_id
    ),
    -- The ten at the last closing and whoever came since: nobody else can be among the first ten.
    candidates as (
        (select customer_id, key_id from gateway.key_days where day = v_day order by total_tokens desc limit 10)
        union
        select customer_id, key_id from live_keys
    ),
    busiest as (
        select c.customer_id, c.key_id,
            coalesce(d.requests, 0) + coalesce(l.requests, 0) as requests,
            coalesce(d.total_tokens, 0) + coalesce(l.total_tokens, 0) as total_tokens,
            coalesce(d.charge_usd, 0) + coalesce(l.charge_usd, 0) as charge_usd
        from candidates as c
        left join lateral (
            select * from gateway.key_days as k where k.day = v_day and k.customer_id = c.customer_id and k.key_id = c.key_id limit 1
        ) as d on true
        left join live_keys as l on l.customer_id = c.customer_id and l.key_id = c.key_id
        order by total_tokens desc, requests desc, key_id
        limit 10
    )
    select jsonb_build_object(
        'total_users', (select count(*) from gateway.customers),
        'active_users_today', coalesce((select customers from gateway.active_days where day = v_day), 0) + (
            select count(*)
            from (select distinct customer_id from live_keys) as n
            -- looked up one by one, here and above: a join would read the whole day
            where (select true from gateway.key_days as d where d.day = v_day and d.customer_id = n.customer_id limit 1) is null
        ),
        'total_requests_today', coalesce(sum(s.requests), 0),
        'total_tokens_today', coalesce(sum(s.total_tokens), 0),
        'total_charge_today_usd', gateway.show_usd(coalesce(sum(s.charge_usd), 0)),
        'cost_today_usd', gateway.show_usd(coalesce(sum(s.cost_usd), 0)),
        'margin_today_usd', gateway.show_usd(coalesce(sum(s.charge_usd - s.uncollected_usd - s.cost_usd), 0)),
        'uncollected_today_usd', gateway.show_usd(coalesce(sum(s.uncollected_usd), 0)),
        'errors_today', coalesce(sum(s.errors), 0),
        'refusals_today', (select coalesce(sum(refusals), 0) from gateway.refusal_rollups where bucket >= v_start),
        'top_users_by_usage', (
            select coalesce(jsonb_agg(jsonb_build_object(
                'key_prefix', k.prefix, 'key_id', k.id, 'customer_id', u.customer_id, 'name', c.name, 'tokens', u.total_tokens,
                'charge_usd', gateway.show_usd(u.charge_usd), 'requests', u.requests)
                order by u.total_tokens desc, u.requests desc, u.key_id), '[]'::jsonb)
            from busiest as u
            join gateway.api_keys as k on k.id = u.key_id
            join gateway.customers as c on c.id = u.customer_id
            where u.requests > 0
        ),
        'providers', (
            select coalesce(jsonb_agg(jsonb_build_object(
                'provider', s.provider, 'service', s.name, 'service_id', s.id, 'active', s.active,
                'requests', coalesce(u.requests + u.failures, 0), 'errors', coalesce(u.failures, 0),
                'error_rate', coalesce(round(u.failures / nullif(u.requests + u.failures, 0), 4), 0),
                'latency_ms', gateway.describe_times(u.latency_counts, u.latency_ms::bigint, u.latencies::bigint),
                'time_to_first_token_ms', gateway.describe_times(u.first_token_counts, u.first_token_ms::bigint, u.first_tokens::bigint),
                'last_error_at', u.last_failure_at)
                order by s.provider, s.name), '[]'::jsonb)
            from gateway.services as s
            left join by_service as u on u.service_id = s.id
            where s.deleted_at is null
        ),
        'held', (
            select jsonb_build_object('requests', count(*), 'usd', gateway.show_usd(coalesce(sum(hold_usd), 0)))
            from gateway.requests
            where state = 'held'
        ))
    into v_found
    from by_service as s;

    select coalesce(jsonb_agg(jsonb_build_object(
        'request_id', r.id, 'key_prefix', k.prefix, 'customer_id', r.customer_id, 'model', coalesce(m.name, r.requested_model),
        'tokens', coalesce(r.input_tokens, 0) + coalesce(r.cached_input_tokens, 0) + coalesce(r.cache_write_tokens, 0)
            + coalesce(r.audio_input_tokens, 0) + coalesce(r.image_input_tokens, 0) + coalesce(r.output_tokens, 0)
            + coalesce(r.audio_output_tokens, 0) + coalesce(r.image_output_tokens, 0),
        'at', r.admitted_at,
        'status', case r.state when 'held' then 'running' when 'settled' then r.outcome else r.state end)
        order by r.admitted_at desc, r.id desc), '[]'::jsonb)
    into v_recent
    from (
        select *
        from gateway.requests
        where admitted_at > now() - interval '31 days' and state <> 'refused'
        order by admitted_at desc, id desc
        limit 10
    ) as r
    left join gateway.api_keys as k on k.id = r.key_id
    left join gateway.models as m on m.id = r.model_id;
    return v_found || jsonb_build_object('recent_activity', v_recent);
end
$$;

revoke all on function api.read_admin_monitor() from public;

grant execute on function api.read_admin_monitor() to service_role;

comment on function api.read_admin_monitor() is 'The whole system today: totals, the busiest keys, the last requests, the providers'' health, what is held.';

-- Whose secret this is: the key's own, or one that was replaced and is in its grace.
create function gateway.find_key(p_secret_hash bytea) returns bigint
language sql stable set search_path = ''
as $$
    select coalesce(
        (select k.id from gateway.api_keys as k where k.secret_hash = p_secret_hash),
        (select r.key_id from gateway.retired_secrets as r where r.secret_hash = p_secret_hash and r.expires_at > clock_timestamp()))
$$;

comment on function gateway.find_key(bytea) is 'The id of the key that a secret opens, by its SHA-256; null: of none.';

revoke all on function gateway.find_key(bytea) from public;

-- api.authenticate_key: who a key is, for every route but chat (which authenticates inside api.admit_request).
-- {"key_id", "customer_id", "name", "prefix", "scopes", "username"}, or {"error": unknown_key | inactive_key | expired_key |
-- customer_suspended}. Reads only.
create or replace function api.authenticate_key(p_key_hash text) returns jsonb
language sql stable security definer set search_path = ''
as $$
    select coalesce((
        select case
            when not k.active then jsonb_build_object('error', 'inactive_key')
            when k.expires_at <= now() then jsonb_build_object('error', 'expired_key')
            when not c.active then jsonb_build_object('error', 'customer_suspended')
            else jsonb_build_object(
                'key_id', k.id, 'customer_id', k.customer_id, 'name', k.name, 'prefix', k.prefix, 'scopes', k.scopes,
                'username', c.username, 'allowed_models', k.allowed_models, 'allowed_services', k.allowed_services)
        end
        from gateway.api_keys as k
        left join gateway.customers as c on c.id = k.customer_id
        where k.id = gateway.find_key(decode(p_key_hash, 'hex'))
    ), jsonb_build_object('error', 'unknown_key'))
$$;

-- api.authenticate_user: who a person is that Supabase Auth has vouched for by an access token: {"customer_id", "username"}, both null for an
-- admin without a customer, or {"error": "unknown_user" (deleted or banned since) | "customer_suspended" | "no_customer" | "may_link"}.
--
-- A person without a customer may be given one, by the setting auth_sign_up: the customer with the same address ('link'), or else a new one
-- ('create'). Only by an address that Supabase Auth has confirmed, which no token proves: it is read from auth.users, so that it costs no call.
-- "may_link" says that this is so; then p_link does it, once the caller has made sure that the project's sign-up does confirm addresses. A
-- customer that is linked stays with its person. Race-free: a link is one guarded update, and the unique indexes decide between new rows.
-- Where there is no auth.users (a database apart from Supabase's) nobody is linked but by hand.
create function api.authenticate_user(p_user_id uuid, p_is_admin boolean default false, p_link boolean default false) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_address text;
    v_customer gateway.customers;
    v_sign_up text;
begin
    if to_regclass('auth.users') is not null then
        declare
            v_user jsonb;
        begin
            execute 'select to_jsonb(u) from auth.users as u where u.id = $1' into v_user using p_user_id;
            if v_user is null or v_user ->> 'deleted_at' is not null or (v_user ->> 'banned_until')::timestamptz > now() then
                return jsonb_build_object('error', 'unknown_user');
            end if;
            -- a single sign-on's addresses are its provider's word, not Supabase's
            if v_user ->> 'email_confirmed_at' is not null and (v_user ->> 'is_sso_user')::boolean is not true
                and (v_user ->> 'is_anonymous')::boolean is not true then
                v_address := nullif(v_user ->> 'email', '');
            end if;
        end;
    end if;

    select * into v_customer from gateway.customers where auth_user_id = p_user_id;
    if v_customer.id is null and p_is_admin then
        return jsonb_build_object('customer_id', null, 'username', null);
    elsif v_customer.id is null then
        select auth_sign_up into v_sign_up from gateway.settings;
        if v_address is null or v_sign_up = 'off'
            or (v_sign_up = 'link' and not exists (
                select from gateway.customers where lower(email) = lower(v_address) and auth_user_id is null))
            or exists (select from gateway.customers where lower(email) = lower(v_address) and auth_user_id is not null) then
            return jsonb_build_object('error', 'no_customer');
        elsif not p_link then
            return jsonb_build_object('error', 'may_link');
        end if;
        perform set_config('gateway.actor', 'user ' || p_user_id, true);
        update gateway.customers set auth_user_id = p_user_id
        where lower(email) = lower(v_address) and auth_user_id is null
            and not exists (select from gateway.customers where auth_user_id = p_user_id)
        returning * into v_customer;
        if v_customer.id is null and v_sign_up = 'create' then
            insert into gateway.customers (name, username, email, auth_user_id)
            values (left(v_address, 200), case
                when exists (select from gateway.customers where username = v_address) then 'customer-' || gen_random_uuid()
                else v_address
            end, v_address, p_user_id)
            on conflict do nothing
            returning * into v_customer;
        end if;
        if v_customer.id is null then  -- another request of this person's was first, or another person
            select * into v_customer from gateway.customers where auth_user_id = p_user_id;
        end if;
        if v_customer.id is null then
            return jsonb_build_object('error', 'no_customer');
        end if;
    end if;
    if not v_customer.active then
        return jsonb_build_object('error', 'customer_suspended');
    end if;
    return jsonb_build_object('customer_id', v_customer.id, 'username', v_customer.username);
end
$$;

revoke all on function api.authenticate_user(uuid, boolean, boolean) from public;

grant execute on function api.authenticate_user(uuid, boolean, boolean) to service_role;

comment on function api.authenticate_user(uuid, boolean, boolean) is 'Who a person of Supabase Auth is, and, at first sight, links or makes its customer.';

create function gateway.describe_customer(p_customer gateway.customers) returns jsonb
language plpgsql stable set search_path = ''
as $$
begin
    return to_jsonb(p_customer) - 'auth_user_id' || (
        select jsonb_build_object(
            'signs_in', p_customer.auth_user_id is not null,
            'credits', gateway.show_credits(a.balance_usd, s.credit_value_usd),
            'balance_usd', gateway.show_usd(a.balance_usd), 'held_usd', gateway.show_usd(a.held_usd),
            'active_keys', (select count(*) from gateway.api_keys as k where k.customer_id = p_customer.id and k.active))
        from gateway.accounts as a
        cross join gateway.settings as s
        where a.customer_id = p_customer.id
    );
end
$$;

comment on function gateway.describe_customer(gateway.customers) is 'A customer as an admin sees it, with its account.';

revoke all on function gateway.describe_customer(gateway.customers) from public;

-- api.list_customers: customers by id after p_after, or the one with p_id. p_query: those that have it, in any case, in their name, username,
-- email or company. p_active: those that are, or are not. Reads only.
create function api.list_customers(
    p_limit integer, p_after bigint default 0, p_id bigint default null, p_query text default null, p_active boolean default null
) returns jsonb
language plpgsql stable security definer set search_path = '' set plan_cache_mode = force_custom_plan
as $$
begin
    return (
        select coalesce(jsonb_agg(gateway.describe_customer(c) order by c.id), '[]')
        from (
            select * from gateway.customers
            where id > p_after and (p_id is null or id = p_id) and (p_active is null or active = p_active)
                and (p_query is null or strpos(lower(concat_ws(chr(10), name, username, email, company)), lower(p_query)) > 0)
            order by id
            limit p_limit
        ) as c
    );
end
$$;

revoke all on function api.list_customers(integer, bigint, bigint, text, boolean) from public;

grant execute on function api.list_customers(integer, bigint, bigint, text, boolean) to service_role;

comment on function api.list_customers(integer, bigint, bigint, text, boolean) is 'Customers, a page of them, or those that a search finds.';

-- api.update_customer: changes what p_changes names (name, username, email, company, time_zone, active), and returns the customer.
-- {"error": "unknown_customer" | "erased_customer" | "email_taken" | "username_taken" | "unknown_time_zone"}. Locks the customer.
create function api.update_customer(p_id bigint, p_changes jsonb, p_actor text default null) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_customer gateway.customers;
    v_constraint text;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    select * into v_customer from gateway.customers where id = p_id for update;
    if v_customer.id is null then
        return jsonb_build_object('error', 'unknown_customer');
    elsif v_customer.erased_at is not null then
        return jsonb_build_object('error', 'erased_customer');
    elsif p_changes ? 'time_zone' and not exists (select from pg_timezone_names where name = p_changes ->> 'time_zone') then
        return jsonb_build_object('error', 'unknown_time_zone');
    end if;
    v_customer := jsonb_populate_record(v_customer, p_changes);
    begin
        update gateway.customers
        set (name, username, email, company, time_zone, active) = (
            v_customer.name, v_customer.username, v_customer.email, v_customer.company, v_customer.time_zone, v_customer.active)
        where id = p_id
        returning * into v_customer;
    exception when unique_violation then
        get stacked diagnostics v_constraint = constraint_name;
        return jsonb_build_object('error', case v_constraint when 'customers_email_key' then 'email_taken' else 'username_taken' end);
    end;
    return gateway.describe_customer(v_customer);
end
$$;

revoke all on function api.update_customer(bigint, jsonb, text) from public;

grant execute on function api.update_customer(bigint, jsonb, text) to service_role;

comment on function api.update_customer(bigint, jsonb, text) is 'Changes a customer; active false suspends it at once.';

-- api.erase_customer: forgets the person and keeps the books. Name, username, email, company and the link to Supabase Auth become nobody's,
-- here and in the audit log; so do the names of its keys, which are revoked, and the notes of its payments. Balance, entries with their
-- references, requests and sums stay; running requests settle all the same. For good, and again it changes nothing.
-- Returns the customer, or {"error": "unknown_customer"}. Locks the customer, then its account, then its keys.
create function api.erase_customer(p_id bigint, p_actor text default null) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '60s'
as $$
declare
    v_customer gateway.customers;
    v_nobody text := 'erased-' || p_id;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    select * into v_customer from gateway.customers where id = p_id for update;
    if v_customer.id is null then
        return jsonb_build_object('error', 'unknown_customer');
    elsif v_customer.erased_at is not null then
        return gateway.describe_customer(v_customer);
    end if;
    -- Whoever pays in at this moment sees that it is too late.
    perform 1 from gateway.accounts where customer_id = p_id for update;

    if exists (select from gateway.customers where username = v_nobody) then
        v_nobody := v_nobody || '-' || gen_random_uuid();
    end if;
    perform set_config('gateway.engine', 'on', true);
    perform set_config('gateway.erased_user', coalesce(v_customer.auth_user_id::text, ''), true);
    update gateway.api_keys set name = 'erased', active = false, revoked_at = coalesce(revoked_at, now()) where customer_id = p_id;
    update gateway.customers
    set name = v_nobody, username = v_nobody, email = null, company = null, auth_user_id = null, active = false, erased_at = now()
    where id = p_id
    returning * into v_customer;

    update gateway.audit_log
    set before = gateway.without_person(before, entity), after = gateway.without_person(after, entity)
    where (entity = 'customers' and entity_id = p_id::text)
        or (entity = 'api_keys' and entity_id in (select k.id::text from gateway.api_keys as k where k.customer_id = p_id));
    update gateway.audit_log set actor = 'user (erased)' where actor = 'user ' || nullif(current_setting('gateway.erased_user', true), '');
    update gateway.ledger_entries set note = null where customer_id = p_id and request_id is null and note is not null;
    perform set_config('gateway.erased_user', '', true);
    perform set_config('gateway.engine', 'off', true);
    return gateway.describe_customer(v_customer);
end
$$;

revoke all on function api.erase_customer(bigint, text) from public;

grant execute on function api.erase_customer(bigint, text) to service_role;

comment on function api.erase_customer(bigint, text) is 'Forgets the person and keeps the books.';

-- api.set_limits: merges limits into those of one subject: a key (p_model names one model of it; p_each_model: every model by itself), a
-- customer or a service (by id, or by p_service_name). p_rate_limits and p_warn: {requests_per_minute: 60, tokens_per_day: …, spend_usd_per_month: …}; null removes.
-- A limit that is set without a soft mark of its own gets one at p_warn_percent. Returns all limits of the subject in the same form as
-- {"rate_limits", "warn"}, or {"error": "unknown_key" | "unknown_customer" | "unknown_service" | "unknown_model"}.
create or replace function api.set_limits(
    p_key_id bigint default null, p_customer_id bigint default null, p_service_id bigint default null, p_key_hash text default null,
    p_model text default null, p_each_model boolean default false, p_rate_limits jsonb default '{}', p_warn jsonb default '{}',
    p_warn_percent numeric default 80, p_actor text default null, p_service_name text default null
) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_key_id bigint := p_key_id;
    v_service_id bigint := p_service_id;
    v_model_id bigint;
    v_per text;
    v_changes jsonb;
    v_metric text;
    v_name text;
    v_limit gateway.limits;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    if p_key_hash is not null then
        v_key_id := gateway.find_key(decode(p_key_hash, 'hex'));
    end if;
    if p_service_name is not null then
        select id into v_service_id from gateway.services where name = p_service_name and deleted_at is null;
    end if;
    if (p_key_id is not null or p_key_hash is not null) and not exists (select from gateway.api_keys where id = v_key_id) then
        return jsonb_build_object('error', 'unknown_key');
    elsif p_customer_id is not null and not exists (select from gateway.customers where id = p_customer_id) then
        return jsonb_build_object('error', 'unknown_customer');
    elsif (p_service_id is not null or p_service_name is not null)
        and not exists (select from gateway.services where id = v_service_id and deleted_at is null) then
        return jsonb_build_object('error', 'unknown_service');
    end if;
    if p_model is not null then
        select id into v_model_id from gateway.models where name = p_model;
        if v_model_id is null then
            return jsonb_build_object('error', 'unknown_model');
        end if;
    end if;

    foreach v_per in array array['minute', 'hour', 'day', 'month'] loop
        v_changes := '{}';
        foreach v_metric in array array['requests', 'tokens', 'spend_usd'] loop
            v_name := v_metric || '_per_' || v_per;
            if p_rate_limits ? v_name then
                v_changes := v_changes || jsonb_build_object(
                    v_metric, p_rate_limits -> v_name,
                    'warn_' || v_metric, case
                        when v_metric = 'spend_usd' then to_jsonb((p_rate_limits ->> v_name)::numeric * p_warn_percent * 0.01)
                        else to_jsonb(floor((p_rate_limits ->> v_name)::numeric * p_warn_percent * 0.01))
                    end);
            end if;
            if p_warn ? v_name then
                v_changes := v_changes || jsonb_build_object('warn_' || v_metric, p_warn -> v_name);
            end if;
        end loop;
        continue when v_changes = '{}';

        -- Found and locked in one step: between two, another call might remove the row, and this change would be lost with it.
        insert into gateway.limits (key_id, customer_id, service_id, model_id, each_model, per)
        values (v_key_id, p_customer_id, v_service_id, v_model_id, p_each_model, v_per)
        on conflict (key_id, customer_id, service_id, model_id, each_model, per) do update set per = excluded.per
        returning * into v_limit;
        v_limit := jsonb_populate_record(v_limit, v_changes);
        if num_nonnulls(v_limit.requests, v_limit.tokens, v_limit.spend_usd, v_limit.warn_requests, v_limit.warn_tokens, v_limit.warn_spend_usd) = 0 then
            delete from gateway.limits where id = v_limit.id;
        else
            update gateway.limits
            set (requests, tokens, spend_usd, warn_requests, warn_tokens, warn_spend_usd) = (
                v_limit.requests, v_limit.tokens, v_limit.spend_usd, v_limit.warn_requests, v_limit.warn_tokens, v_limit.warn_spend_usd)
            where id = v_limit.id;
        end if;
    end loop;

    return gateway.show_limits(v_key_id, p_customer_id, v_service_id, v_model_id, p_each_model);
end
$$;

create function gateway.last_used_at(p_key_id bigint) returns timestamptz
language plpgsql stable set search_path = ''
as $$
begin
    -- the months that are closed, and what has come since: neither the log nor the key's whole past is read
    return (
        select greatest(
            (
                select max(p.last_request_at)
                from gateway.usage_periods as p
                where p.customer_id = k.customer_id and p.per = 'month' and p.grouped_by = 'key' and p.key_id = k.id
            ),
            (
                select max(r.last_request_at)
                from gateway.usage_rollups as r
                where r.customer_id = k.customer_id and r.key_id = k.id and r.bucket >= (select c.closed_until from gateway.usage_closing as c)
            ),
            (select max(l.last_request_at) from gateway.usage_rollups as l where l.customer_id = k.customer_id and l.key_id = k.id and l.late)
        )
        from gateway.api_keys as k
        where k.id = p_key_id
    );
end
$$;

comment on function gateway.last_used_at(bigint) is 'When the last of a key''s requests that have ended was admitted; null: never.';

revoke all on function gateway.last_used_at(bigint) from public;

-- What a key may hand out lies within what it may do itself: its scopes, models, services and expiry, and its limits.

-- Keys edit keys: the one that asks and the one that is changed are locked together, in the order of their ids.
create function gateway.lock_keys(p_key_ids bigint[]) returns setof gateway.api_keys
language sql set search_path = ''
as $$
    select * from gateway.api_keys where id = any (p_key_ids) order by id for update
$$;

comment on function gateway.lock_keys(bigint[]) is 'Locks keys in the order of their ids and returns them.';

revoke all on function gateway.lock_keys(bigint[]) from public;

-- Whoever asks was authenticated a moment ago; a key that was stopped since must not leave another behind.
create function gateway.is_stopped(p_key gateway.api_keys) returns boolean
language sql stable set search_path = ''
as $$
    select p_key.active is not true or coalesce(p_key.expires_at <= clock_timestamp(), false)
$$;

comment on function gateway.is_stopped(gateway.api_keys) is 'Whether a key is switched off, revoked or expired.';

revoke all on function gateway.is_stopped(gateway.api_keys) from public;

create function gateway.field_beyond(p_key gateway.api_keys, p_caller gateway.api_keys) returns text
language sql stable set search_path = ''
as $$
    select case
        when not p_key.scopes <@ p_caller.scopes then 'scopes'
        when p_caller.allowed_models is not null and not coalesce(p_key.allowed_models <@ p_caller.allowed_models, false) then 'allowed_models'
        when p_caller.allowed_services is not null and not coalesce(p_key.allowed_services <@ p_caller.allowed_services, false)
            then 'allowed_services'
        when p_caller.expires_at is not null and not coalesce(p_key.expires_at <= p_caller.expires_at, false) then 'expires_at'
    end
$$;

comment on function gateway.field_beyond(gateway.api_keys, gateway.api_keys) is 'In which field a key may do more than the key that asks for it; null: in none.';

revoke all on function gateway.field_beyond(gateway.api_keys, gateway.api_keys) from public;

-- A key whose limits count nothing of what another does could double them by using that one.
create function gateway.escapes_limits(p_key gateway.api_keys, p_caller gateway.api_keys) returns boolean
language sql stable set search_path = ''
as $$
    select exists (
        select from gateway.limits as l
        where l.key_id = any (p_caller.id || p_caller.maker_key_ids)
            and l.key_id <> all (p_key.id || p_key.maker_key_ids)
    )
$$;

comment on function gateway.escapes_limits(gateway.api_keys, gateway.api_keys) is 'Whether a limit that binds the key that asks does not count what the other one does.';

revoke all on function gateway.escapes_limits(gateway.api_keys, gateway.api_keys) from public;

create function gateway.limit_beyond(p_key_ids bigint[], p_model_id bigint, p_each_model boolean, p_limits jsonb) returns text
language sql stable set search_path = ''
as $$
    with of_callers as (
        select * from gateway.limits where key_id = any (p_key_ids)
    ),
    asked as (
        select g.key as name, g.value::numeric as wanted, split_part(g.key, '_per_', 1) as metric, split_part(g.key, '_per_', 2) as per
        from jsonb_each_text(p_limits) as g
    ),
    -- of each key the row that is closest to what is asked: of the model, of each model, over all
    bounds as (
        select a.name, l.key_id, coalesce(
            min(v.most) filter (where l.model_id = p_model_id),
            min(v.most) filter (where l.each_model and (p_each_model or p_model_id is not null)),
            min(v.most) filter (where l.model_id is null and not l.each_model)) as most,
            bool_or(l.each_model and v.most is not null) as has_each_model
        from asked as a
        join of_callers as l on l.per = a.per
        cross join lateral (
            select case a.metric when 'requests' then l.requests::numeric when 'tokens' then l.tokens else l.spend_usd end as most
        ) as v
        group by a.name, l.key_id
    )
    select a.name
    from asked as a
    cross join gateway.settings as s
    left join (select b.name, min(b.most) as most, bool_or(b.has_each_model) as has_each_model from bounds as b group by b.name) as b
        on b.name = a.name
    -- the system's default gives way to a key's own row, so that it binds such a row too
    cross join lateral (
        select case when b.most is null and b.has_each_model is not true then
            case a.name when 'requests_per_minute' then s.default_requests_per_minute when 'tokens_per_minute' then s.default_tokens_per_minute end
        end as most
    ) as d
    where case when a.wanted is null then b.most is not null else a.wanted > coalesce(b.most, d.most) end
    order by a.name
    limit 1
$$;

comment on function gateway.limit_beyond(bigint[], bigint, boolean, jsonb) is 'The first of some wanted limits that is looser than those of these keys (one and its makers), or null. Null as a limit: none.';

revoke all on function gateway.limit_beyond(bigint[], bigint, boolean, jsonb) from public;

create function gateway.resolve_models(p_wanted jsonb, out ids bigint[], out unknown jsonb)
language sql stable set search_path = ''
as $$
    select coalesce(array_agg(distinct m.id) filter (where m.id is not null), '{}'), (array_agg(w.value) filter (where m.id is null))[1]
    from jsonb_array_elements(p_wanted) as w (value)
    left join lateral (
        select i.id from gateway.models as i where i.id = case jsonb_typeof(w.value) when 'number' then (w.value #>> '{}')::bigint end
        union all
        select n.id from gateway.models as n where n.name = case jsonb_typeof(w.value) when 'string' then w.value #>> '{}' end
    ) as m on true
$$;

comment on function gateway.resolve_models(jsonb) is 'The ids of models that are named by id or by name, and the first that is unknown.';

revoke all on function gateway.resolve_models(jsonb) from public;

create function gateway.unknown_service(p_ids bigint[]) returns bigint
language sql stable set search_path = ''
as $$
    select a.id from unnest(p_ids) as a (id)
    where not exists (select from gateway.services as s where s.id = a.id and s.deleted_at is null)
    limit 1
$$;

comment on function gateway.unknown_service(bigint[]) is 'One of these ids that is no service''s, or null.';

revoke all on function gateway.unknown_service(bigint[]) from public;

-- What was given to a key beside itself. Where a key asks, p_bound_ids are its own id and its makers'; a person is bound by the default
-- alone: {}. An admin by nothing: null. Nothing is written where this returns a refusal.
create function gateway.set_key_limits(
    p_key_id bigint, p_bound_ids bigint[], p_limits jsonb, p_model_limits jsonb, p_warn jsonb, p_warn_percent numeric, p_actor text
) returns jsonb
language plpgsql set search_path = ''
as $$
declare
    v_model record;
    v_beyond text;
begin
    if p_bound_ids is not null then
        v_beyond := gateway.limit_beyond(p_bound_ids, null, false, p_limits);
        if v_beyond is not null then
            return jsonb_build_object('error', 'exceeds_maker', 'field', 'limits', 'limit', v_beyond);
        end if;
    end if;
    for v_model in
        select e.key as name, e.value as limits, m.id from jsonb_each(p_model_limits) as e left join gateway.models as m on m.name = e.key
    loop
        if v_model.name <> '*' and v_model.id is null then
            return jsonb_build_object('error', 'unknown_model', 'field', 'model_limits', 'name', v_model.name);
        end if;
        if p_bound_ids is not null then
            v_beyond := gateway.limit_beyond(p_bound_ids, v_model.id, v_model.name = '*', v_model.limits);
            if v_beyond is not null then
                return jsonb_build_object('error', 'exceeds_maker', 'field', 'model_limits', 'limit', v_beyond);
            end if;
        end if;
    end loop;
    if p_key_id is null then
        return null;
    end if;
    if p_limits is not null or p_warn is not null then
        perform api.set_limits(p_key_id => p_key_id, p_rate_limits => coalesce(p_limits, '{}'), p_warn => coalesce(p_warn, '{}'),
                               p_warn_percent => coalesce(p_warn_percent, 80), p_actor => p_actor);
    end if;
    for v_model in select e.key as name, e.value as limits from jsonb_each(p_model_limits) as e loop
        perform api.set_limits(
            p_key_id => p_key_id, p_model => nullif(v_model.name, '*'), p_each_model => v_model.name = '*', p_rate_limits => v_model.limits,
            p_warn_percent => coalesce(p_warn_percent, 80), p_actor => p_actor);
    end loop;
    return null;
end
$$;

comment on function gateway.set_key_limits(bigint, bigint[], jsonb, jsonb, jsonb, numeric, text) is 'Checks limits that are wanted for a key and, where the key is given, sets them. Returns the refusal, or null.';

revoke all on function gateway.set_key_limits(bigint, bigint[], jsonb, jsonb, jsonb, numeric, text) from public;

create function gateway.show_key_limits(p_key_id bigint) returns jsonb
language sql stable set search_path = ''
as $$
    with named as (
        select case when l.each_model then '*' else m.name end as model, n.name || '_per_' || l.per as name, n.hard, n.soft
        from gateway.limits as l
        left join gateway.models as m on m.id = l.model_id
        cross join lateral (values
            ('requests', to_jsonb(l.requests), to_jsonb(l.warn_requests)),
            ('tokens', to_jsonb(l.tokens), to_jsonb(l.warn_tokens)),
            ('spend_usd', to_jsonb(gateway.show_usd(l.spend_usd)), to_jsonb(gateway.show_usd(l.warn_spend_usd)))
        ) as n (name, hard, soft)
        where l.key_id = p_key_id
    )
    select jsonb_build_object(
        'limits', coalesce(jsonb_object_agg(n.name, n.hard) filter (where n.model is null and n.hard is not null), '{}'),
        'warn', coalesce(jsonb_object_agg(n.name, n.soft) filter (where n.model is null and n.soft is not null), '{}'),
        'model_limits', (
            select coalesce(jsonb_object_agg(g.model, g.limits), '{}')
            from (
                select x.model, jsonb_object_agg(x.name, x.hard) as limits
                from named as x
                where x.model is not null and x.hard is not null
                group by x.model
            ) as g
        ))
    from named as n
$$;

comment on function gateway.show_key_limits(bigint) is 'A key''s own limits as {limits, warn, model_limits: {name or *: limits}}.';

revoke all on function gateway.show_key_limits(bigint) from public;

create or replace function gateway.describe_key(p_key gateway.api_keys) returns jsonb
language sql stable set search_path = ''
as $$
    select to_jsonb(p_key) - array['secret_hash', 'maker_key_ids'] || gateway.show_key_limits(p_key.id) || jsonb_build_object(
        'made_by_key_id', p_key.maker_key_ids[cardinality(p_key.maker_key_ids)],
        'last_used_at', gateway.last_used_at(p_key.id),
        'rate_limit', coalesce(
            (select l.requests from gateway.limits as l where l.key_id = p_key.id and l.each_model and l.per = 'minute'),
            (select s.default_requests_per_minute from gateway.settings as s)))
$$;

-- api.create_key: stores a key by its hash. p_customer_id null: an operator's key (scope admin alone). Models are named by id or by name;
-- models and services that do not exist are refused. p_rate_limit: requests per minute for each model. p_limits: as api.set_limits takes
-- them, over all models; p_model_limits: the same by model, * for each. p_bounded: the one who makes it is no admin; then p_maker_key_id is
-- the key that asks, or null for the customer in person.
--
-- A key lies within its maker: in scopes, models, services, expiry, and in limits, of which it begins with a copy. What it does counts
-- under its makers' limits as well, so that a hundred keys made by a limited one share one limit. Returns the key without its secret, or
-- {"error": "unknown_customer" | "erased_customer" | "unknown_model" | "unknown_service" | "too_many_makers" | "stopped_caller" (the maker was
-- revoked a moment ago)} | {"error": "exceeds_maker", "field"}; then nothing was made. Locks the customer, then the maker, so that neither is
-- erased, revoked or narrowed meanwhile.
create function api.create_key(
    p_customer_id bigint, p_name text, p_prefix text, p_secret_hash text, p_scopes text[] default '{chat,usage}',
    p_allowed_models bigint[] default null, p_allowed_services bigint[] default null, p_expires_at timestamptz default null,
    p_rate_limit bigint default null, p_actor text default null, p_limits jsonb default null, p_maker_key_id bigint default null,
    p_bounded boolean default false, p_allowed_model_names text[] default null, p_model_limits jsonb default null,
    p_warn jsonb default null, p_warn_percent numeric default null
) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_customer gateway.customers;
    v_key gateway.api_keys;
    v_maker gateway.api_keys;
    v_unknown_model jsonb;
    v_bound_ids bigint[] := case when p_bounded then '{}'::bigint[] end;
    v_refusal jsonb;
    v_field text;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    if p_customer_id is not null then
        -- locked as by the new key's reference: whoever erases the customer meanwhile waits, and revokes the key, too
        select * into v_customer from gateway.customers where id = p_customer_id for key share;
        if v_customer.id is null then
            return jsonb_build_object('error', 'unknown_customer', 'id', p_customer_id);
        elsif v_customer.erased_at is not null then
            return jsonb_build_object('error', 'erased_customer');
        end if;
    end if;
    v_key.scopes := p_scopes;
    v_key.allowed_services := p_allowed_services;
    v_key.expires_at := p_expires_at;
    v_key.maker_key_ids := '{}';
    if p_allowed_models is not null or p_allowed_model_names is not null then
        select m.ids, m.unknown into v_key.allowed_models, v_unknown_model
        from gateway.resolve_models(coalesce(to_jsonb(p_allowed_models), '[]') || coalesce(to_jsonb(p_allowed_model_names), '[]')) as m;
    end if;

    if p_bounded and 'admin' = any (p_scopes) then
        return jsonb_build_object('error', 'exceeds_maker', 'field', 'scopes');
    elsif p_maker_key_id is not null then
        select * into v_maker from gateway.api_keys where id = p_maker_key_id for share;
        if v_maker.customer_id is distinct from p_customer_id then
            return jsonb_build_object('error', 'unknown_customer', 'id', p_customer_id);
        elsif gateway.is_stopped(v_maker) then
            return jsonb_build_object('error', 'stopped_caller');
        end if;
        v_key.allowed_models := coalesce(v_key.allowed_models, v_maker.allowed_models);
        v_key.allowed_services := coalesce(v_key.allowed_services, v_maker.allowed_services);
        v_key.expires_at := coalesce(v_key.expires_at, v_maker.expires_at);
        v_key.maker_key_ids := v_maker.maker_key_ids || v_maker.id;
        v_bound_ids := v_key.maker_key_ids;
        v_field := gateway.field_beyond(v_key, v_maker);
        if v_field is not null then
            return jsonb_build_object('error', 'exceeds_maker', 'field', v_field);
        elsif cardinality(v_key.maker_key_ids) > 8 then
            return jsonb_build_object('error', 'too_many_makers');
        end if;
    end if;
    if v_unknown_model is not null then
        return jsonb_build_object('error', 'unknown_model', 'field', 'allowed_models', 'name', v_unknown_model);
    elsif gateway.unknown_service(p_allowed_services) is not null then
        return jsonb_build_object('error', 'unknown_service', 'id', gateway.unknown_service(p_allowed_services));
    end if;
    if p_bounded and gateway.limit_beyond(v_bound_ids, null, true, jsonb_build_object('requests_per_minute', p_rate_limit)) is not null
        and p_rate_limit is not null then
        return jsonb_build_object('error', 'exceeds_maker', 'field', 'rate_limit');
    end if;
    v_refusal := gateway.set_key_limits(null, v_bound_ids, p_limits, p_model_limits, p_warn, p_warn_percent, p_actor);
    if v_refusal is not null then
        return v_refusal;
    end if;

    insert into gateway.api_keys (customer_id, name, prefix, secret_hash, scopes, allowed_models, allowed_services, expires_at, maker_key_ids)
    values (p_customer_id, p_name, p_prefix, decode(p_secret_hash, 'hex'), v_key.scopes, v_key.allowed_models, v_key.allowed_services,
            v_key.expires_at, v_key.maker_key_ids)
    returning * into v_key;
    insert into gateway.limits (key_id, model_id, each_model, per, requests, tokens, spend_usd, warn_requests, warn_tokens, warn_spend_usd)
    select v_key.id, model_id, each_model, per, requests, tokens, spend_usd, warn_requests, warn_tokens, warn_spend_usd
    from gateway.limits
    where key_id = p_maker_key_id;
    if p_rate_limit is not null then
        insert into gateway.limits as l (key_id, each_model, per, requests) values (v_key.id, true, 'minute', p_rate_limit)
        on conflict (key_id, customer_id, service_id, model_id, each_model, per)
        do update set requests = excluded.requests, warn_requests = least(l.warn_requests, excluded.requests);
    end if;
    perform gateway.set_key_limits(v_key.id, null, p_limits, p_model_limits, p_warn, p_warn_percent, p_actor);
    return gateway.describe_key(v_key);
end
$$;

revoke all on function api.create_key(bigint, text, text, text, text[], bigint[], bigint[], timestamptz, bigint, text, jsonb, bigint, boolean, text[], jsonb, jsonb, numeric) from public;

grant execute on function api.create_key(bigint, text, text, text, text[], bigint[], bigint[], timestamptz, bigint, text, jsonb, bigint, boolean, text[], jsonb, jsonb, numeric) to service_role;

comment on function api.create_key(bigint, text, text, text, text[], bigint[], bigint[], timestamptz, bigint, text, jsonb, bigint, boolean, text[], jsonb, jsonb, numeric) is 'Stores a new key by its hash.';

-- api.set_key_state: switches a key on or off, or revokes it for good. The key is named by id or, with p_key_id null, by p_key_hash.
-- p_customer_id null: an admin's call, any key; else only that customer's keys, and of these none with the scope admin, which only an admin
-- hands out. Returns the key, or {"error": "unknown_key" | "revoked_key" | "admin_key"}. Locks the key.
create or replace function api.set_key_state(
    p_key_id bigint, p_customer_id bigint, p_state text, p_actor text default null, p_key_hash text default null
) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_key gateway.api_keys;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    select * into v_key from gateway.api_keys
    where id = coalesce(p_key_id, gateway.find_key(decode(p_key_hash, 'hex')))
        and (p_customer_id is null or customer_id = p_customer_id)
    for update;
    if v_key.id is null then
        return jsonb_build_object('error', 'unknown_key');
    elsif p_customer_id is not null and 'admin' = any (v_key.scopes) then
        return jsonb_build_object('error', 'admin_key');
    elsif v_key.revoked_at is not null and p_state <> 'revoked' then
        return jsonb_build_object('error', 'revoked_key');
    end if;
    update gateway.api_keys
    set active = case p_state when 'active' then true when 'toggled' then not active else false end,
        revoked_at = case when p_state = 'revoked' then coalesce(revoked_at, now()) end
    where id = v_key.id
    returning * into v_key;
    return gateway.describe_key(v_key);
end
$$;

-- api.rotate_key: gives a key a new secret; the old one works for p_grace_seconds more. Secrets that were retired earlier keep their own
-- end, unless p_grace_seconds is 0: that says that the secret has leaked, and every older one stops at once.
-- p_customer_id null: an admin's call, any key; else only that customer's keys, and of these none with the scope admin. p_caller_key_id: the
-- key that asks; it is handed no secret that can do more than itself. Returns the key and {"previous_prefix", "previous_expires_at"}, or
-- {"error": "unknown_key" | "revoked_key" | "admin_key" | "stopped_caller" (the key that asks was revoked a moment ago)} |
-- {"error": "exceeds_maker", "field"}. Locks both keys, in the order of their ids.
create function api.rotate_key(
    p_key_id bigint, p_customer_id bigint, p_prefix text, p_secret_hash text, p_grace_seconds bigint default 0, p_actor text default null,
    p_caller_key_id bigint default null
) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_locked gateway.api_keys;
    v_key gateway.api_keys;
    v_caller gateway.api_keys;
    v_beyond text;
    v_previous text;
    v_until timestamptz;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    for v_locked in select * from gateway.lock_keys(array[p_key_id, p_caller_key_id]) loop
        if v_locked.id = p_key_id and (p_customer_id is null or v_locked.customer_id = p_customer_id) then
            v_key := v_locked;
        end if;
        if v_locked.id = p_caller_key_id then
            v_caller := v_locked;
        end if;
    end loop;
    if p_caller_key_id is not null and gateway.is_stopped(v_caller) then
        return jsonb_build_object('error', 'stopped_caller');
    elsif v_key.id is null then
        return jsonb_build_object('error', 'unknown_key');
    elsif p_customer_id is not null and 'admin' = any (v_key.scopes) then
        return jsonb_build_object('error', 'admin_key');
    elsif v_key.revoked_at is not null then
        return jsonb_build_object('error', 'revoked_key');
    end if;
    if p_caller_key_id is not null then
        v_beyond := coalesce(gateway.field_beyond(v_key, v_caller), case when gateway.escapes_limits(v_key, v_caller) then 'limits' end);
        if v_beyond is not null then
            return jsonb_build_object('error', 'exceeds_maker', 'field', v_beyond);
        end if;
    end if;

    perform set_config('gateway.engine', 'on', true);
    if p_grace_seconds > 0 then
        v_until := clock_timestamp() + make_interval(secs => p_grace_seconds);
        insert into gateway.retired_secrets (secret_hash, key_id, expires_at) values (v_key.secret_hash, v_key.id, v_until);
    else
        delete from gateway.retired_secrets where key_id = v_key.id;
    end if;
    perform set_config('gateway.engine', 'off', true);
    v_previous := v_key.prefix;
    update gateway.api_keys
    set prefix = p_prefix, secret_hash = decode(p_secret_hash, 'hex')
    where id = v_key.id
    returning * into v_key;
    return gateway.describe_key(v_key) || jsonb_build_object('previous_prefix', v_previous, 'previous_expires_at', v_until);
end
$$;

revoke all on function api.rotate_key(bigint, bigint, text, text, bigint, text, bigint) from public;

grant execute on function api.rotate_key(bigint, bigint, text, text, bigint, text, bigint) to service_role;

comment on function api.rotate_key(bigint, bigint, text, text, bigint, text, bigint) is 'Gives a key a new secret; the old one works for a while.';

-- api.update_key: changes what p_changes names: name, scopes, allowed_models (ids or names; null: all), allowed_services, expires_at (null:
-- never), limits, model_limits, warn, warn_percent (as api.create_key takes them; null removes a limit).
-- p_customer_id null: an admin's call, any key; else only that customer's keys, and of these none with the scope admin. p_caller_key_id: the
-- key that asks: each new value lies within its own, so that no key raises itself or another; null for the customer in person. "All" and
-- "never" mean no more than what the key that asks has. Returns the key, or {"error": "unknown_key" | "revoked_key" | "admin_key" |
-- "stopped_caller" (the key that asks was revoked a moment ago) | "unknown_model" | "unknown_service" | "scopes_of_nobody"} |
-- {"error": "exceeds_maker", "field"}; then nothing was changed.
-- Locks both keys, in the order of their ids.
create function api.update_key(
    p_key_id bigint, p_customer_id bigint, p_changes jsonb, p_actor text default null, p_caller_key_id bigint default null
) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_locked gateway.api_keys;
    v_key gateway.api_keys;
    v_caller gateway.api_keys;
    v_asked gateway.api_keys;
    v_unknown_model jsonb;
    v_refusal jsonb;
    v_field text;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    for v_locked in select * from gateway.lock_keys(array[p_key_id, p_caller_key_id]) loop
        if v_locked.id = p_key_id and (p_customer_id is null or v_locked.customer_id = p_customer_id) then
            v_key := v_locked;
        end if;
        if v_locked.id = p_caller_key_id then
            v_caller := v_locked;
        end if;
    end loop;
    if p_caller_key_id is not null and gateway.is_stopped(v_caller) then
        return jsonb_build_object('error', 'stopped_caller');
    elsif v_key.id is null then
        return jsonb_build_object('error', 'unknown_key');
    elsif p_customer_id is not null and 'admin' = any (v_key.scopes) then
        return jsonb_build_object('error', 'admin_key');
    elsif v_key.revoked_at is not null then
        return jsonb_build_object('error', 'revoked_key');
    end if;

    -- compared with the caller is only what is asked for: the rest is taken to be the caller's own
    v_asked := v_caller;
    if p_changes ? 'name' then
        v_key.name := p_changes ->> 'name';
    end if;
    if p_changes ? 'scopes' then
        v_key.scopes := array(select distinct s from jsonb_array_elements_text(p_changes -> 'scopes') as s);
        v_asked.scopes := v_key.scopes;
        if p_customer_id is not null and 'admin' = any (v_key.scopes) then
            return jsonb_build_object('error', 'exceeds_maker', 'field', 'scopes');
        elsif v_key.customer_id is null and v_key.scopes <> '{admin}' then
            return jsonb_build_object('error', 'scopes_of_nobody');
        end if;
    end if;
    if p_changes ? 'allowed_models' then
        v_key.allowed_models := v_caller.allowed_models;
        if p_changes -> 'allowed_models' <> 'null' then
            select m.ids, m.unknown into v_key.allowed_models, v_unknown_model from gateway.resolve_models(p_changes -> 'allowed_models') as m;
        end if;
        v_asked.allowed_models := v_key.allowed_models;
    end if;
    if p_changes ? 'allowed_services' then
        v_key.allowed_services := v_caller.allowed_services;
        if p_changes -> 'allowed_services' <> 'null' then
            v_key.allowed_services := array(select distinct s::bigint from jsonb_array_elements_text(p_changes -> 'allowed_services') as s);
        end if;
        v_asked.allowed_services := v_key.allowed_services;
    end if;
    if p_changes ? 'expires_at' then
        v_key.expires_at := coalesce((p_changes ->> 'expires_at')::timestamptz, v_caller.expires_at);
        v_asked.expires_at := v_key.expires_at;
    end if;
    if p_caller_key_id is not null then
        v_field := gateway.field_beyond(v_asked, v_caller);
        if v_field is not null then
            return jsonb_build_object('error', 'exceeds_maker', 'field', v_field);
        end if;
    end if;
    if v_unknown_model is not null then
        return jsonb_build_object('error', 'unknown_model', 'field', 'allowed_models', 'name', v_unknown_model);
    elsif p_changes ? 'allowed_services' and gateway.unknown_service(v_key.allowed_services) is not null then
        return jsonb_build_object('error', 'unknown_service', 'id', gateway.unknown_service(v_key.allowed_services));
    end if;

    v_refusal := gateway.set_key_limits(
        p_key_id, case when p_caller_key_id is not null then v_caller.maker_key_ids || v_caller.id when p_customer_id is not null then '{}'::bigint[] end,
        p_changes -> 'limits', p_changes -> 'model_limits', p_changes -> 'warn', (p_changes ->> 'warn_percent')::numeric, p_actor);
    if v_refusal is not null then
        return v_refusal;
    end if;
    update gateway.api_keys
    set (name, scopes, allowed_models, allowed_services, expires_at)
        = (v_key.name, v_key.scopes, v_key.allowed_models, v_key.allowed_services, v_key.expires_at)
    where id = v_key.id
    returning * into v_key;
    return gateway.describe_key(v_key);
end
$$;

revoke all on function api.update_key(bigint, bigint, jsonb, text, bigint) from public;

grant execute on function api.update_key(bigint, bigint, jsonb, text, bigint) to service_role;

comment on function api.update_key(bigint, bigint, jsonb, text, bigint) is 'Changes a key''s name, scopes, models, services, expiry and limits.';

-- api.forget_retired_secrets: deletes the replaced secrets whose grace is over, at most p_limit, the oldest first; returns how many. They
-- are refused anyway: this only keeps the table small. For the maintenance function.
create function api.forget_retired_secrets(p_limit integer default 10000) returns integer
language plpgsql security definer set search_path = ''
as $$
declare
    v_count integer;
begin
    delete from gateway.retired_secrets
    where secret_hash = any (array(
        select secret_hash from gateway.retired_secrets
        where expires_at <= now()
        order by expires_at
        limit p_limit
        for update skip locked
    ));
    get diagnostics v_count = row_count;
    return v_count;
end
$$;

revoke all on function api.forget_retired_secrets(integer) from public;

grant execute on function api.forget_retired_secrets(integer) to service_role;

comment on function api.forget_retired_secrets(integer) is 'Deletes replaced secrets whose grace is over.';

-- api.list_keys: keys by id after p_after, or the one with p_id, without their secrets. p_customer_id null: an admin's call, all keys; else
-- only that customer's. p_active: only those that are switched on, or off. Reads only.
create function api.list_keys(
    p_limit integer, p_after bigint default 0, p_customer_id bigint default null, p_id bigint default null, p_active boolean default null
) returns jsonb
language sql stable security definer set search_path = ''
as $$
    select coalesce(jsonb_agg(gateway.describe_key(k) order by k.id), '[]')
    from (
        select * from gateway.api_keys
        where id > p_after and (p_id is null or id = p_id) and (p_customer_id is null or customer_id = p_customer_id)
            and (p_active is null or active = p_active)
        order by id
        limit p_limit
    ) as k
$$;

revoke all on function api.list_keys(integer, bigint, bigint, bigint, boolean) from public;

grant execute on function api.list_keys(integer, bigint, bigint, bigint, boolean) to service_role;

comment on function api.list_keys(integer, bigint, bigint, bigint, boolean) is 'Keys without their secrets, a page of them.';

-- api.add_credits: pays in, or corrects by a negative amount, in USD or in credits. Of p_customer_id, p_key_hash and p_email one names the
-- customer. The same reference twice counts once ("duplicate": true); another amount under it is an error. Locks the account.
-- {"customer_id", "added_usd", "credits_added", "balance_after_usd", "credits_after", "duplicate"}, or {"error": "unknown_customer" |
-- "erased_customer" (nothing is paid in any more, but what is left can be paid out) | "invalid_amount" (zero, beyond a billion USD, a
-- balance beyond ten, or finer than the tenth decimal) | "reference_conflict" | "more_than_free", "free_usd"}.
create or replace function api.add_credits(
    p_customer_id bigint default null, p_key_hash text default null, p_email text default null,
    p_usd numeric default null, p_credits numeric default null, p_reference text default null, p_note text default null, p_actor text default null
) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_customer_id bigint;
    v_credit_value numeric := (select credit_value_usd from gateway.settings);
    v_amount numeric(20, 10);
    v_account gateway.accounts;
    v_entry gateway.ledger_entries;
begin
    if num_nonnulls(p_usd, p_credits) <> 1 or num_nonnulls(p_customer_id, p_key_hash, p_email) <> 1 then
        raise exception 'one amount and one customer' using errcode = 'invalid_parameter_value';
    end if;
    if abs(coalesce(p_usd, p_credits * v_credit_value)) > 1000000000 then
        return jsonb_build_object('error', 'invalid_amount');
    end if;
    v_amount := coalesce(p_usd, p_credits * v_credit_value);
    if v_amount = 0 or v_amount <> coalesce(p_usd, p_credits * v_credit_value) then
        return jsonb_build_object('error', 'invalid_amount');
    end if;
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    select c.id into v_customer_id
    from gateway.customers as c
    where c.id = p_customer_id
        or lower(c.email) = lower(p_email)
        or c.id = (select k.customer_id from gateway.api_keys as k where k.id = gateway.find_key(decode(p_key_hash, 'hex')));
    if v_customer_id is null then
        return jsonb_build_object('error', 'unknown_customer');
    end if;

    select * into v_account from gateway.accounts where customer_id = v_customer_id for update;
    -- asked only now: an erasure locks the account, too
    if v_amount > 0 and exists (select from gateway.customers where id = v_customer_id and erased_at is not null) then
        return jsonb_build_object('error', 'erased_customer');
    end if;
    select * into v_entry from gateway.ledger_entries where customer_id = v_customer_id and reference = p_reference;
    if v_entry.id is not null and v_entry.amount_usd <> v_amount then
        return jsonb_build_object('error', 'reference_conflict');
    elsif v_entry.id is null then
        if v_amount < 0 and v_account.balance_usd - v_account.held_usd < -v_amount then
            return jsonb_build_object('error', 'more_than_free', 'free_usd', gateway.show_usd(v_account.balance_usd - v_account.held_usd));
        end if;
        if v_account.balance_usd + v_amount >= 10000000000 then
            return jsonb_build_object('error', 'invalid_amount');
        end if;
        perform set_config('gateway.engine', 'on', true);
        update gateway.accounts set balance_usd = balance_usd + v_amount where customer_id = v_customer_id returning * into v_account;
        insert into gateway.ledger_entries (customer_id, kind, amount_usd, balance_after_usd, reference, note, actor)
        values (v_customer_id, case when v_amount > 0 then 'credit' else 'correction' end, v_amount, v_account.balance_usd, p_reference, p_note,
                coalesce(p_actor, session_user));
        perform set_config('gateway.engine', 'off', true);
    end if;
    return jsonb_build_object(
        'customer_id', v_customer_id, 'added_usd', gateway.show_usd(v_amount), 'credits_added', trim_scale(v_amount / v_credit_value),
        'balance_after_usd', gateway.show_usd(v_account.balance_usd), 'credits_after', gateway.show_credits(v_account.balance_usd, v_credit_value),
        'duplicate', v_entry.id is not null);
end
$$;

create type gateway.price_line as (
    model text,
    provider text,
    upstream_model text,
    context_length bigint,
    max_output_tokens bigint,
    input_modalities text[],
    output_modalities text[],
    input numeric,
    cached_input numeric,
    cache_write numeric,
    audio_input numeric,
    image_input numeric,
    output numeric,
    audio_output numeric,
    image_output numeric,
    per_request numeric,
    per_image numeric,
    source text,
    source_date date
);

comment on type gateway.price_line is 'A line of a price list: what a provider takes for a model, and what is known of the model.';

-- api.import_prices: brings a price list in, all of it or nothing. p_lines: [{"model", "provider", "upstream_model"?, "context_length"?,
-- "max_output_tokens"?, "input_modalities"?, "output_modalities"?, "input", "output", other classes of gateway.prices?, "source"?,
-- "source_date"?}], each offer once. Models and offers that are not there are added; where a provider's price for all its services is
-- another than the one in force at p_effective_from (now, if null; never in the past), a new version begins there. A version that was to
-- begin at that very moment is replaced. Nothing else is changed: not what the list lacks, not what is known of a model, no service's
-- own price. p_dry_run: tells the same and writes nothing.
-- Locks: what it adds by name, then the offers by id, so that of two lists with an offer in common one comes after the other. Returns {"dry_run", "lines", "models_added", "offers_added", "prices_changed",
-- "unchanged"} (each line is one of the last three), or {"error": "duplicate_offer" | "in_the_past"}.
create function api.import_prices(
    p_lines jsonb, p_dry_run boolean default false, p_effective_from timestamptz default null, p_actor text default null
) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '25s'
as $$
declare
    v_at timestamptz;
    v_lines gateway.price_line[];
    v_models_added text[] := '{}'::text[];
    v_offers_added bigint[] := '{}'::bigint[];
    v_told jsonb;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    select array_agg(l) into v_lines from jsonb_populate_recordset(null::gateway.price_line, p_lines) as l;
    if (select count(*) > count(distinct (l.model, l.provider)) from unnest(v_lines) as l) then
        return jsonb_build_object('error', 'duplicate_offer');
    end if;
    if p_effective_from < clock_timestamp() then
        return jsonb_build_object('error', 'in_the_past');
    end if;

    if p_dry_run then
        select coalesce(array_agg(distinct l.model), '{}') into v_models_added
        from unnest(v_lines) as l
        where not exists (select from gateway.models as m where m.name = l.model);
    else
        with added as (
            insert into gateway.models (name, context_length, max_output_tokens, input_modalities, output_modalities)
            select l.model, max(l.context_length), max(l.max_output_tokens),
                coalesce(max(l.input_modalities), '{text}'), coalesce(max(l.output_modalities), '{text}')
            from unnest(v_lines) as l
            group by l.model
            order by l.model
            on conflict (name) do nothing
            returning name
        )
        select coalesce(array_agg(name), '{}') into v_models_added from added;
        with added as (
            insert into gateway.offers (model_id, provider, upstream_model)
            select m.id, l.provider, coalesce(l.upstream_model, l.model)
            from unnest(v_lines) as l
            join gateway.models as m on m.name = l.model
            order by m.id, l.provider
            on conflict (model_id, provider) do nothing
            returning id
        )
        select coalesce(array_agg(id), '{}') into v_offers_added from added;
        -- As in api.create_price: what is compared below is what is in force when it is replaced.
        perform from gateway.offers as o
        where (o.model_id, o.provider) in (
            select m.id, l.provider from unnest(v_lines) as l join gateway.models as m on m.name = l.model
        )
        order by o.id
        for no key update;
    end if;
    v_at := greatest(p_effective_from, clock_timestamp());
    with compared as materialized (
        select l.*, o.id as offer_id, o.id is null or n.id is not null as new_offer, c.changes
        from unnest(v_lines) as l
        left join gateway.models as m on m.name = l.model
        left join gateway.offers as o on o.model_id = m.id and o.provider = l.provider
        left join unnest(v_offers_added) as n (id) on n.id = o.id
        left join lateral (
            select v.* from gateway.prices as v
            where v.offer_id = o.id and v.service_id is null and v.effective_from <= v_at
            order by v.effective_from desc
            limit 1
        ) as p on true
        cross join lateral (
            select jsonb_object_agg(k.class, jsonb_build_object('old', gateway.show_usd(k.old), 'new', gateway.show_usd(k.new))) as changes
            from (
                values ('input', p.input, l.input), ('cached_input', p.cached_input, l.cached_input),
                    ('cache_write', p.cache_write, l.cache_write), ('audio_input', p.audio_input, l.audio_input),
                    ('image_input', p.image_input, l.image_input), ('output', p.output, l.output),
                    ('audio_output', p.audio_output, l.audio_output), ('image_output', p.image_output, l.image_output),
                    ('per_request', p.per_request, l.per_request), ('per_image', p.per_image, l.per_image)
            ) as k (class, old, new)
            where k.old is distinct from k.new
        ) as c
    ),
    written as (
        insert into gateway.prices as p (offer_id, effective_from, input, cached_input, cache_write, audio_input, image_input,
                                         output, audio_output, image_output, per_request, per_image, source, source_date)
        select c.offer_id, v_at, c.input, c.cached_input, c.cache_write, c.audio_input, c.image_input,
            c.output, c.audio_output, c.image_output, c.per_request, c.per_image, c.source, c.source_date
        from compared as c
        where not p_dry_run and c.changes is not null
        order by c.offer_id
        on conflict (offer_id, service_id, effective_from) do update set
            input = excluded.input, cached_input = excluded.cached_input, cache_write = excluded.cache_write,
            audio_input = excluded.audio_input, image_input = excluded.image_input, output = excluded.output,
            audio_output = excluded.audio_output, image_output = excluded.image_output, per_request = excluded.per_request,
            per_image = excluded.per_image, source = excluded.source, source_date = excluded.source_date
    )
    select jsonb_build_object(
        'dry_run', p_dry_run,
        'lines', count(*),
        'models_added', (select coalesce(jsonb_agg(a.name order by a.name), '[]') from unnest(v_models_added) as a (name)),
        'offers_added', coalesce(jsonb_agg(
            jsonb_build_object('model', c.model, 'provider', c.provider) order by c.model, c.provider) filter (where c.new_offer), '[]'),
        'prices_changed', coalesce(jsonb_agg(
            jsonb_build_object('model', c.model, 'provider', c.provider, 'changes', c.changes) order by c.model, c.provider
        ) filter (where not c.new_offer and c.changes is not null), '[]'),
        'unchanged', count(*) filter (where not c.new_offer and c.changes is null))
    into v_told
    from compared as c;
    return v_told;
end
$$;

revoke all on function api.import_prices(jsonb, boolean, timestamptz, text) from public;

grant execute on function api.import_prices(jsonb, boolean, timestamptz, text) to service_role;

comment on function api.import_prices(jsonb, boolean, timestamptz, text) is 'Brings a price list in, all of it or nothing; or tells what it would change.';

-- api.read_connection: what it takes to call a service, for testing it: {"id", "provider", "base_url", "provider_key": sealed, "models":
-- [{"name", "upstream_model", "chats": whether it answers with text}], the cheapest first}, of the models that are enabled. Null where there is
-- no such service. Reads only.
create function api.read_connection(p_id bigint) returns jsonb
language plpgsql stable security definer set search_path = ''
as $$
begin
    return (
        select jsonb_build_object(
            'id', s.id, 'provider', s.provider, 'base_url', s.base_url, 'provider_key', s.provider_key,
            'models', coalesce((
                select jsonb_agg(jsonb_build_object(
                    'name', m.name, 'upstream_model', o.upstream_model, 'chats', 'text' = any (m.output_modalities)) order by p.output, m.name)
                from gateway.routes as r
                join gateway.offers as o on o.id = r.offer_id
                join gateway.models as m on m.id = o.model_id
                left join lateral (
                    select v.output
                    from gateway.prices as v
                    where v.offer_id = o.id and v.effective_from <= clock_timestamp() and (v.service_id = s.id or v.service_id is null)
                    order by v.service_id is null, v.effective_from desc
                    limit 1
                ) as p on true
                where r.service_id = s.id and r.active
            ), '[]'))
        from gateway.services as s
        where s.id = p_id and s.deleted_at is null
    );
end
$$;

revoke all on function api.read_connection(bigint) from public;

grant execute on function api.read_connection(bigint) to service_role;

comment on function api.read_connection(bigint) is 'What it takes to call a service, its key sealed.';

-- api.list_catalogue: the catalogue by id after p_after, or the one model with p_id, inactive ones included. p_query: those that have it, in
-- any case, in their name or display name, or in a provider's name of them. p_active: those that are, or are not. Reads only.
create function api.list_catalogue(
    p_limit integer, p_after bigint default 0, p_id bigint default null, p_query text default null, p_active boolean default null
) returns jsonb
language sql stable security definer set search_path = ''
as $$
    select coalesce(jsonb_agg(gateway.describe_model(m) order by m.id), '[]')
    from (
        select * from gateway.models as c
        where id > p_after and (p_id is null or id = p_id) and (p_active is null or active = p_active)
            and (p_query is null or strpos(lower(concat_ws(chr(10), name, display_name)), lower(p_query)) > 0 or exists (
                select from gateway.offers as o where o.model_id = c.id and strpos(lower(o.upstream_model), lower(p_query)) > 0
            ))
        order by id
        limit p_limit
    ) as m
$$;

revoke all on function api.list_catalogue(integer, bigint, bigint, text, boolean) from public;

grant execute on function api.list_catalogue(integer, bigint, bigint, text, boolean) to service_role;

comment on function api.list_catalogue(integer, bigint, bigint, text, boolean) is 'The catalogue of models, a page of it.';

-- api.update_model: changes what p_changes names: display_name, context_length, max_output_tokens, input_modalities, output_modalities,
-- active (false hides the model and refuses it), and offers, as api.create_model takes them: one of a provider that offers the model already
-- gives it another name there or new prices, if it has them; others stay. Locks the model. Returns it, or {"error": "unknown_model"}.
create function api.update_model(p_id bigint, p_changes jsonb, p_actor text default null) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_model gateway.models;
    v_offer jsonb;
    v_offer_id bigint;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    select * into v_model from gateway.models where id = p_id for no key update;
    if v_model.id is null then
        return jsonb_build_object('error', 'unknown_model');
    end if;
    v_model := jsonb_populate_record(v_model, p_changes - 'offers');
    update gateway.models
    set (display_name, context_length, max_output_tokens, input_modalities, output_modalities, active) = (
        v_model.display_name, v_model.context_length, v_model.max_output_tokens, v_model.input_modalities, v_model.output_modalities, v_model.active)
    where id = p_id
    returning * into v_model;
    -- In one order, for whoever does the same.
    for v_offer in select value from jsonb_array_elements(coalesce(p_changes -> 'offers', '[]')) order by value ->> 'provider' loop
        insert into gateway.offers as o (model_id, provider, upstream_model)
        values (p_id, v_offer ->> 'provider', coalesce(v_offer ->> 'upstream_model', v_model.name))
        on conflict (model_id, provider) do update set upstream_model = coalesce(v_offer ->> 'upstream_model', o.upstream_model)
        returning id into v_offer_id;
        if v_offer -> 'prices' <> 'null' then
            perform gateway.insert_price(v_offer_id, null, v_offer -> 'prices', null);
        end if;
    end loop;
    return gateway.describe_model(v_model);
end
$$;

revoke all on function api.update_model(bigint, jsonb, text) from public;

grant execute on function api.update_model(bigint, jsonb, text) to service_role;

comment on function api.update_model(bigint, jsonb, text) is 'Changes a model, adds offers or changes them.';

-- api.change_settings: changes what p_changes names, and returns all settings: amounts as exact text, and of the webhook secret (which
-- comes in sealed) only whether it is set. With '{}' it only reads. The table's constraints decide what is valid; a name that is no setting
-- is ignored here and refused by the caller. {"error": "webhook_secret_needed"} where a webhook would go out unsigned. Locks the settings.
create or replace function api.change_settings(p_changes jsonb default '{}', p_actor text default null) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_names text;
    v_constraint text;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    select string_agg(quote_ident(a.attname), ', ' order by a.attnum) into v_names
    from pg_attribute as a
    where a.attrelid = 'gateway.settings'::regclass and a.attnum > 0 and not a.attisdropped and a.attname <> 'singleton'
        and p_changes ? a.attname;
    if v_names is not null then
        execute format(
            'update gateway.settings set (%1$s) = (select %1$s from jsonb_populate_record(null::gateway.settings, $1))', v_names) using p_changes;
    end if;
    return (
        select jsonb_object_agg(s.key, case
                   when a.atttypid = 'numeric'::regtype and s.value <> 'null' then to_jsonb(trim_scale((s.value #>> '{}')::numeric)::text)
                   else s.value
               end) - array['singleton', 'webhook_secret']
               || jsonb_build_object('webhook_secret_set', bool_or(s.key = 'webhook_secret' and s.value <> 'null'))
        from gateway.settings as t
        cross join jsonb_each(to_jsonb(t)) as s
        join pg_attribute as a on a.attrelid = 'gateway.settings'::regclass and a.attname = s.key
    );
exception when check_violation then
    get stacked diagnostics v_constraint = constraint_name;
    if v_constraint = 'settings_webhook_is_signed' then
        return jsonb_build_object('error', 'webhook_secret_needed');
    end if;
    raise;
end
$$;

-- api.list_audit: who changed what when, the newest first, before the record with the id p_before. Each of the filters may be left out:
-- the table, the row, who, and from when (inclusive) to when (exclusive). No secrets are in it. Reads only, by an index whatever the filters.
create function api.list_audit(
    p_limit integer, p_before bigint default null, p_entity text default null, p_entity_id text default null, p_actor text default null,
    p_from timestamptz default null, p_to timestamptz default null
) returns jsonb
language plpgsql stable security definer set search_path = '' set plan_cache_mode = force_custom_plan
as $$
begin
    return (
        select coalesce(jsonb_agg(to_jsonb(a) order by a.id desc), '[]')
        from (
            select * from gateway.audit_log
            where (p_before is null or id < p_before) and (p_entity is null or entity = p_entity)
                and (p_entity_id is null or entity_id = p_entity_id) and (p_actor is null or actor = p_actor)
                and (p_from is null or at >= p_from) and (p_to is null or at < p_to)
            order by id desc
            limit p_limit
        ) as a
    );
end
$$;

revoke all on function api.list_audit(integer, bigint, text, text, text, timestamptz, timestamptz) from public;

grant execute on function api.list_audit(integer, bigint, text, text, text, timestamptz, timestamptz) to service_role;

comment on function api.list_audit(integer, bigint, text, text, text, timestamptz, timestamptz) is 'Who changed what when, a page of it.';

create function gateway.describe_request(p_request gateway.requests, p_show_cost boolean) returns jsonb
language plpgsql stable set search_path = ''
as $$
begin
    return jsonb_build_object(
        'id', p_request.id, 'created_at', p_request.admitted_at, 'endpoint', p_request.endpoint,
        'key_id', p_request.key_id, 'customer_id', p_request.customer_id,
        'model', coalesce((select m.name from gateway.models as m where m.id = p_request.model_id), p_request.requested_model),
        'requested_model', p_request.requested_model,
        'provider', (select s.provider from gateway.services as s where s.id = p_request.service_id),
        'state', p_request.state, 'outcome', p_request.outcome, 'status', p_request.status, 'error_code', p_request.error_code,
        'finish_reason', p_request.finish_reason, 'streamed', p_request.streamed, 'usage_estimated', p_request.usage_estimated,
        'tokens', jsonb_strip_nulls(jsonb_build_object(
            'input', p_request.input_tokens, 'cached_input', p_request.cached_input_tokens, 'cache_write', p_request.cache_write_tokens,
            'audio_input', p_request.audio_input_tokens, 'image_input', p_request.image_input_tokens, 'output', p_request.output_tokens,
            'reasoning', p_request.reasoning_tokens, 'audio_output', p_request.audio_output_tokens,
            'image_output', p_request.image_output_tokens, 'images', p_request.images)),
        'cost_usd', case when p_show_cost or p_request.billing_mode = 'markup' then gateway.show_usd(p_request.cost_usd) end,
        'charge_usd', gateway.show_usd(p_request.charge_usd), 'uncollected_usd', gateway.show_usd(p_request.uncollected_usd),
        'hold_usd', case when p_request.state = 'held' then gateway.show_usd(p_request.hold_usd) end,
        'latency_ms', p_request.latency_ms, 'time_to_first_token_ms', p_request.time_to_first_token_ms);
end
$$;

comment on function gateway.describe_request(gateway.requests, boolean) is 'A request''s record, as the log shows it. At a flat price the provider''s cost is shown to admins alone.';

revoke all on function gateway.describe_request(gateway.requests, boolean) from public;

-- api.read_request: one request's record, of one customer and, where p_key_id is given, of one key of it; p_customer_id null: an admin's
-- call. The id carries its time (its first 12 hexadecimal digits after req_ are milliseconds), so that one partition is read.
-- Null where there is none. In flat mode the provider's cost is not shown to customers. Reads only.
create or replace function api.read_request(p_request_id text, p_customer_id bigint default null, p_key_id bigint default null) returns jsonb
language plpgsql stable security definer set search_path = ''
as $$
declare
    v_made_at timestamptz;
begin
    if p_request_id is null or p_request_id !~ '^req_[0-9a-f]{32}$' then
        return null;
    end if;
    v_made_at := to_timestamp(('x' || lpad(substr(p_request_id, 5, 12), 16, '0'))::bit(64)::bigint / 1000.0);
    return (
        select gateway.describe_request(r, p_customer_id is null)
        from gateway.requests as r
        where r.id = p_request_id
            and r.admitted_at between v_made_at - interval '1 day' and v_made_at + interval '1 day'
            and (p_customer_id is null or r.customer_id = p_customer_id)
            and (p_key_id is null or r.key_id = p_key_id)
    );
end
$$;

create function gateway.read_moment(p_text text, p_time_zone text, p_end_of_day boolean) returns timestamptz
language plpgsql stable set search_path = ''
as $$
begin
    if p_text !~ '^\d{4}-\d\d-\d\d$' then
        return p_text::timestamptz;
    end if;
    return (p_text::date + case when p_end_of_day then 1 else 0 end)::timestamp at time zone p_time_zone;
end
$$;

comment on function gateway.read_moment(text, text, boolean) is 'A moment as clients name it: a time, or a day in a zone, which stands for its first moment or for the one after its last.';

revoke all on function gateway.read_moment(text, text, boolean) from public;

-- api.list_requests: the log, the newest first. {"data": [records], "next": {"at", "id"} | null}; next goes into the following call as
-- p_before_at and p_before_id.
--
-- p_customer_id null: of all customers; p_show_cost: an admin's call. p_from (included) and p_to (left out) are times, or days in the customer's
-- time zone, each of them included. p_status: succeeded | failed | cancelled | cut | refused | expired | running; p_errors: what the usage
-- figures count as errors. {"error": "unknown_customer" | "unknown_key"}; a key has to be the customer's.
--
-- Costs the same however long the log is: a range of (customer, time), or of time, is read from its newest end, and at most 10,000 rows of it.
-- Where a filter finds less among them than a page holds, the page is short, and next says where to go on.
-- Planned for its very arguments: a general plan could not tell one customer's index from the whole log's, nor prune partitions.
-- Reads only.
create function api.list_requests(
    p_limit integer, p_customer_id bigint default null, p_show_cost boolean default false,
    p_before_at timestamptz default null, p_before_id text default null,
    p_from text default null, p_to text default null, p_model text default null, p_status text default null,
    p_key_id bigint default null, p_provider text default null, p_errors boolean default false
) returns jsonb
language plpgsql stable security definer set search_path = '' set plan_cache_mode = force_custom_plan
as $$
declare
    c_most_read constant integer := 10000;
    v_time_zone text := 'UTC';
    v_from timestamptz;
    v_to timestamptz;
    v_model_id bigint;
    v_service_ids bigint[];
    v_rows gateway.requests[];
    v_last_at timestamptz;
    v_last_id text;
begin
    if p_customer_id is not null then
        select c.time_zone into v_time_zone from gateway.customers as c where c.id = p_customer_id;
        if not found then
            return jsonb_build_object('error', 'unknown_customer');
        end if;
    end if;
    if p_key_id is not null and not exists (
        select from gateway.api_keys as k where k.id = p_key_id and (p_customer_id is null or k.customer_id = p_customer_id)
    ) then
        return jsonb_build_object('error', 'unknown_key');
    end if;
    v_from := coalesce(gateway.read_moment(p_from, v_time_zone, false), '-infinity');
    v_to := coalesce(gateway.read_moment(p_to, v_time_zone, true), 'infinity');
    if p_model is not null then
        select m.id into v_model_id from gateway.models as m where m.name = p_model;
    end if;
    if p_provider is not null then
        v_service_ids := array(select s.id from gateway.services as s where s.provider = p_provider);
    end if;

    v_rows := array(
        select q.request
        from (
            select r as request, r.admitted_at, r.id, r.key_id, r.model_id, r.requested_model, r.service_id, r.state, r.outcome
            from gateway.requests as r
            where (p_customer_id is null or r.customer_id = p_customer_id)
                and r.admitted_at >= v_from and r.admitted_at < v_to
                and r.admitted_at <= coalesce(p_before_at, 'infinity')
                and (p_before_at is null or r.admitted_at < p_before_at or r.id < p_before_id)
            order by r.admitted_at desc, r.id desc
            limit c_most_read
        ) as q
        where (p_key_id is null or q.key_id = p_key_id)
            and (p_model is null or q.model_id = v_model_id or q.requested_model = p_model)
            and (p_provider is null or q.service_id = any (v_service_ids))
            and (not p_errors or q.state = 'expired' or q.outcome = 'failed')
            and (p_status is null or p_status = case q.state when 'held' then 'running' when 'settled' then q.outcome else q.state end)
        order by q.admitted_at desc, q.id desc
        limit p_limit + 1
    );
    if cardinality(v_rows) > p_limit then
        v_last_at := v_rows[p_limit].admitted_at;
        v_last_id := v_rows[p_limit].id;
    elsif num_nonnulls(p_key_id, p_model, p_provider, p_status) > 0 or p_errors then
        select r.admitted_at, r.id into v_last_at, v_last_id
        from gateway.requests as r
        where (p_customer_id is null or r.customer_id = p_customer_id)
            and r.admitted_at >= v_from and r.admitted_at < v_to
            and r.admitted_at <= coalesce(p_before_at, 'infinity')
            and (p_before_at is null or r.admitted_at < p_before_at or r.id < p_before_id)
        order by r.admitted_at desc, r.id desc
        offset c_most_read - 1
        limit 1;
    end if;
    return jsonb_build_object(
        'data', coalesce((
            select jsonb_agg(gateway.describe_request(v_rows[n], p_show_cost) order by n)
            from generate_series(1, least(cardinality(v_rows), p_limit)) as n
        ), '[]'),
        'next', case when v_last_id is not null then jsonb_build_object('at', v_last_at, 'id', v_last_id) end);
end
$$;

revoke all on function api.list_requests(integer, bigint, boolean, timestamptz, text, text, text, text, text, bigint, text, boolean) from public;

grant execute on function api.list_requests(integer, bigint, boolean, timestamptz, text, text, text, text, text, bigint, text, boolean) to service_role;

comment on function api.list_requests(integer, bigint, boolean, timestamptz, text, text, text, text, text, bigint, text, boolean) is 'The request log, newest first, a page of it.';

create function gateway.read_counters(p_limits gateway.limit_state[]) returns gateway.limit_state[]
language plpgsql stable set search_path = ''
as $$
begin
    return (
        select coalesce(array_agg(
            jsonb_populate_record(l, jsonb_build_object(
                'used_requests', coalesce(c.requests, 0), 'used_tokens', coalesce(c.tokens, 0), 'used_spend_usd', coalesce(c.spend_usd, 0)))
            order by l.subject, l.subject_id, l.model_id, l.per), '{}')
        from unnest(p_limits) as l
        left join gateway.limit_counters as c
            on (c.subject, c.subject_id, c.model_id, c.per) = (l.subject, l.subject_id, l.model_id, l.per) and c.window_start >= l.window_start
    );
end
$$;

comment on function gateway.read_counters(gateway.limit_state[]) is 'Fills in what is used of each window, as lock_counters does, and locks nothing.';

revoke all on function gateway.read_counters(gateway.limit_state[]) from public;

create function gateway.show_windows(p_limits gateway.limit_state[]) returns jsonb
language plpgsql stable set search_path = ''
as $$
begin
    return (
        select coalesce(jsonb_object_agg(w.name, jsonb_build_object(
            'limit', case w.metric when 'spend_usd' then to_jsonb(gateway.show_usd(w.most)) else to_jsonb(w.most::bigint) end,
            'used', case w.metric when 'spend_usd' then to_jsonb(gateway.show_usd(w.used)) else to_jsonb(w.used::bigint) end)), '{}')
        from (
            select distinct on (n.metric, l.per) n.metric || '_per_' || l.per as name, n.metric, n.most, n.used
            from unnest(p_limits) as l
            cross join lateral (values
                ('requests', l.requests::numeric, l.used_requests::numeric),
                ('tokens', l.tokens, l.used_tokens),
                ('spend_usd', l.spend_usd, l.used_spend_usd)
            ) as n (metric, most, used)
            where n.most is not null and l.subject <> 'service'
            order by n.metric, l.per, n.most - n.used, n.most
        ) as w
    );
end
$$;

comment on function gateway.show_windows(gateway.limit_state[]) is 'Of each name, such as requests_per_minute, the window with the least left: its limit and what is used of it.';

revoke all on function gateway.show_windows(gateway.limit_state[]) from public;

-- api.read_limits: the limits that a key (p_key_id null: the customer's keys together) falls under now, and whether admission would let its next
-- request pass, however small.
--
-- {"time_zone", "limits": {"requests_per_minute": {"limit", "used"}, …}, "reset_times": {"minute", "hour", "day", "month"},
--  "refusal": null | what api.admit_request would refuse with}; null where there is no such customer or key.
--
-- limits: the key's own, those of the keys that made it, and the customer's; where several windows have one name, the one with the
-- least left, as in the x-ratelimit headers. Of limits for each model by itself: with p_model this model's; without, those of the models
-- that were used in the running window, and what any other model would have. So the system's default of requests per minute shows.
-- Running requests count at their bound, as they do for admission. A service's limits are the operator's affair: not shown, but obeyed.
-- refusal: without p_model of the first of these windows that is full, with the name of its model ("of_model") where it is one model's.
-- Reads only, and locks nothing: a request that runs meanwhile may change the answer.
create function api.read_limits(p_customer_id bigint, p_key_id bigint default null, p_model text default null) returns jsonb
language plpgsql stable security definer set search_path = ''
as $$
declare
    c_any_other_model constant bigint := -1;
    c_least_usd constant numeric := 0.0000000001;
    v_at timestamptz := clock_timestamp();
    v_caller record;
    v_settings gateway.settings;
    v_candidate gateway.candidate;
    v_candidates gateway.candidate[] := '{}'::gateway.candidate[];
    v_found boolean := false;
    v_allowed boolean := false;
    v_routed boolean := false;
    v_model_ids bigint[] := '{}'::bigint[];
    v_model_id bigint;
    v_limits gateway.limit_state[];
    v_charge numeric;
    v_excess jsonb;
    v_refusal jsonb;
begin
    select c.id, c.time_zone, a.balance_usd - a.held_usd as free_usd,
        k.id as key_id, k.scopes, k.allowed_models, k.allowed_services, coalesce(k.maker_key_ids, '{}') as maker_key_ids
    into v_caller
    from gateway.customers as c
    join gateway.accounts as a on a.customer_id = c.id
    left join gateway.api_keys as k on k.id = p_key_id and k.customer_id = c.id
    where c.id = p_customer_id;
    if v_caller.id is null or v_caller.key_id is distinct from p_key_id then
        return null;
    end if;
    select * into v_settings from gateway.settings;

    if p_model is not null then
        for v_candidate in
            select * from gateway.resolve_candidates(array[p_model], null, null, v_caller.allowed_services, false, false)
        loop
            v_found := true;
            v_model_ids := v_model_ids || v_candidate.model_id;
            continue when v_caller.allowed_models is not null and not v_candidate.model_id = any (v_caller.allowed_models);
            v_allowed := true;
            continue when v_candidate.route_id is null;
            v_routed := true;
            continue when v_candidate.prices is null;
            v_candidates := v_candidates || v_candidate;
        end loop;
        v_refusal := case
            when not v_found then jsonb_build_object('refusal', 'model_not_found', 'model', p_model)
            when not v_allowed then jsonb_build_object('refusal', 'model_not_allowed', 'model', p_model)
            when not v_routed then jsonb_build_object('refusal', 'model_not_served', 'model', p_model)
            when cardinality(v_candidates) = 0 then jsonb_build_object('refusal', 'model_not_priced', 'model', p_model)
        end;
    elsif p_key_id is not null then
        v_model_ids := c_any_other_model || array(
            select distinct c.model_id
            from gateway.limit_counters as c
            where c.subject = 'key' and c.subject_id = any (p_key_id || v_caller.maker_key_ids) and c.model_id <> 0 and c.requests > 0
            order by c.model_id
        );
    end if;

    v_limits := gateway.read_counters(gateway.applicable_limits(
        v_caller.key_id, v_caller.id, case when p_key_id is null then '{}' else array(select distinct m from unnest(v_model_ids) as m) end,
        array(select distinct c.service_id from unnest(v_candidates) as c), v_caller.time_zone, v_at, v_caller.maker_key_ids));
    if p_model is null then
        -- a model's counter may be of a window that has passed
        v_limits := array(select l from unnest(v_limits) as l where l.model_id <= 0 or l.used_requests > 0);
    end if;

    if p_key_id is not null and not 'chat' = any (v_caller.scopes) then
        v_refusal := jsonb_build_object('refusal', 'scope_missing', 'scope', 'chat');
    elsif p_model is null then
        foreach v_model_id in array coalesce(nullif(v_model_ids, '{}'), array[c_any_other_model]) loop
            v_refusal := gateway.describe_excess(v_limits, null, v_model_id, 1, c_least_usd, c_least_usd, v_at);
            if v_refusal is not null then
                if v_model_id <> c_any_other_model then
                    v_refusal := v_refusal || jsonb_build_object('of_model', (select m.name from gateway.models as m where m.id = v_model_id));
                end if;
                exit;
            end if;
        end loop;
        if v_refusal is null and v_caller.free_usd <= 0 then
            v_refusal := jsonb_build_object(
                'refusal', 'insufficient_credits', 'needed_usd', gateway.show_usd(c_least_usd),
                'available_usd', gateway.show_usd(v_caller.free_usd), 'affordable_output_tokens', 0);
        end if;
    elsif v_refusal is null then
        -- as admission does for each candidate, for a request of one token
        foreach v_candidate in array v_candidates loop
            v_charge := gateway.round_up_usd(
                v_candidate.fixed_usd * (1 + v_settings.commission_percent * 0.01) + case v_settings.billing_mode
                    when 'flat' then v_settings.flat_usd_per_1k_tokens * 0.001
                    else v_candidate.input_rate * (1 + v_settings.commission_percent * 0.01)
                end);
            v_excess := gateway.describe_excess(
                v_limits, v_candidate.service_id, v_candidate.model_id, 1, v_charge,
                gateway.round_up_usd(v_candidate.fixed_usd + v_candidate.input_rate), v_at);
            if v_excess is null and v_charge > v_caller.free_usd then
                v_excess := jsonb_build_object(
                    'refusal', 'insufficient_credits', 'needed_usd', gateway.show_usd(v_charge),
                    'available_usd', gateway.show_usd(v_caller.free_usd), 'affordable_output_tokens', 0);
            end if;
            if v_excess is null then
                v_refusal := null;
                exit;
            end if;
            v_refusal := coalesce(v_refusal, v_excess);
        end loop;
    end if;

    return jsonb_build_object(
        'time_zone', v_caller.time_zone,
        'limits', gateway.show_windows(v_limits),
        'refusal', v_refusal,
        'reset_times', (
            select jsonb_object_agg(w.per, gateway.window_end(w.per, gateway.window_start(w.per, v_at, v_caller.time_zone), v_caller.time_zone))
            from (values ('minute'), ('hour'), ('day'), ('month')) as w (per)
        ));
end
$$;

revoke all on function api.read_limits(bigint, bigint, text) from public;

grant execute on function api.read_limits(bigint, bigint, text) to service_role;

comment on function api.read_limits(bigint, bigint, text) is 'The limits that a key falls under now, what is used of them, and whether admission would let a request pass.';

-- api.read_credits: what a customer has bought and used in all, in USD: {"total_credits_usd", "total_usage_usd"}; their difference is the
-- balance, so that what corrections took away was never bought. Null where there is no such customer. Costs the same however many requests there
-- were: only entries that are not a request's are summed. Reads only.
create function api.read_credits(p_customer_id bigint) returns jsonb
language plpgsql stable security definer set search_path = ''
as $$
begin
    return (
        select jsonb_build_object(
            'total_credits_usd', gateway.show_usd(paid.usd), 'total_usage_usd', gateway.show_usd(paid.usd - a.balance_usd))
        from gateway.accounts as a
        cross join lateral (
            select coalesce(sum(e.amount_usd), 0) as usd
            from gateway.ledger_entries as e
            where e.customer_id = a.customer_id and e.request_id is null
        ) as paid
        where a.customer_id = p_customer_id
    );
end
$$;

revoke all on function api.read_credits(bigint) from public;

grant execute on function api.read_credits(bigint) to service_role;

comment on function api.read_credits(bigint) is 'What a customer has bought and used in all.';

-- api.read_key: the calling key about itself: {"name", "prefix", "scopes", "expires_at", "is_free_tier", "usage": {"total_usd", "day_usd",
-- "week_usd", "month_usd"}, "spend_limit": {"limit_usd", "remaining_usd", "per": day | month} | null, "requests_per_minute"}, or null where the
-- customer has no such key.
--
-- Days, weeks (from Monday) and months are the customer's. spend_limit: of the key's daily and monthly spending limits, and its makers', the one
-- that leaves it least; running requests count at their hold. requests_per_minute: of all models together or, where that is unlimited, of each. is_free_tier: nothing was ever paid in. Reads only.
create function api.read_key(p_customer_id bigint, p_key_id bigint) returns jsonb
language plpgsql stable security definer set search_path = ''
as $$
declare
    v_key gateway.api_keys;
    v_time_zone text;
    v_limits gateway.limit_state[];
    v_monitor jsonb;
    v_week numeric;
begin
    select * into v_key from gateway.api_keys where id = p_key_id and customer_id = p_customer_id;
    if v_key.id is null then
        return null;
    end if;
    select c.time_zone into v_time_zone from gateway.customers as c where c.id = p_customer_id;
    v_limits := gateway.read_counters(gateway.applicable_limits(
        p_key_id, p_customer_id, array[-1], '{}', v_time_zone, clock_timestamp(), v_key.maker_key_ids));
    v_monitor := api.read_monitor(p_customer_id => p_customer_id, p_key_id => p_key_id);
    select sum((u ->> 'charge_usd')::numeric) into v_week
    from jsonb_array_elements(api.read_usage(
        p_customer_id => p_customer_id, p_key_id => p_key_id, p_from => date_trunc('week', now(), v_time_zone),
        p_to => gateway.window_end('day', gateway.window_start('day', now(), v_time_zone), v_time_zone), p_interval => 'day',
        p_time_zone => v_time_zone)) as u;
    return jsonb_build_object(
        'name', v_key.name, 'prefix', v_key.prefix, 'scopes', v_key.scopes, 'expires_at', v_key.expires_at,
        'is_free_tier', not exists (
            select from gateway.ledger_entries as e where e.customer_id = p_customer_id and e.request_id is null and e.amount_usd > 0),
        'usage', jsonb_build_object(
            'total_usd', v_monitor ->> 'total_charge_usd', 'day_usd', v_monitor ->> 'charge_today_usd',
            'week_usd', gateway.show_usd(coalesce(v_week, 0)), 'month_usd', v_monitor ->> 'charge_this_month_usd'),
        'spend_limit', (
            select jsonb_build_object(
                'limit_usd', gateway.show_usd(l.spend_usd), 'remaining_usd', gateway.show_usd(greatest(l.spend_usd - l.used_spend_usd, 0)),
                'per', l.per)
            from unnest(v_limits) as l
            where l.subject = 'key' and l.model_id = 0 and l.per in ('day', 'month') and l.spend_usd is not null
            order by l.spend_usd - l.used_spend_usd, l.per desc
            limit 1
        ),
        'requests_per_minute', (
            select l.requests
            from unnest(v_limits) as l
            where l.subject = 'key' and l.per = 'minute' and l.requests is not null
            order by l.model_id desc, l.requests
            limit 1
        ));
end
$$;

revoke all on function api.read_key(bigint, bigint) from public;

grant execute on function api.read_key(bigint, bigint) to service_role;

comment on function api.read_key(bigint, bigint) is 'What a key may know of itself: its limits and what it used.';

-- api.read_time_series: usage over time, as GET /v1/usage shows it: what is left out is filled in, then api.read_usage reads the rollups.
--
-- {"data": as api.read_usage tells, "from", "to", "interval", "time_zone", "group_by"}, or {"error": unknown_customer | unknown_key |
-- unknown_time_zone | customer_needed | empty_range | range_too_long | too_many_points}. p_customer_id null: all customers, but not by key; with a
-- key, its customer, which has to be p_customer_id where that is given.
--
-- p_from (included) and p_to (left out) are times, or days in the time zone, each of them included; by default 24 hours, 30 days
-- or 12 months up to now. They are widened to whole intervals, so that every figure is an interval's own, and so answered. At most 31 days by the hour, 400
-- days by the day, 10 years by the month; with groups at most 10,000 points. p_time_zone: by default the customer's. p_show_cost: an admin's
-- call; others are not shown the provider's cost in flat mode. Reads only.
create function api.read_time_series(
    p_customer_id bigint default null, p_key_id bigint default null, p_from text default null, p_to text default null,
    p_interval text default 'day', p_group_by text default null, p_time_zone text default null, p_show_cost boolean default false
) returns jsonb
language plpgsql stable security definer set search_path = ''
as $$
declare
    c_most_points constant integer := 10000;
    v_customer_id bigint := p_customer_id;
    v_time_zone text := coalesce(p_time_zone, 'UTC');
    v_from timestamptz;
    v_to timestamptz;
    v_start timestamptz;
    v_data jsonb;
begin
    if p_key_id is not null then
        select k.customer_id into v_customer_id
        from gateway.api_keys as k
        where k.id = p_key_id and k.customer_id = coalesce(p_customer_id, k.customer_id);
        if not found then
            return jsonb_build_object('error', 'unknown_key');
        end if;
    end if;
    if v_customer_id is not null then
        -- its own in other letters is its own, whose days are kept for ever
        select case when lower(p_time_zone) = lower(c.time_zone) then c.time_zone else coalesce(p_time_zone, c.time_zone) end
        into v_time_zone
        from gateway.customers as c
        where c.id = v_customer_id;
        if not found then
            return jsonb_build_object('error', 'unknown_customer');
        end if;
    elsif p_group_by = 'key' then
        return jsonb_build_object('error', 'customer_needed');
    end if;
    if not gateway.is_time_zone(v_time_zone) then
        return jsonb_build_object('error', 'unknown_time_zone');
    end if;

    v_to := coalesce(gateway.read_moment(p_to, v_time_zone, true), now());
    v_from := coalesce(gateway.read_moment(p_from, v_time_zone, false), case p_interval
        when 'hour' then v_to - interval '23 hours'
        when 'day' then (v_to at time zone v_time_zone - interval '29 days') at time zone v_time_zone
        else (v_to at time zone v_time_zone - interval '11 months') at time zone v_time_zone
    end);
    if v_from >= v_to then
        return jsonb_build_object('error', 'empty_range');
    elsif v_to > (v_from at time zone v_time_zone + case p_interval
        when 'hour' then interval '31 days' when 'day' then interval '400 days' else interval '10 years' end) at time zone v_time_zone then
        return jsonb_build_object('error', 'range_too_long');
    end if;
    v_from := gateway.window_start(p_interval, v_from, v_time_zone);
    v_start := gateway.window_start(p_interval, v_to, v_time_zone);
    if v_start < v_to then
        v_to := gateway.window_end(p_interval, v_start, v_time_zone);
    end if;

    v_data := api.read_usage(
        p_customer_id => v_customer_id, p_key_id => p_key_id, p_from => v_from, p_to => v_to, p_interval => p_interval,
        p_group_by => p_group_by, p_time_zone => v_time_zone, p_for_customer => not p_show_cost);
    if jsonb_array_length(v_data) > c_most_points then
        return jsonb_build_object('error', 'too_many_points');
    end if;
    return jsonb_build_object(
        'data', v_data, 'from', v_from, 'to', v_to, 'interval', p_interval, 'time_zone', v_time_zone, 'group_by', p_group_by);
end
$$;

revoke all on function api.read_time_series(bigint, bigint, text, text, text, text, text, boolean) from public;

grant execute on function api.read_time_series(bigint, bigint, text, text, text, text, text, boolean) to service_role;

comment on function api.read_time_series(bigint, bigint, text, text, text, text, text, boolean) is 'Usage over time by hour, day or month, of a customer or of all, with what was left out filled in.';

-- api.list_crossings: soft marks that were crossed, the newest first: of a customer and its keys; with p_key_id of that key of it alone; of
-- everybody and of the services where p_customer_id is null. [{"subject": key | customer | service, "id", "name": a service's name or a key's
-- prefix, "customer_id", "model", "limit": such as tokens_per_day, "window_start", "mark", "used", "crossed_at"}]; USD are exact text, requests
-- and tokens numbers. Reads only.
create function api.list_crossings(p_customer_id bigint default null, p_limit integer default 20, p_key_id bigint default null) returns jsonb
language plpgsql stable security definer set search_path = '' set plan_cache_mode = force_custom_plan
as $$
begin
    return (
        select coalesce(jsonb_agg(jsonb_build_object(
            'subject', k.subject, 'id', k.subject_id,
            'name', case k.subject
                when 'key' then (select a.prefix from gateway.api_keys as a where a.id = k.subject_id)
                when 'service' then (select s.name from gateway.services as s where s.id = k.subject_id)
            end,
            'customer_id', k.customer_id,
            'model', (select m.name from gateway.models as m where m.id = k.model_id),
            'limit', k.metric || '_per_' || k.per,
            'window_start', k.window_start,
            'mark', gateway.show_metric(k.metric, k.mark),
            'used', gateway.show_metric(k.metric, k.used),
            'crossed_at', k.at
        ) order by k.at desc), '[]')
        from (
            select * from gateway.limit_crossings
            where (p_customer_id is null or customer_id = p_customer_id) and (p_key_id is null or (subject = 'key' and subject_id = p_key_id))
            order by at desc
            limit p_limit
        ) as k
    );
end
$$;

revoke all on function api.list_crossings(bigint, integer, bigint) from public;

grant execute on function api.list_crossings(bigint, integer, bigint) to service_role;

comment on function api.list_crossings(bigint, integer, bigint) is 'Soft marks that were crossed, the newest first.';

-- The outbox, as those who empty it see it. What is claimed is sent at least once: where a maintainer dies between the sending and
-- api.finish_delivery, its claim runs out and another sends the event again, under the same id.

create function gateway.show_event_id(p_id uuid) returns text
language plpgsql immutable parallel safe set search_path = ''
as $$
begin
    return 'evt_' || replace(p_id::text, '-', '');
end
$$;

comment on function gateway.show_event_id(uuid) is 'An event''s id as receivers see it.';

revoke all on function gateway.show_event_id(uuid) from public;

-- api.read_webhook: {"url", "secret": sealed}, each null where it is not set. For the operator's test of it.
create function api.read_webhook() returns jsonb
language plpgsql stable security definer set search_path = ''
as $$
begin
    return (select jsonb_build_object('url', s.webhook_url, 'secret', s.webhook_secret) from gateway.settings as s);
end
$$;

revoke all on function api.read_webhook() from public;

grant execute on function api.read_webhook() to service_role;

comment on function api.read_webhook() is 'Where events are sent, and the sealed secret that they are signed with.';

-- api.claim_deliveries: takes at most p_limit deliveries that are due, the longest due first, for p_lease_seconds: no other is given them
-- before. {"url", "secret": sealed, "deliveries": [{"event_id", "attempt", "id", "type", "created_at", "data"}]}; none, and no url, where no
-- webhook is set. attempt is the claim's number, for api.finish_delivery. Skips what is being claimed. For the maintenance function.
create function api.claim_deliveries(p_limit integer, p_lease_seconds integer) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_now timestamptz := clock_timestamp();
    v_settings gateway.settings;
    v_claimed jsonb;
begin
    select * into v_settings from gateway.settings;
    if v_settings.webhook_url is null then
        return jsonb_build_object('url', null, 'secret', null, 'deliveries', '[]'::jsonb);
    end if;
    with due as (
        select event_id from gateway.event_deliveries
        where next_attempt_at <= v_now and (claimed_until is null or claimed_until <= v_now)
        order by next_attempt_at
        limit p_limit
        for update skip locked
    ),
    claimed as (
        update gateway.event_deliveries as d
        set attempts = d.attempts + 1, claimed_until = v_now + make_interval(secs => p_lease_seconds)
        from due
        where d.event_id = due.event_id
        returning d.event_id, d.attempts
    )
    select coalesce(jsonb_agg(jsonb_build_object(
        'event_id', e.id, 'attempt', c.attempts, 'id', gateway.show_event_id(e.id), 'type', e.kind, 'created_at', e.at, 'data', e.data
    ) order by e.at), '[]')
    into v_claimed
    from claimed as c
    join gateway.events as e on e.id = c.event_id;
    return jsonb_build_object('url', v_settings.webhook_url, 'secret', v_settings.webhook_secret, 'deliveries', v_claimed);
end
$$;

revoke all on function api.claim_deliveries(integer, integer) from public;

grant execute on function api.claim_deliveries(integer, integer) to service_role;

comment on function api.claim_deliveries(integer, integer) is 'Takes events that are due for sending; nobody else gets them while the lease runs.';

-- api.finish_delivery: what came of a claim. {"state": delivered | waiting | given_up | stale, "next_attempt_at"}.
-- An attempt that failed is made again after a minute, two, four … six hours, each shortened by up to a tenth at random, so that what failed
-- together does not come back together; after the twentieth, some three days on, it is given up, and stays to be seen.
-- stale: the lease has run out and another has claimed it since, who will say what came of it. But what was delivered is delivered.
create function api.finish_delivery(p_event_id uuid, p_attempt integer, p_delivered boolean, p_status integer, p_error text) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    c_most_attempts constant integer := 20;
    v_now timestamptz := clock_timestamp();
    v_delivery gateway.event_deliveries;
begin
    update gateway.event_deliveries
    set delivered_at = case when p_delivered then v_now end,
        next_attempt_at = case
            when not p_delivered and attempts < c_most_attempts
                then v_now + least(interval '1 minute' * power(2, attempts - 1), interval '6 hours') * (1 - 0.1 * random())
        end,
        claimed_until = null,
        last_status = p_status,
        last_error = left(p_error, 300)
    where event_id = p_event_id and delivered_at is null and (p_delivered or (attempts = p_attempt and next_attempt_at is not null))
    returning * into v_delivery;
    return jsonb_build_object(
        'state', case
            when not found then 'stale'
            when v_delivery.delivered_at is not null then 'delivered'
            when v_delivery.next_attempt_at is not null then 'waiting'
            else 'given_up'
        end,
        'next_attempt_at', v_delivery.next_attempt_at);
end
$$;

revoke all on function api.finish_delivery(uuid, integer, boolean, integer, text) from public;

grant execute on function api.finish_delivery(uuid, integer, boolean, integer, text) to service_role;

comment on function api.finish_delivery(uuid, integer, boolean, integer, text) is 'Writes what came of sending an event: delivered, to be tried again, or given up.';

-- api.read_deliveries: how the webhook is doing. {"webhook_set", "waiting": deliveries that are not made yet, "waiting_since": of the oldest,
-- "given_up", "last_delivered_at", "undelivered": [the newest p_limit that are waiting after a failure or given up: {"id", "type",
-- "created_at", "attempts", "next_attempt_at", "last_status", "last_error"}]}. Reads only.
create function api.read_deliveries(p_limit integer default 20) returns jsonb
language plpgsql stable security definer set search_path = ''
as $$
begin
    return jsonb_build_object(
        'webhook_set', (select s.webhook_url is not null from gateway.settings as s),
        'given_up', (select count(*) from gateway.event_deliveries where delivered_at is null and next_attempt_at is null),
        'last_delivered_at', (select max(delivered_at) from gateway.event_deliveries where delivered_at is not null),
        'undelivered', (
            select coalesce(jsonb_agg(jsonb_build_object(
                'id', gateway.show_event_id(u.id), 'type', u.kind, 'created_at', u.at, 'attempts', u.attempts,
                'next_attempt_at', u.next_attempt_at, 'last_status', u.last_status, 'last_error', u.last_error
            ) order by u.at desc), '[]')
            from (
                select e.id, e.kind, e.at, d.attempts, d.next_attempt_at, d.last_status, d.last_error
                from gateway.event_deliveries as d
                join gateway.events as e on e.id = d.event_id
                where d.next_attempt_at is not null and d.attempts > 0
                union all
                select e.id, e.kind, e.at, d.attempts, d.next_attempt_at, d.last_status, d.last_error
                from gateway.event_deliveries as d
                join gateway.events as e on e.id = d.event_id
                where d.delivered_at is null and d.next_attempt_at is null
                order by 3 desc
                limit p_limit
            ) as u
        )
    ) || (
        select jsonb_build_object('waiting', count(*), 'waiting_since', min(e.at))
        from gateway.event_deliveries as d
        join gateway.events as e on e.id = d.event_id
        where d.next_attempt_at is not null
    );
end
$$;

revoke all on function api.read_deliveries(integer) from public;

grant execute on function api.read_deliveries(integer) to service_role;

comment on function api.read_deliveries(integer) is 'How the webhook is doing: what waits, what failed, what was given up.';

-- api.forget_events: deletes events of more than 90 days with their deliveries, crossings of more than 400 days (longer than any window), and
-- turned windows of more than a day, whose requests have ended; of each at most p_limit, the oldest first. Returns how many rows.
-- This only keeps the tables small. For the maintenance function.
create function api.forget_events(p_limit integer default 10000) returns integer
language plpgsql security definer set search_path = ''
as $$
declare
    v_events integer;
    v_crossings integer;
    v_windows integer;
begin
    delete from gateway.events
    where id = any (array(
        select id from gateway.events where at < now() - interval '90 days' order by at limit p_limit for update skip locked));
    get diagnostics v_events = row_count;
    delete from gateway.limit_crossings
    where ctid = any (array(
        select ctid from gateway.limit_crossings where at < now() - interval '400 days' order by at limit p_limit for update skip locked));
    get diagnostics v_crossings = row_count;
    delete from gateway.turned_windows
    where ctid = any (array(
        select ctid from gateway.turned_windows where turned_at < now() - interval '1 day' order by turned_at limit p_limit for update skip locked));
    get diagnostics v_windows = row_count;
    return v_events + v_crossings + v_windows;
end
$$;

revoke all on function api.forget_events(integer) from public;

grant execute on function api.forget_events(integer) to service_role;

comment on function api.forget_events(integer) is 'Deletes old events, crossings and turned windows.';

-- What the operator looks at in Studio. All of it is read only, reads what a question costs and no more (the sums by day and month, not the
-- log), and runs with the rights of whoever asks: nobody but the owner has any.
create function gateway.refuse_view_edit() returns trigger
language plpgsql set search_path = ''
as $$
begin
    raise exception '%.% is a view: it shows, and is not edited', tg_table_schema, tg_table_name
        using errcode = 'restrict_violation', hint = tg_argv[0];
end
$$;

comment on function gateway.refuse_view_edit() is 'Trigger: views are read only; its argument says where to edit instead.';

revoke all on function gateway.refuse_view_edit() from public;

create view gateway.customer_spend with (security_invoker = true) as
with used as (
    select p.customer_id, true as in_all, p.period = date_trunc('month', now() at time zone c.time_zone) as in_month, false as in_day,
        p.requests, p.errors, p.total_tokens, p.cost_usd, p.charge_usd, p.uncollected_usd, p.last_request_at
    from gateway.customers as c
    -- offset 0: a look into the index for each customer, instead of all that was ever closed
    cross join lateral (
        select * from gateway.usage_periods where customer_id = c.id and per = 'month' and grouped_by = 'all' offset 0
    ) as p
    union all
    select p.customer_id, false, false, true,
        p.requests, p.errors, p.total_tokens, p.cost_usd, p.charge_usd, p.uncollected_usd, p.last_request_at
    from gateway.customers as c
    join gateway.usage_periods as p on p.customer_id = c.id and p.per = 'day' and p.grouped_by = 'all'
        and p.period = date_trunc('day', now() at time zone c.time_zone)
    union all
    -- what has come since the last closing
    select r.customer_id, true,
        r.bucket >= gateway.window_start('month', now(), c.time_zone), r.bucket >= gateway.window_start('day', now(), c.time_zone),
        r.requests, r.errors, r.total_tokens, r.cost_usd, r.charge_usd, r.uncollected_usd, r.last_request_at
    from gateway.find_live_usage(null, '-infinity', (select closed_until from gateway.usage_closing), 'infinity') as r
    join gateway.customers as c on c.id = r.customer_id
),
summed as (
    select customer_id,
        sum(charge_usd) filter (where in_day) as spend_today_usd,
        sum(charge_usd) filter (where in_month) as spend_this_month_usd,
        sum(charge_usd) filter (where in_all) as spend_usd,
        sum(requests) filter (where in_day) as requests_today,
        sum(requests) filter (where in_month) as requests_this_month,
        sum(requests) filter (where in_all) as requests,
        sum(errors) filter (where in_month) as errors_this_month,
        sum(total_tokens) filter (where in_month) as tokens_this_month,
        sum(charge_usd - uncollected_usd - cost_usd) filter (where in_month) as margin_this_month_usd,
        sum(uncollected_usd) filter (where in_all) as uncollected_usd,
        max(last_request_at) as last_request_at
    from used
    group by customer_id
)
select c.id as customer_id, c.name, c.email, c.company, c.active, a.balance_usd, a.held_usd, a.balance_usd - a.held_usd as free_usd,
    gateway.show_credits(a.balance_usd, s.credit_value_usd) as credits,
    coalesce(u.spend_today_usd, 0) as spend_today_usd,
    coalesce(u.spend_this_month_usd, 0) as spend_this_month_usd,
    coalesce(u.spend_usd, 0) as spend_usd,
    coalesce(u.requests_today, 0)::bigint as requests_today,
    coalesce(u.requests_this_month, 0)::bigint as requests_this_month,
    coalesce(u.requests, 0)::bigint as requests,
    coalesce(u.errors_this_month, 0)::bigint as errors_this_month,
    coalesce(u.tokens_this_month, 0)::bigint as tokens_this_month,
    coalesce(u.margin_this_month_usd, 0) as margin_this_month_usd,
    coalesce(u.uncollected_usd, 0) as uncollected_usd,
    u.last_request_at
from gateway.customers as c
join gateway.accounts as a on a.customer_id = c.id
cross join gateway.settings as s
left join summed as u on u.customer_id = c.id;

create trigger read_only instead of insert or update or delete on gateway.customer_spend
    for each row execute function gateway.refuse_view_edit('Edit gateway.customers; change a balance with api.add_credits.');

comment on view gateway.customer_spend is 'Who spends: every customer with balance, and what it spent today, this month and ever, in its own time zone. Exact up to the last request that has ended.';

comment on column gateway.customer_spend.customer_id is 'The customer.';

comment on column gateway.customer_spend.name is 'Display name.';

comment on column gateway.customer_spend.email is 'Address.';

comment on column gateway.customer_spend.company is 'Company, if any.';

comment on column gateway.customer_spend.active is 'False: suspended.';

comment on column gateway.customer_spend.balance_usd is 'What is paid in and not spent, in USD; what is held is still in it.';

comment on column gateway.customer_spend.held_usd is 'Of it, what running requests hold.';

comment on column gateway.customer_spend.free_usd is 'Of it, what a new request can have.';

comment on column gateway.customer_spend.credits is 'The balance in credits, rounded down.';

comment on column gateway.customer_spend.spend_today_usd is 'Charged today.';

comment on column gateway.customer_spend.spend_this_month_usd is 'Charged this month.';

comment on column gateway.customer_spend.spend_usd is 'Charged ever.';

comment on column gateway.customer_spend.requests_today is 'Requests that have ended, of today.';

comment on column gateway.customer_spend.requests_this_month is 'Requests that have ended, of this month.';

comment on column gateway.customer_spend.requests is 'Requests that have ended, ever.';

comment on column gateway.customer_spend.errors_this_month is 'Of this month''s requests, those that failed or expired.';

comment on column gateway.customer_spend.tokens_this_month is 'Tokens of all classes, this month.';

comment on column gateway.customer_spend.margin_this_month_usd is 'This month: what was collected less what the providers take.';

comment on column gateway.customer_spend.uncollected_usd is 'Charged ever, and not to be had: the provider billed beyond the bound.';

comment on column gateway.customer_spend.last_request_at is 'When the last request that has ended was admitted.';

-- By the model alone and by the service alone: usage is summed by each, not by both.
create view gateway.model_margin with (security_invoker = true) as
select m.name as model, sum(u.requests)::bigint as requests, sum(u.errors)::bigint as errors,
    sum(u.total_tokens)::bigint as tokens,
    sum(u.input_tokens + u.cached_input_tokens + u.cache_write_tokens + u.audio_input_tokens + u.image_input_tokens)::bigint as input_tokens,
    sum(u.output_tokens + u.audio_output_tokens + u.image_output_tokens)::bigint as output_tokens,
    sum(u.cost_usd) as cost_usd, sum(u.charge_usd) as charge_usd, sum(u.uncollected_usd) as uncollected_usd,
    sum(u.charge_usd - u.uncollected_usd - u.cost_usd) as margin_usd,
    round(100 * sum(u.charge_usd - u.uncollected_usd - u.cost_usd) / nullif(sum(u.cost_usd), 0), 2) as margin_percent,
    round(sum(u.latency_ms) / nullif(sum(u.latencies), 0)) as average_latency_ms
from gateway.find_usage(null, null, 'month', 'model', 'UTC', gateway.window_start('month', now(), 'UTC'),
                        gateway.window_end('month', gateway.window_start('month', now(), 'UTC'), 'UTC')) as u
join gateway.models as m on m.id = u.model_id
group by m.id, m.name
having sum(u.requests) > 0;

create trigger read_only instead of insert or update or delete on gateway.model_margin
    for each row execute function gateway.refuse_view_edit('Prices are in gateway.prices, the commission in gateway.settings.');

comment on view gateway.model_margin is 'What each model brings this month (UTC): requests, tokens, cost, charge, margin.';

comment on column gateway.model_margin.model is 'The model that answered.';

comment on column gateway.model_margin.requests is 'Requests that have ended.';

comment on column gateway.model_margin.errors is 'Of these, those that failed or expired.';

comment on column gateway.model_margin.tokens is 'Tokens of all classes.';

comment on column gateway.model_margin.input_tokens is 'Of these, read: all input classes.';

comment on column gateway.model_margin.output_tokens is 'Of these, answered: all output classes.';

comment on column gateway.model_margin.cost_usd is 'What the providers take.';

comment on column gateway.model_margin.charge_usd is 'What the customers owe.';

comment on column gateway.model_margin.uncollected_usd is 'Of the charge, what could not be taken.';

comment on column gateway.model_margin.margin_usd is 'What was collected less the cost.';

comment on column gateway.model_margin.margin_percent is 'The margin in percent of the cost.';

comment on column gateway.model_margin.average_latency_ms is 'From admission to the end, in milliseconds.';

create view gateway.provider_margin with (security_invoker = true) as
select s.provider, s.name as service, sum(u.requests)::bigint as requests, sum(u.total_tokens)::bigint as tokens,
    sum(u.cost_usd) as cost_usd, sum(u.charge_usd) as charge_usd, sum(u.uncollected_usd) as uncollected_usd,
    sum(u.charge_usd - u.uncollected_usd - u.cost_usd) as margin_usd,
    round(100 * sum(u.charge_usd - u.uncollected_usd - u.cost_usd) / nullif(sum(u.cost_usd), 0), 2) as margin_percent
from gateway.find_usage(null, null, 'month', 'service', 'UTC', gateway.window_start('month', now(), 'UTC'),
                        gateway.window_end('month', gateway.window_start('month', now(), 'UTC'), 'UTC')) as u
join gateway.services as s on s.id = u.service_id
group by s.id, s.provider, s.name
having sum(u.requests) > 0;

create trigger read_only instead of insert or update or delete on gateway.provider_margin
    for each row execute function gateway.refuse_view_edit('Services are in gateway.services, prices in gateway.prices.');

comment on view gateway.provider_margin is 'What each provider and service brings this month (UTC), by the requests that it answered.';

comment on column gateway.provider_margin.provider is 'The provider.';

comment on column gateway.provider_margin.service is 'The service.';

comment on column gateway.provider_margin.requests is 'Requests that it answered.';

comment on column gateway.provider_margin.tokens is 'Tokens of all classes.';

comment on column gateway.provider_margin.cost_usd is 'What the provider takes.';

comment on column gateway.provider_margin.charge_usd is 'What the customers owe.';

comment on column gateway.provider_margin.uncollected_usd is 'Of the charge, what could not be taken.';

comment on column gateway.provider_margin.margin_usd is 'What was collected less the cost.';

comment on column gateway.provider_margin.margin_percent is 'The margin in percent of the cost.';

-- The figures come from the sums; only why is read from the log, through an index that holds nothing but the requests with a failed route.
create view gateway.provider_errors with (security_invoker = true) as
with used as (
    select u.service_id, u.requests, u.failures, u.last_failure_at, u.period >= date_trunc('day', now() at time zone 'UTC') as is_today
    from gateway.find_usage(null, null, 'day', 'service', 'UTC', gateway.window_start('day', now(), 'UTC') - interval '6 days',
                            gateway.window_start('day', now(), 'UTC') + interval '1 day') as u
),
summed as (
    select service_id,
        sum(requests + failures) filter (where is_today) as attempts_today, sum(failures) filter (where is_today) as failures_today,
        sum(requests + failures) as attempts_7_days, sum(failures) as failures_7_days, max(last_failure_at) as last_failure_at
    from used
    group by service_id
),
faults as (
    select f.service_id, jsonb_object_agg(f.fault, f.times order by f.fault) as faults_7_days
    from (
        select (x.failed ->> 'service_id')::bigint as service_id,
            concat_ws(' ', x.failed ->> 'fault', x.failed ->> 'status') as fault, count(*) as times
        from gateway.requests as r
        cross join lateral jsonb_array_elements(r.failed_routes) as x (failed)
        where r.failed_routes is not null and r.admitted_at >= gateway.window_start('day', now(), 'UTC') - interval '6 days'
        group by 1, 2
    ) as f
    group by f.service_id
)
select s.provider, s.name as service, s.active,
    coalesce(u.attempts_today, 0)::bigint as attempts_today,
    coalesce(u.failures_today, 0)::bigint as failures_today,
    round(100.0 * u.failures_today / nullif(u.attempts_today, 0), 2) as failed_percent_today,
    coalesce(u.attempts_7_days, 0)::bigint as attempts_7_days,
    coalesce(u.failures_7_days, 0)::bigint as failures_7_days,
    round(100.0 * u.failures_7_days / nullif(u.attempts_7_days, 0), 2) as failed_percent_7_days,
    f.faults_7_days, u.last_failure_at
from gateway.services as s
left join summed as u on u.service_id = s.id
left join faults as f on f.service_id = s.id
where s.deleted_at is null or u.failures_7_days > 0;

create trigger read_only instead of insert or update or delete on gateway.provider_errors
    for each row execute function gateway.refuse_view_edit('Services are in gateway.services.');

comment on view gateway.provider_errors is 'What fails: each provider''s services today and in seven days (UTC), today included, and why.';

comment on column gateway.provider_errors.provider is 'The provider.';

comment on column gateway.provider_errors.service is 'The service.';

comment on column gateway.provider_errors.active is 'False: no request is routed to it.';

comment on column gateway.provider_errors.attempts_today is 'Requests that it answered and those for which it failed, today.';

comment on column gateway.provider_errors.failures_today is 'Of these, failed: whoever answered in the end. What the client got wrong doesn''t count.';

comment on column gateway.provider_errors.failed_percent_today is 'Failed, in percent of the attempts.';

comment on column gateway.provider_errors.attempts_7_days is 'The same in seven days.';

comment on column gateway.provider_errors.failures_7_days is 'The same in seven days.';

comment on column gateway.provider_errors.failed_percent_7_days is 'The same in seven days.';

comment on column gateway.provider_errors.faults_7_days is 'Why, with the provider''s HTTP status where there was one, and how often in seven days; what the client got wrong included.';

comment on column gateway.provider_errors.last_failure_at is 'When the last request was admitted for which it failed, in seven days.';

-- A counter is there once something has been counted; so a window in which nothing was used shows no row.
create view gateway.limit_usage with (security_invoker = true) as
with running as (
    select c.*, z.time_zone, gateway.window_end(c.per, c.window_start, z.time_zone) as resets_at, k.customer_id as key_customer_id
    from gateway.limit_counters as c
    left join gateway.api_keys as k on c.subject = 'key' and k.id = c.subject_id
    left join gateway.customers as o on o.id = case c.subject when 'customer' then c.subject_id when 'key' then k.customer_id end
    cross join lateral (select coalesce(o.time_zone, 'UTC') as time_zone) as z
),
limited as (
    select c.*,
        coalesce(l.requests, e.requests, case when d.applies and w.requests is null then s.default_requests_per_minute end) as most_requests,
        coalesce(l.tokens, e.tokens, case when d.applies and w.tokens is null then s.default_tokens_per_minute end) as most_tokens,
        coalesce(l.spend_usd, e.spend_usd) as most_spend_usd,
        coalesce(l.warn_requests, e.warn_requests) as warn_requests,
        coalesce(l.warn_tokens, e.warn_tokens) as warn_tokens,
        coalesce(l.warn_spend_usd, e.warn_spend_usd) as warn_spend_usd
    from running as c
    cross join gateway.settings as s
    -- the subject's own row, or that of the key and the model
    left join gateway.limits as l on l.per = c.per and not l.each_model
        and (l.key_id = c.subject_id and c.subject = 'key' and coalesce(l.model_id, 0) = c.model_id
             or l.customer_id = c.subject_id and c.subject = 'customer'
             or l.service_id = c.subject_id and c.subject = 'service')
    -- else the key's row for each model, else the system's default, which gives way to what the key's rows say of the same window
    left join gateway.limits as e on e.per = c.per and e.each_model and e.key_id = c.subject_id and c.subject = 'key' and c.model_id <> 0
    left join gateway.limits as w on w.per = c.per and not w.each_model and w.model_id is null and w.key_id = c.subject_id
        and c.subject = 'key' and c.model_id <> 0
    cross join lateral (select c.subject = 'key' and c.model_id <> 0 and c.per = 'minute' as applies) as d
    where c.resets_at > now()
)
select l.subject, l.subject_id,
    case l.subject when 'key' then k.prefix || '… ' || k.name when 'customer' then c.name else s.name end as name,
    o.name as customer, m.name as model, u.metric, l.per, u.used, u.soft, u.hard,
    round(100 * u.used / nullif(coalesce(u.hard, u.soft), 0), 1) as percent,
    case when u.used >= u.hard then 'full' when u.used >= u.soft then 'over the soft mark' when u.used >= 0.8 * coalesce(u.hard, u.soft) then 'near' else 'fine' end as state,
    l.window_start, l.resets_at
from limited as l
cross join lateral (values
    ('requests', l.requests::numeric, l.warn_requests::numeric, l.most_requests::numeric),
    ('tokens', l.tokens, l.warn_tokens, l.most_tokens),
    ('spend_usd', l.spend_usd, l.warn_spend_usd, l.most_spend_usd)
) as u (metric, used, soft, hard)
left join gateway.api_keys as k on l.subject = 'key' and k.id = l.subject_id
left join gateway.customers as c on l.subject = 'customer' and c.id = l.subject_id
left join gateway.customers as o on o.id = coalesce(k.customer_id, c.id)
left join gateway.services as s on l.subject = 'service' and s.id = l.subject_id
left join gateway.models as m on m.id = l.model_id
where u.soft is not null or u.hard is not null;

create trigger read_only instead of insert or update or delete on gateway.limit_usage
    for each row execute function gateway.refuse_view_edit('Limits are in gateway.limits, the defaults in gateway.settings.');

comment on view gateway.limit_usage is 'Every limited window that runs and in which something was used: what of it, of which limits.';

comment on column gateway.limit_usage.subject is 'key, customer or service.';

comment on column gateway.limit_usage.subject_id is 'Its id.';

comment on column gateway.limit_usage.name is 'The key''s first characters and name, the customer''s or the service''s name.';

comment on column gateway.limit_usage.customer is 'Whose key, or which customer.';

comment on column gateway.limit_usage.model is 'With a key: the one model that is counted; empty: all.';

comment on column gateway.limit_usage.metric is 'requests, tokens or spend_usd.';

comment on column gateway.limit_usage.per is 'The window''s length.';

comment on column gateway.limit_usage.used is 'What was used of it, running requests at their bound.';

comment on column gateway.limit_usage.soft is 'Soft mark: beyond it requests are served with a warning.';

comment on column gateway.limit_usage.hard is 'The limit: beyond it requests are refused.';

comment on column gateway.limit_usage.percent is 'Used, in percent of the limit, or of the soft mark where there is no limit.';

comment on column gateway.limit_usage.state is 'full, over the soft mark, near (80 percent) or fine.';

comment on column gateway.limit_usage.window_start is 'When the window began.';

comment on column gateway.limit_usage.resets_at is 'When the next one begins.';

create view gateway.near_limits with (security_invoker = true) as
select * from gateway.limit_usage where state <> 'fine';

create trigger read_only instead of insert or update or delete on gateway.near_limits
    for each row execute function gateway.refuse_view_edit('Limits are in gateway.limits, the defaults in gateway.settings.');

comment on view gateway.near_limits is 'Who nears a limit: windows of which 80 percent or more are used, or whose soft mark is reached.';

comment on column gateway.near_limits.subject is 'key, customer or service.';

comment on column gateway.near_limits.subject_id is 'Its id.';

comment on column gateway.near_limits.name is 'The key''s first characters and name, the customer''s or the service''s name.';

comment on column gateway.near_limits.customer is 'Whose key, or which customer.';

comment on column gateway.near_limits.model is 'With a key: the one model that is counted; empty: all.';

comment on column gateway.near_limits.metric is 'requests, tokens or spend_usd.';

comment on column gateway.near_limits.per is 'The window''s length.';

comment on column gateway.near_limits.used is 'What was used of it, running requests at their bound.';

comment on column gateway.near_limits.soft is 'Soft mark: beyond it requests are served with a warning.';

comment on column gateway.near_limits.hard is 'The limit: beyond it requests are refused.';

comment on column gateway.near_limits.percent is 'Used, in percent of the limit, or of the soft mark where there is no limit.';

comment on column gateway.near_limits.state is 'full, over the soft mark, or near (80 percent).';

comment on column gateway.near_limits.window_start is 'When the window began.';

comment on column gateway.near_limits.resets_at is 'When the next one begins.';

create view gateway.request_log with (security_invoker = true) as
select r.admitted_at as at, r.id as request_id, c.name as customer, k.prefix as key_prefix, coalesce(m.name, r.requested_model) as model,
    s.provider, s.name as service, r.endpoint, r.streamed,
    case r.state when 'held' then 'running' when 'settled' then r.outcome else r.state end as status,
    r.status as http_status, r.error_code, r.finish_reason,
    coalesce(r.input_tokens, 0) + coalesce(r.cached_input_tokens, 0) + coalesce(r.cache_write_tokens, 0)
    + coalesce(r.audio_input_tokens, 0) + coalesce(r.image_input_tokens, 0) as input_tokens,
    coalesce(r.output_tokens, 0) + coalesce(r.audio_output_tokens, 0) + coalesce(r.image_output_tokens, 0) as output_tokens,
    r.usage_estimated, r.hold_usd, r.cost_usd, r.charge_usd, r.uncollected_usd, r.latency_ms, r.time_to_first_token_ms,
    r.requested_model, coalesce(jsonb_array_length(r.failed_routes), 0) as failed_routes, r.customer_id, r.key_id
from gateway.requests as r
left join gateway.customers as c on c.id = r.customer_id
left join gateway.api_keys as k on k.id = r.key_id
left join gateway.models as m on m.id = r.model_id
left join gateway.services as s on s.id = r.service_id
where r.admitted_at > now() - interval '7 days'
order by r.admitted_at desc, r.id;

create trigger read_only instead of insert or update or delete on gateway.request_log
    for each row execute function gateway.refuse_view_edit('A request is never edited; give money back with api.add_credits.');

comment on view gateway.request_log is 'The requests of the last seven days, newest first, in words. Never the content. Older ones are in gateway.requests.';

comment on column gateway.request_log.at is 'When it was admitted.';

comment on column gateway.request_log.request_id is 'Its id, as in x-request-id.';

comment on column gateway.request_log.customer is 'Who pays.';

comment on column gateway.request_log.key_prefix is 'First characters of the key that it came with.';

comment on column gateway.request_log.model is 'The model that answered; while it runs, the first candidate.';

comment on column gateway.request_log.provider is 'The provider that answered; empty where none did.';

comment on column gateway.request_log.service is 'The service that answered; empty where none did.';

comment on column gateway.request_log.endpoint is 'Which API: chat.completions, generate, ….';

comment on column gateway.request_log.streamed is 'Whether the client asked for a stream.';

comment on column gateway.request_log.status is 'running, succeeded, failed (not charged), cancelled (the client left), cut (the provider or the deadline ended it), expired (nobody settled it) or refused (a sample).';

comment on column gateway.request_log.http_status is 'HTTP status that the client was given.';

comment on column gateway.request_log.error_code is 'Error code that the client was given.';

comment on column gateway.request_log.finish_reason is 'Why the answer ended, as the provider told.';

comment on column gateway.request_log.input_tokens is 'Tokens read, of all input classes.';

comment on column gateway.request_log.output_tokens is 'Tokens answered, of all output classes.';

comment on column gateway.request_log.usage_estimated is 'True: the provider told no usage, and it was counted here.';

comment on column gateway.request_log.hold_usd is 'Upper bound of the charge, held while it ran.';

comment on column gateway.request_log.cost_usd is 'What the provider takes.';

comment on column gateway.request_log.charge_usd is 'What the customer owes.';

comment on column gateway.request_log.uncollected_usd is 'Of the charge, what could not be taken.';

comment on column gateway.request_log.latency_ms is 'From admission to the end, in milliseconds.';

comment on column gateway.request_log.time_to_first_token_ms is 'From admission to the provider''s first token, in milliseconds.';

comment on column gateway.request_log.requested_model is 'What the client wrote.';

comment on column gateway.request_log.failed_routes is 'How many routes were tried and failed.';

comment on column gateway.request_log.customer_id is 'Who pays: the id.';

comment on column gateway.request_log.key_id is 'The key''s id.';

create view gateway.holds_outstanding with (security_invoker = true) as
select r.id as request_id, c.name as customer, k.prefix as key_prefix, m.name as model, r.endpoint, r.streamed, r.hold_usd, r.admitted_at,
    date_trunc('second', now() - r.admitted_at) as age, r.lease_until, r.lease_until < now() as orphaned, r.customer_id, r.key_id
from gateway.requests as r
left join gateway.customers as c on c.id = r.customer_id
left join gateway.api_keys as k on k.id = r.key_id
left join gateway.models as m on m.id = r.model_id
where r.state = 'held'
order by r.lease_until;

create trigger read_only instead of insert or update or delete on gateway.holds_outstanding
    for each row execute function gateway.refuse_view_edit('A hold ends with its request, or by api.expire_holds once its lease is over.');

comment on view gateway.holds_outstanding is 'What runs now and holds money. Orphaned ones are ended by the next sweep: several minutes old, they mean that maintenance is not running.';

comment on column gateway.holds_outstanding.request_id is 'The request.';

comment on column gateway.holds_outstanding.customer is 'Whose money.';

comment on column gateway.holds_outstanding.key_prefix is 'First characters of the key that it came with.';

comment on column gateway.holds_outstanding.model is 'The first model that it may take.';

comment on column gateway.holds_outstanding.endpoint is 'Which API: chat.completions, generate, ….';

comment on column gateway.holds_outstanding.streamed is 'Whether the client asked for a stream.';

comment on column gateway.holds_outstanding.hold_usd is 'Upper bound of the charge: what is held.';

comment on column gateway.holds_outstanding.admitted_at is 'When it was admitted.';

comment on column gateway.holds_outstanding.age is 'How long ago.';

comment on column gateway.holds_outstanding.lease_until is 'From then on the sweeper may end the hold.';

comment on column gateway.holds_outstanding.orphaned is 'True: the lease is over, and nobody settled it.';

comment on column gateway.holds_outstanding.customer_id is 'Whose money: the id.';

comment on column gateway.holds_outstanding.key_id is 'The key''s id.';

create view gateway.ledger_readable with (security_invoker = true) as
select e.created_at as at, c.name as customer, e.kind, e.amount_usd, e.balance_after_usd, e.request_id, e.reference, e.note, e.actor,
    e.id as entry_id, e.customer_id
from gateway.ledger_entries as e
join gateway.customers as c on c.id = e.customer_id
order by e.id desc;

create trigger read_only instead of insert or update or delete on gateway.ledger_readable
    for each row execute function gateway.refuse_view_edit('The books are append-only; correct a balance with api.add_credits.');

comment on view gateway.ledger_readable is 'The books with their customers'' names, newest first.';

comment on column gateway.ledger_readable.at is 'When.';

comment on column gateway.ledger_readable.customer is 'Whose account.';

comment on column gateway.ledger_readable.kind is 'credit (paid in), correction (by an admin), charge (of a request), late_settlement (of a request whose hold had expired).';

comment on column gateway.ledger_readable.amount_usd is 'Positive raises the balance, negative lowers it.';

comment on column gateway.ledger_readable.balance_after_usd is 'The balance after this entry.';

comment on column gateway.ledger_readable.request_id is 'The request that it is for.';

comment on column gateway.ledger_readable.reference is 'The payer''s or admin''s reference.';

comment on column gateway.ledger_readable.note is 'Free text.';

comment on column gateway.ledger_readable.actor is 'Who did it.';

comment on column gateway.ledger_readable.entry_id is 'The entry; later ones of a customer have larger ids.';

comment on column gateway.ledger_readable.customer_id is 'Whose account: the id.';

create view gateway.price_list with (security_invoker = true) as
select m.name as model, o.provider, o.upstream_model, s.name as service, m.active,
    p.input as input_per_million_usd, p.cached_input as cached_input_per_million_usd, p.cache_write as cache_write_per_million_usd,
    p.output as output_per_million_usd, p.audio_input as audio_input_per_million_usd, p.image_input as image_input_per_million_usd,
    p.audio_output as audio_output_per_million_usd, p.image_output as image_output_per_million_usd,
    p.per_request as per_request_usd, p.per_image as per_image_usd,
    trim_scale(p.input * 0.000001) as input_per_token_usd, trim_scale(p.output * 0.000001) as output_per_token_usd,
    p.effective_from, n.effective_from as next_price_from, p.source, p.source_date, p.id as price_id
from gateway.offers as o
join gateway.models as m on m.id = o.model_id
join (
    select distinct on (offer_id, service_id) *
    from gateway.prices
    where effective_from <= now()
    order by offer_id, service_id, effective_from desc
) as p on p.offer_id = o.id
left join gateway.services as s on s.id = p.service_id
left join lateral (
    select min(f.effective_from) as effective_from
    from gateway.prices as f
    where f.offer_id = p.offer_id and f.service_id is not distinct from p.service_id and f.effective_from > now()
) as n on true
order by m.name, o.provider, s.name;

create trigger read_only instead of insert or update or delete on gateway.price_list
    for each row execute function gateway.refuse_view_edit('Edit gateway.prices: an edit there makes a new version.');

comment on view gateway.price_list is 'The prices in force: what each provider takes for each model, before the commission.';

comment on column gateway.price_list.model is 'The model in our catalogue.';

comment on column gateway.price_list.provider is 'Who sells it.';

comment on column gateway.price_list.upstream_model is 'What the provider calls it.';

comment on column gateway.price_list.service is 'The service that alone has this price; empty: every service of the provider without one of its own.';

comment on column gateway.price_list.active is 'False: the model is hidden and refused.';

comment on column gateway.price_list.input_per_million_usd is 'USD per million input tokens.';

comment on column gateway.price_list.cached_input_per_million_usd is 'USD per million input tokens read from the provider''s cache. Empty: as input.';

comment on column gateway.price_list.cache_write_per_million_usd is 'USD per million input tokens written to the provider''s cache. Empty: as input.';

comment on column gateway.price_list.output_per_million_usd is 'USD per million output tokens, reasoning included.';

comment on column gateway.price_list.audio_input_per_million_usd is 'USD per million audio tokens read. Empty: as input.';

comment on column gateway.price_list.image_input_per_million_usd is 'USD per million image tokens read. Empty: as input.';

comment on column gateway.price_list.audio_output_per_million_usd is 'USD per million audio tokens answered. Empty: as output.';

comment on column gateway.price_list.image_output_per_million_usd is 'USD per million image tokens answered. Empty: as output.';

comment on column gateway.price_list.per_request_usd is 'USD for each request, beside its tokens.';

comment on column gateway.price_list.per_image_usd is 'USD for each image made, beside its tokens.';

comment on column gateway.price_list.input_per_token_usd is 'USD for one input token.';

comment on column gateway.price_list.output_per_token_usd is 'USD for one output token.';

comment on column gateway.price_list.effective_from is 'In force since.';

comment on column gateway.price_list.next_price_from is 'When another price follows; empty: none is written yet.';

comment on column gateway.price_list.source is 'Where the price was read.';

comment on column gateway.price_list.source_date is 'When it was read there.';

comment on column gateway.price_list.price_id is 'The version, in gateway.prices.';

create view gateway.key_overview with (security_invoker = true) as
with used as (
    select p.key_id, p.requests, p.errors, p.total_tokens, p.charge_usd
    from gateway.customers as c
    join gateway.usage_periods as p on p.customer_id = c.id and p.per = 'month' and p.grouped_by = 'key'
        and p.period = date_trunc('month', now() at time zone c.time_zone)
    union all
    select r.key_id, r.requests, r.errors, r.total_tokens, r.charge_usd
    from gateway.find_live_usage(null, '-infinity', (select closed_until from gateway.usage_closing), 'infinity') as r
    join gateway.customers as c on c.id = r.customer_id
    where r.bucket >= gateway.window_start('month', now(), c.time_zone)
),
summed as (
    select key_id, sum(requests) as requests, sum(errors) as errors, sum(total_tokens) as tokens, sum(charge_usd) as charge_usd
    from used
    group by key_id
)
select k.id as key_id, k.prefix, k.name, c.name as customer,
    case
        when k.revoked_at is not null then 'revoked'
        when not k.active then 'switched off'
        when k.expires_at <= now() then 'expired'
        when not c.active then 'customer suspended'
        else 'works'
    end as state,
    k.scopes,
    case when k.allowed_models is not null then array(select m.name from gateway.models as m where m.id = any (k.allowed_models) order by m.name) end as allowed_models,
    case when k.allowed_services is not null then array(select s.name from gateway.services as s where s.id = any (k.allowed_services) order by s.name) end as allowed_services,
    (
        select string_agg(concat_ws(' ',
            concat_ws(', ', l.requests || ' requests', l.tokens || ' tokens', trim_scale(l.spend_usd) || ' USD'), 'a ' || l.per,
            case when l.each_model then 'and model' else 'of ' || m.name end), '; ' order by l.id)
        from gateway.limits as l
        left join gateway.models as m on m.id = l.model_id
        where l.key_id = k.id and num_nonnulls(l.requests, l.tokens, l.spend_usd) > 0
    ) as limits,
    k.expires_at, k.created_at, gateway.last_used_at(k.id) as last_used_at,
    coalesce(u.requests, 0)::bigint as requests_this_month,
    coalesce(u.errors, 0)::bigint as errors_this_month,
    coalesce(u.tokens, 0)::bigint as tokens_this_month,
    coalesce(u.charge_usd, 0) as spend_this_month_usd,
    k.customer_id
from gateway.api_keys as k
left join gateway.customers as c on c.id = k.customer_id
left join summed as u on u.key_id = k.id;

create trigger read_only instead of insert or update or delete on gateway.key_overview
    for each row execute function gateway.refuse_view_edit('Edit gateway.api_keys, and gateway.limits.');

comment on view gateway.key_overview is 'Every key: whose, whether it works, what it may do, and what it used this month in its customer''s time zone.';

comment on column gateway.key_overview.key_id is 'The key.';

comment on column gateway.key_overview.prefix is 'Its first characters.';

comment on column gateway.key_overview.name is 'What its owner calls it.';

comment on column gateway.key_overview.customer is 'Who pays; empty for an operator''s key.';

comment on column gateway.key_overview.state is 'works, switched off, expired, revoked (for good) or customer suspended.';

comment on column gateway.key_overview.scopes is 'What it may do: chat, usage (its customer''s log), keys, billing, admin.';

comment on column gateway.key_overview.allowed_models is 'The models that it may use; empty: all.';

comment on column gateway.key_overview.allowed_services is 'The services that it may be routed to; empty: all.';

comment on column gateway.key_overview.limits is 'Its own limits in words; what its customer and the settings say holds beside them.';

comment on column gateway.key_overview.expires_at is 'Refused from here on; empty: never.';

comment on column gateway.key_overview.created_at is 'When it was made.';

comment on column gateway.key_overview.last_used_at is 'When the last of its requests that have ended was admitted.';

comment on column gateway.key_overview.requests_this_month is 'Requests that have ended, this month.';

comment on column gateway.key_overview.errors_this_month is 'Of these, those that failed or expired.';

comment on column gateway.key_overview.tokens_this_month is 'Tokens of all classes, this month.';

comment on column gateway.key_overview.spend_this_month_usd is 'Charged this month.';

comment on column gateway.key_overview.customer_id is 'Who pays: the id.';

-- What "a key" is in all of these: its first characters. The whole key is nowhere.

-- The documents of the OpenRouter gateway: users, usage_records, rate_limits, rate_limit_usage, system_settings.

create view legacy.users with (security_invoker = true) as
select c.id, c.name, c.username, c.email, c.company,
    (select k.prefix || '…' from gateway.api_keys as k where k.customer_id = c.id order by not k.active, k.id limit 1) as api_key,
    gateway.show_credits(a.balance_usd, s.credit_value_usd) as credits, c.active as is_active, c.created_at
from gateway.customers as c
join gateway.accounts as a on a.customer_id = c.id
cross join gateway.settings as s;

create trigger read_only instead of insert or update or delete on legacy.users
    for each row execute function gateway.refuse_view_edit('Edit gateway.customers; add credits with api.add_credits.');

comment on view legacy.users is 'User accounts with key and credits: gateway.customers and gateway.accounts.';

comment on column legacy.users.id is 'The customer''s id: user_id in the API.';

comment on column legacy.users.name is 'Display name.';

comment on column legacy.users.username is 'Unique name: the user header.';

comment on column legacy.users.email is 'Address.';

comment on column legacy.users.company is 'Company, if any.';

comment on column legacy.users.api_key is 'First characters of the oldest key that is active, else of the oldest.';

comment on column legacy.users.credits is 'The balance in credits, rounded down.';

comment on column legacy.users.is_active is 'False: suspended.';

comment on column legacy.users.created_at is 'When the user was added.';

create view legacy.usage_records with (security_invoker = true) as
select r.id, r.customer_id as user_id, k.prefix || '…' as api_key, coalesce(m.name, r.requested_model) as model, r.endpoint,
    t.input_tokens as prompt_tokens, t.output_tokens as completion_tokens, t.input_tokens + t.output_tokens as tokens_used,
    r.charge_usd as cost, r.admitted_at as "timestamp"
from gateway.requests as r
left join gateway.api_keys as k on k.id = r.key_id
left join gateway.models as m on m.id = r.model_id
cross join lateral (
    select
        coalesce(r.input_tokens, 0) + coalesce(r.cached_input_tokens, 0) + coalesce(r.cache_write_tokens, 0)
        + coalesce(r.audio_input_tokens, 0) + coalesce(r.image_input_tokens, 0) as input_tokens,
        coalesce(r.output_tokens, 0) + coalesce(r.audio_output_tokens, 0) + coalesce(r.image_output_tokens, 0) as output_tokens
) as t
where r.state in ('settled', 'expired')
order by r.admitted_at desc, r.id;

create trigger read_only instead of insert or update or delete on legacy.usage_records
    for each row execute function gateway.refuse_view_edit('A request is never edited; give money back with api.add_credits.');

comment on view legacy.usage_records is 'Every request that has ended, newest first. For sums use gateway.customer_spend and gateway.model_margin: they don''t read the log.';

comment on column legacy.usage_records.id is 'The request''s id.';

comment on column legacy.usage_records.user_id is 'Who pays.';

comment on column legacy.usage_records.api_key is 'First characters of the key that it came with.';

comment on column legacy.usage_records.model is 'The model that answered.';

comment on column legacy.usage_records.endpoint is 'Which API: chat.completions, generate, ….';

comment on column legacy.usage_records.prompt_tokens is 'Tokens read, of all classes.';

comment on column legacy.usage_records.completion_tokens is 'Tokens answered, of all classes.';

comment on column legacy.usage_records.tokens_used is 'Both.';

comment on column legacy.usage_records.cost is 'What the user was charged, in USD.';

comment on column legacy.usage_records."timestamp" is 'When it was admitted.';

create view legacy.rate_limits with (security_invoker = true) as
select k.customer_id as user_id, k.prefix || '…' as api_key,
    coalesce(max(l.requests) filter (where l.per = 'minute'), max(s.default_requests_per_minute)) as requests_per_minute,
    max(l.requests) filter (where l.per = 'hour') as requests_per_hour,
    max(l.requests) filter (where l.per = 'day') as requests_per_day,
    max(l.requests) filter (where l.per = 'month') as requests_per_month,
    coalesce(max(l.tokens) filter (where l.per = 'minute'), max(s.default_tokens_per_minute)) as tokens_per_minute,
    max(l.tokens) filter (where l.per = 'hour') as tokens_per_hour,
    max(l.tokens) filter (where l.per = 'day') as tokens_per_day,
    max(l.tokens) filter (where l.per = 'month') as tokens_per_month,
    k.id as key_id
from gateway.api_keys as k
cross join gateway.settings as s
left join gateway.limits as l on l.key_id = k.id and l.model_id is null and not l.each_model
where k.customer_id is not null
group by k.id;

create trigger read_only instead of insert or update or delete on legacy.rate_limits
    for each row execute function gateway.refuse_view_edit('Edit gateway.limits, or POST /admin/limit.');

comment on view legacy.rate_limits is 'The limits of each key over all models, a row each; empty: none. All limits, also of customers, services and single models: gateway.limits.';

comment on column legacy.rate_limits.user_id is 'Whose key.';

comment on column legacy.rate_limits.api_key is 'First characters of the key.';

comment on column legacy.rate_limits.requests_per_minute is 'Requests in a minute; without a row of the key''s own the system''s default, which is for each model by itself.';

comment on column legacy.rate_limits.requests_per_hour is 'Requests in an hour.';

comment on column legacy.rate_limits.requests_per_day is 'Requests in a day.';

comment on column legacy.rate_limits.requests_per_month is 'Requests in a month.';

comment on column legacy.rate_limits.tokens_per_minute is 'Tokens in a minute; without a row of the key''s own the system''s default, which is for each model by itself.';

comment on column legacy.rate_limits.tokens_per_hour is 'Tokens in an hour.';

comment on column legacy.rate_limits.tokens_per_day is 'Tokens in a day.';

comment on column legacy.rate_limits.tokens_per_month is 'Tokens in a month.';

comment on column legacy.rate_limits.key_id is 'The key.';

create view legacy.rate_limit_usage with (security_invoker = true) as
select k.customer_id as user_id, k.prefix || '…' as api_key, m.name as model, c.per as window_type, c.window_start,
    gateway.window_end(c.per, c.window_start, o.time_zone) as window_end, c.requests as requests_count, c.tokens as tokens_count,
    c.spend_usd as cost, k.id as key_id
from gateway.limit_counters as c
join gateway.api_keys as k on k.id = c.subject_id
join gateway.customers as o on o.id = k.customer_id
left join gateway.models as m on m.id = c.model_id
where c.subject = 'key' and gateway.window_end(c.per, c.window_start, o.time_zone) > now();

create trigger read_only instead of insert or update or delete on legacy.rate_limit_usage
    for each row execute function gateway.refuse_view_edit('Counters are the engine''s; raise the limit in gateway.limits.');

comment on view legacy.rate_limit_usage is 'What each limited key has used of the windows that run. With limits, and of customers and services too: gateway.limit_usage.';

comment on column legacy.rate_limit_usage.user_id is 'Whose key.';

comment on column legacy.rate_limit_usage.api_key is 'First characters of the key.';

comment on column legacy.rate_limit_usage.model is 'The one model that is counted; empty: all.';

comment on column legacy.rate_limit_usage.window_type is 'minute, hour, day or month.';

comment on column legacy.rate_limit_usage.window_start is 'When the window began.';

comment on column legacy.rate_limit_usage.window_end is 'When the next one begins.';

comment on column legacy.rate_limit_usage.requests_count is 'Requests admitted in the window.';

comment on column legacy.rate_limit_usage.tokens_count is 'Tokens used, those of running requests at their bound.';

comment on column legacy.rate_limit_usage.cost is 'USD used, those of running requests at their hold.';

comment on column legacy.rate_limit_usage.key_id is 'The key.';

-- The row turned on its side, with the columns' own comments: a setting that is added shows here by itself.
create view legacy.system_settings with (security_invoker = true) as
select a.attname::text as key,
    case when a.attname = 'webhook_secret' and v.value is not null then '(not shown)' else v.value end as value,
    col_description(a.attrelid, a.attnum) as description
from gateway.settings as s
cross join lateral jsonb_each_text(to_jsonb(s)) as v
join pg_catalog.pg_attribute as a
    on a.attrelid = 'gateway.settings'::regclass and a.attname = v.key and a.attnum > 0 and not a.attisdropped
where v.key <> 'singleton'
order by a.attnum;

create trigger read_only instead of insert or update or delete on legacy.system_settings
    for each row execute function gateway.refuse_view_edit('Edit gateway.settings, or PATCH /admin/settings.');

comment on view legacy.system_settings is 'The settings, a row each: gateway.settings. No secrets.';

comment on column legacy.system_settings.key is 'The setting.';

comment on column legacy.system_settings.value is 'What it is; empty: not set.';

comment on column legacy.system_settings.description is 'What it does.';

-- The documents of the multi-provider back end: "Users", "API_Keys", pricing, api_usage.

create view legacy."Users" with (security_invoker = true) as
select c.id, c.username as "User_name", c.created_at from gateway.customers as c;

create trigger read_only instead of insert or update or delete on legacy."Users"
    for each row execute function gateway.refuse_view_edit('Edit gateway.customers.');

comment on view legacy."Users" is 'Who may call: gateway.customers by their user names.';

comment on column legacy."Users".id is 'The customer''s id.';

comment on column legacy."Users"."User_name" is 'What goes into the user header.';

comment on column legacy."Users".created_at is 'When the user was added.';

create view legacy."API_Keys" with (security_invoker = true) as
select k.id, k.prefix || '…' as "API_key", c.username as "User_name", k.active, k.created_at
from gateway.api_keys as k
join gateway.customers as c on c.id = k.customer_id
where k.revoked_at is null;

create trigger read_only instead of insert or update or delete on legacy."API_Keys"
    for each row execute function gateway.refuse_view_edit('Edit gateway.api_keys; make a key with POST /api/keys.');

comment on view legacy."API_Keys" is 'The keys that are not revoked, by their users'' names: gateway.api_keys.';

comment on column legacy."API_Keys".id is 'The key''s id.';

comment on column legacy."API_Keys"."API_key" is 'First characters of the key.';

comment on column legacy."API_Keys"."User_name" is 'Whose key.';

comment on column legacy."API_Keys".active is 'False: refused until switched on again.';

comment on column legacy."API_Keys".created_at is 'When it was made.';

create view legacy.pricing with (security_invoker = true) as
select p.provider, p.model, greatest(p.input_per_token_usd, p.output_per_token_usd) as price_per_token,
    p.input_per_token_usd as input_price_per_token, p.output_per_token_usd as output_price_per_token, p.effective_from
from gateway.price_list as p
where p.service is null;

create trigger read_only instead of insert or update or delete on legacy.pricing
    for each row execute function gateway.refuse_view_edit('Edit gateway.prices: an edit there makes a new version.');

comment on view legacy.pricing is 'The prices in force, by the token and before the commission: gateway.prices.';

comment on column legacy.pricing.provider is 'The provider.';

comment on column legacy.pricing.model is 'The model.';

comment on column legacy.pricing.price_per_token is 'USD for a token of either kind at most: the dearer of the two. Requests are charged by the two, each by itself.';

comment on column legacy.pricing.input_price_per_token is 'USD for an input token.';

comment on column legacy.pricing.output_price_per_token is 'USD for an output token.';

comment on column legacy.pricing.effective_from is 'In force since.';

create view legacy.api_usage with (security_invoker = true) as
select r.id, k.prefix || '…' as api_key, c.username as "user", s.provider, coalesce(m.name, r.requested_model) as model,
    t.input_tokens, t.output_tokens, t.input_tokens + t.output_tokens as total_tokens, r.cost_usd as price, r.admitted_at as created_at
from gateway.requests as r
join gateway.services as s on s.id = r.service_id
left join gateway.api_keys as k on k.id = r.key_id
left join gateway.customers as c on c.id = r.customer_id
left join gateway.models as m on m.id = r.model_id
cross join lateral (
    select
        coalesce(r.input_tokens, 0) + coalesce(r.cached_input_tokens, 0) + coalesce(r.cache_write_tokens, 0)
        + coalesce(r.audio_input_tokens, 0) + coalesce(r.image_input_tokens, 0) as input_tokens,
        coalesce(r.output_tokens, 0) + coalesce(r.audio_output_tokens, 0) + coalesce(r.image_output_tokens, 0) as output_tokens
) as t
where r.state = 'settled'
order by r.admitted_at desc, r.id;

create trigger read_only instead of insert or update or delete on legacy.api_usage
    for each row execute function gateway.refuse_view_edit('A request is never edited; give money back with api.add_credits.');

comment on view legacy.api_usage is 'Every request that a provider answered, newest first. For sums use gateway.customer_spend and gateway.model_margin: they don''t read the log.';

comment on column legacy.api_usage.id is 'The request''s id.';

comment on column legacy.api_usage.api_key is 'First characters of the key that it came with.';

comment on column legacy.api_usage."user" is 'Whose key.';

comment on column legacy.api_usage.provider is 'The provider that answered.';

comment on column legacy.api_usage.model is 'The model that answered.';

comment on column legacy.api_usage.input_tokens is 'Tokens read, of all classes.';

comment on column legacy.api_usage.output_tokens is 'Tokens answered, of all classes.';

comment on column legacy.api_usage.total_tokens is 'Both.';

comment on column legacy.api_usage.price is 'What the provider takes, in USD, before the commission, as base_price of GET /api/usage.';

comment on column legacy.api_usage.created_at is 'When it was admitted.';

-- Nobody reads or writes a table but its owner: the functions of schema api run as that, and so does Studio. Row level security alone says
-- so too, by having no policy; a restrictive one that never holds stays true when somebody adds a permissive one, and costs nothing.
create policy nobody on gateway.settings as restrictive to public using (false);

create policy nobody on gateway.customers as restrictive to public using (false);

create policy nobody on gateway.accounts as restrictive to public using (false);

create policy nobody on gateway.models as restrictive to public using (false);

create policy nobody on gateway.offers as restrictive to public using (false);

create policy nobody on gateway.services as restrictive to public using (false);

create policy nobody on gateway.routes as restrictive to public using (false);

create policy nobody on gateway.prices as restrictive to public using (false);

create policy nobody on gateway.api_keys as restrictive to public using (false);

create policy nobody on gateway.retired_secrets as restrictive to public using (false);

create policy nobody on gateway.limits as restrictive to public using (false);

create policy nobody on gateway.limit_counters as restrictive to public using (false);

create policy nobody on gateway.limit_crossings as restrictive to public using (false);

create policy nobody on gateway.turned_windows as restrictive to public using (false);

create policy nobody on gateway.requests as restrictive to public using (false);

create policy nobody on gateway.requests_default as restrictive to public using (false);

create policy nobody on gateway.idempotency_keys as restrictive to public using (false);

create policy nobody on gateway.ledger_entries as restrictive to public using (false);

create policy nobody on gateway.usage_rollups as restrictive to public using (false);

create policy nobody on gateway.usage_periods as restrictive to public using (false);

create policy nobody on gateway.key_days as restrictive to public using (false);

create policy nobody on gateway.active_days as restrictive to public using (false);

create policy nobody on gateway.usage_closing as restrictive to public using (false);

create policy nobody on gateway.refusal_rollups as restrictive to public using (false);

create policy nobody on gateway.audit_log as restrictive to public using (false);

create policy nobody on gateway.events as restrictive to public using (false);

create policy nobody on gateway.event_deliveries as restrictive to public using (false);

create policy nobody on gateway.ledger_checkpoints as restrictive to public using (false);

create policy nobody on gateway.ledger_months as restrictive to public using (false);
