-- What a key may hand out lies within what it may do itself: its scopes, models, services and expiry, and its limits.

-- Keys edit keys: the one that asks and the one that is changed are locked together, in the order of their ids.
create function gateway.lock_keys(p_key_ids bigint[]) returns setof gateway.api_keys
language sql set search_path = ''
as $$
    select * from gateway.api_keys where id = any (p_key_ids) order by id for update
$$;
comment on function gateway.lock_keys(bigint[]) is 'Locks keys in the order of their ids and returns them.';
revoke all on function gateway.lock_keys(bigint[]) from public;

-- Whoever asks was authenticated a moment ago; a key that was stopped since must not leave another behind.
create function gateway.is_stopped(p_key gateway.api_keys) returns boolean
language sql stable set search_path = ''
as $$
    select p_key.active is not true or coalesce(p_key.expires_at <= clock_timestamp(), false)
$$;
comment on function gateway.is_stopped(gateway.api_keys) is 'Whether a key is switched off, revoked or expired.';
revoke all on function gateway.is_stopped(gateway.api_keys) from public;

create function gateway.field_beyond(p_key gateway.api_keys, p_caller gateway.api_keys) returns text
language sql stable set search_path = ''
as $$
    select case
        when not p_key.scopes <@ p_caller.scopes then 'scopes'
        when p_caller.allowed_models is not null and not coalesce(p_key.allowed_models <@ p_caller.allowed_models, false) then 'allowed_models'
        when p_caller.allowed_services is not null and not coalesce(p_key.allowed_services <@ p_caller.allowed_services, false)
            then 'allowed_services'
        when p_caller.expires_at is not null and not coalesce(p_key.expires_at <= p_caller.expires_at, false) then 'expires_at'
    end
$$;
comment on function gateway.field_beyond(gateway.api_keys, gateway.api_keys) is 'In which field a key may do more than the key that asks for it; null: in none.';
revoke all on function gateway.field_beyond(gateway.api_keys, gateway.api_keys) from public;

-- A key whose limits count nothing of what another does could double them by using that one.
create function gateway.escapes_limits(p_key gateway.api_keys, p_caller gateway.api_keys) returns boolean
language sql stable set search_path = ''
as $$
    select exists (
        select from gateway.limits as l
        where l.key_id = any (p_caller.id || p_caller.maker_key_ids)
            and l.key_id <> all (p_key.id || p_key.maker_key_ids)
    )
$$;
comment on function gateway.escapes_limits(gateway.api_keys, gateway.api_keys) is 'Whether a limit that binds the key that asks does not count what the other one does.';
revoke all on function gateway.escapes_limits(gateway.api_keys, gateway.api_keys) from public;

create function gateway.limit_beyond(p_key_ids bigint[], p_model_id bigint, p_each_model boolean, p_limits jsonb) returns text
language sql stable set search_path = ''
as $$
    with of_callers as (
        select * from gateway.limits where key_id = any (p_key_ids)
    ),
    asked as (
        select g.key as name, g.value::numeric as wanted, split_part(g.key, '_per_', 1) as metric, split_part(g.key, '_per_', 2) as per
        from jsonb_each_text(p_limits) as g
    ),
    -- of each key the row that is closest to what is asked: of the model, of each model, over all
    bounds as (
        select a.name, l.key_id, coalesce(
            min(v.most) filter (where l.model_id = p_model_id),
            min(v.most) filter (where l.each_model and (p_each_model or p_model_id is not null)),
            min(v.most) filter (where l.model_id is null and not l.each_model)) as most,
            bool_or(l.each_model and v.most is not null) as has_each_model
        from asked as a
        join of_callers as l on l.per = a.per
        cross join lateral (
            select case a.metric when 'requests' then l.requests::numeric when 'tokens' then l.tokens else l.spend_usd end as most
        ) as v
        group by a.name, l.key_id
    )
    select a.name
    from asked as a
    cross join gateway.settings as s
    left join (select b.name, min(b.most) as most, bool_or(b.has_each_model) as has_each_model from bounds as b group by b.name) as b
        on b.name = a.name
    -- the system's default gives way to a key's own row, so that it binds such a row too
    cross join lateral (
        select case when b.most is null and b.has_each_model is not true then
            case a.name when 'requests_per_minute' then s.default_requests_per_minute when 'tokens_per_minute' then s.default_tokens_per_minute end
        end as most
    ) as d
    where case when a.wanted is null then b.most is not null else a.wanted > coalesce(b.most, d.most) end
    order by a.name
    limit 1
