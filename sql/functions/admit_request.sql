create type gateway.limit_state as (
    subject text,
    subject_id bigint,
    model_id bigint,
    per text,
    window_start timestamptz,
    window_end timestamptz,
    requests bigint,
    tokens bigint,
    spend_usd numeric,
    warn_requests bigint,
    warn_tokens bigint,
    warn_spend_usd numeric,
    used_requests bigint,
    used_tokens bigint,
    used_spend_usd numeric,
    turned boolean
);
comment on type gateway.limit_state is 'One limited window of one subject: its limits, its soft marks and what is used of it. turned: its counter is still of an older window, which is marked.';

-- A limited key must not multiply its limits by making keys: what these do counts as its own. Only rows of the maker's own bind; the
-- system's default is for each key by itself.
create function gateway.limits_of_makers(
    p_maker_key_ids bigint[], p_model_ids bigint[], p_time_zone text, p_at timestamptz
) returns gateway.limit_state[]
language plpgsql stable set search_path = ''
as $$
begin
    return (
        with of_makers as (
            select * from gateway.limits where key_id = any (p_maker_key_ids)
        ),
        found as (
            select l.key_id, 0::bigint as model_id, l.per,
                l.requests, l.tokens, l.spend_usd, l.warn_requests, l.warn_tokens, l.warn_spend_usd
            from of_makers as l
            where l.model_id is null and not l.each_model
            union all
            select o.key_id, m.id, o.per,
                coalesce(x.requests, e.requests), coalesce(x.tokens, e.tokens), coalesce(x.spend_usd, e.spend_usd),
                coalesce(x.warn_requests, e.warn_requests), coalesce(x.warn_tokens, e.warn_tokens), coalesce(x.warn_spend_usd, e.warn_spend_usd)
            from (select distinct l.key_id, l.per from of_makers as l where l.model_id is not null or l.each_model) as o
            cross join unnest(p_model_ids) as m (id)
            left join of_makers as x on x.key_id = o.key_id and x.per = o.per and x.model_id = m.id
            left join of_makers as e on e.key_id = o.key_id and e.per = o.per and e.each_model
        )
        select coalesce(array_agg(
            ('key', f.key_id, f.model_id, f.per, w.start, gateway.window_end(f.per, w.start, p_time_zone),
             f.requests, f.tokens, f.spend_usd, f.warn_requests, f.warn_tokens, f.warn_spend_usd, 0, 0, 0, false)::gateway.limit_state
            order by f.key_id, f.model_id, f.per
        ), '{}')
        from found as f
        cross join lateral (select gateway.window_start(f.per, p_at, p_time_zone) as start) as w
        where num_nonnulls(f.requests, f.tokens, f.spend_usd, f.warn_requests, f.warn_tokens, f.warn_spend_usd) > 0
    );
end
$$;
comment on function gateway.limits_of_makers(bigint[], bigint[], text, timestamptz) is 'The limits of the keys that made a key: its requests fall under them, too. Usage is not filled in.';
revoke all on function gateway.limits_of_makers(bigint[], bigint[], text, timestamptz) from public;

-- One statement, and then loops: over the few rows that a request falls under they cost a quarter of what a query of joins does (40 and 160 µs).
create function gateway.applicable_limits(
    p_key_id bigint, p_customer_id bigint, p_model_ids bigint[], p_service_ids bigint[], p_time_zone text, p_at timestamptz,
    p_maker_key_ids bigint[]
) returns gateway.limit_state[]
language plpgsql stable set search_path = ''
as $$
declare
    v_settings gateway.settings;
    v_rows gateway.limits[];
    v_row gateway.limits;
    v_own gateway.limits;  -- the key's row of a minute, over all models
    v_exact gateway.limits;
    v_each gateway.limits;
    v_by_model boolean := false;
    v_time_zone text;
    v_start timestamptz;
    v_per text;
    v_model_id bigint;
    v_limits gateway.limit_state[] := '{}'::gateway.limit_state[];
