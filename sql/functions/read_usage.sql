create function gateway.find_live_usage(p_customer_id bigint, p_from timestamptz, p_live_from timestamptz, p_to timestamptz)
returns setof gateway.usage_rollups
language plpgsql stable set search_path = '' rows 100
as $$
begin
    if p_customer_id is null then
        return query select * from gateway.usage_rollups where bucket >= p_live_from and bucket < p_to;
        return query select * from gateway.usage_rollups where late and bucket >= p_from and bucket < p_live_from;
    else
        return query select * from gateway.usage_rollups where customer_id = p_customer_id and bucket >= p_live_from and bucket < p_to;
        return query select * from gateway.usage_rollups where customer_id = p_customer_id and late and bucket >= p_from and bucket < p_live_from;
    end if;
end
$$;
comment on function gateway.find_live_usage(bigint, timestamptz, timestamptz, timestamptz) is 'Rollups from p_live_from up to p_to and, of those before it, the late ones from p_from on; of one customer, or null: of all.';
revoke all on function gateway.find_live_usage(bigint, timestamptz, timestamptz, timestamptz) from public;

-- gateway.find_usage: rows that come to the usage of a customer (null: of all) from p_from up to p_to, both of which have to be ends of a
-- p_per (hour, day, month) in p_time_zone. Days and months of the customer's own zone (UTC for all) come from usage_periods and, since the last closing, from
-- usage_rollups; everything else comes from quarters of an hour, as far back as these are kept. A row is of a day or month, whose start by
-- the clock of the zone is its period, or of a quarter of an hour, whose start in UTC it is. Exact at any time: it is one snapshot.
create function gateway.find_usage(
    p_customer_id bigint, p_key_id bigint, p_per text, p_grouped_by text, p_time_zone text, p_from timestamptz, p_to timestamptz
) returns setof gateway.usage_periods
language plpgsql stable set search_path = '' rows 100
as $$
declare
    v_closed_until timestamptz := coalesce((select closed_until from gateway.usage_closing), '-infinity');
    v_own_zone text := coalesce((select time_zone from gateway.customers where id = p_customer_id), 'UTC');
    v_live_from timestamptz := p_from;
begin
    if p_per <> 'hour' and p_time_zone = v_own_zone then
        return query
        select *
        from gateway.usage_periods
        where customer_id = coalesce(p_customer_id, 0) and per = p_per and grouped_by = p_grouped_by
            and period >= p_from at time zone p_time_zone and period < p_to at time zone p_time_zone
            and (p_key_id is null or key_id = p_key_id);
        v_live_from := greatest(p_from, v_closed_until);
    elsif p_customer_id is null then
        return query
        select *
        from gateway.usage_periods
        where customer_id = 0 and per = 'quarter' and grouped_by = p_grouped_by
            and period >= p_from at time zone 'UTC' and period < p_to at time zone 'UTC';
        v_live_from := greatest(p_from, v_closed_until);
    end if;
    return query
    select coalesce(p_customer_id, 0), 'quarter', p_grouped_by, r.bucket at time zone 'UTC', r.key_id, r.model_id, r.service_id,
        r.requests, r.errors, r.failures, r.input_tokens, r.cached_input_tokens, r.cache_write_tokens, r.audio_input_tokens,
        r.image_input_tokens, r.output_tokens, r.reasoning_tokens, r.audio_output_tokens, r.image_output_tokens, r.images, r.total_tokens,
        r.cost_usd, r.charge_usd, r.uncollected_usd, r.latency_ms, r.latencies, r.time_to_first_token_ms, r.first_tokens, r.latency_counts,
        r.first_token_counts, r.last_request_at, r.last_failure_at
    from gateway.find_live_usage(p_customer_id, p_from, v_live_from, p_to) as r
    where p_key_id is null or r.key_id = p_key_id;
end
$$;
comment on function gateway.find_usage(bigint, bigint, text, text, text, timestamptz, timestamptz) is 'Rows that come to the usage of a time: closed ones and what has come since.';
revoke all on function gateway.find_usage(bigint, bigint, text, text, text, timestamptz, timestamptz) from public;

