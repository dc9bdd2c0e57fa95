drop function api.admit_request(text, text, text[], text, integer, bigint, bigint, integer, boolean, bigint, text, text, boolean, text, text);

drop function api.set_key_state(bigint, bigint, text, text, text);

drop function gateway.enable_models(gateway.services, text[]);

drop function api.create_service(bigint, text, text, text, text, text, text[], integer, boolean, text, jsonb);

alter table gateway.prices
    add column cache_write_1h numeric(20, 10) constraint prices_cache_write_1h_check check (cache_write_1h >= 0),
    drop constraint prices_are_numbers,
    add constraint prices_are_numbers check ('NaN' <> all (array[
        input, cached_input, cache_write, audio_input, image_input, output, audio_output, image_output, per_request, per_image,
        cache_write_1h]));

alter table gateway.requests
    add column cache_write_1h_tokens bigint constraint requests_cache_write_1h_tokens_check check (cache_write_1h_tokens >= 0);

alter type gateway.price_line add attribute cache_write_1h numeric;

alter type gateway.candidate add attribute output_modalities text[];

alter table gateway.settings
    add column unsupported_parameters text not null default 'refuse'
    constraint settings_unsupported_parameters_check check (unsupported_parameters in ('refuse', 'drop'));

alter type gateway.candidate add attribute probe_due boolean;

comment on column gateway.settings.unsupported_parameters is 'What becomes of a parameter that a provider can''t be told: refuse (422, naming it) or drop (left out, and named in x-gateway-dropped-parameters).';

-- What fails, and nothing of what answers: while all is well this table is empty, and who looks into it pays for an empty index.
-- No foreign keys: a settlement must not wait for an admin who is changing a service.
create table gateway.service_health (
    service_id bigint not null,
    route_id bigint not null default 0,
    failures integer not null constraint service_health_failures_check check (failures >= 0),
    failing_since timestamptz not null,
    last_failure_at timestamptz not null,
    last_status integer,
    last_fault text not null constraint service_health_last_fault_check check (last_fault in ('transient', 'operator', 'protocol')),
    set_asides integer not null default 0 constraint service_health_set_asides_check check (set_asides >= 0),
    set_aside_until timestamptz,
    probing_until timestamptz,
    constraint service_health_pkey primary key (service_id, route_id),
    constraint service_health_set_aside_ends check (set_asides = 0 or set_aside_until is not null)
);

alter table gateway.service_health enable row level security;

comment on table gateway.service_health is 'The services that fail just now. The first call that succeeds deletes the row; to take a service back at once, delete it by hand.';

comment on column gateway.service_health.service_id is 'The service.';

comment on column gateway.service_health.route_id is 'The one route that fails (its model is unknown there, or is rate limited); 0: the service as a whole.';

comment on column gateway.service_health.failures is 'Requests in a row for which it failed. A rate limit that says when it ends is none.';

comment on column gateway.service_health.failing_since is 'When the first of them did.';

comment on column gateway.service_health.last_failure_at is 'When the last of them did.';

comment on column gateway.service_health.last_status is 'HTTP status of the last one; empty: there was no answer.';

comment on column gateway.service_health.last_fault is 'Whose fault the last one was: transient (may pass), operator (key, credit or address), protocol (an answer that is none).';

comment on column gateway.service_health.set_asides is 'How often it was set aside since failing_since; each time for twice as long, up to ten minutes.';

comment on column gateway.service_health.set_aside_until is 'Until then it is tried last. Then one request probes it.';

comment on column gateway.service_health.probing_until is 'Until then a request probes it, and others still try it last.';

comment on column gateway.prices.cache_write_1h is 'USD per million input tokens written to the provider''s cache for an hour. Empty: requests that may write for so long are refused.';

comment on column gateway.requests.cache_write_1h_tokens is 'Those of cache_write_tokens that were written for an hour.';

-- What providers that tell their cost (OpenRouter) took in a day, beside what our prices came to. For comparison: nobody is charged by it.
create table gateway.provider_costs (
    day date not null,
    service_id bigint not null,
    requests bigint not null constraint provider_costs_requests_check check (requests > 0),
    cost_usd numeric(20, 10) not null,
    provider_cost_usd numeric(20, 10) not null,
    constraint provider_costs_pkey primary key (service_id, day)
);

create index provider_costs_day_idx on gateway.provider_costs (day);

-- Of the few providers that tell it; what else is read of the log does not grow by it.
create index requests_provider_cost_idx on gateway.requests (admitted_at) where provider_cost_usd is not null;

alter table gateway.provider_costs enable row level security;

comment on table gateway.provider_costs is 'What providers say that a day''s requests cost, and what they cost by our prices. Written by the maintenance.';

comment on column gateway.provider_costs.day is 'The day on which the requests were admitted (UTC).';

comment on column gateway.provider_costs.service_id is 'The service that answered them.';

comment on column gateway.provider_costs.requests is 'Requests whose cost the provider told.';

comment on column gateway.provider_costs.cost_usd is 'What they cost by our prices.';

comment on column gateway.provider_costs.provider_cost_usd is 'What they cost by what the provider told.';

create or replace function gateway.tokens_cost_usd(p_prices jsonb, p_usage jsonb) returns numeric
language plpgsql immutable parallel safe set search_path = ''
as $$
declare
    v_input constant numeric := (p_prices ->> 'input')::numeric;
    v_output constant numeric := (p_prices ->> 'output')::numeric;
    v_cache_write constant numeric := coalesce((p_prices ->> 'cache_write')::numeric, v_input);
begin
    return (
        coalesce((p_usage ->> 'input')::bigint, 0) * v_input
        + coalesce((p_usage ->> 'cached_input')::bigint, 0) * coalesce((p_prices ->> 'cached_input')::numeric, v_input)
        + coalesce((p_usage ->> 'cache_write')::bigint, 0) * v_cache_write
        -- a part of what was written, dearer by the difference
        + least(coalesce((p_usage ->> 'cache_write_1h')::bigint, 0), coalesce((p_usage ->> 'cache_write')::bigint, 0))
            * (coalesce((p_prices ->> 'cache_write_1h')::numeric, v_cache_write) - v_cache_write)
        + coalesce((p_usage ->> 'audio_input')::bigint, 0) * coalesce((p_prices ->> 'audio_input')::numeric, v_input)
        + coalesce((p_usage ->> 'image_input')::bigint, 0) * coalesce((p_prices ->> 'image_input')::numeric, v_input)
        + coalesce((p_usage ->> 'output')::bigint, 0) * v_output
        + coalesce((p_usage ->> 'audio_output')::bigint, 0) * coalesce((p_prices ->> 'audio_output')::numeric, v_output)
        + coalesce((p_usage ->> 'image_output')::bigint, 0) * coalesce((p_prices ->> 'image_output')::numeric, v_output)
    ) * 0.000001;
end
$$;

create function gateway.first_moment(p_clock timestamp, p_time_zone text) returns timestamptz
language plpgsql stable parallel safe set search_path = ''
as $$
declare
    v_moment timestamptz := p_clock at time zone p_time_zone;
begin
    -- of two PostgreSQL takes the later
    if (v_moment - interval '1 hour') at time zone p_time_zone = p_clock then
        return v_moment - interval '1 hour';
    end if;
    return v_moment;
end
$$;

comment on function gateway.first_moment(timestamp, text) is 'When a clock shows this, for the first time where it is put back by an hour over it, as at midnight in Havana.';

revoke all on function gateway.first_moment(timestamp, text) from public;

create or replace function gateway.window_start(p_per text, p_at timestamptz, p_time_zone text) returns timestamptz
language plpgsql stable parallel safe set search_path = ''
as $$
begin
    return case
        when p_per in ('minute', 'hour') then date_trunc(p_per, p_at, p_time_zone)
        else gateway.first_moment(date_trunc(p_per, p_at at time zone p_time_zone), p_time_zone)
    end;
end
$$;

create or replace function gateway.window_end(p_per text, p_start timestamptz, p_time_zone text) returns timestamptz
language plpgsql stable parallel safe set search_path = ''
as $$
begin
    return case
        when p_per in ('minute', 'hour') then p_start + ('1 ' || p_per)::interval
        -- truncated again: where clocks change at midnight a day may begin at one o'clock, but only that day
        else gateway.first_moment(date_trunc(p_per, (p_start at time zone p_time_zone) + ('1 ' || p_per)::interval), p_time_zone)
    end;
end
$$;

create or replace function gateway.version_price() returns trigger
language plpgsql security definer set search_path = ''
as $$
begin
    if old.effective_from > clock_timestamp() then
        -- not in force yet: nothing was admitted under it, and nothing in the past will have been
        new.effective_from := greatest(new.effective_from, clock_timestamp());
        return new;
    end if;
    if (new.offer_id, new.service_id) is distinct from (old.offer_id, old.service_id) then
        raise exception 'a price stays with its offer: insert a new one' using errcode = 'restrict_violation';
    end if;
    new.effective_from := case
        when new.effective_from is distinct from old.effective_from and new.effective_from > clock_timestamp() then new.effective_from
        else clock_timestamp()
    end;
    insert into gateway.prices (offer_id, service_id, effective_from, input, cached_input, cache_write, audio_input, image_input,
                                output, audio_output, image_output, per_request, per_image, source, source_date, cache_write_1h)
    values (new.offer_id, new.service_id, new.effective_from, new.input, new.cached_input, new.cache_write, new.audio_input, new.image_input,
            new.output, new.audio_output, new.image_output, new.per_request, new.per_image, new.source, new.source_date, new.cache_write_1h);
    return null;  -- the old version stays as it is