begin
    v_rows := array(
        select l from gateway.limits as l
        where l.key_id = p_key_id or l.customer_id = p_customer_id or l.service_id = any (p_service_ids)
    );
    foreach v_row in array v_rows loop
        if v_row.model_id is not null or v_row.each_model then
            v_by_model := true;
            continue;
        end if;
        if v_row.key_id is not null and v_row.per = 'minute' then
            v_own := v_row;
        end if;
        continue when num_nonnulls(v_row.requests, v_row.tokens, v_row.spend_usd, v_row.warn_requests, v_row.warn_tokens, v_row.warn_spend_usd) = 0;
        v_time_zone := case when v_row.service_id is not null then 'UTC' else p_time_zone end;
        v_start := gateway.window_start(v_row.per, p_at, v_time_zone);
        v_limits := v_limits || (
            case when v_row.key_id is not null then 'key' when v_row.customer_id is not null then 'customer' else 'service' end,
            coalesce(v_row.key_id, v_row.customer_id, v_row.service_id), 0, v_row.per, v_start, gateway.window_end(v_row.per, v_start, v_time_zone),
            v_row.requests, v_row.tokens, v_row.spend_usd, v_row.warn_requests, v_row.warn_tokens, v_row.warn_spend_usd, 0, 0, 0, false
        )::gateway.limit_state;
    end loop;

    -- for each model by itself: the row that names it, then the key's row for each model, then the system's default, which
    -- gives way to whatever the key's own rows say of the same window
    select * into v_settings from gateway.settings;
    v_settings.default_requests_per_minute := case when v_own.requests is null then v_settings.default_requests_per_minute end;
    v_settings.default_tokens_per_minute := case when v_own.tokens is null then v_settings.default_tokens_per_minute end;
    if p_key_id is not null and (v_by_model or num_nonnulls(v_settings.default_requests_per_minute, v_settings.default_tokens_per_minute) > 0) then
        foreach v_model_id in array p_model_ids loop
            foreach v_per in array case when v_by_model then '{day,hour,minute,month}'::text[] else '{minute}'::text[] end loop
                v_exact := null;
                v_each := null;
                foreach v_row in array v_rows loop
                    if v_row.per = v_per and v_row.model_id = v_model_id then
                        v_exact := v_row;
                    elsif v_row.per = v_per and v_row.each_model then
                        v_each := v_row;
                    end if;
                end loop;
                v_exact.requests := coalesce(v_exact.requests, v_each.requests, case when v_per = 'minute' then v_settings.default_requests_per_minute end);
                v_exact.tokens := coalesce(v_exact.tokens, v_each.tokens, case when v_per = 'minute' then v_settings.default_tokens_per_minute end);
                v_exact.spend_usd := coalesce(v_exact.spend_usd, v_each.spend_usd);
                v_exact.warn_requests := coalesce(v_exact.warn_requests, v_each.warn_requests);
                v_exact.warn_tokens := coalesce(v_exact.warn_tokens, v_each.warn_tokens);
                v_exact.warn_spend_usd := coalesce(v_exact.warn_spend_usd, v_each.warn_spend_usd);
                continue when num_nonnulls(
                    v_exact.requests, v_exact.tokens, v_exact.spend_usd, v_exact.warn_requests, v_exact.warn_tokens, v_exact.warn_spend_usd) = 0;
                v_start := gateway.window_start(v_per, p_at, p_time_zone);
                v_limits := v_limits || (
                    'key', p_key_id, v_model_id, v_per, v_start, gateway.window_end(v_per, v_start, p_time_zone),
                    v_exact.requests, v_exact.tokens, v_exact.spend_usd, v_exact.warn_requests, v_exact.warn_tokens, v_exact.warn_spend_usd,
                    0, 0, 0, false
                )::gateway.limit_state;
            end loop;
        end loop;
    end if;

    if cardinality(p_maker_key_ids) > 0 then
        v_limits := v_limits || gateway.limits_of_makers(p_maker_key_ids, p_model_ids, p_time_zone, p_at);
    end if;
    if cardinality(v_limits) > 1 then
        v_limits := array(
            select l
            from unnest(v_limits) as l
            order by l.subject, l.subject_id, l.model_id, l.per
        );
    end if;
    return v_limits;
end
$$;
comment on function gateway.applicable_limits(bigint, bigint, bigint[], bigint[], text, timestamptz, bigint[]) is 'The limits that a request of a key falls under, those of the keys that made it included, in key order. Usage is not filled in.';
revoke all on function gateway.applicable_limits(bigint, bigint, bigint[], bigint[], text, timestamptz, bigint[]) from public;

