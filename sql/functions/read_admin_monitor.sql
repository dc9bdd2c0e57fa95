-- api.read_admin_monitor: the whole system today, by UTC. {"total_users", "active_users_today", "total_requests_today", "total_tokens_today",
-- "total_charge_today_usd", "cost_today_usd", "margin_today_usd": what was collected less the cost, "uncollected_today_usd", "errors_today",
-- "refusals_today", "top_users_by_usage": the ten keys with the most tokens today, "recent_activity": the last ten requests of the last 31 days, "providers": the services that are
-- not deleted, with today's attempts, failures and percentiles of latency of what they answered, "held": what runs now}.
-- Requests count when they have ended, on the day on which they were admitted. Costs the same however long the log is. Reads only.
create function api.read_admin_monitor() returns jsonb
language plpgsql stable security definer set search_path = '' set plan_cache_mode = force_generic_plan
as $$
declare
    v_day timestamptz := date_trunc('day', now(), 'UTC');
    v_local timestamp := v_day at time zone 'UTC';
    v_closed_until timestamptz := coalesce((select closed_until from gateway.usage_closing), '-infinity');
    v_since timestamptz := greatest(v_closed_until, v_day);
    v_live gateway.usage_rollups[];
    v_found jsonb;
begin
    v_live := array(select r from gateway.find_live_usage(null, v_day, v_since, 'infinity') as r);

    select jsonb_build_object(
        'total_users', (select count(*) from gateway.customers),
        'active_users_today', (
            select count(*)
            from (
                select customer_id from gateway.key_days where day = v_local::date and requests > 0
                union
                select customer_id from unnest(v_live) where requests > 0
            ) as active
        ),
        'total_requests_today', coalesce(sum(u.requests), 0),
        'total_tokens_today', coalesce(sum(u.total_tokens), 0),
        'total_charge_today_usd', gateway.show_usd(coalesce(sum(u.charge_usd), 0)),
        'cost_today_usd', gateway.show_usd(coalesce(sum(u.cost_usd), 0)),
        'margin_today_usd', gateway.show_usd(coalesce(sum(u.charge_usd - u.uncollected_usd - u.cost_usd), 0)),
        'uncollected_today_usd', gateway.show_usd(coalesce(sum(u.uncollected_usd), 0)),
        'errors_today', coalesce(sum(u.errors), 0),
        'refusals_today', (select coalesce(sum(refusals), 0) from gateway.refusal_rollups where bucket >= v_day))
    into v_found
    from (
        select requests, total_tokens, charge_usd, cost_usd, uncollected_usd, errors
        from gateway.usage_periods
        where customer_id = 0 and per = 'day' and grouped_by = 'all' and period = v_local
        union all
        select requests, total_tokens, charge_usd, cost_usd, uncollected_usd, errors from unnest(v_live)
    ) as u;

    v_found := v_found || jsonb_build_object('top_users_by_usage', (
        -- The ten at the last closing and whoever came since: nobody else can be among the first ten.
        with live as (
            select customer_id, key_id, sum(requests) as requests, sum(total_tokens) as total_tokens, sum(charge_usd) as charge_usd
            from unnest(v_live)
            group by 1, 2
        ),
        candidates as (
            (select customer_id, key_id from gateway.key_days where day = v_local::date order by total_tokens desc limit 10)
            union
            select customer_id, key_id from live
        ),
        used as (
            select c.customer_id, c.key_id,
                coalesce(d.requests, 0) + coalesce(l.requests, 0) as requests,
                coalesce(d.total_tokens, 0) + coalesce(l.total_tokens, 0) as total_tokens,
                coalesce(d.charge_usd, 0) + coalesce(l.charge_usd, 0) as charge_usd
            from candidates as c
            left join gateway.key_days as d on d.day = v_local::date and d.customer_id = c.customer_id and d.key_id = c.key_id
            left join live as l on l.customer_id = c.customer_id and l.key_id = c.key_id
            order by total_tokens desc, requests desc, key_id
            limit 10
        )
        select coalesce(jsonb_agg(jsonb_build_object(
            'key_prefix', k.prefix, 'key_id', k.id, 'customer_id', u.customer_id, 'name', c.name, 'tokens', u.total_tokens,
            'charge_usd', gateway.show_usd(u.charge_usd), 'requests', u.requests)
            order by u.total_tokens desc, u.requests desc, u.key_id), '[]')
        from used as u
        join gateway.api_keys as k on k.id = u.key_id
        join gateway.customers as c on c.id = u.customer_id
        where u.requests > 0
    ));

    v_found := v_found || jsonb_build_object('recent_activity', (
        select coalesce(jsonb_agg(jsonb_build_object(
            'request_id', r.id, 'key_prefix', k.prefix, 'customer_id', r.customer_id, 'model', coalesce(m.name, r.requested_model),
            'tokens', coalesce(r.input_tokens, 0) + coalesce(r.cached_input_tokens, 0) + coalesce(r.cache_write_tokens, 0)
                + coalesce(r.audio_input_tokens, 0) + coalesce(r.image_input_tokens, 0) + coalesce(r.output_tokens, 0)
                + coalesce(r.audio_output_tokens, 0) + coalesce(r.image_output_tokens, 0),
            'at', r.admitted_at,
            'status', case r.state when 'held' then 'running' when 'settled' then r.outcome else r.state end)
            order by r.admitted_at desc, r.id desc), '[]')
        from (
            select *
            from gateway.requests
            where admitted_at > now() - interval '31 days' and state <> 'refused'
            order by admitted_at desc, id desc
            limit 10
        ) as r
        left join gateway.api_keys as k on k.id = r.key_id
        left join gateway.models as m on m.id = r.model_id
    ));

    v_found := v_found || jsonb_build_object('providers', (
        select coalesce(jsonb_agg(jsonb_build_object(
            'provider', s.provider, 'service', s.name, 'service_id', s.id, 'active', s.active,
            'requests', coalesce(u.requests + u.failures, 0), 'errors', coalesce(u.failures, 0),
            'error_rate', coalesce(round(u.failures / nullif(u.requests + u.failures, 0), 4), 0),
            'latency_ms', gateway.describe_times(u.latency_counts, u.latency_ms::bigint, u.latencies::bigint),
            'time_to_first_token_ms', gateway.describe_times(u.first_token_counts, u.first_token_ms::bigint, u.first_tokens::bigint),
            'last_error_at', u.last_failure_at)
            order by s.provider, s.name), '[]')
        from gateway.services as s
        left join (
            select service_id, sum(requests) as requests, sum(failures) as failures, sum(latency_ms) as latency_ms, sum(latencies) as latencies,
                gateway.sum_counts(array_agg(row(latency_counts)::gateway.time_counts)) as latency_counts, sum(time_to_first_token_ms) as first_token_ms,
                sum(first_tokens) as first_tokens, gateway.sum_counts(array_agg(row(first_token_counts)::gateway.time_counts)) as first_token_counts,
                max(last_failure_at) as last_failure_at
            from (
                select service_id, requests, failures, latency_ms, latencies, latency_counts, time_to_first_token_ms, first_tokens,
                    first_token_counts, last_failure_at
                from gateway.usage_periods
                where customer_id = 0 and per = 'day' and grouped_by = 'service' and period = v_local
                union all
                select service_id, requests, failures, latency_ms, latencies, latency_counts, time_to_first_token_ms, first_tokens,
                    first_token_counts, last_failure_at
                from unnest(v_live)
            ) as each
            group by service_id
        ) as u on u.service_id = s.id
        where s.deleted_at is null
    ));

    return v_found || jsonb_build_object('held', (
        select jsonb_build_object('requests', count(*), 'usd', gateway.show_usd(coalesce(sum(hold_usd), 0)))
        from gateway.requests
        where state = 'held'
    ));
end
$$;
revoke all on function api.read_admin_monitor() from public;
grant execute on function api.read_admin_monitor() to service_role;
comment on function api.read_admin_monitor() is 'The whole system today: totals, the busiest keys, the last requests, the providers'' health, what is held.';