-- Midnight may be skipped or come twice where clocks change; noon does not.
create function gateway.day_start(p_day timestamp, p_time_zone text) returns timestamptz
language plpgsql stable parallel safe set search_path = ''
as $$
begin
    return gateway.window_start('day', (date_trunc('day', p_day) + interval '12 hours') at time zone p_time_zone, p_time_zone);
end
$$;
comment on function gateway.day_start(timestamp, text) is 'The first moment of a day in a time zone.';
revoke all on function gateway.day_start(timestamp, text) from public;

-- api.read_usage: usage by hour, day or month. p_customer_id null: of all customers. p_key_id: of one key alone, which has to be the customer's.
-- Every interval that any moment from p_from up to p_to lies in, whole, oldest first; those in which nothing was used are there too, with
-- zeros; grouped, each group that occurs at all has a row for each interval; null where these would be more than 10,000. p_group_by: model | key | provider (requests that no provider
-- answered are in the group null); by key only of one customer. p_time_zone: null for the customer's (UTC for all).
--
-- [{"start", "end", "group": a model's name, a key's prefix or a provider, "group_id": the model's or key's id, "requests": that have ended,
-- "errors": of these, failed or expired, "tokens": {by class, and images}, "total_tokens", "cost_usd", "charge_usd", "uncollected_usd",
-- "latency_ms": {"p50", "p95", "average"}, "time_to_first_token_ms": {the same}}]
-- Percentiles are at most 9.1 % off, and null where there is nothing. p_for_customer: the cost is null in flat mode.
-- Hours, and days in any other zone than the customer's own, are known as far back as the setting usage_detail_days. Where a customer has
-- changed its zone, days from before that time are those of the old one.
-- Costs what the intervals and groups are, however many requests there were. Reads only.
create function api.read_usage(
    p_from timestamptz, p_to timestamptz, p_interval text, p_customer_id bigint default null, p_key_id bigint default null,
    p_group_by text default null, p_time_zone text default null, p_for_customer boolean default false
) returns jsonb
language plpgsql stable security definer set search_path = '' set plan_cache_mode = force_generic_plan
as $$
declare
    c_most_intervals constant integer := 10000;
    c_most_points constant integer := 10000;
    v_time_zone text := coalesce(p_time_zone, (select c.time_zone from gateway.customers as c where c.id = p_customer_id), 'UTC');
    v_from timestamptz;
    v_to timestamptz;
    v_grouped_by text;
    v_show_cost boolean := not p_for_customer or (select s.billing_mode = 'markup' from gateway.settings as s);
    v_found jsonb;
    v_points bigint;
