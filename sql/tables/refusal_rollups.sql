create table gateway.refusal_rollups (
    bucket timestamptz not null,
    customer_id bigint not null,
    key_id bigint not null,
    code text not null,
    refusals bigint not null,
    primary key (customer_id, bucket, key_id, code)
) with (fillfactor = 70);
create index refusal_rollups_bucket_idx on gateway.refusal_rollups (bucket);
alter table gateway.refusal_rollups enable row level security;

comment on table gateway.refusal_rollups is 'Requests that were refused before they cost anything, counted.';
comment on column gateway.refusal_rollups.bucket is 'Start of the quarter of an hour.';
comment on column gateway.refusal_rollups.customer_id is 'Whose requests.';
comment on column gateway.refusal_rollups.key_id is 'With which key.';
comment on column gateway.refusal_rollups.code is 'Why: insufficient_credits, rate_limit_exceeded, ….';
comment on column gateway.refusal_rollups.refusals is 'How many.';
