-- Quarters of an hour, because time zones differ by multiples of them: a day in any zone is a whole number of buckets.
create table gateway.usage_rollups (
    bucket timestamptz not null,
    customer_id bigint not null,
    key_id bigint not null,
    model_id bigint not null,
    service_id bigint not null default 0,
    requests bigint not null default 0,
    errors bigint not null default 0,
    input_tokens bigint not null default 0,
    cached_input_tokens bigint not null default 0,
    cache_write_tokens bigint not null default 0,
    output_tokens bigint not null default 0,
    reasoning_tokens bigint not null default 0,
    total_tokens bigint not null default 0,
    cost_usd numeric(24, 10) not null default 0,
    charge_usd numeric(24, 10) not null default 0,
    uncollected_usd numeric(24, 10) not null default 0,
    latency_ms bigint not null default 0,
    last_request_at timestamptz not null,
    primary key (customer_id, bucket, key_id, model_id, service_id)
) with (fillfactor = 70);
create index usage_rollups_bucket_idx on gateway.usage_rollups (bucket);
alter table gateway.usage_rollups enable row level security;

comment on table gateway.usage_rollups is 'Sums over the requests, kept exact by settlement: what analytics read. Written by the engine''s functions only.';
comment on column gateway.usage_rollups.bucket is 'Start of the quarter of an hour in which the requests were admitted.';
comment on column gateway.usage_rollups.customer_id is 'Whose requests.';
comment on column gateway.usage_rollups.key_id is 'With which key.';
comment on column gateway.usage_rollups.model_id is 'Of which model.';
comment on column gateway.usage_rollups.service_id is 'Answered by which service; 0: by none.';
comment on column gateway.usage_rollups.requests is 'Requests that have ended.';
comment on column gateway.usage_rollups.errors is 'Of these, those that failed or expired.';
comment on column gateway.usage_rollups.input_tokens is 'Input tokens in no other class.';
comment on column gateway.usage_rollups.cached_input_tokens is 'Input tokens read from a cache.';
comment on column gateway.usage_rollups.cache_write_tokens is 'Input tokens written to a cache.';
comment on column gateway.usage_rollups.output_tokens is 'Output tokens in no other class.';
comment on column gateway.usage_rollups.reasoning_tokens is 'Of the output tokens, those spent on reasoning.';
comment on column gateway.usage_rollups.total_tokens is 'Tokens of all classes.';
comment on column gateway.usage_rollups.cost_usd is 'What the providers take.';
comment on column gateway.usage_rollups.charge_usd is 'What the customer owes.';
comment on column gateway.usage_rollups.uncollected_usd is 'Of the charge, what could not be taken.';
comment on column gateway.usage_rollups.latency_ms is 'Sum of the latencies, in milliseconds.';
comment on column gateway.usage_rollups.last_request_at is 'When the last of them was admitted.';