-- One look by the primary key for each: a join of the table with the array is planned once for any length, and then reads the whole table
-- (a quarter of all CPU at 770 counters, measured).
create function gateway.lock_counters(p_limits gateway.limit_state[]) returns gateway.limit_state[]
language plpgsql set search_path = ''
as $$
declare
    v_limit gateway.limit_state;
    v_counter gateway.limit_counters;
begin
    for v_at in 1 .. cardinality(p_limits) loop
        v_limit := p_limits[v_at];
        loop
            select * into v_counter from gateway.limit_counters as c
            where c.subject = v_limit.subject and c.subject_id = v_limit.subject_id and c.model_id = v_limit.model_id and c.per = v_limit.per
            for update;
            exit when found;
            -- made, and so locked, in its turn: whoever makes the same one waits as for a lock
            insert into gateway.limit_counters (subject, subject_id, model_id, per, window_start)
            values (v_limit.subject, v_limit.subject_id, v_limit.model_id, v_limit.per, v_limit.window_start)
            on conflict do nothing;
        end loop;
        -- A request that waited for the lock over the turn of a window joins the newer one, never an older one.
        if v_counter.window_start > v_limit.window_start then
            v_limit.window_end := v_counter.window_start + (v_limit.window_end - v_limit.window_start);
            v_limit.window_start := v_counter.window_start;
        end if;
        if v_counter.window_start = v_limit.window_start then
            v_limit.used_requests := v_counter.requests;
            v_limit.used_tokens := v_counter.tokens;
            v_limit.used_spend_usd := v_counter.spend_usd;
        else
            v_limit.turned := v_counter.marked;
        end if;
        p_limits[v_at] := v_limit;
    end loop;
    return p_limits;
end
$$;
comment on function gateway.lock_counters(gateway.limit_state[]) is 'Locks the counters of these limits, which are to be in key order, and fills in what is used of each window.';
revoke all on function gateway.lock_counters(gateway.limit_state[]) from public;

create function gateway.describe_limits(p_limits gateway.limit_state[], p_at timestamptz) returns jsonb
language plpgsql stable set search_path = ''
as $$
declare
    v_limit gateway.limit_state;
    v_requests gateway.limit_state;
    v_tokens gateway.limit_state;
begin
    foreach v_limit in array coalesce(p_limits, '{}') loop
        continue when v_limit.subject = 'service';
        -- of two that leave as much, the one that lasts longer
        if (v_limit.requests - v_limit.used_requests, v_requests.window_end) < (v_requests.requests - v_requests.used_requests, v_limit.window_end)
            or (v_requests.requests is null and v_limit.requests is not null)
        then
            v_requests := v_limit;
        end if;
        if (v_limit.tokens - v_limit.used_tokens, v_tokens.window_end) < (v_tokens.tokens - v_tokens.used_tokens, v_limit.window_end)
            or (v_tokens.tokens is null and v_limit.tokens is not null)
        then
            v_tokens := v_limit;
        end if;
    end loop;
    return jsonb_build_object(
        'requests', case when v_requests.requests is not null then jsonb_build_object(
            'limit', v_requests.requests, 'remaining', greatest(v_requests.requests - v_requests.used_requests, 0),
            'reset_seconds', ceil(extract(epoch from v_requests.window_end - p_at))::bigint) end,
        'tokens', case when v_tokens.tokens is not null then jsonb_build_object(
            'limit', v_tokens.tokens, 'remaining', greatest(v_tokens.tokens - v_tokens.used_tokens, 0),
            'reset_seconds', ceil(extract(epoch from v_tokens.window_end - p_at))::bigint) end);
end
$$;
comment on function gateway.describe_limits(gateway.limit_state[], timestamptz) is 'The tightest of the windows for requests and for tokens, as the x-ratelimit headers show them. A service''s are the operator''s affair.';
revoke all on function gateway.describe_limits(gateway.limit_state[], timestamptz) from public;

-- Those who want the rows of one customer wait here, in the order in which they came: for one lock, where a wait for a row is two, and
-- whoever comes last may get it first. Sixteen connections on one customer: 2.7 ms of CPU a pair instead of 3.3, and a standard deviation of the
-- latency of 6 ms instead of 24 (measured). Nothing relies on it: what has to be locked is locked by its row.
create function gateway.queue_for_customer(p_customer_id bigint) returns void
language plpgsql set search_path = ''
as $$
begin
    perform pg_advisory_xact_lock(5837, (p_customer_id % 2147483647)::integer);
