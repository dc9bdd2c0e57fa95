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
create function api.authenticate_key(p_key_hash text) returns jsonb
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
revoke all on function api.authenticate_key(text) from public;
grant execute on function api.authenticate_key(text) to service_role;
comment on function api.authenticate_key(text) is 'Who a key is, by its SHA-256, or why it is refused.';
