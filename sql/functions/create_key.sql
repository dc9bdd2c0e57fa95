create function gateway.show_key_limits(p_key_id bigint) returns jsonb
language sql stable set search_path = ''
as $$
    with named as (
        select case when l.each_model then '*' else m.name end as model, n.name || '_per_' || l.per as name, n.hard, n.soft
        from gateway.limits as l
        left join gateway.models as m on m.id = l.model_id
        cross join lateral (values
            ('requests', to_jsonb(l.requests), to_jsonb(l.warn_requests)),
            ('tokens', to_jsonb(l.tokens), to_jsonb(l.warn_tokens)),
            ('spend_usd', to_jsonb(gateway.show_usd(l.spend_usd)), to_jsonb(gateway.show_usd(l.warn_spend_usd)))
        ) as n (name, hard, soft)
        where l.key_id = p_key_id
    )
    select jsonb_build_object(
        'limits', coalesce(jsonb_object_agg(n.name, n.hard) filter (where n.model is null and n.hard is not null), '{}'),
        'warn', coalesce(jsonb_object_agg(n.name, n.soft) filter (where n.model is null and n.soft is not null), '{}'),
        'model_limits', (
            select coalesce(jsonb_object_agg(g.model, g.limits), '{}')
            from (
                select x.model, jsonb_object_agg(x.name, x.hard) as limits
                from named as x
                where x.model is not null and x.hard is not null
                group by x.model
            ) as g
        ))
    from named as n
$$;
comment on function gateway.show_key_limits(bigint) is 'A key''s own limits as {limits, warn, model_limits: {name or *: limits}}.';
revoke all on function gateway.show_key_limits(bigint) from public;

create function gateway.describe_key(p_key gateway.api_keys) returns jsonb
language sql stable set search_path = ''
as $$
    select to_jsonb(p_key) - array['secret_hash', 'maker_key_ids'] || gateway.show_key_limits(p_key.id) || jsonb_build_object(
        'made_by_key_id', p_key.maker_key_ids[cardinality(p_key.maker_key_ids)],
        'last_used_at', gateway.last_used_at(p_key.id),
        'rate_limit', coalesce(
            (select l.requests from gateway.limits as l where l.key_id = p_key.id and l.each_model and l.per = 'minute'),
            (select s.default_requests_per_minute from gateway.settings as s)))
$$;
comment on function gateway.describe_key(gateway.api_keys) is 'A key as its owner sees it: everything but the secret.';
revoke all on function gateway.describe_key(gateway.api_keys) from public;

