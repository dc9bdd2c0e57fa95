create function gateway.show_limits(
    p_key_id bigint default null, p_customer_id bigint default null, p_service_id bigint default null, p_model_id bigint default null,
    p_each_model boolean default false
) returns jsonb
language sql stable set search_path = ''
as $$
    select jsonb_build_object(
        'rate_limits', coalesce(jsonb_object_agg(n.name || '_per_' || l.per, n.hard) filter (where n.hard is not null), '{}'),
        'warn', coalesce(jsonb_object_agg(n.name || '_per_' || l.per, n.soft) filter (where n.soft is not null), '{}'))
    from gateway.limits as l
    cross join lateral (values
        ('requests', to_jsonb(l.requests), to_jsonb(l.warn_requests)),
        ('tokens', to_jsonb(l.tokens), to_jsonb(l.warn_tokens)),
        ('spend_usd', to_jsonb(gateway.show_usd(l.spend_usd)), to_jsonb(gateway.show_usd(l.warn_spend_usd)))
    ) as n (name, hard, soft)
    where (l.key_id, l.customer_id, l.service_id, l.model_id, l.each_model)
        is not distinct from (p_key_id, p_customer_id, p_service_id, p_model_id, p_each_model)
$$;
comment on function gateway.show_limits(bigint, bigint, bigint, bigint, boolean) is 'All limits of one subject as {rate_limits, warn}.';
revoke all on function gateway.show_limits(bigint, bigint, bigint, bigint, boolean) from public;

-- api.set_limits: merges limits into those of one subject: a key (p_model names one model of it; p_each_model: every model by itself), a
-- customer or a service (by id, or by p_service_name). p_rate_limits and p_warn: {requests_per_minute: 60, tokens_per_day: …, spend_usd_per_month: …}; null removes.
-- A limit that is set without a soft mark of its own gets one at p_warn_percent. Returns all limits of the subject in the same form as
-- {"rate_limits", "warn"}, or {"error": "unknown_key" | "unknown_customer" | "unknown_service" | "unknown_model"}.
-- Locks the key.
create function api.set_limits(
    p_key_id bigint default null, p_customer_id bigint default null, p_service_id bigint default null, p_key_hash text default null,
    p_model text default null, p_each_model boolean default false, p_rate_limits jsonb default '{}', p_warn jsonb default '{}',
    p_warn_percent numeric default 80, p_actor text default null, p_service_name text default null
) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_key_id bigint := p_key_id;
    v_service_id bigint := p_service_id;
    v_model_id bigint;
    v_per text;
    v_changes jsonb;
    v_metric text;
    v_name text;
    v_limit gateway.limits;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    if p_key_hash is not null then
        v_key_id := gateway.find_key(decode(p_key_hash, 'hex'));
    end if;
    if p_service_name is not null then
        select id into v_service_id from gateway.services where name = p_service_name and deleted_at is null;
    end if;
    if (p_key_id is not null or p_key_hash is not null) and not exists (select from gateway.api_keys where id = v_key_id) then
        return jsonb_build_object('error', 'unknown_key');
    elsif p_customer_id is not null and not exists (select from gateway.customers where id = p_customer_id) then
        return jsonb_build_object('error', 'unknown_customer');
    elsif (p_service_id is not null or p_service_name is not null)
        and not exists (select from gateway.services where id = v_service_id and deleted_at is null) then
        return jsonb_build_object('error', 'unknown_service');
    end if;
    if p_model is not null then
        select id into v_model_id from gateway.models where name = p_model;
        if v_model_id is null then
            return jsonb_build_object('error', 'unknown_model');
        end if;
    end if;

    -- As who changes the key does: a limit is set either before or after another, and neither is judged by what the other replaces.
    perform from gateway.api_keys where id = v_key_id for no key update;
    foreach v_per in array array['minute', 'hour', 'day', 'month'] loop
        v_changes := '{}';
        foreach v_metric in array array['requests', 'tokens', 'spend_usd'] loop
            v_name := v_metric || '_per_' || v_per;
            if p_rate_limits ? v_name then
                v_changes := v_changes || jsonb_build_object(
                    v_metric, p_rate_limits -> v_name,
                    'warn_' || v_metric, case
                        when v_metric = 'spend_usd' then to_jsonb((p_rate_limits ->> v_name)::numeric * p_warn_percent * 0.01)
                        else to_jsonb(floor((p_rate_limits ->> v_name)::numeric * p_warn_percent * 0.01))
                    end);
            end if;
            if p_warn ? v_name then
                v_changes := v_changes || jsonb_build_object('warn_' || v_metric, p_warn -> v_name);
            end if;
        end loop;
        continue when v_changes = '{}';

        -- Found and locked in one step: between two, another call might remove the row, and this change would be lost with it.
        insert into gateway.limits (key_id, customer_id, service_id, model_id, each_model, per)
        values (v_key_id, p_customer_id, v_service_id, v_model_id, p_each_model, v_per)
        on conflict (key_id, customer_id, service_id, model_id, each_model, per) do update set per = excluded.per
        returning * into v_limit;
        v_limit := jsonb_populate_record(v_limit, v_changes);
        if num_nonnulls(v_limit.requests, v_limit.tokens, v_limit.spend_usd, v_limit.warn_requests, v_limit.warn_tokens, v_limit.warn_spend_usd) = 0 then
            delete from gateway.limits where id = v_limit.id;
        else
            update gateway.limits
            set (requests, tokens, spend_usd, warn_requests, warn_tokens, warn_spend_usd) = (
                v_limit.requests, v_limit.tokens, v_limit.spend_usd, v_limit.warn_requests, v_limit.warn_tokens, v_limit.warn_spend_usd)
            where id = v_limit.id;
        end if;
    end loop;

    return gateway.show_limits(v_key_id, p_customer_id, v_service_id, v_model_id, p_each_model);
end
$$;
revoke all on function api.set_limits(bigint, bigint, bigint, text, text, boolean, jsonb, jsonb, numeric, text, text) from public;
grant execute on function api.set_limits(bigint, bigint, bigint, text, text, boolean, jsonb, jsonb, numeric, text, text) to service_role;
comment on function api.set_limits(bigint, bigint, bigint, text, text, boolean, jsonb, jsonb, numeric, text, text) is 'Merges rate and spending limits into those of a key, a customer or a service.';
