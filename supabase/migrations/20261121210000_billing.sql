-- For the constraint of the table below. p_rates: the version's own prices of c_classes, in that order; a tier has the same classes, or
-- a price that was forgotten would be taken for its base class's.
create function gateway.are_price_tiers(p_tiers jsonb, p_rates numeric[]) returns boolean
language plpgsql immutable set search_path = ''
as $$
declare
    c_classes constant text[] := array[
        'input', 'cached_input', 'cache_write', 'cache_write_1h', 'audio_input', 'image_input', 'output', 'audio_output', 'image_output'];
    v_tier jsonb;
    v_entry record;
    v_above numeric := 0;
begin
    if jsonb_typeof(p_tiers) <> 'array' then
        return false;
    elsif jsonb_array_length(p_tiers) not between 1 and 16 then
        return false;
    end if;
    for v_tier in select value from jsonb_array_elements(p_tiers) loop
        if jsonb_typeof(v_tier) <> 'object' then
            return false;
        elsif not v_tier ? 'above_input_tokens' then
            return false;
        end if;
        for v_entry in select key, value from jsonb_each(v_tier) loop
            if jsonb_typeof(v_entry.value) <> 'number' then
                return false;
            elsif v_entry.key = 'above_input_tokens' then
                continue;
            elsif p_rates[array_position(c_classes, v_entry.key)] is null
                or v_entry.value::numeric not between 0 and 9999999999.9999999999
                or v_entry.value::numeric <> round(v_entry.value::numeric, 10)
            then
                return false;
            end if;
        end loop;
        if exists (
            select from unnest(c_classes, p_rates) as c (name, rate) where c.rate is not null and not v_tier ? c.name
        ) then
            return false;
        end if;
        -- ascending, so that no two begin at the same length
        if (v_tier -> 'above_input_tokens')::numeric not between v_above + 1 and 1000000000000
            or (v_tier -> 'above_input_tokens')::numeric % 1 <> 0
        then
            return false;
        end if;
        v_above := (v_tier -> 'above_input_tokens')::numeric;
    end loop;
    return true;
end
$$;

comment on function gateway.are_price_tiers(jsonb, numeric[]) is 'Whether these are tiers of a price: numbers only, ascending, each with the classes of the price and no other.';

revoke all on function gateway.are_price_tiers(jsonb, numeric[]) from public;

alter table gateway.prices add column tiers jsonb constraint prices_tiers_check check (tiers is null or gateway.are_price_tiers(tiers, array[
    input, cached_input, cache_write, cache_write_1h, audio_input, image_input, output, audio_output, image_output]));

alter type gateway.price_line add attribute tiers jsonb;

comment on column gateway.prices.tiers is 'Dearer rates for long prompts, ascending: [{"above_input_tokens": 200000, "input": 2.5, "output": 15, …}, …], numbers, each with every class that the price itself has. A request with more input tokens than that, cached and written ones included, costs the tier''s rates from its first token on; per_request and per_image stay. Empty: one price for any length.';

create function gateway.input_tokens(p_usage jsonb) returns bigint
language plpgsql immutable parallel safe set search_path = ''
as $$
begin
    return coalesce((p_usage ->> 'input')::bigint, 0) + coalesce((p_usage ->> 'cached_input')::bigint, 0)
        + coalesce((p_usage ->> 'cache_write')::bigint, 0) + coalesce((p_usage ->> 'audio_input')::bigint, 0)
        + coalesce((p_usage ->> 'image_input')::bigint, 0);
end
$$;

comment on function gateway.input_tokens(jsonb) is 'Tokens of all the disjoint input classes: what the threshold of a price tier is compared with.';

revoke all on function gateway.input_tokens(jsonb) from public;

create function gateway.tier_of_prices(p_prices jsonb, p_input_tokens bigint) returns jsonb
language plpgsql immutable parallel safe set search_path = ''
as $$
declare
    v_rates jsonb := p_prices;
    v_tier jsonb;
