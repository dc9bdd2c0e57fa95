create function gateway.describe_key(p_key gateway.api_keys) returns jsonb
language sql stable set search_path = ''
as $$
    select to_jsonb(p_key) - 'secret_hash' || jsonb_build_object(
        'last_used_at', (select max(r.last_request_at) from gateway.usage_rollups as r where r.customer_id = p_key.customer_id and r.key_id = p_key.id),
        'rate_limit', coalesce(
            (select l.requests from gateway.limits as l where l.key_id = p_key.id and l.each_model and l.per = 'minute'),
            (select s.default_requests_per_minute from gateway.settings as s)))
$$;
comment on function gateway.describe_key(gateway.api_keys) is 'A key as its owner sees it: everything but the secret.';
revoke all on function gateway.describe_key(gateway.api_keys) from public;

-- api.create_key: stores a key by its hash. p_customer_id null: an operator's key (scope admin alone). Models and services that do not
-- exist are refused. Returns the key without its secret, or {"error": "unknown_customer" | "unknown_model" | "unknown_service", "id"}.
create function api.create_key(
    p_customer_id bigint, p_name text, p_prefix text, p_secret_hash text, p_scopes text[] default '{chat,usage}',
    p_allowed_models bigint[] default null, p_allowed_services bigint[] default null, p_expires_at timestamptz default null,
    p_rate_limit bigint default null, p_actor text default null
) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_key gateway.api_keys;
    v_unknown bigint;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    if p_customer_id is not null and not exists (select from gateway.customers where id = p_customer_id) then
        return jsonb_build_object('error', 'unknown_customer', 'id', p_customer_id);
    end if;
    select a.id into v_unknown from unnest(p_allowed_models) as a (id) where not exists (select from gateway.models as m where m.id = a.id) limit 1;
    if found then
        return jsonb_build_object('error', 'unknown_model', 'id', v_unknown);
    end if;
    select a.id into v_unknown from unnest(p_allowed_services) as a (id)
    where not exists (select from gateway.services as s where s.id = a.id and s.deleted_at is null) limit 1;
    if found then
        return jsonb_build_object('error', 'unknown_service', 'id', v_unknown);
    end if;
    insert into gateway.api_keys (customer_id, name, prefix, secret_hash, scopes, allowed_models, allowed_services, expires_at)
    values (p_customer_id, p_name, p_prefix, decode(p_secret_hash, 'hex'), p_scopes, p_allowed_models, p_allowed_services, p_expires_at)
    returning * into v_key;
    if p_rate_limit is not null then
        insert into gateway.limits (key_id, each_model, per, requests) values (v_key.id, true, 'minute', p_rate_limit);
    end if;
    return gateway.describe_key(v_key);
end
$$;
revoke all on function api.create_key(bigint, text, text, text, text[], bigint[], bigint[], timestamptz, bigint, text) from public;
grant execute on function api.create_key(bigint, text, text, text, text[], bigint[], bigint[], timestamptz, bigint, text) to service_role;
comment on function api.create_key(bigint, text, text, text, text[], bigint[], bigint[], timestamptz, bigint, text) is 'Stores a new key by its hash.';
