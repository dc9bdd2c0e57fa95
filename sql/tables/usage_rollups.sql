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
    audio_input_tokens bigint not null default 0,
    image_input_tokens bigint not null default 0,
    audio_output_tokens bigint not null default 0,
    image_output_tokens bigint not null default 0,
    images bigint not null default 0,
    failures bigint not null default 0,
    latencies bigint not null default 0,
    time_to_first_token_ms bigint not null default 0,
    first_tokens bigint not null default 0,
    latency_counts integer[] not null default '{}',
    first_token_counts integer[] not null default '{}',
    last_failure_at timestamptz,
    late boolean not null default false,
    primary key (customer_id, bucket, key_id, model_id, service_id, late)
) with (fillfactor = 70);
create index usage_rollups_bucket_idx on gateway.usage_rollups (bucket);
create index usage_rollups_late_idx on gateway.usage_rollups (customer_id) where late;
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
