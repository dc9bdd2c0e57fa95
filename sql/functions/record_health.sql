-- Setting services aside that fail: what settlements see of them, and what admissions make of it.
--
-- A service is set aside, and then tried last, never dropped:
-- 1. after three requests in a row for which it failed, each within 60 s of the one before: for 30 s;
-- 2. at once where its key, credit or address there is refused: for 60 s;
-- 3. for as long as the provider said (retry-after). That alone is no failure, and nobody is told.
-- When the time of 1 or 2 is over, one request probes it: if it fails, the service is set aside for twice as long, up to ten minutes; if
-- it succeeds, all is forgotten. What is said of one model alone (404: unknown there; 429: rate limited) holds for its route alone.
-- Times are those of the failures, not of their settlement: an answer may have taken long in between.

create function gateway.describe_health(p_service_id bigint) returns jsonb
language plpgsql stable set search_path = ''
as $$
begin
    return (
        select coalesce(jsonb_agg(jsonb_build_object(
            'model', m.name, 'failures', h.failures, 'failing_since', h.failing_since, 'last_failure_at', h.last_failure_at,
            'last_status', h.last_status, 'last_fault', h.last_fault, 'set_aside_until', h.set_aside_until) order by h.route_id), '[]')
        from gateway.service_health as h
        left join gateway.routes as r on r.id = h.route_id
        left join gateway.offers as o on o.id = r.offer_id
        left join gateway.models as m on m.id = o.model_id
        where h.service_id = p_service_id
    );
end
$$;
comment on function gateway.describe_health(bigint) is 'What of a service fails just now, as an admin sees it: itself, and single models.';
revoke all on function gateway.describe_health(bigint) from public;

create function gateway.raise_health_event(p_kind text, p_health gateway.service_health) returns void
language plpgsql set search_path = ''
as $$
begin
    perform gateway.raise_event(p_kind, 'service:' || s.id, jsonb_build_object(
        'service_id', s.id, 'service', s.name, 'provider', s.provider,
        'model', (
            select m.name
            from gateway.routes as r
            join gateway.offers as o on o.id = r.offer_id
            join gateway.models as m on m.id = o.model_id
            where r.id = p_health.route_id
        ),
        'fault', p_health.last_fault, 'status', p_health.last_status, 'failures', p_health.failures,
        'failing_since', p_health.failing_since, 'set_aside_until', p_health.set_aside_until))
    from gateway.services as s
    where s.id = p_health.service_id;
end
$$;
comment on function gateway.raise_health_event(text, gateway.service_health) is 'Tells the operator that a service was set aside, or is back.';
revoke all on function gateway.raise_health_event(text, gateway.service_health) from public;

create function gateway.number_of(p_value jsonb, p_least numeric, p_most numeric) returns numeric
language plpgsql immutable set search_path = ''
as $$
begin
    if jsonb_typeof(p_value) = 'number' then
        return least(greatest(p_value::numeric, p_least), p_most);
    end if;
    return null;
end
$$;
comment on function gateway.number_of(jsonb, numeric, numeric) is 'A number of a document within bounds; null for anything else, as no settlement may fail for what it is told beside the bill.';
revoke all on function gateway.number_of(jsonb, numeric, numeric) from public;

-- gateway.record_failures: p_failed_routes as api.settle_request takes them, in the order in which they failed: {"route_id", "fault", "status",
-- "after_ms": since the admission, "retry_after": in seconds}. Of several failures of one service the last counts; none counts of
-- p_answered_service_id, which has answered after them. Locks the rows of service_health, in their order.
create function gateway.record_failures(p_request gateway.requests, p_failed_routes jsonb, p_answered_service_id bigint) returns void
language plpgsql set search_path = ''
as $$
declare
    c_in_a_row constant integer := 3;
    c_apart constant interval := interval '60 seconds';
    c_oldest constant interval := interval '10 minutes';  -- what failed longer ago says nothing of now
    c_longest constant interval := interval '10 minutes';
    v_failed record;
    v_at timestamptz;
    v_until timestamptz;  -- as the provider said
    v_health gateway.service_health;
    v_counts boolean;
    v_trips boolean;
