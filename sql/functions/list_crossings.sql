-- api.list_crossings: soft marks that were crossed, the newest first: of a customer and its keys; with p_key_id of that key of it alone; of
-- everybody and of the services where p_customer_id is null. [{"subject": key | customer | service, "id", "name": a service's name or a key's
-- prefix, "customer_id", "model", "limit": such as tokens_per_day, "window_start", "mark", "used", "crossed_at"}]; USD are exact text, requests
-- and tokens numbers. Reads only.
create function api.list_crossings(p_customer_id bigint default null, p_limit integer default 20, p_key_id bigint default null) returns jsonb
language plpgsql stable security definer set search_path = '' set plan_cache_mode = force_custom_plan
as $$
begin
    return (
        select coalesce(jsonb_agg(jsonb_build_object(
            'subject', k.subject, 'id', k.subject_id,
            'name', case k.subject
                when 'key' then (select a.prefix from gateway.api_keys as a where a.id = k.subject_id)
                when 'service' then (select s.name from gateway.services as s where s.id = k.subject_id)
            end,
            'customer_id', k.customer_id,
            'model', (select m.name from gateway.models as m where m.id = k.model_id),
            'limit', k.metric || '_per_' || k.per,
            'window_start', k.window_start,
            'mark', gateway.show_metric(k.metric, k.mark),
            'used', gateway.show_metric(k.metric, k.used),
            'crossed_at', k.at
        ) order by k.at desc), '[]')
        from (
            select * from gateway.limit_crossings
            where (p_customer_id is null or customer_id = p_customer_id) and (p_key_id is null or (subject = 'key' and subject_id = p_key_id))
            order by at desc
            limit p_limit
        ) as k
    );
end
$$;
revoke all on function api.list_crossings(bigint, integer, bigint) from public;
grant execute on function api.list_crossings(bigint, integer, bigint) to service_role;
comment on function api.list_crossings(bigint, integer, bigint) is 'Soft marks that were crossed, the newest first.';
