-- api.expire_holds: ends the holds whose lease has run out, at most p_limit, the oldest first. By the setting expired_hold_policy they
-- are released (nothing is charged; the operator's loss) or charged whole. Either way the request can still be settled, once.
-- Returns {"expired": n, "charged_usd", "released_usd": the upper bound of what was given up}. For the maintenance function.
-- What is given up is told of by hold.expired_unsettled, one event for the whole batch: the operator may have to pay for it.
-- Skips requests that are being settled. Locks as all do, for the whole batch at a time: requests, idempotency keys, counters, accounts.
-- No scans, as for api.admit_request.
create function api.expire_holds(p_limit integer default 500) returns jsonb
language plpgsql security definer set search_path = '' set enable_seqscan = off set jit = off
as $$
declare
    c_most_ids constant integer := 20;
    v_policy text := (select expired_hold_policy from gateway.settings);
    v_requests gateway.requests[];
    v_request gateway.requests;
    v_charge numeric;
    v_charged numeric := 0;
    v_released numeric := 0;
    v_account record;
begin
    v_requests := array(
        select r from gateway.requests as r
        where r.state = 'held' and r.lease_until < clock_timestamp()
        order by r.lease_until
        limit p_limit
        for update skip locked
    );
    if cardinality(v_requests) = 0 then
        return jsonb_build_object('expired', 0, 'charged_usd', '0', 'released_usd', '0');
    end if;

    perform set_config('gateway.engine', 'on', true);
    perform 1
    from gateway.idempotency_keys as i
    join unnest(v_requests) as r on (i.key_id, i.idempotency_key, i.request_id) = (r.key_id, r.idempotency_key, r.id)
    order by i.key_id, i.idempotency_key
    for update of i;
    -- what was in flight no longer is; the request itself still counts
    perform gateway.correct_counters(array(
        select (x.subject, x.subject_id, x.model_id, x.per, x.window_start, 0, -x.tokens,
                case when v_policy = 'charge' and x.subject <> 'service' then r.hold_usd else 0 end - x.spend_usd)::gateway.counted
        from unnest(v_requests) as r
        cross join unnest(r.counted) as x
    ));
    perform 1
    from gateway.accounts
    where customer_id = any (array(select r.customer_id from unnest(v_requests) as r))
    order by customer_id
    for update;

    foreach v_request in array v_requests loop
        v_charge := case when v_policy = 'charge' then v_request.hold_usd else 0 end;
        -- what is released goes to the debt
        update gateway.accounts as a
        set held_usd = a.held_usd - v_request.hold_usd, balance_usd = a.balance_usd - v_charge - d.paid_usd, debt_usd = a.debt_usd - d.paid_usd
        from (
            select customer_id, least(debt_usd, balance_usd - held_usd + v_request.hold_usd - v_charge) as paid_usd
            from gateway.accounts
            where customer_id = v_request.customer_id
        ) as d
        where a.customer_id = d.customer_id
        returning a.balance_usd, a.low_mark_usd, d.paid_usd into v_account;
        if v_charge > 0 then
            insert into gateway.ledger_entries (customer_id, kind, amount_usd, balance_after_usd, request_id, note, actor)
            values (v_request.customer_id, 'charge', -v_charge, v_account.balance_usd + v_account.paid_usd, v_request.id, 'hold expired', 'gateway');
        end if;
        if v_account.paid_usd > 0 then
            insert into gateway.ledger_entries (customer_id, kind, amount_usd, balance_after_usd, debt_change_usd, actor)
            values (v_request.customer_id, 'debt_payment', -v_account.paid_usd, v_account.balance_usd, -v_account.paid_usd, 'gateway');
        end if;
        if v_account.balance_usd < v_account.low_mark_usd then
            perform gateway.record_balance(v_request.customer_id, v_account.balance_usd + v_charge + v_account.paid_usd);
        end if;
        v_charged := v_charged + v_charge;
        v_released := v_released + v_request.hold_usd - v_charge;
        if v_request.idempotency_key is not null then
            update gateway.idempotency_keys set charged = v_charge > 0, freed = v_charge = 0
            where (key_id, idempotency_key, request_id) = (v_request.key_id, v_request.idempotency_key, v_request.id);
        end if;
        perform gateway.add_to_rollup(v_request, v_request.model_id, null, 1, 1, '{}', 0, v_charge, 0, null);
        update gateway.requests
        set state = 'expired', charge_usd = v_charge, collected_usd = v_charge, error_code = 'hold_expired', settled_at = clock_timestamp(),
            -- a late settlement corrects from what is counted now
            counted = array(
                select (x.subject, x.subject_id, x.model_id, x.per, x.window_start, x.requests, 0,
                        case when x.subject <> 'service' then v_charge else 0 end)::gateway.counted
                from unnest(v_request.counted) as x)
        where id = v_request.id and admitted_at = v_request.admitted_at;
    end loop;
    perform set_config('gateway.engine', 'off', true);
    if v_released > 0 then
        perform gateway.raise_event('hold.expired_unsettled', 'holds', (
            select jsonb_build_object(
                'holds', count(*), 'customers', count(distinct r.customer_id), 'released_usd', gateway.show_usd(v_released),
                'first_admitted_at', min(r.admitted_at), 'last_admitted_at', max(r.admitted_at),
                'request_ids', (array_agg(r.id order by r.admitted_at))[:c_most_ids])
            from unnest(v_requests) as r
        ));
    end if;
    return jsonb_build_object('expired', cardinality(v_requests), 'charged_usd', gateway.show_usd(v_charged), 'released_usd', gateway.show_usd(v_released));
end
$$;
revoke all on function api.expire_holds(integer) from public;
grant execute on function api.expire_holds(integer) to service_role;
comment on function api.expire_holds(integer) is 'Ends the holds whose lease has run out; the maintenance function calls it every minute.';