begin
    for v_tier in select value from jsonb_array_elements(p_prices -> 'tiers') with ordinality order by ordinality loop
        exit when p_input_tokens <= (v_tier ->> 'above_input_tokens')::bigint;
        v_rates := v_tier;
    end loop;
    return v_rates;
end
$$;

comment on function gateway.tier_of_prices(jsonb, bigint) is 'The rates of a whole request with so many input tokens: those of the last tier that it is above, or the price''s own.';

revoke all on function gateway.tier_of_prices(jsonb, bigint) from public;

create or replace function gateway.tokens_cost_usd(p_prices jsonb, p_usage jsonb) returns numeric
language plpgsql immutable parallel safe set search_path = ''
as $$
declare
    v_rates constant jsonb := case when p_prices ? 'tiers' then gateway.tier_of_prices(p_prices, gateway.input_tokens(p_usage)) else p_prices end;
    v_input constant numeric := (v_rates ->> 'input')::numeric;
    v_output constant numeric := (v_rates ->> 'output')::numeric;
    v_cache_write constant numeric := coalesce((v_rates ->> 'cache_write')::numeric, v_input);
begin
    return (
        coalesce((p_usage ->> 'input')::bigint, 0) * v_input
        + coalesce((p_usage ->> 'cached_input')::bigint, 0) * coalesce((v_rates ->> 'cached_input')::numeric, v_input)
        + coalesce((p_usage ->> 'cache_write')::bigint, 0) * v_cache_write
        -- a part of what was written, dearer by the difference
        + least(coalesce((p_usage ->> 'cache_write_1h')::bigint, 0), coalesce((p_usage ->> 'cache_write')::bigint, 0))
            * (coalesce((v_rates ->> 'cache_write_1h')::numeric, v_cache_write) - v_cache_write)
        + coalesce((p_usage ->> 'audio_input')::bigint, 0) * coalesce((v_rates ->> 'audio_input')::numeric, v_input)
        + coalesce((p_usage ->> 'image_input')::bigint, 0) * coalesce((v_rates ->> 'image_input')::numeric, v_input)
        + coalesce((p_usage ->> 'output')::bigint, 0) * v_output
        + coalesce((p_usage ->> 'audio_output')::bigint, 0) * coalesce((v_rates ->> 'audio_output')::numeric, v_output)
        + coalesce((p_usage ->> 'image_output')::bigint, 0) * coalesce((v_rates ->> 'image_output')::numeric, v_output)
    ) * 0.000001;
end
$$;

comment on function gateway.tokens_cost_usd(jsonb, jsonb) is 'Exact cost of the tokens of each class at pinned prices (USD per million), of the tier that the whole input falls in. A class without a price of its own costs what its base class costs.';

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
                                output, audio_output, image_output, per_request, per_image, source, source_date, cache_write_1h, tiers)
    values (new.offer_id, new.service_id, new.effective_from, new.input, new.cached_input, new.cache_write, new.audio_input, new.image_input,
            new.output, new.audio_output, new.image_output, new.per_request, new.per_image, new.source, new.source_date, new.cache_write_1h,
            new.tiers);
    return null;  -- the old version stays as it is
end
$$;

-- api.create_request_partitions: makes the request log's monthly partitions from this month to p_months ahead, and of earlier months where
-- the default partition has requests of them.
-- Returns the names of those that it made. Locks the default partition, and so the log, only when it makes one; one maker or dropper at a
-- time. For maintenance.
-- The default partition is a safety net, so that a missed job never refuses a request; its rows move out here.
create or replace function api.create_request_partitions(p_months integer default 3) returns text[]
language plpgsql security definer set search_path = ''
as $$
declare
    v_month date;
    v_name text;
    v_from timestamptz;
    v_to timestamptz;
    v_made text[] := '{}'::text[];