begin
    for v_failed in
        select distinct on (service_id, scope) *
        from (
            select (r.told ->> 'service_id')::bigint as service_id,
                case when gateway.number_of(f.told -> 'status', 0, 999) = 404
                    or (gateway.number_of(f.told -> 'status', 0, 999) = 429 and f.told ->> 'fault' = 'transient')
                    then (r.told ->> 'route_id')::bigint else 0
                end as scope,
                f.told ->> 'fault' as fault, gateway.number_of(f.told -> 'status', 0, 999)::integer as status,
                coalesce(gateway.number_of(f.told -> 'after_ms', 0, 86400000), 0) as after_ms,
                gateway.number_of(f.told -> 'retry_after', 0, 3600) as retry_after, f.position
            from jsonb_array_elements(p_failed_routes) with ordinality as f (told, position)
            join jsonb_array_elements(p_request.routes) as r (told) on r.told -> 'route_id' = f.told -> 'route_id'
        ) as each
        where fault in ('transient', 'operator', 'protocol') and service_id is distinct from p_answered_service_id
        order by service_id, scope, position desc
    loop
        v_at := p_request.admitted_at + make_interval(secs => v_failed.after_ms * 0.001);
        v_until := v_at + make_interval(secs => v_failed.retry_after);
        continue when v_at < clock_timestamp() - c_oldest;
        -- of a service that is set aside already there is nothing to say: in an outage thousands come here, and none of them waits
        continue when exists (
            select from gateway.service_health as h
            where h.service_id = v_failed.service_id and h.route_id = v_failed.scope and h.set_aside_until >= greatest(v_at, v_until)
        );
        insert into gateway.service_health (service_id, route_id, failures, failing_since, last_failure_at, last_status, last_fault)
        values (v_failed.service_id, v_failed.scope, 0, v_at, v_at, v_failed.status, v_failed.fault)
        on conflict do nothing;
        select * into v_health from gateway.service_health
        where service_id = v_failed.service_id and route_id = v_failed.scope
        for update;
        continue when not found  -- deleted in between: it answers again
            or v_health.set_aside_until >= greatest(v_at, v_until);

        v_counts := v_failed.status is distinct from 429 or v_failed.fault = 'operator' or v_until is null;
        if v_counts and v_health.set_asides = 0 and v_at > v_health.last_failure_at + c_apart then
            v_health.failures := 0;
            v_health.failing_since := v_at;
        end if;
        v_health.failures := v_health.failures + v_counts::integer;
        v_health.failing_since := least(v_health.failing_since, v_at);
        v_health.last_failure_at := greatest(v_health.last_failure_at, v_at);
        v_health.last_status := v_failed.status;
        v_health.last_fault := v_failed.fault;
        v_health.set_aside_until := greatest(v_health.set_aside_until, v_until);
        v_health.probing_until := null;
        v_trips := v_counts and (v_failed.fault = 'operator' or v_health.set_asides > 0 or v_health.failures >= c_in_a_row);
        if v_trips then
            v_health.set_asides := v_health.set_asides + 1;
            v_health.set_aside_until := greatest(v_health.set_aside_until, v_at + least(
                c_longest,
                case when v_failed.fault = 'operator' then interval '60 seconds' else interval '30 seconds' end
                    * power(2, least(v_health.set_asides - 1, 10))));
        end if;
        update gateway.service_health
        set (failures, failing_since, last_failure_at, last_status, last_fault, set_asides, set_aside_until, probing_until) = (
            v_health.failures, v_health.failing_since, v_health.last_failure_at, v_health.last_status, v_health.last_fault,
            v_health.set_asides, v_health.set_aside_until, v_health.probing_until)
        where service_id = v_health.service_id and route_id = v_health.route_id;
        if v_trips then
            perform gateway.raise_health_event('provider.failing', v_health);
        end if;
    end loop;
end
$$;
comment on function gateway.record_failures(gateway.requests, jsonb, bigint) is 'Counts the services that failed a request, and sets aside those that keep failing.';
revoke all on function gateway.record_failures(gateway.requests, jsonb, bigint) from public;

-- gateway.record_success: forgets what failed of a service and of one of its routes, as it has answered; p_at: when it began to. What is set aside
-- comes back only by an answer that is younger than its last failure: in an outage old streams may still end well. Waits for nobody: whoever
-- holds the row will have heard of the service after us.
create function gateway.record_success(p_service_id bigint, p_route_id bigint, p_at timestamptz) returns void
language plpgsql set search_path = ''
as $$
declare
    v_health gateway.service_health;
begin
    for v_health in
        select *
        from gateway.service_health
        where service_id = p_service_id and route_id in (0, p_route_id) and (set_aside_until is null or last_failure_at < p_at)
        order by route_id
        for update skip locked
    loop
        delete from gateway.service_health where service_id = v_health.service_id and route_id = v_health.route_id;
        if v_health.set_asides > 0 then
            perform gateway.raise_health_event('provider.recovered', v_health);
        end if;
    end loop;
end
$$;
comment on function gateway.record_success(bigint, bigint, timestamptz) is 'Forgets what failed of a service that answers again.';
revoke all on function gateway.record_success(bigint, bigint, timestamptz) from public;

-- gateway.begin_probe: whether this request may probe a service whose time aside is over: one does, for 30 s. Waits for nobody.
create function gateway.begin_probe(p_service_id bigint, p_route_id bigint, p_at timestamptz) returns boolean
language plpgsql set search_path = ''
as $$
begin
    update gateway.service_health as h
    set probing_until = p_at + interval '30 seconds'
    from (
        select service_id, route_id
        from gateway.service_health
        where service_id = p_service_id and route_id in (0, p_route_id) and set_asides > 0
            and set_aside_until <= p_at and (probing_until is null or probing_until <= p_at)
        order by route_id
        for update skip locked
    ) as due
    where (h.service_id, h.route_id) = (due.service_id, due.route_id);
    return found;
end
$$;
comment on function gateway.begin_probe(bigint, bigint, timestamptz) is 'Lets one request, and no other, try a service again that was set aside.';
revoke all on function gateway.begin_probe(bigint, bigint, timestamptz) from public;
