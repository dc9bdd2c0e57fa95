-- The scheduled check of the books. What it finds is told of once, and once more when it is mended.

-- api.claim_ledger_check: whether the check is due, which is then the caller's to make; the next is due p_every_seconds later. Apart from the
-- check itself, so that one that runs into its time-out is not begun anew every minute. For the maintenance function.
create function api.claim_ledger_check(p_every_seconds integer default 3600) returns boolean
language plpgsql security definer set search_path = ''
as $$
declare
    v_due boolean;
begin
    perform set_config('gateway.engine', 'on', true);
    update gateway.maintenance_state
    set ledger_checked_at = clock_timestamp()
    where ledger_checked_at is null or ledger_checked_at <= clock_timestamp() - make_interval(secs => p_every_seconds);
    v_due := found;
    perform set_config('gateway.engine', 'off', true);
    return v_due;
end
$$;
revoke all on function api.claim_ledger_check(integer) from public;
grant execute on function api.claim_ledger_check(integer) to service_role;
comment on function api.claim_ledger_check(integer) is 'Whether the scheduled check of the books is due: true for one caller.';

-- api.watch_ledger: makes the check (api.check_ledger, from the last checkpoints), and raises ledger.mismatch where it finds what the last one did
-- not, ledger.ok where nothing is left of what one has found. {"ok", "raised": the event's type or null}. A finding is who differs and by how
-- much, not what the balances are: traffic moves these and adds nothing. Locks maintenance_state, and no account.
create function api.watch_ledger() returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '120s'
as $$
declare
    c_most_shown constant integer := 20;
    v_state gateway.maintenance_state;
    v_told jsonb;
    v_finding jsonb;
    v_raised text;
begin
    select * into v_state from gateway.maintenance_state for update;
    v_told := api.check_ledger();
    if not (v_told ->> 'ok')::boolean then
        v_finding := jsonb_build_object(
            'differences', (
                select coalesce(jsonb_agg(jsonb_build_array(
                    m.customer_id, m.balance_usd - m.ledger_usd, m.held_usd - m.requests_held_usd, m.debt_usd - m.ledger_debt_usd
                ) order by m.customer_id), '[]')
                from jsonb_to_recordset(v_told -> 'mismatches') as m (
                    customer_id bigint, balance_usd numeric, ledger_usd numeric, held_usd numeric, requests_held_usd numeric, debt_usd numeric,
                    ledger_debt_usd numeric)
            ),
            'misbooked_requests', v_told -> 'misbooked_requests', 'misbooked_payments', v_told -> 'misbooked_payments');
    end if;
    if v_finding is not distinct from v_state.ledger_finding then
        return jsonb_build_object('ok', v_finding is null, 'raised', null);
    end if;
    perform set_config('gateway.engine', 'on', true);
    update gateway.maintenance_state
    set ledger_finding = v_finding, ledger_found_at = case when v_finding is not null then coalesce(ledger_found_at, clock_timestamp()) end
    returning * into v_state;
    perform set_config('gateway.engine', 'off', true);
    v_raised := case when v_finding is null then 'ledger.ok' else 'ledger.mismatch' end;
    perform gateway.raise_event(v_raised, 'ledger', jsonb_build_object('accounts', v_told -> 'accounts') || case
        when v_finding is null then '{}'
        else jsonb_build_object(
            'since', v_state.ledger_found_at,
            'customers', jsonb_array_length(v_told -> 'mismatches'),
            'mismatches', jsonb_path_query_array(v_told -> 'mismatches', '$[0 to $most]', jsonb_build_object('most', c_most_shown - 1)),
            'misbooked_requests', v_told -> 'misbooked_requests', 'misbooked_payments', v_told -> 'misbooked_payments')
    end);
    return jsonb_build_object('ok', v_finding is null, 'raised', v_raised);
end
$$;
revoke all on function api.watch_ledger() from public;
grant execute on function api.watch_ledger() to service_role;
comment on function api.watch_ledger() is 'Checks the books, and tells of what it finds that is new, and of its end.';
