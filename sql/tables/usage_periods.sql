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
