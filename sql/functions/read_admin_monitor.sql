-- api.read_admin_monitor: the whole system today, by UTC. {"total_users", "active_users_today", "total_requests_today", "total_tokens_today",
-- "total_charge_today_usd", "cost_today_usd", "margin_today_usd": what was collected less the cost, "uncollected_today_usd", "errors_today",
-- "refusals_today", "top_users_by_usage": the ten keys with the most tokens today, "recent_activity": the last ten requests of the last 31
-- days, "providers": the services that are not deleted, with today's attempts, failures and percentiles of the latency of what they
-- answered, "held": what runs now}.
-- Requests count when they have ended, on the day on which they were admitted. Costs what has come since the last closing, and the same
-- however long the log is. Reads only.
create function api.read_admin_monitor() returns jsonb
language plpgsql stable security definer set search_path = '' set plan_cache_mode = force_generic_plan
as $$
declare
    v_start timestamptz := date_trunc('day', now(), 'UTC');
    v_day date := now() at time zone 'UTC';
    v_closed_until timestamptz := coalesce((select closed_until from gateway.usage_closing), '-infinity'::timestamptz);
    v_since timestamptz := greatest(v_closed_until, v_start);
    v_found jsonb;
    v_recent jsonb;
begin
    with live as materialized (
        select customer_id, key_id, service_id, requests, errors, failures, total_tokens, cost_usd, charge_usd, uncollected_usd, latency_ms, latencies, time_to_first_token_ms,
            first_tokens, latency_counts, first_token_counts, last_failure_at
        from gateway.usage_rollups
        where bucket >= v_since and bucket < 'infinity'  -- a range, which the planner takes for a short one
        union all
        select customer_id, key_id, service_id, requests, errors, failures, total_tokens, cost_usd, charge_usd, uncollected_usd, latency_ms, latencies, time_to_first_token_ms,
            first_tokens, latency_counts, first_token_counts, last_failure_at
        from gateway.usage_rollups
        where late and bucket >= v_start and bucket < v_since
    ),
    live_keys as materialized (
        select customer_id, key_id, sum(requests) as requests, sum(total_tokens) as total_tokens, sum(charge_usd) as charge_usd
        from live
        group by customer_id, key_id
        having sum(requests) > 0
    ),
    by_service as materialized (
        select u.service_id, sum(u.requests) as requests, sum(u.errors) as errors, sum(u.failures) as failures,
            sum(u.total_tokens) as total_tokens, sum(u.cost_usd) as cost_usd, sum(u.charge_usd) as charge_usd,
            sum(u.uncollected_usd) as uncollected_usd, sum(u.latency_ms) as latency_ms, sum(u.latencies) as latencies,
            sum(u.time_to_first_token_ms) as first_token_ms, sum(u.first_tokens) as first_tokens,
            gateway.sum_counts(array_agg(row(u.latency_counts)::gateway.time_counts)) as latency_counts,
            gateway.sum_counts(array_agg(row(u.first_token_counts)::gateway.time_counts)) as first_token_counts,
            max(u.last_failure_at) as last_failure_at
        from (
            select service_id, requests, errors, failures, total_tokens, cost_usd, charge_usd, uncollected_usd, latency_ms, latencies, time_to_first_token_ms,
            first_tokens, latency_counts, first_token_counts, last_failure_at
            from gateway.usage_periods
            where customer_id = 0 and per = 'day' and grouped_by = 'service' and period = v_day::timestamp
            union all
            select service_id, requests, errors, failures, total_tokens, cost_usd, charge_usd, uncollected_usd, latency_ms, latencies, time_to_first_token_ms,
            first_tokens, latency_counts, first_token_counts, last_failure_at
            from live
        ) as u
        group by u.service_id
    ),
    -- The ten at the last closing and whoever came since: nobody else can be among the first ten.
    candidates as (
        (select customer_id, key_id from gateway.key_days where day = v_day order by total_tokens desc limit 10)
        union
        select customer_id, key_id from live_keys
    ),
    busiest as (
        select c.customer_id, c.key_id,
            coalesce(d.requests, 0) + coalesce(l.requests, 0) as requests,
            coalesce(d.total_tokens, 0) + coalesce(l.total_tokens, 0) as total_tokens,
            coalesce(d.charge_usd, 0) + coalesce(l.charge_usd, 0) as charge_usd
        from candidates as c
        left join lateral (
            select * from gateway.key_days as k where k.day = v_day and k.customer_id = c.customer_id and k.key_id = c.key_id limit 1
        ) as d on true
        left join live_keys as l on l.customer_id = c.customer_id and l.key_id = c.key_id
        order by total_tokens desc, requests desc, key_id
        limit 10
    )
    select jsonb_build_object(
        'total_users', (select count(*) from gateway.customers),
        'active_users_today', coalesce((select customers from gateway.active_days where day = v_day), 0) + (
            select count(*)
            from (select distinct customer_id from live_keys) as n
            -- looked up one by one, here and above: a join would read the whole day
            where (select true from gateway.key_days as d where d.day = v_day and d.customer_id = n.customer_id limit 1) is null
        ),
        'total_requests_today', coalesce(sum(s.requests), 0),
        'total_tokens_today', coalesce(sum(s.total_tokens), 0),
        'total_charge_today_usd', gateway.show_usd(coalesce(sum(s.charge_usd), 0)),
        'cost_today_usd', gateway.show_usd(coalesce(sum(s.cost_usd), 0)),
        'margin_today_usd', gateway.show_usd(coalesce(sum(s.charge_usd - s.uncollected_usd - s.cost_usd), 0)),
        'uncollected_today_usd', gateway.show_usd(coalesce(sum(s.uncollected_usd), 0)),
        'errors_today', coalesce(sum(s.errors), 0),
        'refusals_today', (select coalesce(sum(refusals), 0) from gateway.refusal_rollups where bucket >= v_start),
        'top_users_by_usage', (
            select coalesce(jsonb_agg(jsonb_build_object(
                'key_prefix', k.prefix, 'key_id', k.id, 'customer_id', u.customer_id, 'name', c.name, 'tokens', u.total_tokens,
                'charge_usd', gateway.show_usd(u.charge_usd), 'requests', u.requests)
                order by u.total_tokens desc, u.requests desc, u.key_id), '[]'::jsonb)
            from busiest as u
            join gateway.api_keys as k on k.id = u.key_id
            join gateway.customers as c on c.id = u.customer_id
            where u.requests > 0
        ),
        'providers', (
            select coalesce(jsonb_agg(jsonb_build_object(
                'provider', s.provider, 'service', s.name, 'service_id', s.id, 'active', s.active,
                'requests', coalesce(u.requests + u.failures, 0), 'errors', coalesce(u.failures, 0),
                'error_rate', coalesce(round(u.failures / nullif(u.requests + u.failures, 0), 4), 0),
                'latency_ms', gateway.describe_times(u.latency_counts, u.latency_ms::bigint, u.latencies::bigint),
                'time_to_first_token_ms', gateway.describe_times(u.first_token_counts, u.first_token_ms::bigint, u.first_tokens::bigint),
                'last_error_at', u.last_failure_at)
                order by s.provider, s.name), '[]'::jsonb)
            from gateway.services as s
            left join by_service as u on u.service_id = s.id
            where s.deleted_at is null
        ),
        'held', (
            select jsonb_build_object('requests', count(*), 'usd', gateway.show_usd(coalesce(sum(hold_usd), 0)))
            from gateway.requests
            where state = 'held'
        ))
    into v_found
    from by_service as s;

    select coalesce(jsonb_agg(jsonb_build_object(
        'request_id', r.id, 'key_prefix', k.prefix, 'customer_id', r.customer_id, 'model', coalesce(m.name, r.requested_model),
        'tokens', coalesce(r.input_tokens, 0) + coalesce(r.cached_input_tokens, 0) + coalesce(r.cache_write_tokens, 0)
            + coalesce(r.audio_input_tokens, 0) + coalesce(r.image_input_tokens, 0) + coalesce(r.output_tokens, 0)
            + coalesce(r.audio_output_tokens, 0) + coalesce(r.image_output_tokens, 0),
        'at', r.admitted_at,
        'status', case r.state when 'held' then 'running' when 'settled' then r.outcome else r.state end)
        order by r.admitted_at desc, r.id desc), '[]'::jsonb)
    into v_recent
    from (
        select *
        from gateway.requests
        where admitted_at > now() - interval '31 days' and state <> 'refused'
        order by admitted_at desc, id desc
        limit 10
    ) as r
    left join gateway.api_keys as k on k.id = r.key_id
    left join gateway.models as m on m.id = r.model_id;
    return v_found || jsonb_build_object('recent_activity', v_recent);
end
$$;
revoke all on function api.read_admin_monitor() from public;
grant execute on function api.read_admin_monitor() to service_role;
comment on function api.read_admin_monitor() is 'The whole system today: totals, the busiest keys, the last requests, the providers'' health, what is held.';