end
$$;

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

-- gateway.resolve_candidates: the routes that a request for these models might take, in the order in which to try them: by the
-- client's order of models, then priority, then at random by weight; services that are set aside (record_health.sql) come last, of these
-- first the one whose last failure is the longest ago. probe_due: the time aside is over, and somebody has to try. A model that has no usable route gives one row without a
-- route; a route without a price in force gives one without prices. Reads only. PL/pgSQL, here and below on the chat path, because it
-- keeps its plans: a SQL function with a search_path of its own is planned anew at every call.
create or replace function gateway.resolve_candidates(
    p_models text[], p_model_id bigint, p_provider text, p_allowed_services bigint[], p_media_input boolean, p_media_output boolean
) returns setof gateway.candidate
language plpgsql stable set search_path = ''
as $$
begin
    return query
    with wanted as (
        select w.name, w.position from unnest(p_models) with ordinality as w (name, position)
    ),
    resolved as (
        -- the whole string, or the id
        select w.position, m.id, p_provider as provider
        from wanted as w
        join gateway.models as m on m.name = w.name and m.active
        union all
        select 0, m.id, p_provider from gateway.models as m where m.id = p_model_id and m.active
        union all
        -- only then provider/model, and under a named provider the provider's own name of the model; ours goes before it
        select n.position, o.model_id, n.provider
        from (
            select w.position, coalesce(p_provider, split_part(w.name, '/', 1)) as provider,
                case when p_provider is null then substr(w.name, strpos(w.name, '/') + 1) else w.name end as name
            from wanted as w
            -- a name of the catalogue that nobody serves here, such as OpenRouter's openai/gpt-4o, does not hide openai's gpt-4o
            where (p_provider is not null or strpos(w.name, '/') > 1)
                and not exists (
                    select
                    from gateway.models as whole
                    join gateway.offers as sold on sold.model_id = whole.id
                    join gateway.routes as way on way.offer_id = sold.id and way.active
                    join gateway.services as seller on seller.id = way.service_id and seller.active
                    where whole.name = w.name and whole.active
                        and (p_provider is null or sold.provider = p_provider)
                        and (p_allowed_services is null or seller.id = any (p_allowed_services))
                )
        ) as n
        cross join lateral (
            select found.model_id
            from (
                select o.model_id, 1 as rank
                from gateway.models as m
                join gateway.offers as o on o.model_id = m.id and o.provider = n.provider
                where m.name = n.name and m.active
                union all
                select o.model_id, 2
                from gateway.offers as o
                join gateway.models as m on m.id = o.model_id and m.active
                where o.provider = n.provider and o.upstream_model = n.name
            ) as found
            order by found.rank, found.model_id
            limit 1
        ) as o
    )
    select
        m.id, m.name, m.context_length, m.max_output_tokens,
        r.id, s.id, s.name, s.provider, s.base_url, s.provider_key, o.upstream_model,
        p.prices,
        case
            when p_media_input then greatest(p.input, p.cached_input, p.cache_write, p.audio_input, p.image_input)
            else greatest(p.input, p.cached_input, p.cache_write)
        end * 0.000001,
        case when p_media_output then greatest(p.output, p.audio_output, p.image_output) else p.output end * 0.000001,
        p.per_request,
        null::bigint, null::bigint, null::numeric, null::numeric,
        m.output_modalities,
        coalesce(not h.is_aside and h.was_aside, false)
    from (select distinct on (id) position, id, provider from resolved order by id, position) as wanted_model
    join gateway.models as m on m.id = wanted_model.id
    left join (
        gateway.offers as o
        join gateway.routes as r on r.offer_id = o.id and r.active
        join gateway.services as s on s.id = r.service_id and s.active
    ) on o.model_id = m.id
        and (wanted_model.provider is null or o.provider = wanted_model.provider)
        and (p_allowed_services is null or s.id = any (p_allowed_services))
    left join lateral (
        select v.input, v.cached_input, v.cache_write, v.audio_input, v.image_input, v.output, v.audio_output, v.image_output,
            coalesce(v.per_request, 0) as per_request,
            jsonb_strip_nulls(jsonb_build_object(
                'input', v.input, 'cached_input', v.cached_input, 'cache_write', v.cache_write, 'audio_input', v.audio_input,
                'image_input', v.image_input, 'output', v.output, 'audio_output', v.audio_output, 'image_output', v.image_output,
                'per_request', v.per_request, 'per_image', v.per_image, 'cache_write_1h', v.cache_write_1h)) as prices
        from gateway.prices as v
        where v.offer_id = o.id and (v.service_id = s.id or v.service_id is null) and v.effective_from <= clock_timestamp()
        order by v.service_id is null, v.effective_from desc
        limit 1
    ) as p on true
    left join lateral (
        select bool_or(coalesce(greatest(x.set_aside_until, x.probing_until) > clock_timestamp(), false)) as is_aside,
            bool_or(x.set_asides > 0) as was_aside, max(x.last_failure_at) as last_failure_at
        from gateway.service_health as x
        where x.service_id = s.id and x.route_id in (0, r.id)
    ) as h on true
    order by coalesce(h.is_aside, false), case when h.is_aside then h.last_failure_at end, wanted_model.position, coalesce(r.priority, s.priority), -ln(1 - random()) / r.weight;
end
$$;

-- api.admit_request: decides, in one transaction, whether a request may go to a provider, and holds its whole upper bound.
--
-- Returns a row either way. {"admitted": true, "request_id", "admitted_at", …, "max_output_tokens", "candidates": [the routes to
-- try, in order, with the sealed provider keys]}, or {"admitted": false, "refusal": code, …}. A refusal consumes nothing.
--
-- The hold: for each candidate, input bound × its dearest input price + output bound × its dearest output price + what is fixed,
-- with the commission (or at the flat price), rounded up; of the candidates the dearest. The input bound is p_input_tokens_bound or,
-- where that is null, the model's context length. The output bound is p_max_output_tokens × p_choices or, where the client named
-- none, what the model, the setting, the balance and the limits allow; below 16 the request is refused. Input that holds media
-- counts at the media classes' prices: p_media_input says so; null says that what has no p_input_tokens_bound holds media.
--
-- p_output: what the request is for, as models' output_modalities name it (text, image, embedding); a model that does not give it is
-- refused. p_output_bounds, where the provider can't be told a bound: provider -> the most that one choice takes, cut to the model's
-- max_output_tokens; providers that are not in it are not asked. A model whose output costs nothing by the token is held for without.
--
-- p_cache_write_1h: whether the request may write to a provider's cache for an hour, which is dearer; routes without a price for that are
-- not taken.
--
-- Locks, in this order: the idempotency key, the limit counters (in key order), the account; where a service is to be probed, its health, for
-- which nobody waits. Everything else is only read.
-- Generic plans: through PostgREST the planner otherwise plans anew at each call, which took 1.5 ms of the 3.4 (measured).
create function api.admit_request(
    p_key_hash text,
    p_request_id text,
    p_models text[],
    p_endpoint text,
    p_lease_seconds integer,
    p_input_tokens_bound bigint default null,
    p_max_output_tokens bigint default null,
    p_choices integer default 1,
    p_streamed boolean default false,
    p_model_id bigint default null,
    p_provider text default null,
    p_username text default null,
    p_media_output boolean default false,
    p_idempotency_key text default null,
    p_body_hash text default null,
    p_output text default 'text',
    p_media_input boolean default null,
    p_output_bounds jsonb default null,
    p_cache_write_1h boolean default false
) returns jsonb
language plpgsql security definer set search_path = '' set plan_cache_mode = force_generic_plan
as $$
declare
    c_least_output constant bigint := 16;
    c_most_tokens constant bigint := 1000000000000;  -- beyond any model and any balance, and far from overflow
    v_at timestamptz := clock_timestamp();
    v_key record;
    v_settings gateway.settings;
    v_requested text := left(coalesce(p_models[1], p_model_id::text, ''), 300);
    v_commission numeric;
    v_found boolean := false;
    v_allowed boolean := false;
    v_fit boolean := false;
    v_gives text[];
    v_routed boolean := false;
    v_candidate gateway.candidate;
    v_resolved gateway.candidate[] := '{}'::gateway.candidate[];
    v_candidates gateway.candidate[] := '{}'::gateway.candidate[];
    v_idempotency gateway.idempotency_keys;
    v_idempotency_is_new boolean := false;
    v_limits gateway.limit_state[];
    v_limit gateway.limit_state;
    v_account gateway.accounts;
    v_free numeric;
    v_rate_in numeric;
    v_rate_out numeric;
    v_fixed numeric;
    v_bound bigint;
    v_least bigint;
    v_tokens bigint;
    v_requests_left bigint;
    v_tokens_left bigint;
    v_spend_left numeric;
    v_cost_left numeric;
    v_reason jsonb;
    v_refusal jsonb;
    v_hold numeric := 0;
    v_counted gateway.counted[] := '{}'::gateway.counted[];
    v_fresh boolean := false;
    v_beyond boolean;
    v_warnings text[];