end
$$;
comment on function gateway.queue_for_customer(bigint) is 'Waits for the transactions of the customer''s other requests, first come first served.';
revoke all on function gateway.queue_for_customer(bigint) from public;

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
-- Locks, in this order: the idempotency key, the customer's queue, the limit counters (in key order), the account; where a service is to
-- be probed, its health, for which nobody waits. Everything else is only read.
-- Generic plans: through PostgREST the planner otherwise plans anew at each call, which took 1.5 ms of the 3.4 (measured). No scans of whole
-- tables: a connection plans once, and a log or counters that are empty at that moment would be read whole by every call until the next
-- analyze (a settlement took 0.8 ms at first, and 2.9 after 7,000 requests). No JIT, which the planner would think worth its while for what
-- has no index. Whatever calls the same inner functions plans them for this one, too, and forbids scans as well: api.settle_request,
-- api.expire_holds, api.read_limits and api.read_key.
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
language plpgsql security definer set search_path = '' set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off
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
    v_model_ids bigint[] := '{}'::bigint[];
    v_service_ids bigint[] := '{}'::bigint[];
    v_reserved gateway.limit_state[] := '{}'::gateway.limit_state[];
    v_counted gateway.counted[] := '{}'::gateway.counted[];
    v_spend numeric;
    v_marked boolean := false;
    v_warnings text[] := '{}'::text[];
    v_routes jsonb := '[]'::jsonb;
    v_told jsonb := '[]'::jsonb;
    v_input_bound bigint;
    v_output_bound bigint;
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
        c.active as customer_active, c.username, c.time_zone, c.low_balance_usd
    into v_key
    from gateway.api_keys as k
    left join gateway.customers as c on c.id = k.customer_id
    where k.secret_hash = decode(p_key_hash, 'hex');
    if v_key.id is null then  -- a secret that was replaced, in its grace
        select k.id, k.customer_id, k.prefix, k.scopes, k.allowed_models, k.allowed_services, k.active, k.expires_at, k.maker_key_ids,
            c.active as customer_active, c.username, c.time_zone, c.low_balance_usd
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

        foreach v_candidate in array gateway.resolve_candidates(
            p_models, p_model_id, p_provider, v_key.allowed_services, coalesce(p_media_input, p_input_tokens_bound is null), p_media_output)
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
            if v_candidate.model_id <> all (v_model_ids) then
                v_model_ids := v_model_ids || v_candidate.model_id;
            end if;
            if v_candidate.service_id <> all (v_service_ids) then
                v_service_ids := v_service_ids || v_candidate.service_id;
            end if;
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
            v_key.id, v_key.customer_id, v_model_ids, v_service_ids, v_key.time_zone, v_at, v_key.maker_key_ids);
        perform gateway.queue_for_customer(v_key.customer_id);
        if cardinality(v_limits) > 0 then
            v_limits := gateway.lock_counters(v_limits);
        end if;
        select * into v_account from gateway.accounts where customer_id = v_key.customer_id for update;
        v_free := v_account.balance_usd - v_account.held_usd;
        if v_account.debt_usd > 0 then
            v_refusal := jsonb_build_object('refusal', 'customer_in_debt', 'debt_usd', gateway.show_usd(v_account.debt_usd));
            exit admission;
        end if;

        foreach v_candidate in array v_resolved loop
            -- what the limits leave to this candidate: those of the key and the customer, of the key and its model, of its service,
            -- whose spending limit is on its cost
            v_requests_left := null;
            v_tokens_left := null;
            v_spend_left := null;
            v_cost_left := null;
            foreach v_limit in array v_limits loop
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
        -- It consumed nothing: what a crash may take of it, a count and a line of the log, is not worth waiting for the disk.
        perform set_config('synchronous_commit', 'off', true);
        if v_idempotency_is_new then
            delete from gateway.idempotency_keys
            where key_id = v_key.id and idempotency_key = p_idempotency_key;
        end if;
        perform set_config('gateway.engine', 'on', true);
        if v_key.customer_id is not null then
            perform gateway.record_refusal(p_request_id, v_key.customer_id, v_key.id, v_requested, p_endpoint, p_streamed, v_refusal ->> 'refusal');
        end if;
        -- not a call that is merely too dear: one for whose least answer there is no money
        if v_refusal ->> 'refusal' = 'customer_in_debt'
            or (v_refusal ->> 'refusal' = 'insufficient_credits' and (v_refusal ->> 'affordable_output_tokens')::bigint < c_least_output)
        then
            perform gateway.record_exhaustion(v_account, v_refusal);
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

    perform set_config('gateway.engine', 'on', true);
    if p_idempotency_key is not null and not v_idempotency_is_new then
        update gateway.idempotency_keys
        set body_hash = decode(p_body_hash, 'hex'), request_id = p_request_id, charged = false, freed = false, created_at = v_at
        where key_id = v_key.id and idempotency_key = p_idempotency_key;
    end if;
    foreach v_limit in array v_limits loop
        -- a limit of a model or a service reserves what its own candidates may use; the settlement gives back what they did not
        v_tokens := null;
        v_spend := null;
        foreach v_candidate in array v_candidates loop
            if (v_limit.subject <> 'service' or v_candidate.service_id = v_limit.subject_id) and v_limit.model_id in (0, v_candidate.model_id) then
                v_tokens := greatest(v_tokens, v_candidate.input_bound + v_candidate.output_bound * p_choices);
                v_spend := greatest(v_spend, case when v_limit.subject = 'service' then v_candidate.cost_bound_usd else v_candidate.hold_usd end);
            end if;
        end loop;
        continue when v_tokens is null;
        if v_limit.turned then  -- what still runs of the window that has passed is yet to be seen (record_crossings.sql)
            insert into gateway.turned_windows (subject, subject_id, model_id, per, window_start, requests, tokens, spend_usd)
            select c.subject, c.subject_id, c.model_id, c.per, c.window_start, c.requests, c.tokens, c.spend_usd
            from gateway.limit_counters as c
            where c.subject = v_limit.subject and c.subject_id = v_limit.subject_id and c.model_id = v_limit.model_id and c.per = v_limit.per
                and c.marked and c.window_start < v_limit.window_start
            on conflict do nothing;
        end if;
        update gateway.limit_counters as c
        set requests = case when c.window_start = v_limit.window_start then c.requests else 0 end + 1,
            tokens = case when c.window_start = v_limit.window_start then c.tokens else 0 end + v_tokens,
            spend_usd = case when c.window_start = v_limit.window_start then c.spend_usd else 0 end + v_spend,
            window_start = v_limit.window_start,
            marked = c.marked and c.window_start = v_limit.window_start
        where c.subject = v_limit.subject and c.subject_id = v_limit.subject_id and c.model_id = v_limit.model_id and c.per = v_limit.per;
        v_counted := v_counted || (
            v_limit.subject, v_limit.subject_id, v_limit.model_id, v_limit.per, v_limit.window_start, 1, v_tokens, v_spend)::gateway.counted;
        -- what the client is told counts this request
        v_limit.used_requests := v_limit.used_requests + 1;
        v_limit.used_tokens := v_limit.used_tokens + v_tokens;
        v_limit.used_spend_usd := v_limit.used_spend_usd + v_spend;
        v_reserved := v_reserved || v_limit;
        if v_limit.used_requests > v_limit.warn_requests or v_limit.used_tokens > v_limit.warn_tokens
            or v_limit.used_spend_usd > v_limit.warn_spend_usd
        then
            v_marked := true;
            if v_limit.subject <> 'service' then
                v_warnings := v_warnings || array_remove(array[
                    case when v_limit.used_requests > v_limit.warn_requests then 'requests_per_' || v_limit.per end,
                    case when v_limit.used_tokens > v_limit.warn_tokens then 'tokens_per_' || v_limit.per end,
                    case when v_limit.used_spend_usd > v_limit.warn_spend_usd then 'spend_usd_per_' || v_limit.per end
                ], null);
            end if;
        end if;
    end loop;
    v_limits := v_reserved;

    update gateway.accounts
    set held_usd = held_usd + v_hold, low_mark_usd = coalesce(v_key.low_balance_usd, v_settings.low_balance_usd)
    where customer_id = v_key.customer_id;

    foreach v_candidate in array v_candidates loop
        v_input_bound := greatest(v_input_bound, v_candidate.input_bound);
        v_output_bound := greatest(v_output_bound, v_candidate.output_bound);
        v_routes := v_routes || jsonb_build_object(
            'route_id', v_candidate.route_id, 'service_id', v_candidate.service_id, 'model_id', v_candidate.model_id,
            'provider', v_candidate.provider, 'upstream_model', v_candidate.upstream_model, 'prices', v_candidate.prices);
        v_told := v_told || jsonb_build_object(
            'route_id', v_candidate.route_id, 'service_id', v_candidate.service_id, 'service_name', v_candidate.service_name,
            'provider', v_candidate.provider, 'base_url', v_candidate.base_url, 'provider_key', v_candidate.provider_key,
            'model', v_candidate.model_name, 'upstream_model', v_candidate.upstream_model, 'max_output_tokens', v_candidate.output_bound);
    end loop;
    insert into gateway.requests (
        id, admitted_at, customer_id, key_id, model_id, requested_model, endpoint, streamed, state, hold_usd, lease_until,
        input_tokens_bound, output_tokens_bound, billing_mode, commission_percent, flat_usd_per_1k_tokens, routes, counted, idempotency_key)
    values (
        p_request_id, v_at, v_key.customer_id, v_key.id, v_candidates[1].model_id, v_requested, p_endpoint, p_streamed, 'held', v_hold,
        v_at + make_interval(secs => p_lease_seconds), v_input_bound, v_output_bound * p_choices,
        v_settings.billing_mode, v_settings.commission_percent, v_settings.flat_usd_per_1k_tokens, v_routes, v_counted, p_idempotency_key);
    perform set_config('gateway.engine', 'off', true);

    if v_marked then
        v_warnings := array(select distinct w from unnest(v_warnings) as w order by w);
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
        'warnings', to_jsonb(v_warnings),
        'candidates', v_told);
