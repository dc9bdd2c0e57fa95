-- api.read_credits: what a customer has bought and used in all, in USD: {"total_credits_usd", "total_usage_usd"}; their difference is the
-- balance, so that what corrections took away was never bought. Null where there is no such customer. Costs the same however many requests there
-- were: only entries that are not a request's are summed. Reads only.
create function api.read_credits(p_customer_id bigint) returns jsonb
language plpgsql stable security definer set search_path = ''
as $$
begin
    return (
        select jsonb_build_object(
            'total_credits_usd', gateway.show_usd(paid.usd), 'total_usage_usd', gateway.show_usd(paid.usd - a.balance_usd))
        from gateway.accounts as a
        cross join lateral (
            select coalesce(sum(e.amount_usd), 0) as usd
            from gateway.ledger_entries as e
            where e.customer_id = a.customer_id and e.request_id is null
        ) as paid
        where a.customer_id = p_customer_id
    );
end
$$;
revoke all on function api.read_credits(bigint) from public;
grant execute on function api.read_credits(bigint) to service_role;
comment on function api.read_credits(bigint) is 'What a customer has bought and used in all.';

-- api.read_key: the calling key about itself: {"name", "prefix", "scopes", "expires_at", "is_free_tier", "usage": {"total_usd", "day_usd",
-- "week_usd", "month_usd"}, "spend_limit": {"limit_usd", "remaining_usd", "per": day | month} | null, "requests_per_minute"}, or null where the
-- customer has no such key.
--
-- Days, weeks (from Monday) and months are the customer's. spend_limit: of the key's daily and monthly spending limits, and its makers', the one
-- that leaves it least; running requests count at their hold. requests_per_minute: of all models together or, where that is unlimited, of each. is_free_tier: nothing was ever paid in. Reads only. No scans, as for
-- api.admit_request.
create function api.read_key(p_customer_id bigint, p_key_id bigint) returns jsonb
language plpgsql stable security definer set search_path = '' set enable_seqscan = off set jit = off
as $$
declare
    v_key gateway.api_keys;
    v_time_zone text;
    v_limits gateway.limit_state[];
    v_monitor jsonb;
    v_week numeric;
begin
    select * into v_key from gateway.api_keys where id = p_key_id and customer_id = p_customer_id;
    if v_key.id is null then
        return null;
    end if;
    select c.time_zone into v_time_zone from gateway.customers as c where c.id = p_customer_id;
    v_limits := gateway.read_counters(gateway.applicable_limits(
        p_key_id, p_customer_id, array[-1], '{}', v_time_zone, clock_timestamp(), v_key.maker_key_ids));
    v_monitor := api.read_monitor(p_customer_id => p_customer_id, p_key_id => p_key_id);
    select sum((u ->> 'charge_usd')::numeric) into v_week
    from jsonb_array_elements(api.read_usage(
        p_customer_id => p_customer_id, p_key_id => p_key_id, p_from => date_trunc('week', now(), v_time_zone),
        p_to => gateway.window_end('day', gateway.window_start('day', now(), v_time_zone), v_time_zone), p_interval => 'day',
        p_time_zone => v_time_zone)) as u;
    return jsonb_build_object(
        'name', v_key.name, 'prefix', v_key.prefix, 'scopes', v_key.scopes, 'expires_at', v_key.expires_at,
        'is_free_tier', not exists (
            select from gateway.ledger_entries as e where e.customer_id = p_customer_id and e.request_id is null and e.amount_usd > 0),
        'usage', jsonb_build_object(
            'total_usd', v_monitor ->> 'total_charge_usd', 'day_usd', v_monitor ->> 'charge_today_usd',
            'week_usd', gateway.show_usd(coalesce(v_week, 0)), 'month_usd', v_monitor ->> 'charge_this_month_usd'),
        'spend_limit', (
            select jsonb_build_object(
                'limit_usd', gateway.show_usd(l.spend_usd), 'remaining_usd', gateway.show_usd(greatest(l.spend_usd - l.used_spend_usd, 0)),
                'per', l.per)
            from unnest(v_limits) as l
            where l.subject = 'key' and l.model_id = 0 and l.per in ('day', 'month') and l.spend_usd is not null
            order by l.spend_usd - l.used_spend_usd, l.per desc
            limit 1
        ),
        'requests_per_minute', (
            select l.requests
            from unnest(v_limits) as l
            where l.subject = 'key' and l.per = 'minute' and l.requests is not null
            order by l.model_id desc, l.requests
            limit 1
        ));
end
$$;
revoke all on function api.read_key(bigint, bigint) from public;
grant execute on function api.read_key(bigint, bigint) to service_role;
comment on function api.read_key(bigint, bigint) is 'What a key may know of itself: its limits and what it used.';
