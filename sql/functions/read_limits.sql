create function gateway.read_counters(p_limits gateway.limit_state[]) returns gateway.limit_state[]
language plpgsql stable set search_path = ''
as $$
begin
    return (
        select coalesce(array_agg(
            jsonb_populate_record(l, jsonb_build_object(
                'used_requests', coalesce(c.requests, 0), 'used_tokens', coalesce(c.tokens, 0), 'used_spend_usd', coalesce(c.spend_usd, 0)))
            order by l.subject, l.subject_id, l.model_id, l.per), '{}')
        from unnest(p_limits) as l
        left join gateway.limit_counters as c
            on (c.subject, c.subject_id, c.model_id, c.per) = (l.subject, l.subject_id, l.model_id, l.per) and c.window_start >= l.window_start
    );
end
$$;
comment on function gateway.read_counters(gateway.limit_state[]) is 'Fills in what is used of each window, as lock_counters does, and locks nothing.';
revoke all on function gateway.read_counters(gateway.limit_state[]) from public;

create function gateway.show_windows(p_limits gateway.limit_state[]) returns jsonb
language plpgsql stable set search_path = ''
as $$
begin
    return (
        select coalesce(jsonb_object_agg(w.name, jsonb_build_object(
            'limit', case w.metric when 'spend_usd' then to_jsonb(gateway.show_usd(w.most)) else to_jsonb(w.most::bigint) end,
            'used', case w.metric when 'spend_usd' then to_jsonb(gateway.show_usd(w.used)) else to_jsonb(w.used::bigint) end,
            'mark', case w.metric when 'spend_usd' then to_jsonb(gateway.show_usd(w.mark)) else to_jsonb(w.mark::bigint) end)), '{}')
        from (
            select distinct on (n.metric, l.per) n.metric || '_per_' || l.per as name, n.metric, n.most, n.used, n.mark
            from unnest(p_limits) as l
            cross join lateral (values
                ('requests', l.requests::numeric, l.used_requests::numeric, l.warn_requests::numeric),
                ('tokens', l.tokens, l.used_tokens, l.warn_tokens),
                ('spend_usd', l.spend_usd, l.used_spend_usd, l.warn_spend_usd)
            ) as n (metric, most, used, mark)
            where n.most is not null and l.subject <> 'service'
            order by n.metric, l.per, n.most - n.used, n.most
        ) as w
    );
end
$$;
comment on function gateway.show_windows(gateway.limit_state[]) is 'Of each name, such as requests_per_minute, the window with the least left: its limit, what is used of it, and its soft mark.';
revoke all on function gateway.show_windows(gateway.limit_state[]) from public;

