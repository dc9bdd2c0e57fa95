create table gateway.api_keys (
    id bigint generated always as identity primary key,
    customer_id bigint references gateway.customers,
    name text not null check (length(name) between 1 and 200),
    prefix text not null check (length(prefix) between 4 and 16),
    secret_hash bytea not null unique check (length(secret_hash) = 32),
    scopes text[] not null default '{chat,usage}'
        check (scopes <@ '{chat,usage,keys,billing,admin}' and cardinality(scopes) > 0),
    allowed_models bigint[] check (array_position(allowed_models, null) is null),
    allowed_services bigint[] check (array_position(allowed_services, null) is null),
    active boolean not null default true,
    expires_at timestamptz,
    revoked_at timestamptz,
    created_at timestamptz not null default now(),
    maker_key_ids bigint[] not null default '{}',
    constraint api_keys_customer_or_admin check (customer_id is not null or scopes = '{admin}'),
    constraint api_keys_revoked_is_inactive check (revoked_at is null or not active),
    constraint api_keys_makers check (cardinality(maker_key_ids) <= 8 and array_position(maker_key_ids, null) is null)
);
create index api_keys_customer_idx on gateway.api_keys (customer_id);
alter table gateway.api_keys enable row level security;

comment on table gateway.api_keys is 'The keys that clients authenticate with. The secret itself is nowhere.';
comment on column gateway.api_keys.id is 'Identifies the key.';
comment on column gateway.api_keys.customer_id is 'Who pays for its requests; empty for an operator''s key, which is for administration alone.';
comment on column gateway.api_keys.name is 'What its owner calls it.';
comment on column gateway.api_keys.prefix is 'First characters of the key, to tell keys apart.';
comment on column gateway.api_keys.secret_hash is 'SHA-256 of the whole key. The key has 200 random bits, so a plain hash can''t be guessed back.';
comment on column gateway.api_keys.scopes is 'What it may do: chat, usage (its customer''s log), keys, billing, admin.';
comment on column gateway.api_keys.allowed_models is 'Ids of the models it may use; null: all, {}: none.';
comment on column gateway.api_keys.allowed_services is 'Ids of the services it may be routed to; null: all, {}: none.';
comment on column gateway.api_keys.active is 'False: refused until switched on again.';
comment on column gateway.api_keys.expires_at is 'Refused from here on; empty: never.';
comment on column gateway.api_keys.revoked_at is 'When it was revoked, for good.';
comment on column gateway.api_keys.created_at is 'When it was made.';
comment on column gateway.api_keys.maker_key_ids is 'The key that made it, that one''s maker, and so on, the first of them first; {}: made by an admin or a customer in person. Their limits count its requests, too.';
