-- api.compare_provider_costs: sums up what providers told of yesterday's costs (UTC), once, half an hour after the day, and raises
-- provider.cost_differs for each service whose sum is more than a tenth off ours, and more than a cent. Returns how many services it compared.
-- Reads the requests whose cost was told, through their own index. For the maintenance function.
create function api.compare_provider_costs() returns integer
language plpgsql security definer set search_path = ''
as $$
declare
    v_start timestamptz := date_trunc('day', now() - interval '30 minutes', 'UTC') - interval '1 day';
    v_day date := (v_start at time zone 'UTC')::date;
    v_made gateway.provider_costs;
    v_count integer := 0;
begin
    if exists (select from gateway.provider_costs where day = v_day) then
        return 0;
    end if;
    for v_made in
        insert into gateway.provider_costs (day, service_id, requests, cost_usd, provider_cost_usd)
        select v_day, service_id, count(*), least(sum(cost_usd), 9999999999), least(greatest(sum(provider_cost_usd), -9999999999), 9999999999)
        from gateway.requests
        where provider_cost_usd is not null and service_id is not null and admitted_at >= v_start and admitted_at < v_start + interval '1 day'
        group by service_id
        on conflict do nothing
        returning *
    loop
        v_count := v_count + 1;
        continue when abs(v_made.provider_cost_usd - v_made.cost_usd) <= greatest(v_made.cost_usd * 0.1, 0.01);
        perform gateway.raise_event('provider.cost_differs', 'service:' || s.id, jsonb_build_object(
            'service_id', s.id, 'service', s.name, 'provider', s.provider, 'day', v_made.day, 'requests', v_made.requests,
            'cost_usd', gateway.show_usd(v_made.cost_usd), 'provider_cost_usd', gateway.show_usd(v_made.provider_cost_usd)))
        from gateway.services as s
        where s.id = v_made.service_id;
    end loop;
    return v_count;
end
$$;
revoke all on function api.compare_provider_costs() from public;
grant execute on function api.compare_provider_costs() to service_role;
comment on function api.compare_provider_costs() is 'Holds yesterday''s costs by our prices against what providers told; the maintenance function calls it every minute.';