-- api.create_key: stores a key by its hash. p_customer_id null: an operator's key (scope admin alone). Models are named by id or by name;
-- models and services that do not exist are refused. p_rate_limit: requests per minute for each model. p_limits: as api.set_limits takes
-- them, over all models; p_model_limits: the same by model, * for each. p_bounded: the one who makes it is no admin; then p_maker_key_id is
-- the key that asks, or null for the customer in person.
--
-- A key lies within its maker: in scopes, models, services, expiry, and in limits, of which it begins with a copy. What it does counts
-- under its makers' limits as well, so that a hundred keys made by a limited one share one limit. Returns the key without its secret, or
-- {"error": "unknown_customer" | "erased_customer" | "unknown_model" | "unknown_service" | "too_many_makers" | "stopped_caller" (the maker was
-- revoked a moment ago)} | {"error": "exceeds_maker", "field"}; then nothing was made. Locks the customer, then the maker, so that neither is
-- erased, revoked or narrowed meanwhile.
create function api.create_key(
    p_customer_id bigint, p_name text, p_prefix text, p_secret_hash text, p_scopes text[] default '{chat,usage}',
    p_allowed_models bigint[] default null, p_allowed_services bigint[] default null, p_expires_at timestamptz default null,
    p_rate_limit bigint default null, p_actor text default null, p_limits jsonb default null, p_maker_key_id bigint default null,
    p_bounded boolean default false, p_allowed_model_names text[] default null, p_model_limits jsonb default null,
    p_warn jsonb default null, p_warn_percent numeric default null
) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_customer gateway.customers;
    v_key gateway.api_keys;
    v_maker gateway.api_keys;
    v_unknown_model jsonb;
    v_bound_ids bigint[] := case when p_bounded then '{}'::bigint[] end;
    v_refusal jsonb;
    v_field text;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    if p_customer_id is not null then
        -- locked as by the new key's reference: whoever erases the customer meanwhile waits, and revokes the key, too
        select * into v_customer from gateway.customers where id = p_customer_id for key share;
        if v_customer.id is null then
            return jsonb_build_object('error', 'unknown_customer', 'id', p_customer_id);
        elsif v_customer.erased_at is not null then
            return jsonb_build_object('error', 'erased_customer');
        end if;
    end if;
    v_key.scopes := p_scopes;
    v_key.allowed_services := p_allowed_services;
    v_key.expires_at := p_expires_at;
    v_key.maker_key_ids := '{}';
    if p_allowed_models is not null or p_allowed_model_names is not null then
        select m.ids, m.unknown into v_key.allowed_models, v_unknown_model
        from gateway.resolve_models(coalesce(to_jsonb(p_allowed_models), '[]') || coalesce(to_jsonb(p_allowed_model_names), '[]')) as m;
    end if;

    if p_bounded and 'admin' = any (p_scopes) then
        return jsonb_build_object('error', 'exceeds_maker', 'field', 'scopes');
    elsif p_maker_key_id is not null then
        select * into v_maker from gateway.api_keys where id = p_maker_key_id for share;
        if v_maker.customer_id is distinct from p_customer_id then
            return jsonb_build_object('error', 'unknown_customer', 'id', p_customer_id);
        elsif gateway.is_stopped(v_maker) then
            return jsonb_build_object('error', 'stopped_caller');
        end if;
        v_key.allowed_models := coalesce(v_key.allowed_models, v_maker.allowed_models);
        v_key.allowed_services := coalesce(v_key.allowed_services, v_maker.allowed_services);
        v_key.expires_at := coalesce(v_key.expires_at, v_maker.expires_at);
        v_key.maker_key_ids := v_maker.maker_key_ids || v_maker.id;
        v_bound_ids := v_key.maker_key_ids;
        v_field := gateway.field_beyond(v_key, v_maker);
        if v_field is not null then
            return jsonb_build_object('error', 'exceeds_maker', 'field', v_field);
        elsif cardinality(v_key.maker_key_ids) > 8 then
            return jsonb_build_object('error', 'too_many_makers');
        end if;
    end if;
    if v_unknown_model is not null then
        return jsonb_build_object('error', 'unknown_model', 'field', 'allowed_models', 'name', v_unknown_model);
    elsif gateway.unknown_service(p_allowed_services) is not null then
        return jsonb_build_object('error', 'unknown_service', 'id', gateway.unknown_service(p_allowed_services));
    end if;
    if p_bounded and gateway.limit_beyond(v_bound_ids, null, true, jsonb_build_object('requests_per_minute', p_rate_limit)) is not null
        and p_rate_limit is not null then
        return jsonb_build_object('error', 'exceeds_maker', 'field', 'rate_limit');
    end if;
    v_refusal := gateway.set_key_limits(null, v_bound_ids, p_limits, p_model_limits, p_warn, p_warn_percent, p_actor);
    if v_refusal is not null then
        return v_refusal;
    end if;

    insert into gateway.api_keys (customer_id, name, prefix, secret_hash, scopes, allowed_models, allowed_services, expires_at, maker_key_ids)
    values (p_customer_id, p_name, p_prefix, decode(p_secret_hash, 'hex'), v_key.scopes, v_key.allowed_models, v_key.allowed_services,
            v_key.expires_at, v_key.maker_key_ids)
    returning * into v_key;
    insert into gateway.limits (key_id, model_id, each_model, per, requests, tokens, spend_usd, warn_requests, warn_tokens, warn_spend_usd)
    select v_key.id, model_id, each_model, per, requests, tokens, spend_usd, warn_requests, warn_tokens, warn_spend_usd
    from gateway.limits
    where key_id = p_maker_key_id;
    if p_rate_limit is not null then
        insert into gateway.limits as l (key_id, each_model, per, requests) values (v_key.id, true, 'minute', p_rate_limit)
        on conflict (key_id, customer_id, service_id, model_id, each_model, per)
        do update set requests = excluded.requests, warn_requests = least(l.warn_requests, excluded.requests);
    end if;
    perform gateway.set_key_limits(v_key.id, null, p_limits, p_model_limits, p_warn, p_warn_percent, p_actor);
    return gateway.describe_key(v_key);
end
$$;
revoke all on function api.create_key(bigint, text, text, text, text[], bigint[], bigint[], timestamptz, bigint, text, jsonb, bigint, boolean, text[], jsonb, jsonb, numeric) from public;
grant execute on function api.create_key(bigint, text, text, text, text[], bigint[], bigint[], timestamptz, bigint, text, jsonb, bigint, boolean, text[], jsonb, jsonb, numeric) to service_role;
comment on function api.create_key(bigint, text, text, text, text[], bigint[], bigint[], timestamptz, bigint, text, jsonb, bigint, boolean, text[], jsonb, jsonb, numeric) is 'Stores a new key by its hash.';
