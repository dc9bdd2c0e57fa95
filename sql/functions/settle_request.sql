create function gateway.describe_settlement(p_request gateway.requests, p_tokens bigint, p_balance_usd numeric, p_already boolean) returns jsonb
language plpgsql stable set search_path = ''
as $$
declare
    v_credit_value_usd numeric;
begin
    select credit_value_usd into v_credit_value_usd from gateway.settings;
    return jsonb_build_object(
        'status', 'settled',
        'already', p_already,
        'request_id', p_request.id,
        'billing_mode', p_request.billing_mode,
        'tokens_charged', p_tokens,
        'cost_usd', gateway.show_usd(p_request.cost_usd),
        'charge_usd', gateway.show_usd(p_request.charge_usd),
        'uncollected_usd', gateway.show_usd(p_request.uncollected_usd),
        'credits_charged', gateway.show_credits(p_request.charge_usd, v_credit_value_usd),
        'balance_after_usd', gateway.show_usd(p_balance_usd),
        'credits_after', gateway.show_credits(p_balance_usd, v_credit_value_usd));
end
$$;
comment on function gateway.describe_settlement(gateway.requests, bigint, numeric, boolean) is 'What settle_request answers with.';
revoke all on function gateway.describe_settlement(gateway.requests, bigint, numeric, boolean) from public;

create function gateway.tame_usage(p_usage jsonb) returns jsonb
language plpgsql immutable set search_path = ''
as $$
begin
    -- whole numbers of up to twelve digits, as they nearly always are: a tenth of the time
    if p_usage::text ~ '^\{("\w+": \d{1,12}(, )?)*\}$' then
        return p_usage;
    end if;
    return (
        select coalesce(jsonb_object_agg(u.key, least(greatest(u.value::numeric, 0), 1000000000000)::bigint), '{}')
        from jsonb_each_text(p_usage) as u
        where u.value is not null
    );
end
$$;
comment on function gateway.tame_usage(jsonb) is 'Usage as a provider claims it, each class from 0 to a million million, so that a settlement can''t fail for a figure.';
revoke all on function gateway.tame_usage(jsonb) from public;

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
-- Locks, in this order: the request, its idempotency key, the customer's queue, the limit counters (in key order), the account, the health
-- of services (only where one has failed).
-- Generic plans and no scans, as for api.admit_request: 1.5 -> 1.0 ms a call.
create function api.settle_request(p_settlement jsonb) returns jsonb
language plpgsql security definer set search_path = '' set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off
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
    v_release numeric;
    v_corrections gateway.counted[] := '{}'::gateway.counted[];
    v_counted gateway.counted;
    v_used boolean;
    v_exact_tokens numeric;
    v_exact_fixed numeric;
    v_commission numeric;
    v_account gateway.accounts;
    v_before numeric;
    v_due numeric;
    v_take numeric;
    v_paid numeric := 0;
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
    v_release := case when v_late then 0 else v_request.hold_usd end;
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
    v_due := v_request.charge_usd - v_before;

    perform set_config('gateway.engine', 'on', true);
    -- Before what others wait for, and so as if all that is due could be taken: it nearly always can.
    v_request.collected_usd := v_request.charge_usd;
    v_request.uncollected_usd := 0;
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
    perform gateway.queue_for_customer(v_request.customer_id);
    if cardinality(v_request.counted) > 0 then
        -- limits of a model or a service that did not answer get everything back; the first model keeps a failed request's count
        foreach v_counted in array v_request.counted loop
            v_used := case
                when v_counted.subject = 'service' then v_counted.subject_id is not distinct from v_request.service_id
                else v_counted.model_id in (0, v_request.model_id)
            end;
            v_counted.requests := case when v_used then 0 else -v_counted.requests end;
            v_counted.tokens := case when v_used then v_tokens else 0 end - v_counted.tokens;
            v_counted.spend_usd := case
                when not v_used then 0
                when v_counted.subject = 'service' then v_request.cost_usd
                else v_request.charge_usd
            end - v_counted.spend_usd;
            v_corrections := v_corrections || v_counted;
        end loop;
        perform gateway.correct_counters(v_corrections);
    end if;

    v_take := v_due;
    -- as nearly always: what is due is there, and nothing is owed
    update gateway.accounts
    set balance_usd = balance_usd - v_due, held_usd = held_usd - v_release
    where customer_id = v_request.customer_id and debt_usd = 0 and balance_usd - held_usd + v_release >= v_due
        and not (v_late and v_asked_again)
    returning * into v_account;
    if not found then
        select * into v_account from gateway.accounts where customer_id = v_request.customer_id for update;
        v_take := least(v_due, v_account.balance_usd - v_account.held_usd + v_release);
        if v_late and v_asked_again then
            v_take := least(v_take, 0);
        end if;
        if v_account.debt_usd > 0 then  -- it gets what is released
            v_paid := least(v_account.debt_usd, v_account.balance_usd - v_account.held_usd + v_release - v_take);
        end if;
        update gateway.accounts
        set balance_usd = balance_usd - v_take - v_paid, held_usd = held_usd - v_release, debt_usd = debt_usd - v_paid
        where customer_id = v_request.customer_id
        returning * into v_account;
    end if;
    if v_take <> 0 then
        insert into gateway.ledger_entries (customer_id, kind, amount_usd, balance_after_usd, request_id, actor)
        values (v_request.customer_id, case when v_late then 'late_settlement' else 'charge' end, -v_take, v_account.balance_usd + v_paid, v_request.id, 'gateway');
    end if;
    if v_paid > 0 then
        insert into gateway.ledger_entries (customer_id, kind, amount_usd, balance_after_usd, debt_change_usd, actor)
        values (v_request.customer_id, 'debt_payment', -v_paid, v_account.balance_usd, -v_paid, 'gateway');
    end if;
    if v_take <> v_due then
        v_request.collected_usd := v_before + v_take;
        v_request.uncollected_usd := v_request.charge_usd - v_request.collected_usd;
        update gateway.requests
        set collected_usd = v_request.collected_usd, uncollected_usd = v_request.uncollected_usd
        where id = v_request.id and admitted_at = v_request.admitted_at;
    end if;

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

    perform set_config('gateway.engine', 'off', true);

    if v_account.balance_usd < v_account.low_mark_usd and v_account.balance_usd + v_take + v_paid >= v_account.low_mark_usd then
        perform gateway.record_balance(v_request.customer_id, v_account.balance_usd + v_take + v_paid);
    end if;
    if v_request.uncollected_usd > 0 then
        perform gateway.record_uncollected(v_request, v_late);
    end if;
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
revoke all on function api.settle_request(jsonb) from public;
grant execute on function api.settle_request(jsonb) to service_role;
comment on function api.settle_request(jsonb) is 'Ends a request, once: charges, frees the hold, corrects the counters, writes ledger and rollup. Idempotent; can be replayed.';