begin
    -- In SQL an absent bound passes every comparison: it has to be refused here or it would hold nothing.
    if p_choices is null or p_choices < 1 or p_max_output_tokens < 0 or p_input_tokens_bound < 0 or p_lease_seconds is null
        or p_output is null
    then
        raise exception 'choices, tokens and lease are to be numbers, not negative ones' using errcode = 'invalid_parameter_value';
    end if;
    if p_max_output_tokens > c_most_tokens / p_choices then
        p_max_output_tokens := c_most_tokens / p_choices;
    end if;
    if p_input_tokens_bound > c_most_tokens then
        p_input_tokens_bound := c_most_tokens;
    end if;

    select k.id, k.customer_id, k.prefix, k.scopes, k.allowed_models, k.allowed_services, k.active, k.expires_at, k.maker_key_ids,
        c.active as customer_active, c.username, c.time_zone
    into v_key
    from gateway.api_keys as k
    left join gateway.customers as c on c.id = k.customer_id
    where k.secret_hash = decode(p_key_hash, 'hex');
    if v_key.id is null then  -- a secret that was replaced, in its grace
        select k.id, k.customer_id, k.prefix, k.scopes, k.allowed_models, k.allowed_services, k.active, k.expires_at, k.maker_key_ids,
            c.active as customer_active, c.username, c.time_zone
        into v_key
        from gateway.retired_secrets as r
        join gateway.api_keys as k on k.id = r.key_id
        left join gateway.customers as c on c.id = k.customer_id
        where r.secret_hash = decode(p_key_hash, 'hex') and r.expires_at > v_at;
    end if;

    <<admission>>
    begin
        if v_key.id is null then
            return jsonb_build_object('admitted', false, 'refusal', 'unknown_key');
        elsif v_key.active is not true then
            v_refusal := jsonb_build_object('refusal', 'inactive_key');
            exit admission;
        elsif v_key.expires_at <= v_at then
            v_refusal := jsonb_build_object('refusal', 'expired_key');
            exit admission;
        elsif v_key.customer_id is null or not 'chat' = any (v_key.scopes) then
            v_refusal := jsonb_build_object('refusal', 'scope_missing', 'scope', 'chat');
            exit admission;
        elsif p_username is not null and p_username is distinct from v_key.username then
            v_refusal := jsonb_build_object('refusal', 'wrong_user');
            exit admission;
        elsif not v_key.customer_active then
            v_refusal := jsonb_build_object('refusal', 'customer_suspended');
            exit admission;
        end if;

        select * into v_settings from gateway.settings;
        v_commission := 1 + v_settings.commission_percent * 0.01;

        for v_candidate in
            select * from gateway.resolve_candidates(p_models, p_model_id, p_provider, v_key.allowed_services,
                                                     coalesce(p_media_input, p_input_tokens_bound is null), p_media_output)
        loop
            v_found := true;
            continue when v_key.allowed_models is not null and not v_candidate.model_id = any (v_key.allowed_models);
            v_allowed := true;
            if not p_output = any (v_candidate.output_modalities) then
                v_gives := coalesce(v_gives, v_candidate.output_modalities);
                continue;
            end if;
            v_fit := true;
            continue when v_candidate.route_id is null or not p_output_bounds ? v_candidate.provider;
            v_routed := true;
            continue when v_candidate.prices is null;
            if p_cache_write_1h then
                if not v_candidate.prices ? 'cache_write_1h' then
                    v_reason := coalesce(v_reason, jsonb_build_object('refusal', 'cache_write_1h_not_priced', 'model', v_candidate.model_name));
                    continue;
                end if;
                v_candidate.input_rate := greatest(v_candidate.input_rate, (v_candidate.prices ->> 'cache_write_1h')::numeric * 0.000001);
            end if;
            -- several texts to embed, and several images, are each read in a context of its own
            v_candidate.input_bound := case
                when p_output = 'text' or p_input_tokens_bound is null then least(p_input_tokens_bound, v_candidate.context_length)
                else p_input_tokens_bound
            end;
            if v_candidate.input_bound is null then
                v_reason := coalesce(v_reason, jsonb_build_object('refusal', 'input_unbounded', 'model', v_candidate.model_name));
                continue;
            end if;
            v_resolved := v_resolved || v_candidate;
        end loop;
        if cardinality(v_resolved) = 0 then
            v_refusal := case
                when not v_found then jsonb_build_object('refusal', 'model_not_found')
                when not v_allowed then jsonb_build_object('refusal', 'model_not_allowed')
                when not v_fit then jsonb_build_object('refusal', 'model_wrong_output', 'output', p_output, 'output_modalities', v_gives)
                when not v_routed then jsonb_build_object('refusal', 'model_not_served')
                else coalesce(v_reason, jsonb_build_object('refusal', 'model_not_priced'))
            end || jsonb_build_object('model', v_requested);
            exit admission;
        end if;

        v_reason := null;  -- of a candidate that could not be considered; what refuses those that could is of more use

        if p_idempotency_key is not null then
            perform set_config('gateway.engine', 'on', true);
            loop
                insert into gateway.idempotency_keys (key_id, idempotency_key, body_hash, request_id)
                values (v_key.id, p_idempotency_key, decode(p_body_hash, 'hex'), p_request_id)
                on conflict do nothing;
                v_idempotency_is_new := found;
                exit when v_idempotency_is_new;
                select * into v_idempotency from gateway.idempotency_keys
                where key_id = v_key.id and idempotency_key = p_idempotency_key
                for update;
                exit when found;  -- else it was forgotten in between
            end loop;
            -- one that is free is taken over below, when nothing can refuse the request any more
            if not v_idempotency_is_new and not v_idempotency.freed and v_idempotency.created_at >= v_at - interval '24 hours' then
                v_refusal := jsonb_build_object('refusal', case
                    when v_idempotency.body_hash is distinct from decode(p_body_hash, 'hex') then 'idempotency_mismatch'
                    when v_idempotency.charged then 'idempotency_reused'
                    else 'idempotency_running'
                end, 'first_request_id', v_idempotency.request_id);
                exit admission;
            end if;
        end if;

        v_limits := gateway.applicable_limits(
            v_key.id, v_key.customer_id,
            array(select distinct r.model_id from unnest(v_resolved) as r), array(select distinct r.service_id from unnest(v_resolved) as r),
            v_key.time_zone, v_at, v_key.maker_key_ids);
        if cardinality(v_limits) > 0 then
            v_limits := gateway.lock_counters(v_limits);
        end if;
        select * into v_account from gateway.accounts where customer_id = v_key.customer_id for update;
        v_free := v_account.balance_usd - v_account.held_usd;

        foreach v_candidate in array v_resolved loop
            -- what the limits leave to this candidate: those of the key and the customer, of the key and its model, of its service,
            -- whose spending limit is on its cost
            v_requests_left := null;
            v_tokens_left := null;
            v_spend_left := null;
            v_cost_left := null;
            foreach v_limit in array v_limits loop
                v_fresh := v_fresh or v_limit.used_requests = 0;
                continue when v_limit.subject = 'service' and v_limit.subject_id <> v_candidate.service_id;
                continue when v_limit.model_id not in (0, v_candidate.model_id);
                v_requests_left := least(v_requests_left, v_limit.requests - v_limit.used_requests);
                v_tokens_left := least(v_tokens_left, v_limit.tokens - v_limit.used_tokens);
                if v_limit.subject = 'service' then
                    v_cost_left := least(v_cost_left, v_limit.spend_usd - v_limit.used_spend_usd);
                else
                    v_spend_left := least(v_spend_left, v_limit.spend_usd - v_limit.used_spend_usd);
                end if;
            end loop;

            if p_media_output then  -- an image for each choice
                v_candidate.fixed_usd := v_candidate.fixed_usd + p_choices * coalesce((v_candidate.prices ->> 'per_image')::numeric, 0);
            end if;
            v_rate_in := v_candidate.input_rate * v_commission;
            v_rate_out := v_candidate.output_rate * v_commission;
            if v_settings.billing_mode = 'flat' then
                v_rate_in := v_settings.flat_usd_per_1k_tokens * 0.001;
                v_rate_out := v_rate_in;
            end if;
            v_fixed := v_candidate.fixed_usd * v_commission + v_candidate.input_bound * v_rate_in;

            if p_output_bounds is not null then
                v_candidate.output_bound := case
                    when v_candidate.output_rate = 0 then 0
                    else least((p_output_bounds ->> v_candidate.provider)::bigint, v_candidate.max_output_tokens)
                end;
                if (p_output_bounds ->> v_candidate.provider) is null or v_candidate.output_bound not between 0 and c_most_tokens / p_choices then
                    raise exception 'output bounds are to be numbers, not negative ones' using errcode = 'invalid_parameter_value';
                end if;
            elsif p_max_output_tokens is not null then
                v_candidate.output_bound := p_max_output_tokens;
            else
                v_candidate.output_bound := least(v_bound, v_candidate.max_output_tokens, v_settings.default_max_output_tokens);
                v_least := least(c_least_output, v_candidate.output_bound);
                v_candidate.output_bound := greatest(v_least, least(
                    v_candidate.output_bound,
                    div(v_tokens_left - v_candidate.input_bound, p_choices),
                    case when v_rate_out > 0 then div(least(v_free, v_spend_left) - v_fixed, v_rate_out * p_choices) end));
            end if;
            v_tokens := v_candidate.input_bound + v_candidate.output_bound * p_choices;
            v_candidate.hold_usd := gateway.round_up_usd(v_fixed + v_candidate.output_bound * p_choices * v_rate_out);
            v_candidate.cost_bound_usd := gateway.round_up_usd(
                v_candidate.fixed_usd + v_candidate.input_bound * v_candidate.input_rate
                + v_candidate.output_bound * p_choices * v_candidate.output_rate);

            if v_requests_left < 1 or v_tokens > v_tokens_left
                or (v_candidate.hold_usd > v_spend_left and v_candidate.hold_usd > 0)
                or (v_candidate.cost_bound_usd > v_cost_left and v_candidate.cost_bound_usd > 0) then
                v_reason := coalesce(v_reason, gateway.describe_excess(
                    v_limits, v_candidate.service_id, v_candidate.model_id, v_tokens, v_candidate.hold_usd, v_candidate.cost_bound_usd, v_at));
                continue;
            elsif v_candidate.hold_usd > v_free then
                v_reason := coalesce(v_reason, jsonb_build_object(
                    'refusal', 'insufficient_credits',
                    'needed_usd', gateway.show_usd(v_candidate.hold_usd),
                    'available_usd', gateway.show_usd(v_free),
                    'affordable_output_tokens', case
                        when v_rate_out > 0 and p_output_bounds is null
                            then greatest(least(div(v_free - v_fixed, v_rate_out * p_choices), v_candidate.output_bound), 0)::bigint
                        else 0
                    end));
                continue;
            end if;

            -- the first candidate that fits sets the bound; a dearer one further down is kept if it can be afforded at that
            v_bound := coalesce(v_bound, v_candidate.output_bound);
            v_hold := greatest(v_hold, v_candidate.hold_usd);
            v_candidates := v_candidates || v_candidate;
        end loop;
        if cardinality(v_candidates) = 0 then
            v_refusal := v_reason;
            exit admission;
        end if;
    end admission;

    if v_refusal is not null then
        if v_idempotency_is_new then
            delete from gateway.idempotency_keys
            where key_id = v_key.id and idempotency_key = p_idempotency_key;
        end if;
        perform set_config('gateway.engine', 'on', true);
        if v_key.customer_id is not null then
            perform gateway.record_refusal(p_request_id, v_key.customer_id, v_key.id, v_requested, p_endpoint, p_streamed, v_refusal ->> 'refusal');
        end if;
        perform set_config('gateway.engine', 'off', true);
        return v_refusal || jsonb_build_object(
            'admitted', false, 'key_prefix', v_key.prefix, 'rate_limits', gateway.describe_limits(v_limits, v_at));
    end if;

    -- a service that was set aside is probed by one request, and by others only if nothing else is left
    for v_turn in 2 .. cardinality(v_candidates) loop
        exit when not v_candidates[1].probe_due
            or gateway.begin_probe(v_candidates[1].service_id, v_candidates[1].route_id, v_at);
        v_candidates := v_candidates[2:] || v_candidates[1];
    end loop;

    -- a limit of a model or a service reserves what its own candidates may use; the settlement gives back what they did not
    select coalesce(array_agg((
        l.subject, l.subject_id, l.model_id, l.per, l.window_start, 1, u.tokens, u.spend_usd
    )::gateway.counted), '{}')
    into v_counted
    from unnest(v_limits) as l
    cross join lateral (
        select max(c.input_bound + c.output_bound * p_choices) as tokens,
            max(case when l.subject = 'service' then c.cost_bound_usd else c.hold_usd end) as spend_usd
        from unnest(v_candidates) as c
        where (l.subject <> 'service' or c.service_id = l.subject_id) and (l.model_id = 0 or c.model_id = l.model_id)
    ) as u
    where u.tokens is not null;

    perform set_config('gateway.engine', 'on', true);
    if p_idempotency_key is not null and not v_idempotency_is_new then
        update gateway.idempotency_keys
        set body_hash = decode(p_body_hash, 'hex'), request_id = p_request_id, charged = false, freed = false, created_at = v_at
        where key_id = v_key.id and idempotency_key = p_idempotency_key;
    end if;
    if v_fresh then  -- a window that was marked has passed: what still runs of it is yet to be seen (record_crossings.sql)
        insert into gateway.turned_windows (subject, subject_id, model_id, per, window_start, requests, tokens, spend_usd)
        select c.subject, c.subject_id, c.model_id, c.per, c.window_start, c.requests, c.tokens, c.spend_usd
        from gateway.limit_counters as c
        join unnest(v_counted) as x on (c.subject, c.subject_id, c.model_id, c.per) = (x.subject, x.subject_id, x.model_id, x.per)
        where c.marked and c.window_start < x.window_start
        on conflict do nothing;
    end if;
    update gateway.limit_counters as c
    set requests = case when c.window_start = x.window_start then c.requests else 0 end + x.requests,
        tokens = case when c.window_start = x.window_start then c.tokens else 0 end + x.tokens,
        spend_usd = case when c.window_start = x.window_start then c.spend_usd else 0 end + x.spend_usd,
        window_start = x.window_start,
        marked = c.marked and c.window_start = x.window_start
    from unnest(v_counted) as x
    where (c.subject, c.subject_id, c.model_id, c.per) = (x.subject, x.subject_id, x.model_id, x.per);

    update gateway.accounts set held_usd = held_usd + v_hold where customer_id = v_key.customer_id;

    insert into gateway.requests (
        id, admitted_at, customer_id, key_id, model_id, requested_model, endpoint, streamed, state, hold_usd, lease_until,
        input_tokens_bound, output_tokens_bound, billing_mode, commission_percent, flat_usd_per_1k_tokens, routes, counted, idempotency_key)
    select p_request_id, v_at, v_key.customer_id, v_key.id, v_candidates[1].model_id, v_requested, p_endpoint, p_streamed, 'held',
        v_hold, v_at + make_interval(secs => p_lease_seconds),
        max(c.input_bound), max(c.output_bound) * p_choices,
        v_settings.billing_mode, v_settings.commission_percent, v_settings.flat_usd_per_1k_tokens,
        jsonb_agg(jsonb_build_object('route_id', c.route_id, 'service_id', c.service_id, 'model_id', c.model_id,
                                     'provider', c.provider, 'upstream_model', c.upstream_model, 'prices', c.prices)),
        v_counted, p_idempotency_key
    from unnest(v_candidates) as c;
    perform set_config('gateway.engine', 'off', true);

    -- what the client is told counts this request
    select array_agg((
        l.subject, l.subject_id, l.model_id, l.per, l.window_start, l.window_end, l.requests, l.tokens, l.spend_usd,
        l.warn_requests, l.warn_tokens, l.warn_spend_usd,
        l.used_requests + x.requests, l.used_tokens + x.tokens, l.used_spend_usd + x.spend_usd
    )::gateway.limit_state)
    into v_limits
    from unnest(v_limits) as l
    join unnest(v_counted) as x on (x.subject, x.subject_id, x.model_id, x.per) = (l.subject, l.subject_id, l.model_id, l.per);

    select array_agg(distinct w.name) filter (where l.subject <> 'service'), count(*) > 0 into v_warnings, v_beyond
    from unnest(v_limits) as l
    cross join lateral (values
        (case when l.used_requests > l.warn_requests then 'requests_per_' || l.per end),
        (case when l.used_tokens > l.warn_tokens then 'tokens_per_' || l.per end),
        (case when l.used_spend_usd > l.warn_spend_usd then 'spend_usd_per_' || l.per end)
    ) as w (name)
    where w.name is not null;

    if v_beyond then
        -- from here on the settlements of the window look whether what is really used is beyond the mark, too (record_crossings.sql)
        update gateway.limit_counters as c
        set marked = true
        from unnest(v_limits) as l
        where (c.subject, c.subject_id, c.model_id, c.per) = (l.subject, l.subject_id, l.model_id, l.per) and not c.marked
            and (l.used_requests > l.warn_requests or l.used_tokens > l.warn_tokens or l.used_spend_usd > l.warn_spend_usd);
        -- requests are used by being admitted, but where another model may answer, whose counter would keep this one instead
        for v_limit in
            select * from unnest(v_limits) as l
            where l.subject <> 'service' and l.used_requests > l.warn_requests and l.used_requests - 1 <= l.warn_requests
                and (l.model_id = 0 or not exists (select from unnest(v_candidates) as c where c.model_id <> l.model_id))
        loop
            perform gateway.record_crossing(
                v_limit.subject, v_limit.subject_id, v_limit.model_id, v_limit.per, v_limit.window_start,
                'requests', v_limit.warn_requests, v_limit.used_requests);
        end loop;
    end if;

    return jsonb_build_object(
        'admitted', true,
        'request_id', p_request_id,
        'admitted_at', v_at,
        'key_id', v_key.id,
        'key_prefix', v_key.prefix,
        'customer_id', v_key.customer_id,
        'max_output_tokens', v_bound,
        'unsupported_parameters', v_settings.unsupported_parameters,
        'hold_usd', gateway.show_usd(v_hold),
        'rate_limits', gateway.describe_limits(v_limits, v_at),
        'warnings', coalesce(to_jsonb(v_warnings), '[]'),
        'candidates', (
            select jsonb_agg(jsonb_build_object(
                'route_id', c.route_id, 'service_id', c.service_id, 'service_name', c.service_name, 'provider', c.provider,
                'base_url', c.base_url, 'provider_key', c.provider_key, 'model', c.model_name, 'upstream_model', c.upstream_model,
                'max_output_tokens', c.output_bound))
            from unnest(v_candidates) as c
        )
    );