-- api.read_limits: the limits that a key (p_key_id null: the customer's keys together) falls under now, and whether admission would let its next
-- request pass, however small.
--
-- {"time_zone", "limits": {"requests_per_minute": {"limit", "used", "mark": its soft mark or null}, …}, "reset_times": {"minute", "hour", "day", "month"},
--  "refusal": null | what api.admit_request would refuse with}; null where there is no such customer or key.
--
-- limits: the key's own, those of the keys that made it, and the customer's; where several windows have one name, the one with the
-- least left, as in the x-ratelimit headers. Of limits for each model by itself: with p_model this model's; without, those of the models
-- that were used in the running window, and what any other model would have. So the system's default of requests per minute shows.
-- Running requests count at their bound, as they do for admission. A service's limits are the operator's affair: not shown, but obeyed.
-- refusal: without p_model of the first of these windows that is full, with the name of its model ("of_model") where it is one model's.
-- Reads only, and locks nothing: a request that runs meanwhile may change the answer. No scans, as for api.admit_request.
create function api.read_limits(p_customer_id bigint, p_key_id bigint default null, p_model text default null) returns jsonb
language plpgsql stable security definer set search_path = '' set enable_seqscan = off set jit = off
as $$
declare
    c_any_other_model constant bigint := -1;
    c_least_usd constant numeric := 0.0000000001;
    v_at timestamptz := clock_timestamp();
    v_caller record;
    v_settings gateway.settings;
    v_candidate gateway.candidate;
    v_candidates gateway.candidate[] := '{}'::gateway.candidate[];
    v_found boolean := false;
    v_allowed boolean := false;
    v_routed boolean := false;
    v_model_ids bigint[] := '{}'::bigint[];
    v_model_id bigint;
    v_limits gateway.limit_state[];
    v_charge numeric;
    v_excess jsonb;
    v_refusal jsonb;
begin
    select c.id, c.time_zone, a.balance_usd - a.held_usd as free_usd, a.debt_usd,
        k.id as key_id, k.scopes, k.allowed_models, k.allowed_services, coalesce(k.maker_key_ids, '{}') as maker_key_ids
    into v_caller
    from gateway.customers as c
    join gateway.accounts as a on a.customer_id = c.id
    left join gateway.api_keys as k on k.id = p_key_id and k.customer_id = c.id
    where c.id = p_customer_id;
    if v_caller.id is null or v_caller.key_id is distinct from p_key_id then
        return null;
    end if;
    select * into v_settings from gateway.settings;

    if p_model is not null then
        foreach v_candidate in array gateway.resolve_candidates(array[p_model], null, null, v_caller.allowed_services, false, false) loop
            v_found := true;
            v_model_ids := v_model_ids || v_candidate.model_id;
            continue when v_caller.allowed_models is not null and not v_candidate.model_id = any (v_caller.allowed_models);
            v_allowed := true;
            continue when v_candidate.route_id is null;
            v_routed := true;
            continue when v_candidate.prices is null;
            v_candidates := v_candidates || v_candidate;
        end loop;
        v_refusal := case
            when not v_found then jsonb_build_object('refusal', 'model_not_found', 'model', p_model)
            when not v_allowed then jsonb_build_object('refusal', 'model_not_allowed', 'model', p_model)
            when not v_routed then jsonb_build_object('refusal', 'model_not_served', 'model', p_model)
            when cardinality(v_candidates) = 0 then jsonb_build_object('refusal', 'model_not_priced', 'model', p_model)
        end;
    elsif p_key_id is not null then
        v_model_ids := c_any_other_model || array(
            select distinct c.model_id
            from gateway.limit_counters as c
            where c.subject = 'key' and c.subject_id = any (p_key_id || v_caller.maker_key_ids) and c.model_id <> 0 and c.requests > 0
            order by c.model_id
        );
    end if;

    v_limits := gateway.read_counters(gateway.applicable_limits(
        v_caller.key_id, v_caller.id, case when p_key_id is null then '{}' else array(select distinct m from unnest(v_model_ids) as m) end,
        array(select distinct c.service_id from unnest(v_candidates) as c), v_caller.time_zone, v_at, v_caller.maker_key_ids));
    if p_model is null then
        -- a model's counter may be of a window that has passed
        v_limits := array(select l from unnest(v_limits) as l where l.model_id <= 0 or l.used_requests > 0);
    end if;

    if p_key_id is not null and not 'chat' = any (v_caller.scopes) then
        v_refusal := jsonb_build_object('refusal', 'scope_missing', 'scope', 'chat');
    elsif p_model is null then
        foreach v_model_id in array coalesce(nullif(v_model_ids, '{}'), array[c_any_other_model]) loop
            v_refusal := gateway.describe_excess(v_limits, null, v_model_id, 1, c_least_usd, c_least_usd, v_at);
            if v_refusal is not null then
                if v_model_id <> c_any_other_model then
                    v_refusal := v_refusal || jsonb_build_object('of_model', (select m.name from gateway.models as m where m.id = v_model_id));
                end if;
                exit;
            end if;
        end loop;
        if v_refusal is null and v_caller.free_usd <= 0 then
            v_refusal := jsonb_build_object(
                'refusal', 'insufficient_credits', 'needed_usd', gateway.show_usd(c_least_usd),
                'available_usd', gateway.show_usd(v_caller.free_usd), 'affordable_output_tokens', 0);
        end if;
    elsif v_refusal is null then
        -- as admission does for each candidate, for a request of one token
        foreach v_candidate in array v_candidates loop
            v_charge := gateway.round_up_usd(
                v_candidate.fixed_usd * (1 + v_settings.commission_percent * 0.01) + case v_settings.billing_mode
                    when 'flat' then v_settings.flat_usd_per_1k_tokens * 0.001
                    else v_candidate.input_rate * (1 + v_settings.commission_percent * 0.01)
                end);
            v_excess := gateway.describe_excess(
                v_limits, v_candidate.service_id, v_candidate.model_id, 1, v_charge,
                gateway.round_up_usd(v_candidate.fixed_usd + v_candidate.input_rate), v_at);
            if v_excess is null and v_charge > v_caller.free_usd then
                v_excess := jsonb_build_object(
                    'refusal', 'insufficient_credits', 'needed_usd', gateway.show_usd(v_charge),
                    'available_usd', gateway.show_usd(v_caller.free_usd), 'affordable_output_tokens', 0);
            end if;
            if v_excess is null then
                v_refusal := null;
                exit;
            end if;
            v_refusal := coalesce(v_refusal, v_excess);
        end loop;
    end if;

    if v_caller.debt_usd > 0 and coalesce(v_refusal ->> 'refusal' in ('rate_limit_exceeded', 'insufficient_credits'), true) then
        -- as admission has it: after what is wrong with key and model, before limits and money
        v_refusal := jsonb_build_object('refusal', 'customer_in_debt', 'debt_usd', gateway.show_usd(v_caller.debt_usd));
    end if;

    return jsonb_build_object(
        'time_zone', v_caller.time_zone,
        'limits', gateway.show_windows(v_limits),
        'refusal', v_refusal,
        'reset_times', (
            select jsonb_object_agg(w.per, gateway.window_end(w.per, gateway.window_start(w.per, v_at, v_caller.time_zone), v_caller.time_zone))
            from (values ('minute'), ('hour'), ('day'), ('month')) as w (per)
        ));
end
$$;
revoke all on function api.read_limits(bigint, bigint, text) from public;
grant execute on function api.read_limits(bigint, bigint, text) to service_role;
comment on function api.read_limits(bigint, bigint, text) is 'The limits that a key falls under now, what is used of them, and whether admission would let a request pass.';
