create function gateway.describe_service(p_service gateway.services) returns jsonb
language plpgsql stable set search_path = ''
as $$
begin
    return to_jsonb(p_service) - 'provider_key' - 'deleted_at' || jsonb_build_object(
        'provider_key_set', p_service.provider_key is not null,
        'limits', gateway.show_limits(p_service_id => p_service.id) -> 'rate_limits',
        'health', gateway.describe_health(p_service.id)) || (
        select jsonb_build_object(
            'enabled_models', coalesce(jsonb_agg(m.name order by m.name) filter (where r.active), '[]'),
            'routes', coalesce(jsonb_agg(jsonb_build_object(
                'id', r.id, 'model', m.name, 'upstream_model', o.upstream_model, 'priority', r.priority,
                'weight', trim_scale(r.weight), 'active', r.active) order by m.name), '[]'))
        from gateway.routes as r
        join gateway.offers as o on o.id = r.offer_id
        join gateway.models as m on m.id = o.model_id
        where r.service_id = p_service.id
    );
end
$$;
comment on function gateway.describe_service(gateway.services) is 'A service as an admin sees it: everything but the provider key.';
revoke all on function gateway.describe_service(gateway.services) from public;

-- gateway.enable_models: p_models are names (ours or the provider's), or objects {"model": name, "priority"?, "weight"?, "active"?}, which change
-- what they name of the route and leave the rest: a new one has the service's priority, weight 1 and is active. Of two entries for one route
-- the last holds.
create function gateway.enable_models(p_service gateway.services, p_models jsonb) returns text
language plpgsql set search_path = ''
as $$
declare
    v_unknown text;
    v_routes jsonb;  -- offer -> what is said of it
begin
    select w.name into v_unknown
    from jsonb_array_elements(p_models) as e (entry)
    cross join lateral (select coalesce(e.entry ->> 'model', e.entry #>> '{}') as name) as w
    where not exists (
        select from gateway.offers as o
        join gateway.models as m on m.id = o.model_id
        where o.provider = p_service.provider and w.name in (m.name, o.upstream_model)
    )
    limit 1;
    if found then
        return v_unknown;
    end if;
    v_routes := (
        select coalesce(jsonb_object_agg(o.id, case when jsonb_typeof(e.entry) = 'object' then e.entry else '{}' end order by e.position), '{}')
        from jsonb_array_elements(p_models) with ordinality as e (entry, position)
        join gateway.offers as o on o.provider = p_service.provider
        join gateway.models as m on m.id = o.model_id and coalesce(e.entry ->> 'model', e.entry #>> '{}') in (m.name, o.upstream_model)
    );
    insert into gateway.routes as r (service_id, offer_id, priority, weight, active)
    select p_service.id, w.key::bigint, (w.value ->> 'priority')::integer, coalesce((w.value ->> 'weight')::numeric, 1),
        coalesce((w.value ->> 'active')::boolean, true)
    from jsonb_each(v_routes) as w
    on conflict (service_id, offer_id) do nothing;
    update gateway.routes as r
    set priority = x.priority, weight = x.weight, active = x.active
    from (
        select k.id,
            case when w.value ? 'priority' then (w.value ->> 'priority')::integer else k.priority end as priority,
            coalesce((w.value ->> 'weight')::numeric, k.weight) as weight,
            w.value is not null and coalesce((w.value ->> 'active')::boolean, true) as active
        from gateway.routes as k
        left join jsonb_each(v_routes) as w on w.key = k.offer_id::text
        where k.service_id = p_service.id
    ) as x
    where r.id = x.id and (r.priority, r.weight, r.active) is distinct from (x.priority, x.weight, x.active);
    return null;
end
$$;
comment on function gateway.enable_models(gateway.services, jsonb) is 'Makes these models, and no others, the routes of a service. Returns a name that its provider does not offer, or null.';
revoke all on function gateway.enable_models(gateway.services, jsonb) from public;

-- api.reserve_service_id: the id of a service to be, because a provider key's encryption is bound to it.
create function api.reserve_service_id() returns bigint
language sql volatile security definer set search_path = ''
as $$ select nextval('gateway.services_id_seq'::regclass) $$;
revoke all on function api.reserve_service_id() from public;
grant execute on function api.reserve_service_id() to service_role;
comment on function api.reserve_service_id() is 'The id of a service to be.';

-- api.create_service: adds a service with its routes, all or nothing. p_provider_key is sealed already. Models are named by our name or
-- the provider's; p_routes: further ones with what is said of their routes (gateway.enable_models). p_limits: as api.set_limits takes them. Returns the service, or {"error": "name_taken" | "unknown_model", "model"}.
create function api.create_service(
    p_id bigint, p_name text, p_provider text, p_base_url text default null, p_provider_key text default null,
    p_provider_key_last4 text default null, p_enabled_models text[] default '{}', p_priority integer default 100,
    p_active boolean default true, p_actor text default null, p_limits jsonb default null, p_routes jsonb default '[]'
) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_service gateway.services;
    v_unknown text;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    begin
        insert into gateway.services (id, name, provider, base_url, provider_key, provider_key_last4, priority, active)
        values (p_id, p_name, p_provider, p_base_url, p_provider_key, p_provider_key_last4, p_priority, p_active)
        returning * into v_service;
        v_unknown := gateway.enable_models(v_service, to_jsonb(p_enabled_models) || p_routes);
        if v_unknown is not null then
            raise exception using errcode = 'no_data_found';
        end if;
    exception
        when unique_violation then
            return jsonb_build_object('error', 'name_taken');
        when no_data_found then
            return jsonb_build_object('error', 'unknown_model', 'model', v_unknown);
    end;
    if p_limits is not null then
        perform api.set_limits(p_service_id => p_id, p_rate_limits => p_limits, p_actor => p_actor);
    end if;
    return gateway.describe_service(v_service);
end
$$;
revoke all on function api.create_service(bigint, text, text, text, text, text, text[], integer, boolean, text, jsonb, jsonb) from public;
grant execute on function api.create_service(bigint, text, text, text, text, text, text[], integer, boolean, text, jsonb, jsonb) to service_role;
comment on function api.create_service(bigint, text, text, text, text, text, text[], integer, boolean, text, jsonb, jsonb) is 'Adds a service with its routes.';

-- api.update_service: changes what p_changes names (name, base_url, provider_key, provider_key_last4, priority, active, enabled_models, limits).
-- enabled_models: as gateway.enable_models takes them. What was held against the service's health is forgotten where its key, address or state
-- is set. The caller has seen to it that a key is sealed anew when the origin of the base URL changes. Returns the service, or
-- {"error": "unknown_service" | "name_taken" | "unknown_model"}.
create function api.update_service(p_id bigint, p_changes jsonb, p_actor text default null) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_service gateway.services;
    v_unknown text;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    begin
        select * into v_service from gateway.services where id = p_id and deleted_at is null for update;
        if v_service.id is null then
            return jsonb_build_object('error', 'unknown_service');
        end if;
        v_service := jsonb_populate_record(
            v_service, p_changes - array['id', 'provider', 'created_at', 'deleted_at', 'enabled_models', 'limits']);
        update gateway.services
        set (name, base_url, provider_key, provider_key_last4, priority, active) = (
            v_service.name, v_service.base_url, v_service.provider_key, v_service.provider_key_last4, v_service.priority, v_service.active)
        where id = p_id
        returning * into v_service;
        if p_changes ? 'enabled_models' then
            v_unknown := gateway.enable_models(v_service, p_changes -> 'enabled_models');
            if v_unknown is not null then
                raise exception using errcode = 'no_data_found';
            end if;
        end if;
    exception
        when unique_violation then
            return jsonb_build_object('error', 'name_taken');
        when no_data_found then
            return jsonb_build_object('error', 'unknown_model', 'model', v_unknown);
    end;
    if p_changes ?| array['base_url', 'provider_key', 'active'] then
        delete from gateway.service_health where service_id = p_id;
    end if;
    if p_changes ? 'limits' then
        perform api.set_limits(p_service_id => p_id, p_rate_limits => p_changes -> 'limits', p_actor => p_actor);
    end if;
    return gateway.describe_service(v_service);
end
$$;
revoke all on function api.update_service(bigint, jsonb, text) from public;
grant execute on function api.update_service(bigint, jsonb, text) to service_role;
comment on function api.update_service(bigint, jsonb, text) is 'Changes a service.';

-- api.delete_service: switches a service and its routes off for good; the row stays for the books. Returns whether there was one.
create function api.delete_service(p_id bigint, p_actor text default null) returns boolean
language plpgsql security definer set search_path = ''
as $$
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    update gateway.services set active = false, deleted_at = now(), provider_key = null where id = p_id and deleted_at is null;
    if not found then
        return false;
    end if;
    delete from gateway.service_health where service_id = p_id;
    return true;
end
$$;
revoke all on function api.delete_service(bigint, text) from public;
grant execute on function api.delete_service(bigint, text) to service_role;
comment on function api.delete_service(bigint, text) is 'Deletes a service and its provider key.';

-- api.read_connection: what it takes to call a service, for testing it: {"id", "provider", "base_url", "provider_key": sealed, "models":
-- [{"name", "upstream_model", "chats": whether it answers with text}], the cheapest first}, of the models that are enabled. Null where there is
-- no such service. Reads only.
create function api.read_connection(p_id bigint) returns jsonb
language plpgsql stable security definer set search_path = ''
as $$
begin
    return (
        select jsonb_build_object(
            'id', s.id, 'provider', s.provider, 'base_url', s.base_url, 'provider_key', s.provider_key,
            'models', coalesce((
                select jsonb_agg(jsonb_build_object(
                    'name', m.name, 'upstream_model', o.upstream_model, 'chats', 'text' = any (m.output_modalities)) order by p.output, m.name)
                from gateway.routes as r
                join gateway.offers as o on o.id = r.offer_id
                join gateway.models as m on m.id = o.model_id
                left join lateral (
                    select v.output
                    from gateway.prices as v
                    where v.offer_id = o.id and v.effective_from <= clock_timestamp() and (v.service_id = s.id or v.service_id is null)
                    order by v.service_id is null, v.effective_from desc
                    limit 1
                ) as p on true
                where r.service_id = s.id and r.active
            ), '[]'))
        from gateway.services as s
        where s.id = p_id and s.deleted_at is null
    );
end
$$;
revoke all on function api.read_connection(bigint) from public;
grant execute on function api.read_connection(bigint) to service_role;
comment on function api.read_connection(bigint) is 'What it takes to call a service, its key sealed.';

-- api.list_services: the services by id after p_after, or the one with p_id. Reads only.
create function api.list_services(p_limit integer, p_after bigint default 0, p_id bigint default null) returns jsonb
language sql stable security definer set search_path = ''
as $$
    select coalesce(jsonb_agg(gateway.describe_service(s) order by s.id), '[]')
    from (
        select * from gateway.services
        where deleted_at is null and id > p_after and (p_id is null or id = p_id)
        order by id
        limit p_limit
    ) as s
$$;
revoke all on function api.list_services(integer, bigint, bigint) from public;
grant execute on function api.list_services(integer, bigint, bigint) to service_role;
comment on function api.list_services(integer, bigint, bigint) is 'Services, a page of them.';
