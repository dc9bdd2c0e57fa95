-- The log and the hold in one row. Partitioned by month, so that old months are dropped, not deleted.
create table gateway.requests (
    id text not null,
    admitted_at timestamptz not null,
    customer_id bigint not null,
    key_id bigint not null,
    model_id bigint,
    service_id bigint,
    requested_model text not null,
    endpoint text not null,
    streamed boolean not null,
    state text not null,
    outcome text,
    hold_usd numeric(20, 10) not null,
    cost_usd numeric(20, 10) not null default 0,
    charge_usd numeric(20, 10) not null default 0,
    collected_usd numeric(20, 10) not null default 0,
    uncollected_usd numeric(20, 10) not null default 0,
    lease_until timestamptz not null,
    input_tokens_bound bigint not null,
    output_tokens_bound bigint not null,
    input_tokens bigint,
    cached_input_tokens bigint,
    cache_write_tokens bigint,
    audio_input_tokens bigint,
    image_input_tokens bigint,
    output_tokens bigint,
    reasoning_tokens bigint,
    audio_output_tokens bigint,
    image_output_tokens bigint,
    images bigint,
    usage_estimated boolean not null default false,
    billing_mode text not null,
    commission_percent numeric(9, 6) not null,
    flat_usd_per_1k_tokens numeric(20, 10) not null,
    routes jsonb not null,
    counted gateway.counted[] not null,
    failed_routes jsonb,
    status integer,
    error_code text,
    finish_reason text,
    latency_ms integer,
    time_to_first_token_ms integer,
    provider_request_id text,
    provider_cost_usd numeric(20, 10),
    idempotency_key text,
    settled_at timestamptz,
    cache_write_1h_tokens bigint,
    primary key (id, admitted_at),
    constraint requests_rules
        check (gateway.is_request(id, state, outcome, hold_usd, cost_usd, charge_usd, collected_usd, uncollected_usd)),
    constraint requests_tokens_check check (least(
        input_tokens_bound, output_tokens_bound, input_tokens, cached_input_tokens, cache_write_tokens, cache_write_1h_tokens,
        audio_input_tokens, image_input_tokens, output_tokens, reasoning_tokens, audio_output_tokens, image_output_tokens, images
    ) >= 0),
    constraint requests_times_check check (least(latency_ms, time_to_first_token_ms) >= 0)
) partition by range (admitted_at);
create index requests_customer_idx on gateway.requests (customer_id, admitted_at desc);
create index requests_admitted_idx on gateway.requests (admitted_at desc, id);
create index requests_lease_idx on gateway.requests (lease_until) where state = 'held';
-- Why providers failed: of the few requests whose routes did. No update is made dearer: state is in an index already.
create index requests_failed_idx on gateway.requests (admitted_at) where failed_routes is not null;
alter table gateway.requests enable row level security;

comment on table gateway.requests is 'Every admitted request: its hold while it runs, its record afterwards. Refused ones are counted in refusal_rollups, and here by a sample. Never the content. Written by the engine''s functions only.';
comment on column gateway.requests.id is 'The request''s id, as in x-request-id; sorts by time.';
comment on column gateway.requests.admitted_at is 'When it was admitted; its month is the partition.';
comment on column gateway.requests.customer_id is 'Who pays.';
comment on column gateway.requests.key_id is 'The key that it came with.';
comment on column gateway.requests.model_id is 'The model that answered; while it runs, the first candidate''s.';
comment on column gateway.requests.service_id is 'The service that answered; empty where none did.';
comment on column gateway.requests.requested_model is 'What the client wrote.';
comment on column gateway.requests.endpoint is 'Which API: chat.completions, generate, ….';
comment on column gateway.requests.streamed is 'Whether the client asked for a stream.';
comment on column gateway.requests.state is 'held (running) → settled; held → expired (its lease ran out), which may still be settled, once. refused: a sampled refusal.';
comment on column gateway.requests.outcome is 'succeeded, failed (not charged), cancelled (the client left), cut (the provider or the deadline ended it).';
comment on column gateway.requests.hold_usd is 'Upper bound of the charge, held while it ran.';
comment on column gateway.requests.cost_usd is 'What the provider takes.';
comment on column gateway.requests.charge_usd is 'What the customer owes for it.';
comment on column gateway.requests.collected_usd is 'What was taken from the balance.';
comment on column gateway.requests.uncollected_usd is 'What the balance could not give, because the provider billed beyond the bound.';
comment on column gateway.requests.lease_until is 'From then on the sweeper may end the hold.';
comment on column gateway.requests.input_tokens_bound is 'Bound of the input in tokens, as admitted.';
comment on column gateway.requests.output_tokens_bound is 'Bound of the output in tokens over all choices, as admitted.';
comment on column gateway.requests.input_tokens is 'Input tokens in no other class. The classes are disjoint; empty: not told.';
comment on column gateway.requests.cached_input_tokens is 'Input tokens read from the provider''s cache.';
comment on column gateway.requests.cache_write_tokens is 'Input tokens written to the provider''s cache.';
comment on column gateway.requests.cache_write_1h_tokens is 'Those of cache_write_tokens that were written for an hour.';
comment on column gateway.requests.audio_input_tokens is 'Audio tokens read.';
comment on column gateway.requests.image_input_tokens is 'Image tokens read.';
comment on column gateway.requests.output_tokens is 'Output tokens in no other class; reasoning is inside.';
comment on column gateway.requests.reasoning_tokens is 'Of the output tokens, those spent on reasoning.';
comment on column gateway.requests.audio_output_tokens is 'Audio tokens answered.';
comment on column gateway.requests.image_output_tokens is 'Image tokens answered.';
comment on column gateway.requests.images is 'Images made.';
comment on column gateway.requests.usage_estimated is 'True: the provider told no usage, and it was counted here.';
comment on column gateway.requests.billing_mode is 'The billing mode that it was admitted under.';
comment on column gateway.requests.commission_percent is 'The commission that it was admitted under.';
comment on column gateway.requests.flat_usd_per_1k_tokens is 'The flat price that it was admitted under.';
comment on column gateway.requests.routes is 'The routes that it might take, in order, each with the prices that it was admitted under.';
comment on column gateway.requests.counted is 'What it added to which counter.';
comment on column gateway.requests.failed_routes is 'Routes that were tried and failed: service, status, error.';
comment on column gateway.requests.status is 'HTTP status that the client was given.';
comment on column gateway.requests.error_code is 'Error code that the client was given.';
comment on column gateway.requests.finish_reason is 'Why the answer ended, as the provider told.';
comment on column gateway.requests.latency_ms is 'From admission to the end, in milliseconds.';
comment on column gateway.requests.time_to_first_token_ms is 'From admission to the provider''s first token, in milliseconds.';
comment on column gateway.requests.provider_request_id is 'The provider''s own id of it, for support.';
comment on column gateway.requests.provider_cost_usd is 'What the provider said that it cost, where it says so, to compare with cost_usd.';
comment on column gateway.requests.idempotency_key is 'The client''s Idempotency-Key.';
comment on column gateway.requests.settled_at is 'When it was settled or expired.';