begin
    if p_interval is null or p_interval not in ('hour', 'day', 'month') or p_group_by not in ('model', 'key', 'provider')
        or p_from is null or p_to is null or not (isfinite(p_from) and isfinite(p_to))
        or (p_customer_id is null and (p_group_by = 'key' or p_key_id is not null))
        or p_to - p_from > c_most_intervals * (case p_interval when 'hour' then interval '1 hour' else interval '1 day' end)
    then
        raise exception 'no such interval, grouping or time' using errcode = 'invalid_parameter_value';
    end if;
    if p_from >= p_to then
        return '[]'::jsonb;
    end if;
    v_from := gateway.window_start(p_interval, p_from, v_time_zone);
    v_to := gateway.window_end(p_interval, gateway.window_start(p_interval, p_to - interval '1 microsecond', v_time_zone), v_time_zone);
    v_grouped_by := case
        when p_group_by is null then case when p_key_id is null then 'all' else 'key' end
        when p_group_by = 'key' then 'key'
        else case when p_key_id is null then '' else 'key_' end || case p_group_by when 'provider' then 'service' else 'model' end
    end;

    with starts as (
        select distinct date_trunc('hour', q, v_time_zone) as start
        from generate_series(v_from, v_to - interval '15 minutes', interval '15 minutes') as q
        where p_interval = 'hour'
        union all
        select gateway.day_start(d, v_time_zone)
        from generate_series(date_trunc(p_interval, v_from at time zone v_time_zone), (v_to - interval '1 microsecond') at time zone v_time_zone,
                             ('1 ' || p_interval)::interval) as d
        where p_interval <> 'hour'
    ),
    intervals as (
        select start, coalesce(lead(start) over (order by start), v_to) as stop from starts
    ),
    found as materialized (
        select
            case
                when u.per = 'quarter' then gateway.window_start(p_interval, u.period at time zone 'UTC', v_time_zone)
                else gateway.day_start(u.period, v_time_zone)
            end as start,
            case p_group_by when 'model' then u.model_id when 'key' then u.key_id else 0 end as group_id,
            case when p_group_by = 'provider' then coalesce(s.provider, '') else '' end as provider,
            sum(u.requests) as requests, sum(u.errors) as errors, sum(u.failures) as failures, sum(u.input_tokens) as input_tokens,
            sum(u.cached_input_tokens) as cached_input_tokens, sum(u.cache_write_tokens) as cache_write_tokens,
            sum(u.audio_input_tokens) as audio_input_tokens, sum(u.image_input_tokens) as image_input_tokens,
            sum(u.output_tokens) as output_tokens, sum(u.reasoning_tokens) as reasoning_tokens,
            sum(u.audio_output_tokens) as audio_output_tokens, sum(u.image_output_tokens) as image_output_tokens, sum(u.images) as images,
            sum(u.total_tokens) as total_tokens, sum(u.cost_usd) as cost_usd, sum(u.charge_usd) as charge_usd,
            sum(u.uncollected_usd) as uncollected_usd, sum(u.latency_ms) as latency_ms, sum(u.latencies) as latencies,
            sum(u.time_to_first_token_ms) as time_to_first_token_ms, sum(u.first_tokens) as first_tokens,
            gateway.sum_counts(array_agg(row(u.latency_counts)::gateway.time_counts)) as latency_counts,
            gateway.sum_counts(array_agg(row(u.first_token_counts)::gateway.time_counts)) as first_token_counts,
            max(u.last_request_at) as last_request_at, max(u.last_failure_at) as last_failure_at
        from gateway.find_usage(p_customer_id, p_key_id, p_interval, v_grouped_by, v_time_zone, v_from, v_to) as u
        left join gateway.services as s on p_group_by = 'provider' and s.id = u.service_id
        group by 1, 2, 3
    ),
    groups as (
        -- looked up one by one: a join would read all keys that there are
        select g.group_id, g.provider, case p_group_by
            when 'model' then (select m.name from gateway.models as m where m.id = g.group_id)
            when 'key' then (select k.prefix from gateway.api_keys as k where k.id = g.group_id)
            else nullif(g.provider, '')
        end as name
        from (
            select distinct f.group_id, f.provider from found as f
            union
            select 0, '' where p_group_by is null
        ) as g
    )
    select coalesce(jsonb_agg(
        jsonb_build_object(
            'start', i.start, 'end', i.stop, 'group', g.name, 'group_id', nullif(g.group_id, 0),
            'requests', coalesce(f.requests, 0), 'errors', coalesce(f.errors, 0),
            'tokens', jsonb_build_object(
                'input', coalesce(f.input_tokens, 0), 'cached_input', coalesce(f.cached_input_tokens, 0),
                'cache_write', coalesce(f.cache_write_tokens, 0), 'audio_input', coalesce(f.audio_input_tokens, 0),
                'image_input', coalesce(f.image_input_tokens, 0), 'output', coalesce(f.output_tokens, 0),
                'reasoning', coalesce(f.reasoning_tokens, 0), 'audio_output', coalesce(f.audio_output_tokens, 0),
                'image_output', coalesce(f.image_output_tokens, 0), 'images', coalesce(f.images, 0)),
            'total_tokens', coalesce(f.total_tokens, 0),
            'cost_usd', case when v_show_cost then gateway.show_usd(coalesce(f.cost_usd, 0)) end,
            'charge_usd', gateway.show_usd(coalesce(f.charge_usd, 0)),
            'uncollected_usd', gateway.show_usd(coalesce(f.uncollected_usd, 0)),
            'latency_ms', gateway.describe_times(f.latency_counts, f.latency_ms::bigint, f.latencies::bigint),
            'time_to_first_token_ms', gateway.describe_times(f.first_token_counts, f.time_to_first_token_ms::bigint, f.first_tokens::bigint))
        order by i.start, g.name nulls last, g.group_id
    ), '[]'), (select count(*) from intervals) * (select count(*) from groups)
    into v_found, v_points
    from intervals as i
    cross join groups as g
    left join found as f on f.start = i.start and f.group_id = g.group_id and f.provider = g.provider
    -- counted before any of them is made
    where p_group_by is null or (select count(*) from intervals) * (select count(*) from groups) <= c_most_points;
    return case when p_group_by is null or v_points <= c_most_points then v_found end;
