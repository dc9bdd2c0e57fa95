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

-- Limits must not be escaped by making another key: what holds for the maker holds for what it makes, and what is given may only be tighter.
create function gateway.inherit_limits(p_key_id bigint, p_maker_key_id bigint, p_rate_limit bigint, p_limits jsonb) returns text
language plpgsql set search_path = ''
as $$
declare
    v_settings gateway.settings := (select s from gateway.settings as s);
    v_exceeded text;
begin
    with of_maker as (
        select * from gateway.limits where key_id = p_maker_key_id
    ),
    bounds as (
        -- the system's default gives way to a key's own row, so that it binds such a row too
        select n.name || '_per_' || w.per as name, n.bound
        from (values ('minute'), ('hour'), ('day'), ('month')) as w (per)
        left join of_maker as k on k.model_id is null and not k.each_model and k.per = w.per
        left join of_maker as e on e.each_model and e.per = w.per
        cross join lateral (values
            ('requests', coalesce(k.requests, case when w.per = 'minute' and e.requests is null then v_settings.default_requests_per_minute end)),
            ('tokens', coalesce(k.tokens, case when w.per = 'minute' and e.tokens is null then v_settings.default_tokens_per_minute end)),
            ('spend_usd', k.spend_usd)
        ) as n (name, bound)
        union all
        select 'rate_limit', coalesce(
            (select requests from of_maker where each_model and per = 'minute'),
            (select requests from of_maker where model_id is null and not each_model and per = 'minute'),
            v_settings.default_requests_per_minute)
    )
    select b.name into v_exceeded
    from bounds as b
    join jsonb_each_text(coalesce(p_limits, '{}') || jsonb_strip_nulls(jsonb_build_object('rate_limit', p_rate_limit))) as g on g.key = b.name
    where b.bound is not null and (g.value is null or g.value::numeric > b.bound)
    order by b.name
    limit 1;
    if v_exceeded is not null then
        return v_exceeded;
    end if;
    insert into gateway.limits (key_id, model_id, each_model, per, requests, tokens, spend_usd, warn_requests, warn_tokens, warn_spend_usd)
    select p_key_id, model_id, each_model, per, requests, tokens, spend_usd, warn_requests, warn_tokens, warn_spend_usd
    from gateway.limits
    where key_id = p_maker_key_id;
    return null;
end
$$;
comment on function gateway.inherit_limits(bigint, bigint, bigint, jsonb) is 'Gives a new key the limits of the key that makes it. Returns the name of a wanted limit that is above its maker''s, or null.';
revoke all on function gateway.inherit_limits(bigint, bigint, bigint, jsonb) from public;

-- api.create_key: stores a key by its hash. p_customer_id null: an operator's key (scope admin alone). Models and services that do not
-- exist are refused. p_rate_limit: requests per minute for each model. p_limits: as api.set_limits takes them, over all models.
-- p_maker_key_id: the key that makes it, whose limits it inherits; null where an admin makes it. Returns the key without its secret, or
-- {"error": "unknown_customer" | "unknown_model" | "unknown_service", "id"} | {"error": "limit_exceeds_maker", "limit"}; then nothing was made.
create function api.create_key(
    p_customer_id bigint, p_name text, p_prefix text, p_secret_hash text, p_scopes text[] default '{chat,usage}',
    p_allowed_models bigint[] default null, p_allowed_services bigint[] default null, p_expires_at timestamptz default null,
    p_rate_limit bigint default null, p_actor text default null, p_limits jsonb default null, p_maker_key_id bigint default null
) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_key gateway.api_keys;
    v_unknown bigint;
    v_exceeded text;
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
    begin
        insert into gateway.api_keys (customer_id, name, prefix, secret_hash, scopes, allowed_models, allowed_services, expires_at)
        values (p_customer_id, p_name, p_prefix, decode(p_secret_hash, 'hex'), p_scopes, p_allowed_models, p_allowed_services, p_expires_at)
        returning * into v_key;
        if p_maker_key_id is not null then
            v_exceeded := gateway.inherit_limits(v_key.id, p_maker_key_id, p_rate_limit, p_limits);
            if v_exceeded is not null then
                raise exception using errcode = 'no_data_found';
            end if;
        end if;
    exception when no_data_found then
        return jsonb_build_object('error', 'limit_exceeds_maker', 'limit', v_exceeded);
    end;
    if p_rate_limit is not null then
        insert into gateway.limits as l (key_id, each_model, per, requests) values (v_key.id, true, 'minute', p_rate_limit)
        on conflict (key_id, customer_id, service_id, model_id, each_model, per)
        do update set requests = excluded.requests, warn_requests = least(l.warn_requests, excluded.requests);
    end if;
    if p_limits is not null then
        perform api.set_limits(p_key_id => v_key.id, p_rate_limits => p_limits, p_actor => p_actor);
    end if;
    return gateway.describe_key(v_key);
end
$$;
revoke all on function api.create_key(bigint, text, text, text, text[], bigint[], bigint[], timestamptz, bigint, text, jsonb, bigint) from public;
grant execute on function api.create_key(bigint, text, text, text, text[], bigint[], bigint[], timestamptz, bigint, text, jsonb, bigint) to service_role;
comment on function api.create_key(bigint, text, text, text, text[], bigint[], bigint[], timestamptz, bigint, text, jsonb, bigint) is 'Stores a new key by its hash.';
