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