begin
    perform set_config('gateway.engine', 'on', true);
    -- First of all: who had read the default partition before could wait for another maker that waits for that very lock.
    lock table only gateway.requests in share update exclusive mode;
    foreach v_month in array array(
        select date_trunc('month', now() at time zone 'UTC') + make_interval(months => i) from generate_series(0, p_months) as i
        union
        select date_trunc('month', admitted_at at time zone 'UTC') from gateway.requests_default
        order by 1
    ) loop
        v_name := 'requests_' || to_char(v_month, 'YYYY_MM');
        v_from := v_month::timestamp at time zone 'UTC';
        v_to := (v_month + interval '1 month') at time zone 'UTC';
        if to_regclass('gateway.' || v_name) is null then
            -- Nothing enters the default partition while it is emptied.
            lock table gateway.requests_default in access exclusive mode;
            execute format('create table gateway.%I (like gateway.requests including defaults including constraints)', v_name);
            execute format('alter table gateway.%I enable row level security', v_name);
            execute format('create policy nobody on gateway.%I as restrictive to public using (false)', v_name);
            execute format('comment on table gateway.%I is %L', v_name, 'Requests of ' || to_char(v_month, 'YYYY-MM') || ' (UTC): a partition of gateway.requests.');
            execute format('with moved as (delete from gateway.requests_default where admitted_at >= %L and admitted_at < %L returning *) '
                           'insert into gateway.%I select * from moved', v_from, v_to, v_name);
            execute format('alter table gateway.requests attach partition gateway.%I for values from (%L) to (%L)', v_name, v_from, v_to);
            execute format('create trigger refuse_hand_edit before insert or update or delete or truncate on gateway.%I '
                           'for each statement execute function gateway.refuse_hand_edit()', v_name);
            v_made := v_made || v_name;
        end if;
    end loop;
    perform set_config('gateway.engine', 'off', true);
    return v_made;
end
$$;

comment on type gateway.candidate is 'A route that a request might take, with its pinned prices and what it may cost. Rates are USD per token at the dearest class that can occur, those of a short prompt until gateway.reach_tiers has seen its bound.';

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
                'per_request', v.per_request, 'per_image', v.per_image, 'cache_write_1h', v.cache_write_1h,
                'tiers', v.tiers)) as prices
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

-- gateway.reach_tiers: the candidate, whose input bound is known, at the dearest rates of each kind that any length of input up to the bound
-- may be settled at. Only for one whose prices have tiers: others don't pay for the call.
create function gateway.reach_tiers(p_candidate gateway.candidate, p_media_input boolean, p_media_output boolean, p_cache_write_1h boolean)
returns gateway.candidate
language plpgsql immutable set search_path = ''
as $$
declare
    v_tier jsonb;
begin
    for v_tier in
        select value from jsonb_array_elements(p_candidate.prices -> 'tiers')
        where (value ->> 'above_input_tokens')::bigint < p_candidate.input_bound
    loop
        p_candidate.input_rate := greatest(
            p_candidate.input_rate,
            greatest(
                (v_tier ->> 'input')::numeric, (v_tier ->> 'cached_input')::numeric, (v_tier ->> 'cache_write')::numeric,
                case when p_media_input then greatest((v_tier ->> 'audio_input')::numeric, (v_tier ->> 'image_input')::numeric) end,
                case when p_cache_write_1h then (v_tier ->> 'cache_write_1h')::numeric end
            ) * 0.000001);
        p_candidate.output_rate := greatest(
            p_candidate.output_rate,
            greatest(
                (v_tier ->> 'output')::numeric,
                case when p_media_output then greatest((v_tier ->> 'audio_output')::numeric, (v_tier ->> 'image_output')::numeric) end
            ) * 0.000001);
    end loop;
    return p_candidate;
end
$$;

comment on function gateway.reach_tiers(gateway.candidate, boolean, boolean, boolean) is 'A candidate at the dearest rates that its input bound can reach over the tiers of its prices.';

