-- api.read_time_series: usage over time, as GET /v1/usage shows it: what is left out is filled in, then api.read_usage reads the rollups.
--
-- {"data": as api.read_usage tells, "from", "to", "interval", "time_zone", "group_by"}, or {"error": unknown_customer | unknown_key |
-- unknown_time_zone | customer_needed | empty_range | range_too_long | too_many_points}. p_customer_id null: all customers, but not by key; with a
-- key, its customer, which has to be p_customer_id where that is given.
--
-- p_from (included) and p_to (left out) are times, or days in the time zone, each of them included; by default 24 hours, 30 days
-- or 12 months up to now. They are widened to whole intervals, so that every figure is an interval's own, and so answered. At most 31 days by the hour, 400
-- days by the day, 10 years by the month; with groups at most 10,000 points. p_time_zone: by default the customer's. p_show_cost: an admin's
-- call; others are not shown the provider's cost in flat mode. Reads only.
create function api.read_time_series(
    p_customer_id bigint default null, p_key_id bigint default null, p_from text default null, p_to text default null,
    p_interval text default 'day', p_group_by text default null, p_time_zone text default null, p_show_cost boolean default false
) returns jsonb
language plpgsql stable security definer set search_path = ''
as $$
declare
    v_customer_id bigint := p_customer_id;
    v_time_zone text := coalesce(p_time_zone, 'UTC');
    v_from timestamptz;
    v_to timestamptz;
    v_start timestamptz;
    v_data jsonb;
begin
    if p_key_id is not null then
        select k.customer_id into v_customer_id
        from gateway.api_keys as k
        where k.id = p_key_id and k.customer_id = coalesce(p_customer_id, k.customer_id);
        if not found then
            return jsonb_build_object('error', 'unknown_key');
        end if;
    end if;
    if v_customer_id is not null then
        -- its own in other letters is its own, whose days are kept for ever
        select case when lower(p_time_zone) = lower(c.time_zone) then c.time_zone else coalesce(p_time_zone, c.time_zone) end
        into v_time_zone
        from gateway.customers as c
        where c.id = v_customer_id;
        if not found then
            return jsonb_build_object('error', 'unknown_customer');
        end if;
    elsif p_group_by = 'key' then
        return jsonb_build_object('error', 'customer_needed');
    end if;
    if not gateway.is_time_zone(v_time_zone) then
        return jsonb_build_object('error', 'unknown_time_zone');
    end if;

    v_to := coalesce(gateway.read_moment(p_to, v_time_zone, true), now());
    v_from := coalesce(gateway.read_moment(p_from, v_time_zone, false), case p_interval
        when 'hour' then v_to - interval '23 hours'
        when 'day' then (v_to at time zone v_time_zone - interval '29 days') at time zone v_time_zone
        else (v_to at time zone v_time_zone - interval '11 months') at time zone v_time_zone
    end);
    if v_from >= v_to then
        return jsonb_build_object('error', 'empty_range');
    elsif v_to > (v_from at time zone v_time_zone + case p_interval
        when 'hour' then interval '31 days' when 'day' then interval '400 days' else interval '10 years' end) at time zone v_time_zone then
        return jsonb_build_object('error', 'range_too_long');
    end if;
    v_from := gateway.window_start(p_interval, v_from, v_time_zone);
    v_start := gateway.window_start(p_interval, v_to, v_time_zone);
    if v_start < v_to then
        v_to := gateway.window_end(p_interval, v_start, v_time_zone);
    end if;

    v_data := api.read_usage(
        p_customer_id => v_customer_id, p_key_id => p_key_id, p_from => v_from, p_to => v_to, p_interval => p_interval,
        p_group_by => p_group_by, p_time_zone => v_time_zone, p_for_customer => not p_show_cost);
    if v_data is null then
        return jsonb_build_object('error', 'too_many_points');
    end if;
    return jsonb_build_object(
        'data', v_data, 'from', v_from, 'to', v_to, 'interval', p_interval, 'time_zone', v_time_zone, 'group_by', p_group_by);
end
$$;
revoke all on function api.read_time_series(bigint, bigint, text, text, text, text, text, boolean) from public;
grant execute on function api.read_time_series(bigint, bigint, text, text, text, text, text, boolean) to service_role;
comment on function api.read_time_series(bigint, bigint, text, text, text, text, text, boolean) is 'Usage over time by hour, day or month, of a customer or of all, with what was left out filled in.';
