-- Apart from requests: uniqueness can't span partitions without the time in it.
create table gateway.idempotency_keys (
    key_id bigint not null references gateway.api_keys,
    idempotency_key text not null check (length(idempotency_key) between 1 and 255),
    body_hash bytea not null check (length(body_hash) = 32),
    request_id text not null,
    charged boolean not null default false,
    freed boolean not null default false,
    created_at timestamptz not null default now(),
    primary key (key_id, idempotency_key)
);
create index idempotency_keys_created_idx on gateway.idempotency_keys (created_at);
alter table gateway.idempotency_keys enable row level security;

comment on table gateway.idempotency_keys is 'Idempotency-Keys, for 24 hours. A request that was not charged frees its key.';
comment on column gateway.idempotency_keys.key_id is 'The API key that it was sent with.';
comment on column gateway.idempotency_keys.idempotency_key is 'What the client sent.';
comment on column gateway.idempotency_keys.body_hash is 'SHA-256 of the request''s body: another body under the same key is refused.';
comment on column gateway.idempotency_keys.request_id is 'The request that holds it.';
comment on column gateway.idempotency_keys.charged is 'Whether that request was charged: another one with the key is refused.';
comment on column gateway.idempotency_keys.freed is 'Whether that request ended uncharged: the key may be used anew.';
comment on column gateway.idempotency_keys.created_at is 'When that request came.';
