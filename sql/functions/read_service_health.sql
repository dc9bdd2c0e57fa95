-- api.read_service_health: of the services that are not deleted what is not counted from requests: [{"service_id", "failing_since",
-- "set_aside_until": null where it is not set aside just now; either of the service itself or of one of its routes, "cost_compared": the last
-- day whose costs the provider told, {"day", "requests", "cost_usd", "provider_cost_usd"}, or null}]. Reads only.
create function api.read_service_health() returns jsonb
language plpgsql stable security definer set search_path = ''
as $$
begin
    return (
        select coalesce(jsonb_agg(jsonb_build_object(
            'service_id', s.id,
            'failing_since', h.failing_since,
            'set_aside_until', case when h.set_aside_until > now() then h.set_aside_until end,
            'cost_compared', (
                select jsonb_build_object(
                    'day', d.day, 'requests', d.requests, 'cost_usd', gateway.show_usd(d.cost_usd),
                    'provider_cost_usd', gateway.show_usd(d.provider_cost_usd))
                from gateway.provider_costs as d
                where d.service_id = s.id
                order by d.day desc
                limit 1
            )) order by s.id), '[]')
        from gateway.services as s
        left join (
            select service_id, min(failing_since) as failing_since, max(set_aside_until) as set_aside_until
            from gateway.service_health
            group by service_id
        ) as h on h.service_id = s.id
        where s.deleted_at is null
    );
end
$$;
revoke all on function api.read_service_health() from public;
grant execute on function api.read_service_health() to service_role;
comment on function api.read_service_health() is 'Which services fail just now, and how our prices compare with what providers tell.';