end
$$;
revoke all on function api.read_usage(timestamptz, timestamptz, text, bigint, bigint, text, text, boolean) from public;
grant execute on function api.read_usage(timestamptz, timestamptz, text, bigint, bigint, text, text, boolean) to service_role;
comment on function api.read_usage(timestamptz, timestamptz, text, bigint, bigint, text, text, boolean) is 'Usage by hour, day or month, as a whole or by model, key or provider.';

-- api.read_monitor: what a customer (or one key of it) has used: ever, today and this month, by the customer's clock.
-- {"total_requests", "total_tokens", "total_charge_usd", "requests_today", …, "requests_this_month", …, "average_tokens_per_request",
-- "most_used_model": this month's by requests, or if there were none, ever's, "last_request_time", "average_latency_ms": this month's, "latency_ms",
-- "time_to_first_token_ms": percentiles, this month's, "input_tokens", "output_tokens": of all classes, ever, "errors", "cost_usd",
-- "cost_today_usd", "cost_this_month_usd": null in flat mode}; null where there is no such customer. Requests that still run are not in it.
-- Reads the months that there are, and what came since the last closing.
create function api.read_monitor(p_customer_id bigint, p_key_id bigint default null) returns jsonb
language plpgsql stable security definer set search_path = '' set plan_cache_mode = force_generic_plan
as $$
declare
    v_time_zone text := (select time_zone from gateway.customers where id = p_customer_id);
    v_show_cost boolean := (select billing_mode = 'markup' from gateway.settings);
    v_day timestamptz := gateway.window_start('day', now(), v_time_zone);
    v_month timestamptz := gateway.window_start('month', now(), v_time_zone);
    v_model text;
    v_found jsonb;