end
$$;

revoke all on function api.admit_request(text, text, text[], text, integer, bigint, bigint, integer, boolean, bigint, text, text, boolean, text, text, text, boolean, jsonb, boolean) from public;

grant execute on function api.admit_request(text, text, text[], text, integer, bigint, bigint, integer, boolean, bigint, text, text, boolean, text, text, text, boolean, jsonb, boolean) to service_role;

comment on function api.admit_request(text, text, text[], text, integer, bigint, bigint, integer, boolean, bigint, text, text, boolean, text, text, text, boolean, jsonb, boolean) is 'Admits a request and holds its whole upper bound, or says why not. One transaction.';

-- api.settle_request: ends a request, once. Charges what was used at the prices that the route was admitted under, frees the hold,
-- corrects the counters of the windows that admitted it, writes ledger and rollup.
--
-- p_settlement: {"request_id", "admitted_at", "outcome": succeeded | failed | cancelled | cut, "route_id": of the route that
-- answered, "usage": tokens by disjoint class, or null if nothing is to be charged, "usage_estimated", "status", "error_code",
-- "finish_reason", "latency_ms", "time_to_first_token_ms", "provider_request_id", "provider_cost_usd", "failed_routes"}.
-- failed_routes: the routes that were tried in vain, in their order: {"route_id", "service_id", "status", "fault", "after_ms", "retry_after"}.
-- The whole of it in one document, so that a settlement that could not be made can be kept and replayed as it is.
--
-- Idempotent: a second call changes nothing and answers the same with "already": true. A hold that expired meanwhile is settled
-- late, once, by an adjustment. Never fails for money: what the balance can't give is booked as uncollected_usd, and what a provider
-- claims beyond all measure is cut to what the books can hold.
-- {"status": "unknown_request"} where there is no such request.
-- Locks, in this order: the request, its idempotency key, the limit counters (in key order), the account, the health of services (only where
-- one has failed).
-- Generic plans, as for api.admit_request: 1.5 -> 1.0 ms a call.
create or replace function api.settle_request(p_settlement jsonb) returns jsonb
language plpgsql security definer set search_path = '' set plan_cache_mode = force_generic_plan
as $$
declare
    c_most_usd constant numeric := 9999999999.9999999999;
    v_request gateway.requests;
    v_first_model_id bigint;
    v_usage jsonb := case when p_settlement -> 'usage' <> 'null' then gateway.tame_usage(p_settlement -> 'usage') end;
    v_claimed_usd numeric := (p_settlement ->> 'provider_cost_usd')::numeric;
    v_route jsonb;
    v_tokens bigint;
    v_late boolean;
    v_exact_tokens numeric;
    v_exact_fixed numeric;
    v_commission numeric;
    v_account gateway.accounts;
    v_before numeric;
    v_due numeric;
    v_take numeric;
    v_asked_again boolean := false;
    v_outcome text := p_settlement ->> 'outcome';
