-- What an operator is told of customers' money. Each in the transaction that books it, under the lock of the account: so that a crossing is
-- found once, by the booking that makes it, however many settle at the same time. Nobody pays for it but whoever has something to tell.

-- gateway.record_balance: raises balance.low where a booking took the balance from p_before_usd, at the mark or above it, to below. What brings
-- it back to the mark arms it again. A mark that is set above a balance tells nothing: nothing has crossed it.
create function gateway.record_balance(p_customer_id bigint, p_before_usd numeric) returns void
language plpgsql set search_path = ''
as $$
declare
    v_account gateway.accounts;
begin
    select * into v_account from gateway.accounts where customer_id = p_customer_id;
    if p_before_usd >= v_account.low_mark_usd and v_account.balance_usd < v_account.low_mark_usd then
        perform gateway.raise_event('balance.low', 'customer:' || p_customer_id, jsonb_build_object(
            'customer_id', p_customer_id, 'balance_usd', gateway.show_usd(v_account.balance_usd), 'held_usd', gateway.show_usd(v_account.held_usd),
            'low_balance_usd', gateway.show_usd(v_account.low_mark_usd)
        ), null, p_customer_id);
    end if;
end
$$;
comment on function gateway.record_balance(bigint, numeric) is 'Tells of a balance that has just fallen below its mark.';
revoke all on function gateway.record_balance(bigint, numeric) from public;

-- gateway.record_exhaustion: raises balance.exhausted where an admission is refused for want of money, the first time since the customer has
-- last paid in. p_refusal: as the client is told it.
create function gateway.record_exhaustion(p_account gateway.accounts, p_refusal jsonb) returns void
language plpgsql set search_path = ''
as $$
begin
    insert into gateway.exhausted_accounts (customer_id) values (p_account.customer_id) on conflict do nothing;
    if found then
        perform gateway.raise_event('balance.exhausted', 'customer:' || p_account.customer_id, jsonb_build_object(
            'customer_id', p_account.customer_id, 'balance_usd', gateway.show_usd(p_account.balance_usd),
            'held_usd', gateway.show_usd(p_account.held_usd), 'debt_usd', gateway.show_usd(p_account.debt_usd),
            'needed_usd', p_refusal -> 'needed_usd'
        ), null, p_account.customer_id);
    end if;
end
$$;
comment on function gateway.record_exhaustion(gateway.accounts, jsonb) is 'Tells of a customer whose calls are refused for want of money, once until it pays in.';
revoke all on function gateway.record_exhaustion(gateway.accounts, jsonb) from public;

-- gateway.record_uncollected: raises request.uncollected of a settled request, once as a request is settled once. p_late: its hold had expired.
create function gateway.record_uncollected(p_request gateway.requests, p_late boolean) returns void
language plpgsql set search_path = ''
as $$
begin
    perform gateway.raise_event('request.uncollected', 'request:' || p_request.id, jsonb_build_object(
        'request_id', p_request.id, 'customer_id', p_request.customer_id, 'key_id', p_request.key_id,
        'model', (select m.name from gateway.models as m where m.id = p_request.model_id), 'service_id', p_request.service_id,
        'hold_usd', gateway.show_usd(p_request.hold_usd), 'cost_usd', gateway.show_usd(p_request.cost_usd),
        'charge_usd', gateway.show_usd(p_request.charge_usd), 'collected_usd', gateway.show_usd(p_request.collected_usd),
        'uncollected_usd', gateway.show_usd(p_request.uncollected_usd), 'late', p_late
    ), null, p_request.customer_id);
end
$$;
comment on function gateway.record_uncollected(gateway.requests, boolean) is 'Tells of a charge that the balance could not give.';
revoke all on function gateway.record_uncollected(gateway.requests, boolean) from public;