end
$$;
revoke all on function api.admit_request(text, text, text[], text, integer, bigint, bigint, integer, boolean, bigint, text, text, boolean, text, text, text, boolean, jsonb, boolean) from public;
grant execute on function api.admit_request(text, text, text[], text, integer, bigint, bigint, integer, boolean, bigint, text, text, boolean, text, text, text, boolean, jsonb, boolean) to service_role;
comment on function api.admit_request(text, text, text[], text, integer, bigint, bigint, integer, boolean, bigint, text, text, boolean, text, text, text, boolean, jsonb, boolean) is 'Admits a request and holds its whole upper bound, or says why not. One transaction.';

create function gateway.describe_excess(
    p_limits gateway.limit_state[], p_service_id bigint, p_model_id bigint, p_tokens bigint, p_charge_usd numeric, p_cost_usd numeric,
    p_at timestamptz
) returns jsonb
language plpgsql stable set search_path = ''
as $$
begin
    return (
        select jsonb_build_object(
            'refusal', 'rate_limit_exceeded',
            'subject', l.subject,
            'metric', m.metric,
            'per', l.per,
            'limit', gateway.show_usd(m.most),
            'retry_after_seconds', greatest(ceil(extract(epoch from l.window_end - p_at)), 1)::bigint,
            'never', m.needed > m.most)
        from unnest(p_limits) as l
        cross join lateral (values
            ('requests', l.requests::numeric, l.used_requests::numeric, 1::numeric),
            ('tokens', l.tokens, l.used_tokens, p_tokens),
            ('spend_usd', l.spend_usd, l.used_spend_usd, case when l.subject = 'service' then p_cost_usd else p_charge_usd end)
        ) as m (metric, most, used, needed)
        where (l.subject <> 'service' or l.subject_id = p_service_id) and l.model_id in (0, p_model_id)
            and m.used + m.needed > m.most and (m.needed > 0 or m.metric <> 'spend_usd')
        -- what no window can ever admit is told first; else the window that the client has to wait for: the last to end
        order by m.needed > m.most desc, l.window_end desc
        limit 1
    );
end
$$;
comment on function gateway.describe_excess(gateway.limit_state[], bigint, bigint, bigint, numeric, numeric, timestamptz) is 'Which limit refuses a candidate, as the client is told it. never: no window of this size could admit the request.';
revoke all on function gateway.describe_excess(gateway.limit_state[], bigint, bigint, bigint, numeric, numeric, timestamptz) from public;