revoke all on function gateway.reach_tiers(gateway.candidate, boolean, boolean, boolean) from public;

-- api.admit_request: decides, in one transaction, whether a request may go to a provider, and holds its whole upper bound.
--
-- Returns a row either way. {"admitted": true, "request_id", "admitted_at", …, "max_output_tokens", "candidates": [the routes to
-- try, in order, with the sealed provider keys]}, or {"admitted": false, "refusal": code, …}. A refusal consumes nothing.
--
-- The hold: for each candidate, input bound × its dearest input price + output bound × its dearest output price + what is fixed,
-- with the commission (or at the flat price), rounded up; of the candidates the dearest. Tiers of a price count as far as the input bound
-- reaches. The input bound is p_input_tokens_bound or,
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
create or replace function api.admit_request(
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
            if v_candidate.prices ? 'tiers' then
                v_candidate := gateway.reach_tiers(
                    v_candidate, coalesce(p_media_input, p_input_tokens_bound is null), p_media_output, p_cache_write_1h);
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

create function gateway.read_price_tiers(p_tiers jsonb) returns jsonb
language sql immutable set search_path = ''
as $$
    select jsonb_agg((
        select jsonb_object_agg(e.key, e.value::numeric) from jsonb_each_text(t.value) as e where e.value is not null
    ) order by (t.value ->> 'above_input_tokens')::numeric)
    from jsonb_array_elements(nullif(p_tiers, 'null')) as t
$$;

comment on function gateway.read_price_tiers(jsonb) is 'Tiers as they cross the wire, in the form of gateway.prices.tiers: numbers, ascending; null for none.';

revoke all on function gateway.read_price_tiers(jsonb) from public;

create function gateway.show_price_tiers(p_tiers jsonb) returns jsonb
language sql immutable set search_path = ''
as $$
    select jsonb_agg(jsonb_build_object('above_input_tokens', t.value -> 'above_input_tokens') || (
        select jsonb_object_agg(e.key, gateway.show_usd(e.value::numeric))
        from jsonb_each(t.value) as e
        where e.key <> 'above_input_tokens'
    ) order by t.ordinality)
    from jsonb_array_elements(p_tiers) with ordinality as t
$$;

comment on function gateway.show_price_tiers(jsonb) is 'The tiers of a price as the API shows them: amounts as text; null for none.';

revoke all on function gateway.show_price_tiers(jsonb) from public;

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
            'cache_write_1h', gateway.show_usd(p_price.cache_write_1h), 'tiers', gateway.show_price_tiers(p_price.tiers)))
$$;

comment on function gateway.describe_price(gateway.prices) is 'A price as the API shows it: USD per million tokens, as text; classes without a price of their own are left out, and tiers where it has none.';

create or replace function gateway.insert_price(p_offer_id bigint, p_service_id bigint, p_prices jsonb, p_effective_from timestamptz) returns gateway.prices
language sql set search_path = ''
as $$
    insert into gateway.prices (offer_id, service_id, effective_from, input, cached_input, cache_write, audio_input, image_input,
                                output, audio_output, image_output, per_request, per_image, source, source_date, cache_write_1h, tiers)
    select p_offer_id, p_service_id, coalesce(p_effective_from, clock_timestamp()), r.input, r.cached_input, r.cache_write, r.audio_input,
        r.image_input, r.output, r.audio_output, r.image_output, r.per_request, r.per_image, r.source, r.source_date, r.cache_write_1h,
        gateway.read_price_tiers(r.tiers)
    from jsonb_populate_record(null::gateway.prices, p_prices - array['id', 'offer_id', 'service_id', 'effective_from', 'created_at']) as r
    returning *
$$;