$$;
comment on function gateway.limit_beyond(bigint[], bigint, boolean, jsonb) is 'The first of some wanted limits that is looser than those of these keys (one and its makers), or null. Null as a limit: none.';
revoke all on function gateway.limit_beyond(bigint[], bigint, boolean, jsonb) from public;

create function gateway.resolve_models(p_wanted jsonb, out ids bigint[], out unknown jsonb)
language sql stable set search_path = ''
as $$
    select coalesce(array_agg(distinct m.id) filter (where m.id is not null), '{}'), (array_agg(w.value) filter (where m.id is null))[1]
    from jsonb_array_elements(p_wanted) as w (value)
    left join lateral (
        select i.id from gateway.models as i where i.id = case jsonb_typeof(w.value) when 'number' then (w.value #>> '{}')::bigint end
        union all
        select n.id from gateway.models as n where n.name = case jsonb_typeof(w.value) when 'string' then w.value #>> '{}' end
    ) as m on true
$$;
comment on function gateway.resolve_models(jsonb) is 'The ids of models that are named by id or by name, and the first that is unknown.';
revoke all on function gateway.resolve_models(jsonb) from public;

create function gateway.unknown_service(p_ids bigint[]) returns bigint
language sql stable set search_path = ''
as $$
    select a.id from unnest(p_ids) as a (id)
    where not exists (select from gateway.services as s where s.id = a.id and s.deleted_at is null)
    limit 1
$$;
comment on function gateway.unknown_service(bigint[]) is 'One of these ids that is no service''s, or null.';
revoke all on function gateway.unknown_service(bigint[]) from public;

-- What was given to a key beside itself. Where a key asks, p_bound_ids are its own id and its makers'; a person is bound by the default
-- alone: {}. An admin by nothing: null. Nothing is written where this returns a refusal.
create function gateway.set_key_limits(
    p_key_id bigint, p_bound_ids bigint[], p_limits jsonb, p_model_limits jsonb, p_warn jsonb, p_warn_percent numeric, p_actor text
) returns jsonb
language plpgsql set search_path = ''
as $$
declare
    v_model record;
    v_beyond text;
begin
    if p_bound_ids is not null then
        v_beyond := gateway.limit_beyond(p_bound_ids, null, false, p_limits);
        if v_beyond is not null then
            return jsonb_build_object('error', 'exceeds_maker', 'field', 'limits', 'limit', v_beyond);
        end if;
    end if;
    for v_model in
        select e.key as name, e.value as limits, m.id from jsonb_each(p_model_limits) as e left join gateway.models as m on m.name = e.key
    loop
        if v_model.name <> '*' and v_model.id is null then
            return jsonb_build_object('error', 'unknown_model', 'field', 'model_limits', 'name', v_model.name);
        end if;
        if p_bound_ids is not null then
            v_beyond := gateway.limit_beyond(p_bound_ids, v_model.id, v_model.name = '*', v_model.limits);
            if v_beyond is not null then
                return jsonb_build_object('error', 'exceeds_maker', 'field', 'model_limits', 'limit', v_beyond);
            end if;
        end if;
    end loop;
    if p_key_id is null then
        return null;
    end if;
    if p_limits is not null or p_warn is not null then
        perform api.set_limits(p_key_id => p_key_id, p_rate_limits => coalesce(p_limits, '{}'), p_warn => coalesce(p_warn, '{}'),
                               p_warn_percent => coalesce(p_warn_percent, 80), p_actor => p_actor);
    end if;
    for v_model in select e.key as name, e.value as limits from jsonb_each(p_model_limits) as e loop
        perform api.set_limits(
            p_key_id => p_key_id, p_model => nullif(v_model.name, '*'), p_each_model => v_model.name = '*', p_rate_limits => v_model.limits,
            p_warn_percent => coalesce(p_warn_percent, 80), p_actor => p_actor);
    end loop;
    return null;
end
$$;
comment on function gateway.set_key_limits(bigint, bigint[], jsonb, jsonb, jsonb, numeric, text) is 'Checks limits that are wanted for a key and, where the key is given, sets them. Returns the refusal, or null.';
revoke all on function gateway.set_key_limits(bigint, bigint[], jsonb, jsonb, jsonb, numeric, text) from public;
