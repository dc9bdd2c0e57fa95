-- api.list_top_customers: who was charged the most on the days of UTC from p_from to before p_to, at most p_limit of them, the most first:
-- [{"customer_id", "name", "active", "requests", "total_tokens", "charge_usd"}]. Requests count when they have ended, on the day on which
-- they were admitted. Reads a row for each key and day, and what has come since the last closing: the same however long the log is.
-- Days before usage_detail_days are gone. Reads only.
create function api.list_top_customers(p_from date, p_to date, p_limit integer) returns jsonb
language plpgsql stable security definer set search_path = '' set plan_cache_mode = force_custom_plan
as $$
declare
    v_start timestamptz := p_from::timestamp at time zone 'UTC';
    v_end timestamptz := p_to::timestamp at time zone 'UTC';
    v_closed_until timestamptz := coalesce((select closed_until from gateway.usage_closing), '-infinity'::timestamptz);
begin
    return (
        select coalesce(jsonb_agg(jsonb_build_object(
            'customer_id', s.customer_id, 'name', c.name, 'active', c.active, 'requests', s.requests, 'total_tokens', s.total_tokens,
            'charge_usd', gateway.show_usd(s.charge_usd)
        ) order by s.charge_usd desc, s.requests desc, s.customer_id), '[]')
        from (
            select u.customer_id, sum(u.requests) as requests, sum(u.total_tokens) as total_tokens, sum(u.charge_usd) as charge_usd
            from (
                select customer_id, requests, total_tokens, charge_usd
                from gateway.key_days
                where day >= p_from and day < p_to
                union all
                select customer_id, requests, total_tokens, charge_usd
                from gateway.usage_rollups
                where bucket >= greatest(v_closed_until, v_start) and bucket < v_end
                union all
                select customer_id, requests, total_tokens, charge_usd
                from gateway.usage_rollups
                where late and bucket >= v_start and bucket < least(v_closed_until, v_end)
            ) as u
            group by u.customer_id
            having sum(u.requests) > 0
            order by charge_usd desc, requests desc, u.customer_id
            limit p_limit
        ) as s
        join gateway.customers as c on c.id = s.customer_id
    );
end
$$;
revoke all on function api.list_top_customers(date, date, integer) from public;
grant execute on function api.list_top_customers(date, date, integer) to service_role;
comment on function api.list_top_customers(date, date, integer) is 'Who was charged the most over some days.';