begin
    select * into v_request
    from gateway.requests
    where id = p_settlement ->> 'request_id' and admitted_at = (p_settlement ->> 'admitted_at')::timestamptz and state <> 'refused'
    for update;
    if v_request.id is null then
        return jsonb_build_object('status', 'unknown_request');
    end if;
    if v_request.state = 'settled' then
        return gateway.describe_settlement(
            v_request,
            coalesce(v_request.input_tokens, 0) + coalesce(v_request.cached_input_tokens, 0) + coalesce(v_request.cache_write_tokens, 0)
            + coalesce(v_request.audio_input_tokens, 0) + coalesce(v_request.image_input_tokens, 0) + coalesce(v_request.output_tokens, 0)
            + coalesce(v_request.audio_output_tokens, 0) + coalesce(v_request.image_output_tokens, 0),
            (select balance_usd from gateway.accounts where customer_id = v_request.customer_id),
            true);
    end if;
    v_first_model_id := v_request.model_id;
    v_late := v_request.state = 'expired';
    v_before := v_request.collected_usd;  -- what an expired hold was charged, where the policy is to charge

    if v_usage is not null then
        select r into v_route
        from jsonb_array_elements(v_request.routes) as r
        where (r ->> 'route_id')::bigint = (p_settlement ->> 'route_id')::bigint;
        if v_route is null then
            raise exception 'request % was not admitted to this route', v_request.id using errcode = 'invalid_parameter_value';
        end if;
        v_exact_tokens := gateway.tokens_cost_usd(v_route -> 'prices', v_usage);
        v_exact_fixed := gateway.fixed_cost_usd(v_route -> 'prices', v_usage);
        v_commission := 1 + v_request.commission_percent * 0.01;
        v_tokens := gateway.total_tokens(v_usage);
        v_request.cost_usd := least(gateway.round_up_usd(v_exact_tokens + v_exact_fixed), c_most_usd);
        v_request.charge_usd := least(gateway.round_up_usd(case v_request.billing_mode
            when 'flat' then v_tokens * v_request.flat_usd_per_1k_tokens * 0.001 + v_exact_fixed * v_commission
            else (v_exact_tokens + v_exact_fixed) * v_commission
        end), c_most_usd);
        v_request.model_id := (v_route ->> 'model_id')::bigint;
        v_request.service_id := (v_route ->> 'service_id')::bigint;
    else
        v_tokens := 0;
        v_request.cost_usd := 0;
        v_request.charge_usd := 0;
    end if;

    perform set_config('gateway.engine', 'on', true);
    if v_request.idempotency_key is not null then
        -- Its own key, or one that its expiry freed and that nobody has taken since or has failed with. Kept when it is freed: a hold that
        -- expired under it may still be charged, and must then be found by the next one who asks.
        update gateway.idempotency_keys
        set request_id = v_request.id, charged = v_usage is not null, freed = v_usage is null
        where (key_id, idempotency_key) = (v_request.key_id, v_request.idempotency_key) and (request_id = v_request.id or freed);
        -- or else the client has asked again meanwhile: it is not to pay twice
        v_asked_again := not found and exists (
            select from gateway.idempotency_keys as i
            where (i.key_id, i.idempotency_key) = (v_request.key_id, v_request.idempotency_key)
        );
    end if;
    if cardinality(v_request.counted) > 0 then
        -- limits of a model or a service that did not answer get everything back; the first model keeps a failed request's count
        perform gateway.correct_counters(array(
            select (
                x.subject, x.subject_id, x.model_id, x.per, x.window_start,
                case when used.it then 0 else -x.requests end,
                case when used.it then v_tokens else 0 end - x.tokens,
                case when not used.it then 0 when x.subject = 'service' then v_request.cost_usd else v_request.charge_usd end - x.spend_usd
            )::gateway.counted
            from unnest(v_request.counted) as x
            cross join lateral (
                select case
                    when x.subject = 'service' then x.subject_id is not distinct from v_request.service_id
                    else x.model_id in (0, v_request.model_id)
                end as it
            ) as used
        ));
    end if;

    select * into v_account from gateway.accounts where customer_id = v_request.customer_id for update;
    v_due := v_request.charge_usd - v_before;
    v_take := least(v_due, v_account.balance_usd - v_account.held_usd + case when v_late then 0 else v_request.hold_usd end);
    if v_late and v_asked_again then
        v_take := least(v_take, 0);
    end if;
    update gateway.accounts
    set balance_usd = balance_usd - v_take, held_usd = held_usd - case when v_late then 0 else v_request.hold_usd end
    where customer_id = v_request.customer_id
    returning * into v_account;
    if v_take <> 0 then
        insert into gateway.ledger_entries (customer_id, kind, amount_usd, balance_after_usd, request_id, actor)
        values (v_request.customer_id, case when v_late then 'late_settlement' else 'charge' end, -v_take, v_account.balance_usd, v_request.id, 'gateway');
    end if;
    v_request.collected_usd := v_before + v_take;
    v_request.uncollected_usd := v_request.charge_usd - v_request.collected_usd;

    if v_late then  -- what its expiry counted
        perform gateway.add_to_rollup(v_request, v_first_model_id, null, -1, -1, '{}', 0, -v_before, 0, null);
    end if;
    perform gateway.add_to_rollup(
        v_request, v_request.model_id, v_request.service_id, 1, case when v_outcome = 'failed' then 1 else 0 end, coalesce(v_usage, '{}'),
        v_request.cost_usd, v_request.charge_usd, v_request.uncollected_usd, (p_settlement ->> 'latency_ms')::integer,
        (p_settlement ->> 'time_to_first_token_ms')::integer);
    if jsonb_typeof(p_settlement -> 'failed_routes') = 'array' then
        perform gateway.add_failures(v_request, p_settlement -> 'failed_routes');
    end if;

    update gateway.requests
    set state = 'settled', outcome = v_outcome,
        model_id = v_request.model_id, service_id = v_request.service_id,
        cost_usd = v_request.cost_usd, charge_usd = v_request.charge_usd,
        collected_usd = v_request.collected_usd, uncollected_usd = v_request.uncollected_usd,
        input_tokens = (v_usage ->> 'input')::bigint, cached_input_tokens = (v_usage ->> 'cached_input')::bigint,
        cache_write_tokens = (v_usage ->> 'cache_write')::bigint, audio_input_tokens = (v_usage ->> 'audio_input')::bigint,
        image_input_tokens = (v_usage ->> 'image_input')::bigint, output_tokens = (v_usage ->> 'output')::bigint,
        reasoning_tokens = (v_usage ->> 'reasoning')::bigint, audio_output_tokens = (v_usage ->> 'audio_output')::bigint,
        image_output_tokens = (v_usage ->> 'image_output')::bigint, images = (v_usage ->> 'images')::bigint,
        cache_write_1h_tokens = (v_usage ->> 'cache_write_1h')::bigint,
        usage_estimated = coalesce((p_settlement ->> 'usage_estimated')::boolean, false),
        failed_routes = nullif(p_settlement -> 'failed_routes', 'null'),
        status = (p_settlement ->> 'status')::integer, error_code = p_settlement ->> 'error_code',
        finish_reason = p_settlement ->> 'finish_reason',
        latency_ms = (p_settlement ->> 'latency_ms')::integer,
        time_to_first_token_ms = (p_settlement ->> 'time_to_first_token_ms')::integer,
        provider_request_id = p_settlement ->> 'provider_request_id',
        provider_cost_usd = case when abs(v_claimed_usd) <= c_most_usd then v_claimed_usd end,
        settled_at = clock_timestamp()
    where id = v_request.id and admitted_at = v_request.admitted_at;
    perform set_config('gateway.engine', 'off', true);

    if jsonb_typeof(p_settlement -> 'failed_routes') = 'array' then
        perform gateway.record_failures(v_request, p_settlement -> 'failed_routes', case when v_outcome = 'succeeded' then v_request.service_id end);
    end if;
    if v_outcome in ('succeeded', 'cancelled') and exists (select from gateway.service_health where service_id = v_request.service_id) then
        perform gateway.record_success(v_request.service_id, (v_route ->> 'route_id')::bigint, v_request.admitted_at + make_interval(secs => coalesce(
            (p_settlement ->> 'time_to_first_token_ms')::integer,
            case when v_outcome = 'succeeded' then (p_settlement ->> 'latency_ms')::integer end) * 0.001));
    end if;

    return gateway.describe_settlement(v_request, v_tokens, v_account.balance_usd, false);