-- api.import_prices: brings a price list in, all of it or nothing. p_lines: [{"model", "provider", "upstream_model"?, "context_length"?,
-- "max_output_tokens"?, "input_modalities"?, "output_modalities"?, "input", "output", other classes of gateway.prices?, "source"?,
-- "source_date"?, "tiers"?: [{"above_input_tokens", the same classes}]}], each offer once. Models and offers that are not there are added; where a provider's price for all its services is
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
                union all
                select e.key || '_above_' || (t.tier ->> 'above_input_tokens'),
                    max(e.value::numeric) filter (where not t.is_new), max(e.value::numeric) filter (where t.is_new)
                from (
                    select false as is_new, jsonb_array_elements(p.tiers) as tier
                    union all
                    select true, jsonb_array_elements(gateway.read_price_tiers(l.tiers))
                ) as t
                cross join lateral jsonb_each_text(t.tier) as e
                where e.key <> 'above_input_tokens'
                group by 1
            ) as k (class, old, new)
            where k.old is distinct from k.new
        ) as c
    ),
    written as (
        insert into gateway.prices as p (offer_id, effective_from, input, cached_input, cache_write, audio_input, image_input,
                                         output, audio_output, image_output, per_request, per_image, source, source_date, cache_write_1h,
                                         tiers)
        select c.offer_id, v_at, c.input, c.cached_input, c.cache_write, c.audio_input, c.image_input,
            c.output, c.audio_output, c.image_output, c.per_request, c.per_image, c.source, c.source_date, c.cache_write_1h,
            gateway.read_price_tiers(c.tiers)
        from compared as c
        where not p_dry_run and c.changes is not null
        order by c.offer_id
        on conflict (offer_id, service_id, effective_from) do update set
            input = excluded.input, cached_input = excluded.cached_input, cache_write = excluded.cache_write,
            audio_input = excluded.audio_input, image_input = excluded.image_input, output = excluded.output,
            audio_output = excluded.audio_output, image_output = excluded.image_output, per_request = excluded.per_request,
            per_image = excluded.per_image, source = excluded.source, source_date = excluded.source_date,
            cache_write_1h = excluded.cache_write_1h, tiers = excluded.tiers
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

-- api.list_models: the models that can be called: active, with a route of an active service, and a price; for a key only those that it
-- may use. p_key_hash null: the public list. {"models": [{id, name, …, "pricing": what the customer pays, of the route tried first, in USD
-- for one token, as text; what a long prompt costs instead is under its "overrides"}]}, or {"error"} as api.authenticate_key gives it. Reads only.
create or replace function api.list_models(p_key_hash text default null, p_name text default null) returns jsonb
language plpgsql stable security definer set search_path = ''
as $$
declare
    v_key jsonb;
    v_allowed_models bigint[];
    v_allowed_services bigint[];
begin
    if p_key_hash is not null then
        v_key := api.authenticate_key(p_key_hash);
        if v_key ? 'error' then
            return v_key;
        end if;
        v_allowed_models := (select array_agg(value::bigint) from jsonb_array_elements_text(nullif(v_key -> 'allowed_models', 'null')));
        v_allowed_services := (select array_agg(value::bigint) from jsonb_array_elements_text(nullif(v_key -> 'allowed_services', 'null')));
    end if;
    return jsonb_build_object('models', (
        select coalesce(jsonb_agg(jsonb_build_object(
            'id', m.id, 'name', m.name, 'display_name', m.display_name, 'created_at', m.created_at, 'context_length', m.context_length,
            'max_output_tokens', m.max_output_tokens, 'input_modalities', m.input_modalities, 'output_modalities', m.output_modalities,
            'provider', r.provider, 'pricing', r.pricing) order by m.name), '[]')
        from gateway.models as m
        cross join lateral (
            select s.provider, jsonb_strip_nulls(jsonb_build_object(
                'prompt', gateway.show_usd(case when c.flat then c.rate else p.input * c.rate end),
                'completion', gateway.show_usd(case when c.flat then c.rate else p.output * c.rate end),
                'input_cache_read', gateway.show_usd(case when c.flat then c.rate else p.cached_input * c.rate end),
                'input_cache_write', gateway.show_usd(case when c.flat then c.rate else p.cache_write * c.rate end),
                'audio', gateway.show_usd(case when c.flat then c.rate else p.audio_input * c.rate end),
                'request', gateway.show_usd(coalesce(p.per_request, 0) * c.commission),
                'image', gateway.show_usd(p.per_image * c.commission),
                -- at a flat price no prompt is too long
                'overrides', case when not c.flat then (
                    select jsonb_agg(jsonb_build_object(
                        'min_prompt_tokens', t.value -> 'above_input_tokens',
                        'prompt', gateway.show_usd((t.value ->> 'input')::numeric * c.rate),
                        'completion', gateway.show_usd((t.value ->> 'output')::numeric * c.rate),
                        'input_cache_read', gateway.show_usd((t.value ->> 'cached_input')::numeric * c.rate),
                        'input_cache_write', gateway.show_usd((t.value ->> 'cache_write')::numeric * c.rate),
                        'audio', gateway.show_usd((t.value ->> 'audio_input')::numeric * c.rate)) order by t.ordinality)
                    from jsonb_array_elements(p.tiers) with ordinality as t
                ) end)) as pricing
            from gateway.offers as o
            join gateway.routes as t on t.offer_id = o.id and t.active
            join gateway.services as s on s.id = t.service_id and s.active
            cross join lateral (
                select v.* from gateway.prices as v
                where v.offer_id = o.id and (v.service_id = s.id or v.service_id is null) and v.effective_from <= clock_timestamp()
                order by v.service_id is null, v.effective_from desc
                limit 1
            ) as p
            cross join (
                select t.billing_mode = 'flat' as flat, 1 + t.commission_percent * 0.01 as commission,
                    case when t.billing_mode = 'flat' then t.flat_usd_per_1k_tokens * 0.001 else (1 + t.commission_percent * 0.01) * 0.000001 end as rate
                from gateway.settings as t
            ) as c
            where o.model_id = m.id and (v_allowed_services is null or s.id = any (v_allowed_services))
            order by coalesce(t.priority, s.priority), t.id
            limit 1
        ) as r
        where m.active and (p_name is null or m.name = p_name) and (v_allowed_models is null or m.id = any (v_allowed_models))
    ));
end
$$;

create or replace view gateway.price_list with (security_invoker = true) as
select m.name as model, o.provider, o.upstream_model, s.name as service, m.active,
    p.input as input_per_million_usd, p.cached_input as cached_input_per_million_usd, p.cache_write as cache_write_per_million_usd,
    p.output as output_per_million_usd, p.audio_input as audio_input_per_million_usd, p.image_input as image_input_per_million_usd,
    p.audio_output as audio_output_per_million_usd, p.image_output as image_output_per_million_usd,
    p.per_request as per_request_usd, p.per_image as per_image_usd,
    trim_scale(p.input * 0.000001) as input_per_token_usd, trim_scale(p.output * 0.000001) as output_per_token_usd,
    p.effective_from, n.effective_from as next_price_from, p.source, p.source_date, p.id as price_id,
    p.cache_write_1h as cache_write_1h_per_million_usd, p.tiers
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

comment on view gateway.price_list is 'The prices in force: what each provider takes for each model, before the commission. Of a long prompt: gateway.price_tiers.';

comment on column gateway.price_list.tiers is 'What a long prompt costs, where that is another price; a line each in gateway.price_tiers.';

create view gateway.price_tiers with (security_invoker = true) as
select p.model, p.provider, p.service, p.active, (t.value ->> 'above_input_tokens')::bigint as above_input_tokens,
    (t.value ->> 'input')::numeric as input_per_million_usd, (t.value ->> 'cached_input')::numeric as cached_input_per_million_usd,
    (t.value ->> 'cache_write')::numeric as cache_write_per_million_usd, (t.value ->> 'cache_write_1h')::numeric as cache_write_1h_per_million_usd,
    (t.value ->> 'output')::numeric as output_per_million_usd, (t.value ->> 'audio_input')::numeric as audio_input_per_million_usd,
    (t.value ->> 'image_input')::numeric as image_input_per_million_usd, (t.value ->> 'audio_output')::numeric as audio_output_per_million_usd,
    (t.value ->> 'image_output')::numeric as image_output_per_million_usd, p.effective_from, p.source, p.source_date, p.price_id
from gateway.price_list as p
cross join lateral jsonb_array_elements(p.tiers) as t
order by p.model, p.provider, p.service, above_input_tokens;

create trigger read_only instead of insert or update or delete on gateway.price_tiers
    for each row execute function gateway.refuse_view_edit('Edit tiers of gateway.prices: an edit there makes a new version.');

comment on view gateway.price_tiers is 'The prices in force of long prompts: from which length on, and what the whole request costs then. The rest: gateway.price_list.';

comment on column gateway.price_tiers.model is 'The model in our catalogue.';

comment on column gateway.price_tiers.provider is 'Who sells it.';

comment on column gateway.price_tiers.service is 'The service that alone has this price; empty: every service of the provider without one of its own.';

comment on column gateway.price_tiers.active is 'False: the model is hidden and refused.';

comment on column gateway.price_tiers.above_input_tokens is 'A request with more input tokens than this, cached and written ones included, costs what stands here, up to the next line''s.';

comment on column gateway.price_tiers.input_per_million_usd is 'USD per million input tokens.';

comment on column gateway.price_tiers.cached_input_per_million_usd is 'USD per million input tokens read from the provider''s cache. Empty: as input.';

comment on column gateway.price_tiers.cache_write_per_million_usd is 'USD per million input tokens written to the provider''s cache. Empty: as input.';

comment on column gateway.price_tiers.cache_write_1h_per_million_usd is 'USD per million input tokens written to the provider''s cache for an hour. Empty: not offered.';

comment on column gateway.price_tiers.output_per_million_usd is 'USD per million output tokens, reasoning included.';

comment on column gateway.price_tiers.audio_input_per_million_usd is 'USD per million audio tokens read. Empty: as input.';

comment on column gateway.price_tiers.image_input_per_million_usd is 'USD per million image tokens read. Empty: as input.';

comment on column gateway.price_tiers.audio_output_per_million_usd is 'USD per million audio tokens answered. Empty: as output.';

comment on column gateway.price_tiers.image_output_per_million_usd is 'USD per million image tokens answered. Empty: as output.';

comment on column gateway.price_tiers.effective_from is 'In force since.';

comment on column gateway.price_tiers.source is 'Where the price was read.';

comment on column gateway.price_tiers.source_date is 'When it was read there.';

comment on column gateway.price_tiers.price_id is 'The version, in gateway.prices.';

create or replace view legacy.pricing with (security_invoker = true) as
select p.provider, p.model, greatest(
        p.input_per_token_usd, p.output_per_token_usd,
        (select max(trim_scale(greatest((t.value ->> 'input')::numeric, (t.value ->> 'output')::numeric) * 0.000001))
         from jsonb_array_elements(p.tiers) as t)) as price_per_token,
    p.input_per_token_usd as input_price_per_token, p.output_per_token_usd as output_price_per_token, p.effective_from
from gateway.price_list as p
where p.service is null;

comment on column legacy.pricing.price_per_token is 'USD for a token of either kind at most: the dearer of the two, of the longest prompts where these cost more. Requests are charged by the two, each by itself.';

comment on column legacy.pricing.input_price_per_token is 'USD for an input token. Of a long prompt: gateway.price_tiers.';

comment on column legacy.pricing.output_price_per_token is 'USD for an output token. After a long prompt: gateway.price_tiers.';