begin
    if v_time_zone is null then
        return null;
    end if;
    select (select m.name from gateway.models as m where m.id = used.model_id) into v_model
    from (
        select u.model_id, coalesce(sum(u.requests) filter (where x.this_month), 0) as this_month, sum(u.requests) as ever
        from gateway.find_usage(p_customer_id, p_key_id, 'month', case when p_key_id is null then 'model' else 'key_model' end, v_time_zone,
                                '-infinity', 'infinity') as u
        cross join lateral (
            select case u.per when 'quarter' then u.period at time zone 'UTC' >= v_month else u.period >= v_month at time zone v_time_zone end as this_month
        ) as x
        group by u.model_id
    ) as used
    order by used.this_month desc, used.ever desc, used.model_id
    limit 1;

    with used as (
        select 'ever' as time, u.*
        from gateway.find_usage(p_customer_id, p_key_id, 'month', case when p_key_id is null then 'all' else 'key' end, v_time_zone,
                                '-infinity', 'infinity') as u
        union all
        select 'day', u.*
        from gateway.find_usage(p_customer_id, p_key_id, 'day', case when p_key_id is null then 'all' else 'key' end, v_time_zone,
                                v_day, gateway.window_end('day', v_day, v_time_zone)) as u
    ),
    timed as materialized (
        select u.*, u.time = 'ever' as ever, u.time = 'day' as day,
            u.time = 'ever' and case u.per
                when 'quarter' then u.period at time zone 'UTC' >= v_month
                else u.period >= v_month at time zone v_time_zone
            end as month
        from used as u
    ),
    sums as (
        select
            coalesce(sum(requests) filter (where ever), 0) as requests, coalesce(sum(requests) filter (where month), 0) as requests_month,
            coalesce(sum(requests) filter (where day), 0) as requests_day,
            coalesce(sum(total_tokens) filter (where ever), 0) as tokens, coalesce(sum(total_tokens) filter (where month), 0) as tokens_month,
            coalesce(sum(total_tokens) filter (where day), 0) as tokens_day,
            coalesce(sum(charge_usd) filter (where ever), 0) as charge, coalesce(sum(charge_usd) filter (where month), 0) as charge_month,
            coalesce(sum(charge_usd) filter (where day), 0) as charge_day,
            coalesce(sum(cost_usd) filter (where ever), 0) as cost, coalesce(sum(cost_usd) filter (where month), 0) as cost_month,
            coalesce(sum(cost_usd) filter (where day), 0) as cost_day,
            coalesce(sum(errors) filter (where ever), 0) as errors,
            coalesce(sum(output_tokens + audio_output_tokens + image_output_tokens) filter (where ever), 0) as output_tokens,
            sum(latency_ms) filter (where month) as latency_ms, sum(latencies) filter (where month) as latencies,
            gateway.sum_counts(array_agg(row(latency_counts)::gateway.time_counts) filter (where month)) as latency_counts,
            sum(time_to_first_token_ms) filter (where month) as first_token_ms, sum(first_tokens) filter (where month) as first_tokens,
            gateway.sum_counts(array_agg(row(first_token_counts)::gateway.time_counts) filter (where month)) as first_token_counts,
            max(last_request_at) as last_request_at
        from timed
    )
    select jsonb_build_object(
        'total_requests', requests, 'total_tokens', tokens, 'total_charge_usd', gateway.show_usd(charge),
        'requests_today', requests_day, 'tokens_today', tokens_day, 'charge_today_usd', gateway.show_usd(charge_day),
        'requests_this_month', requests_month, 'tokens_this_month', tokens_month, 'charge_this_month_usd', gateway.show_usd(charge_month),
        'average_tokens_per_request', coalesce(round(tokens / nullif(requests, 0), 2), 0),
        'most_used_model', v_model,
        'last_request_time', last_request_at,
        'average_latency_ms', round(latency_ms / nullif(latencies, 0), 1),
        'latency_ms', gateway.describe_times(latency_counts, latency_ms::bigint, latencies::bigint),
        'time_to_first_token_ms', gateway.describe_times(first_token_counts, first_token_ms::bigint, first_tokens::bigint),
        'input_tokens', tokens - output_tokens, 'output_tokens', output_tokens, 'errors', errors,
        'cost_usd', case when v_show_cost then gateway.show_usd(cost) end,
        'cost_today_usd', case when v_show_cost then gateway.show_usd(cost_day) end,
        'cost_this_month_usd', case when v_show_cost then gateway.show_usd(cost_month) end)
    into v_found
    from sums;
    return v_found;
end
$$;
revoke all on function api.read_monitor(bigint, bigint) from public;
grant execute on function api.read_monitor(bigint, bigint) to service_role;
comment on function api.read_monitor(bigint, bigint) is 'What a customer or a key has used: ever, today and this month.';

-- api.read_totals: what a customer has used, ever: {"input_tokens", "output_tokens": of all classes, "total_tokens", "cost_usd", "charge_usd"};
-- null where there is no such customer. In flat mode the cost is null. Reads the months that there are, and what came since the last closing.
create function api.read_totals(p_customer_id bigint) returns jsonb
language plpgsql stable security definer set search_path = '' set plan_cache_mode = force_generic_plan
as $$
begin
    return (
        select jsonb_build_object(
            'input_tokens', t.tokens - t.output_tokens, 'output_tokens', t.output_tokens, 'total_tokens', t.tokens,
            'cost_usd', case when s.billing_mode = 'markup' then gateway.show_usd(t.cost) end, 'charge_usd', gateway.show_usd(t.charge))
        from gateway.customers as c
        cross join gateway.settings as s
        cross join lateral (
            select coalesce(sum(u.total_tokens), 0) as tokens,
                coalesce(sum(u.output_tokens + u.audio_output_tokens + u.image_output_tokens), 0) as output_tokens,
                coalesce(sum(u.cost_usd), 0) as cost, coalesce(sum(u.charge_usd), 0) as charge
            from gateway.find_usage(c.id, null, 'month', 'all', c.time_zone, '-infinity', 'infinity') as u
        ) as t
        where c.id = p_customer_id
    );
end
$$;
revoke all on function api.read_totals(bigint) from public;
grant execute on function api.read_totals(bigint) to service_role;
comment on function api.read_totals(bigint) is 'What a customer has used, ever.';