end
$$;

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

-- Midnight may be skipped or come twice where clocks change; noon does not.
create or replace function gateway.day_start(p_day timestamp, p_time_zone text) returns timestamptz
language plpgsql stable parallel safe set search_path = ''
as $$
begin
    return gateway.window_start('day', (date_trunc('day', p_day) + interval '12 hours') at time zone p_time_zone, p_time_zone);
end
$$;

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
create or replace function api.read_usage(
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

-- api.erase_customer: forgets the person and keeps the books. Name, username, email, company and the link to Supabase Auth become nobody's,
-- here and in the audit log; so do the names of its keys, which are revoked, and the notes of its payments. Balance, entries with their
-- references, requests and sums stay; running requests settle all the same. For good, and again it changes nothing.
-- Returns the customer, or {"error": "unknown_customer"}. Locks the customer, then its account, then its keys, in the order of their ids.
create or replace function api.erase_customer(p_id bigint, p_actor text default null) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '60s'
as $$
declare
    v_customer gateway.customers;
    v_nobody text := 'erased-' || p_id;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    select * into v_customer from gateway.customers where id = p_id for update;
    if v_customer.id is null then
        return jsonb_build_object('error', 'unknown_customer');
    elsif v_customer.erased_at is not null then
        return gateway.describe_customer(v_customer);
    end if;
    -- Whoever pays in at this moment sees that it is too late.
    perform 1 from gateway.accounts where customer_id = p_id for update;

    if exists (select from gateway.customers where username = v_nobody) then
        v_nobody := v_nobody || '-' || gen_random_uuid();
    end if;
    perform set_config('gateway.engine', 'on', true);
    perform set_config('gateway.erased_user', coalesce(v_customer.auth_user_id::text, ''), true);
    perform from gateway.api_keys where customer_id = p_id order by id for no key update;
    update gateway.api_keys set name = 'erased', active = false, revoked_at = coalesce(revoked_at, now()) where customer_id = p_id;
    update gateway.customers
    set name = v_nobody, username = v_nobody, email = null, company = null, auth_user_id = null, active = false, erased_at = now()
    where id = p_id
    returning * into v_customer;

    update gateway.audit_log
    set before = gateway.without_person(before, entity), after = gateway.without_person(after, entity)
    where (entity = 'customers' and entity_id = p_id::text)
        or (entity = 'api_keys' and entity_id in (select k.id::text from gateway.api_keys as k where k.customer_id = p_id));
    update gateway.audit_log set actor = 'user (erased)' where actor = 'user ' || nullif(current_setting('gateway.erased_user', true), '');
    update gateway.ledger_entries set note = null where customer_id = p_id and request_id is null and note is not null;
    perform set_config('gateway.erased_user', '', true);
    perform set_config('gateway.engine', 'off', true);
    return gateway.describe_customer(v_customer);
end
$$;

-- api.set_limits: merges limits into those of one subject: a key (p_model names one model of it; p_each_model: every model by itself), a
-- customer or a service (by id, or by p_service_name). p_rate_limits and p_warn: {requests_per_minute: 60, tokens_per_day: …, spend_usd_per_month: …}; null removes.
-- A limit that is set without a soft mark of its own gets one at p_warn_percent. Returns all limits of the subject in the same form as
-- {"rate_limits", "warn"}, or {"error": "unknown_key" | "unknown_customer" | "unknown_service" | "unknown_model"}.
-- Locks the key.
create or replace function api.set_limits(
    p_key_id bigint default null, p_customer_id bigint default null, p_service_id bigint default null, p_key_hash text default null,
    p_model text default null, p_each_model boolean default false, p_rate_limits jsonb default '{}', p_warn jsonb default '{}',
    p_warn_percent numeric default 80, p_actor text default null, p_service_name text default null
) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_key_id bigint := p_key_id;
    v_service_id bigint := p_service_id;
    v_model_id bigint;
    v_per text;
    v_changes jsonb;
    v_metric text;
    v_name text;
    v_limit gateway.limits;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    if p_key_hash is not null then
        v_key_id := gateway.find_key(decode(p_key_hash, 'hex'));
    end if;
    if p_service_name is not null then
        select id into v_service_id from gateway.services where name = p_service_name and deleted_at is null;
    end if;
    if (p_key_id is not null or p_key_hash is not null) and not exists (select from gateway.api_keys where id = v_key_id) then
        return jsonb_build_object('error', 'unknown_key');
    elsif p_customer_id is not null and not exists (select from gateway.customers where id = p_customer_id) then
        return jsonb_build_object('error', 'unknown_customer');
    elsif (p_service_id is not null or p_service_name is not null)
        and not exists (select from gateway.services where id = v_service_id and deleted_at is null) then
        return jsonb_build_object('error', 'unknown_service');
    end if;
    if p_model is not null then
        select id into v_model_id from gateway.models where name = p_model;
        if v_model_id is null then
            return jsonb_build_object('error', 'unknown_model');
        end if;
    end if;

    -- As who changes the key does: a limit is set either before or after another, and neither is judged by what the other replaces.
    perform from gateway.api_keys where id = v_key_id for no key update;
    foreach v_per in array array['minute', 'hour', 'day', 'month'] loop
        v_changes := '{}';
        foreach v_metric in array array['requests', 'tokens', 'spend_usd'] loop
            v_name := v_metric || '_per_' || v_per;
            if p_rate_limits ? v_name then
                v_changes := v_changes || jsonb_build_object(
                    v_metric, p_rate_limits -> v_name,
                    'warn_' || v_metric, case
                        when v_metric = 'spend_usd' then to_jsonb((p_rate_limits ->> v_name)::numeric * p_warn_percent * 0.01)
                        else to_jsonb(floor((p_rate_limits ->> v_name)::numeric * p_warn_percent * 0.01))
                    end);
            end if;
            if p_warn ? v_name then
                v_changes := v_changes || jsonb_build_object('warn_' || v_metric, p_warn -> v_name);
            end if;
        end loop;
        continue when v_changes = '{}';

        -- Found and locked in one step: between two, another call might remove the row, and this change would be lost with it.
        insert into gateway.limits (key_id, customer_id, service_id, model_id, each_model, per)
        values (v_key_id, p_customer_id, v_service_id, v_model_id, p_each_model, v_per)
        on conflict (key_id, customer_id, service_id, model_id, each_model, per) do update set per = excluded.per
        returning * into v_limit;
        v_limit := jsonb_populate_record(v_limit, v_changes);
        if num_nonnulls(v_limit.requests, v_limit.tokens, v_limit.spend_usd, v_limit.warn_requests, v_limit.warn_tokens, v_limit.warn_spend_usd) = 0 then
            delete from gateway.limits where id = v_limit.id;
        else
            update gateway.limits
            set (requests, tokens, spend_usd, warn_requests, warn_tokens, warn_spend_usd) = (
                v_limit.requests, v_limit.tokens, v_limit.spend_usd, v_limit.warn_requests, v_limit.warn_tokens, v_limit.warn_spend_usd)
            where id = v_limit.id;
        end if;
    end loop;

    return gateway.show_limits(v_key_id, p_customer_id, v_service_id, v_model_id, p_each_model);
end
$$;

-- api.set_key_state: switches a key on or off, or revokes it for good. The key is named by id or, with p_key_id null, by p_key_hash.
-- p_customer_id null: an admin's call, any key; else only that customer's keys, and of these none with the scope admin, which only an admin
-- hands out. p_caller_key_id: the key that asks; it switches no key on that can do more than itself: whoever holds it may hold the other's
-- secret, for which that was switched off. Returns the key, or {"error": "unknown_key" | "revoked_key" | "admin_key" | "stopped_caller" (the key
-- that asks was revoked a moment ago)} | {"error": "exceeds_maker", "field"}. Locks both keys, in the order of their ids.
create function api.set_key_state(
    p_key_id bigint, p_customer_id bigint, p_state text, p_actor text default null, p_key_hash text default null,
    p_caller_key_id bigint default null
) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_key_id bigint := coalesce(p_key_id, gateway.find_key(decode(p_key_hash, 'hex')));
    v_locked gateway.api_keys;
    v_key gateway.api_keys;
    v_caller gateway.api_keys;
    v_beyond text;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    for v_locked in select * from gateway.lock_keys(array[v_key_id, p_caller_key_id]) loop
        if v_locked.id = v_key_id and (p_customer_id is null or v_locked.customer_id = p_customer_id) then
            v_key := v_locked;
        end if;
        if v_locked.id = p_caller_key_id then
            v_caller := v_locked;
        end if;
    end loop;
    if p_caller_key_id is not null and gateway.is_stopped(v_caller) then
        return jsonb_build_object('error', 'stopped_caller');
    elsif v_key.id is null then
        return jsonb_build_object('error', 'unknown_key');
    elsif p_customer_id is not null and 'admin' = any (v_key.scopes) then
        return jsonb_build_object('error', 'admin_key');
    elsif v_key.revoked_at is not null and p_state <> 'revoked' then
        return jsonb_build_object('error', 'revoked_key');
    end if;
    if p_caller_key_id is not null and not v_key.active and p_state in ('active', 'toggled') then
        v_beyond := coalesce(gateway.field_beyond(v_key, v_caller), case when gateway.escapes_limits(v_key, v_caller) then 'limits' end);
        if v_beyond is not null then
            return jsonb_build_object('error', 'exceeds_maker', 'field', v_beyond);
        end if;
    end if;
    update gateway.api_keys
    set active = case p_state when 'active' then true when 'toggled' then not active else false end,
        revoked_at = case when p_state = 'revoked' then coalesce(revoked_at, now()) end
    where id = v_key.id
    returning * into v_key;
    return gateway.describe_key(v_key);
end
$$;

revoke all on function api.set_key_state(bigint, bigint, text, text, text, bigint) from public;

grant execute on function api.set_key_state(bigint, bigint, text, text, text, bigint) to service_role;

comment on function api.set_key_state(bigint, bigint, text, text, text, bigint) is 'Sets a key active, inactive, toggled or revoked.';

create or replace function gateway.describe_price(p_price gateway.prices) returns jsonb
language sql stable set search_path = ''
as $$
    select jsonb_build_object('id', p_price.id, 'effective_from', p_price.effective_from, 'source', p_price.source, 'source_date', p_price.source_date)
        || jsonb_strip_nulls(jsonb_build_object(
            'input', gateway.show_usd(p_price.input), 'cached_input', gateway.show_usd(p_price.cached_input),
            'cache_write', gateway.show_usd(p_price.cache_write), 'audio_input', gateway.show_usd(p_price.audio_input),
            'image_input', gateway.show_usd(p_price.image_input), 'output', gateway.show_usd(p_price.output),
            'audio_output', gateway.show_usd(p_price.audio_output), 'image_output', gateway.show_usd(p_price.image_output),
            'per_request', gateway.show_usd(p_price.per_request), 'per_image', gateway.show_usd(p_price.per_image),
            'cache_write_1h', gateway.show_usd(p_price.cache_write_1h)))
$$;

create or replace function gateway.insert_price(p_offer_id bigint, p_service_id bigint, p_prices jsonb, p_effective_from timestamptz) returns gateway.prices
language sql set search_path = ''
as $$
    insert into gateway.prices (offer_id, service_id, effective_from, input, cached_input, cache_write, audio_input, image_input,
                                output, audio_output, image_output, per_request, per_image, source, source_date, cache_write_1h)
    select p_offer_id, p_service_id, coalesce(p_effective_from, clock_timestamp()), r.input, r.cached_input, r.cache_write, r.audio_input,
        r.image_input, r.output, r.audio_output, r.image_output, r.per_request, r.per_image, r.source, r.source_date, r.cache_write_1h
    from jsonb_populate_record(null::gateway.prices, p_prices - array['id', 'offer_id', 'service_id', 'effective_from', 'created_at']) as r
    returning *
$$;

-- api.import_prices: brings a price list in, all of it or nothing. p_lines: [{"model", "provider", "upstream_model"?, "context_length"?,
-- "max_output_tokens"?, "input_modalities"?, "output_modalities"?, "input", "output", other classes of gateway.prices?, "source"?,
-- "source_date"?}], each offer once. Models and offers that are not there are added; where a provider's price for all its services is
-- another than the one in force at p_effective_from (now, if null; never in the past), a new version begins there. A version that was to
-- begin at that very moment is replaced. Nothing else is changed: not what the list lacks, not what is known of a model, no service's
-- own price. p_dry_run: tells the same and writes nothing.
-- Locks: what it adds by name, then the offers by id, so that of two lists with an offer in common one comes after the other. Returns {"dry_run", "lines", "models_added", "offers_added", "prices_changed",
-- "unchanged"} (each line is one of the last three), or {"error": "duplicate_offer" | "in_the_past"}.
create or replace function api.import_prices(
    p_lines jsonb, p_dry_run boolean default false, p_effective_from timestamptz default null, p_actor text default null
) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '25s'
as $$
declare
    v_at timestamptz;
    v_lines gateway.price_line[];
    v_models_added text[] := '{}'::text[];
    v_offers_added bigint[] := '{}'::bigint[];
    v_told jsonb;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    select array_agg(l) into v_lines from jsonb_populate_recordset(null::gateway.price_line, p_lines) as l;
    if (select count(*) > count(distinct (l.model, l.provider)) from unnest(v_lines) as l) then
        return jsonb_build_object('error', 'duplicate_offer');
    end if;
    if p_effective_from < clock_timestamp() then
        return jsonb_build_object('error', 'in_the_past');
    end if;

    if p_dry_run then
        select coalesce(array_agg(distinct l.model), '{}') into v_models_added
        from unnest(v_lines) as l
        where not exists (select from gateway.models as m where m.name = l.model);
    else
        with added as (
            insert into gateway.models (name, context_length, max_output_tokens, input_modalities, output_modalities)
            select l.model, max(l.context_length), max(l.max_output_tokens),
                coalesce(max(l.input_modalities), '{text}'), coalesce(max(l.output_modalities), '{text}')
            from unnest(v_lines) as l
            group by l.model
            order by l.model
            on conflict (name) do nothing
            returning name
        )
        select coalesce(array_agg(name), '{}') into v_models_added from added;
        with added as (
            insert into gateway.offers (model_id, provider, upstream_model)
            select m.id, l.provider, coalesce(l.upstream_model, l.model)
            from unnest(v_lines) as l
            join gateway.models as m on m.name = l.model
            order by m.id, l.provider
            on conflict (model_id, provider) do nothing
            returning id
        )
        select coalesce(array_agg(id), '{}') into v_offers_added from added;
        -- As in api.create_price: what is compared below is what is in force when it is replaced.
        perform from gateway.offers as o
        where (o.model_id, o.provider) in (
            select m.id, l.provider from unnest(v_lines) as l join gateway.models as m on m.name = l.model
        )
        order by o.id
        for no key update;
    end if;
    v_at := greatest(p_effective_from, clock_timestamp());
    with compared as materialized (
        select l.*, o.id as offer_id, o.id is null or n.id is not null as new_offer, c.changes
        from unnest(v_lines) as l
        left join gateway.models as m on m.name = l.model
        left join gateway.offers as o on o.model_id = m.id and o.provider = l.provider
        left join unnest(v_offers_added) as n (id) on n.id = o.id
        left join lateral (
            select v.* from gateway.prices as v
            where v.offer_id = o.id and v.service_id is null and v.effective_from <= v_at
            order by v.effective_from desc
            limit 1
        ) as p on true
        cross join lateral (
            select jsonb_object_agg(k.class, jsonb_build_object('old', gateway.show_usd(k.old), 'new', gateway.show_usd(k.new))) as changes
            from (
                values ('input', p.input, l.input), ('cached_input', p.cached_input, l.cached_input),
                    ('cache_write', p.cache_write, l.cache_write), ('audio_input', p.audio_input, l.audio_input),
                    ('image_input', p.image_input, l.image_input), ('output', p.output, l.output),
                    ('audio_output', p.audio_output, l.audio_output), ('image_output', p.image_output, l.image_output),
                    ('per_request', p.per_request, l.per_request), ('per_image', p.per_image, l.per_image),
                    ('cache_write_1h', p.cache_write_1h, l.cache_write_1h)
            ) as k (class, old, new)
            where k.old is distinct from k.new
        ) as c
    ),
    written as (
        insert into gateway.prices as p (offer_id, effective_from, input, cached_input, cache_write, audio_input, image_input,
                                         output, audio_output, image_output, per_request, per_image, source, source_date, cache_write_1h)
        select c.offer_id, v_at, c.input, c.cached_input, c.cache_write, c.audio_input, c.image_input,
            c.output, c.audio_output, c.image_output, c.per_request, c.per_image, c.source, c.source_date, c.cache_write_1h
        from compared as c
        where not p_dry_run and c.changes is not null
        order by c.offer_id
        on conflict (offer_id, service_id, effective_from) do update set
            input = excluded.input, cached_input = excluded.cached_input, cache_write = excluded.cache_write,
            audio_input = excluded.audio_input, image_input = excluded.image_input, output = excluded.output,
            audio_output = excluded.audio_output, image_output = excluded.image_output, per_request = excluded.per_request,
            per_image = excluded.per_image, source = excluded.source, source_date = excluded.source_date,
            cache_write_1h = excluded.cache_write_1h
    )
    select jsonb_build_object(
        'dry_run', p_dry_run,
        'lines', count(*),
        'models_added', (select coalesce(jsonb_agg(a.name order by a.name), '[]') from unnest(v_models_added) as a (name)),
        'offers_added', coalesce(jsonb_agg(
            jsonb_build_object('model', c.model, 'provider', c.provider) order by c.model, c.provider) filter (where c.new_offer), '[]'),
        'prices_changed', coalesce(jsonb_agg(
            jsonb_build_object('model', c.model, 'provider', c.provider, 'changes', c.changes) order by c.model, c.provider
        ) filter (where not c.new_offer and c.changes is not null), '[]'),
        'unchanged', count(*) filter (where not c.new_offer and c.changes is null))
    into v_told
    from compared as c;
    return v_told;
end
$$;

create or replace function gateway.describe_service(p_service gateway.services) returns jsonb
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
create or replace function api.update_service(p_id bigint, p_changes jsonb, p_actor text default null) returns jsonb
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

-- api.delete_service: switches a service and its routes off for good; the row stays for the books. Returns whether there was one.
create or replace function api.delete_service(p_id bigint, p_actor text default null) returns boolean
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

create or replace function gateway.describe_request(p_request gateway.requests, p_show_cost boolean) returns jsonb
language plpgsql stable set search_path = ''
as $$
begin
    return jsonb_build_object(
        'id', p_request.id, 'created_at', p_request.admitted_at, 'endpoint', p_request.endpoint,
        'key_id', p_request.key_id, 'customer_id', p_request.customer_id,
        'model', coalesce((select m.name from gateway.models as m where m.id = p_request.model_id), p_request.requested_model),
        'requested_model', p_request.requested_model,
        'provider', (select s.provider from gateway.services as s where s.id = p_request.service_id),
        'state', p_request.state, 'outcome', p_request.outcome, 'status', p_request.status, 'error_code', p_request.error_code,
        'finish_reason', p_request.finish_reason, 'streamed', p_request.streamed, 'usage_estimated', p_request.usage_estimated,
        'tokens', jsonb_strip_nulls(jsonb_build_object(
            'input', p_request.input_tokens, 'cached_input', p_request.cached_input_tokens, 'cache_write', p_request.cache_write_tokens,
            'audio_input', p_request.audio_input_tokens, 'image_input', p_request.image_input_tokens, 'output', p_request.output_tokens,
            'reasoning', p_request.reasoning_tokens, 'audio_output', p_request.audio_output_tokens,
            'image_output', p_request.image_output_tokens, 'images', p_request.images,
            'cache_write_1h', p_request.cache_write_1h_tokens)),
        'cost_usd', case when p_show_cost or p_request.billing_mode = 'markup' then gateway.show_usd(p_request.cost_usd) end,
        'charge_usd', gateway.show_usd(p_request.charge_usd), 'uncollected_usd', gateway.show_usd(p_request.uncollected_usd),
        'hold_usd', case when p_request.state = 'held' then gateway.show_usd(p_request.hold_usd) end,
        'latency_ms', p_request.latency_ms, 'time_to_first_token_ms', p_request.time_to_first_token_ms);
end
$$;

create or replace function gateway.read_moment(p_text text, p_time_zone text, p_end_of_day boolean) returns timestamptz
language plpgsql stable set search_path = ''
as $$
begin
    if p_text !~ '^\d{4}-\d\d-\d\d$' then
        return p_text::timestamptz;
    end if;
    return gateway.first_moment(p_text::date + case when p_end_of_day then 1 else 0 end, p_time_zone);
end
$$;

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
create or replace function api.read_time_series(
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

create view gateway.provider_cost_differences with (security_invoker = true) as
select c.day, s.provider, s.name as service, c.requests, c.cost_usd, c.provider_cost_usd,
    c.provider_cost_usd - c.cost_usd as difference_usd,
    round(100.0 * (c.provider_cost_usd - c.cost_usd) / nullif(c.cost_usd, 0), 2) as difference_percent
from gateway.provider_costs as c
join gateway.services as s on s.id = c.service_id;

create trigger read_only instead of insert or update or delete on gateway.provider_cost_differences
    for each row execute function gateway.refuse_view_edit('The maintenance writes gateway.provider_costs.');

comment on view gateway.provider_cost_differences is 'Where our prices are off: what providers that tell their cost took, day by day (UTC), beside what it came to here.';

comment on column gateway.provider_cost_differences.day is 'The day on which the requests were admitted (UTC).';

comment on column gateway.provider_cost_differences.provider is 'The provider.';

comment on column gateway.provider_cost_differences.service is 'The service.';

comment on column gateway.provider_cost_differences.requests is 'Requests whose cost the provider told.';

comment on column gateway.provider_cost_differences.cost_usd is 'What they cost by our prices.';

comment on column gateway.provider_cost_differences.provider_cost_usd is 'What they cost by what the provider told.';

comment on column gateway.provider_cost_differences.difference_usd is 'What the provider takes beyond our prices; below zero: less.';

comment on column gateway.provider_cost_differences.difference_percent is 'The same in percent of our cost; empty: by our prices they cost nothing.';

create or replace view gateway.price_list with (security_invoker = true) as
select m.name as model, o.provider, o.upstream_model, s.name as service, m.active,
    p.input as input_per_million_usd, p.cached_input as cached_input_per_million_usd, p.cache_write as cache_write_per_million_usd,
    p.output as output_per_million_usd, p.audio_input as audio_input_per_million_usd, p.image_input as image_input_per_million_usd,
    p.audio_output as audio_output_per_million_usd, p.image_output as image_output_per_million_usd,
    p.per_request as per_request_usd, p.per_image as per_image_usd,
    trim_scale(p.input * 0.000001) as input_per_token_usd, trim_scale(p.output * 0.000001) as output_per_token_usd,
    p.effective_from, n.effective_from as next_price_from, p.source, p.source_date, p.id as price_id,
    p.cache_write_1h as cache_write_1h_per_million_usd
from gateway.offers as o
join gateway.models as m on m.id = o.model_id
join (
    select distinct on (offer_id, service_id) *
    from gateway.prices
    where effective_from <= now()
    order by offer_id, service_id, effective_from desc
) as p on p.offer_id = o.id
left join gateway.services as s on s.id = p.service_id
left join lateral (
    select min(f.effective_from) as effective_from
    from gateway.prices as f
    where f.offer_id = p.offer_id and f.service_id is not distinct from p.service_id and f.effective_from > now()
) as n on true
order by m.name, o.provider, s.name;

comment on column gateway.price_list.cache_write_1h_per_million_usd is 'USD per million input tokens written to the provider''s cache for an hour. Empty: not offered.';

create policy nobody on gateway.service_health as restrictive to public using (false);

create policy nobody on gateway.provider_costs as restrictive to public using (false);
