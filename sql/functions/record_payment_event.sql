create function gateway.describe_payment(p_payment gateway.payments, p_admin boolean) returns jsonb
language plpgsql stable set search_path = ''
as $$
begin
    return jsonb_build_object(
        'id', p_payment.id, 'created_at', p_payment.created_at, 'paid_at', p_payment.paid_at, 'currency', p_payment.currency,
        'status', case
            when p_payment.credited_usd > 0 and p_payment.disputed_usd > 0 then 'disputed'
            when p_payment.credited_usd > 0 and p_payment.refunded_usd = p_payment.credited_usd then 'refunded'
            when p_payment.refunded_usd > 0 then 'partially_refunded'
            when p_payment.credited_usd > 0 then 'paid'
            when p_payment.paid_minor is not null then 'not_credited'
            when p_payment.failed_at is not null then 'failed'
            else 'pending'
        end,
        'credited_usd', gateway.show_usd(p_payment.credited_usd), 'refunded_usd', gateway.show_usd(p_payment.refunded_usd),
        'disputed_usd', gateway.show_usd(p_payment.disputed_usd)
    ) || case when p_admin then jsonb_build_object(
        'customer_id', p_payment.customer_id, 'payment_intent', p_payment.payment_intent, 'checkout_session', p_payment.checkout_session,
        'livemode', p_payment.livemode, 'asked_usd', gateway.show_usd(p_payment.asked_usd), 'paid_minor', p_payment.paid_minor
    ) else '{}' end;
end
$$;
comment on function gateway.describe_payment(gateway.payments, boolean) is 'A payment as its customer sees it, and what of Stripe''s an admin sees beside.';
revoke all on function gateway.describe_payment(gateway.payments, boolean) from public;

-- gateway.reconcile_payment: brings the books to what is known of a payment. Whatever was told in whatever order, they come to the same: the
-- whole credit, less what is refunded, less what disputes hold of the rest. Both locks (payment, account) are held.
-- Null, or why a paid one was not credited, or not as it was asked for: currency | unknown_customer | erased_customer | amount.
create function gateway.reconcile_payment(p_payment gateway.payments, p_actor text) returns text
language plpgsql set search_path = ''
as $$
declare
    v_unexpected text;
    v_live bigint;
    v_failed bigint;
    v_refund numeric;
    v_dispute numeric;
    v_change record;
    v_told jsonb;
begin
    if p_payment.paid_minor > 0 and p_payment.credited_usd = 0 then
        v_unexpected := case
            when p_payment.currency <> 'usd' then 'currency'
            when p_payment.customer_id is null then 'unknown_customer'
            when exists (select from gateway.customers where id = p_payment.customer_id and erased_at is not null) then 'erased_customer'
        end;
        if v_unexpected is null then
            p_payment.credited_usd := p_payment.paid_minor * 0.01;
            perform gateway.book_income(
                p_payment.customer_id, 'credit', p_payment.credited_usd, 'stripe:' || p_payment.payment_intent, null, p_actor, p_payment.id);
            if p_payment.credited_usd <> p_payment.asked_usd then
                v_unexpected := 'amount';
            end if;
        end if;
    end if;
    if p_payment.credited_usd = 0 then
        return v_unexpected;
    end if;

    select coalesce(sum(amount_minor) filter (where not failed), 0), coalesce(sum(amount_minor) filter (where failed), 0)
    into v_live, v_failed
    from gateway.payment_refunds
    where payment_id = p_payment.id;
    -- what was told of as a sum alone is what the refunds that are known do not come to
    v_refund := least((v_live + greatest(coalesce(p_payment.refunded_minor, 0) - v_live - v_failed, 0)) * 0.01, p_payment.credited_usd);
    select least(coalesce(sum(amount_minor), 0) * 0.01, p_payment.credited_usd - v_refund)
    into v_dispute
    from gateway.payment_disputes
    where payment_id = p_payment.id and withdrawn_at > coalesce(returned_at, '-infinity');

    -- what is given back comes first, so that nobody owes for a moment what a refund in place of a dispute leaves as it was
    for v_change in
        select c.kind, c.usd
        from (values ('refund', v_refund - p_payment.refunded_usd), ('dispute', v_dispute - p_payment.disputed_usd)) as c (kind, usd)
        where c.usd <> 0
        order by c.usd
    loop
        if v_change.usd < 0 then
            perform gateway.book_income(p_payment.customer_id, 'reinstatement', -v_change.usd, null, v_change.kind, p_actor, p_payment.id);
        else
            v_told := gateway.book_reversal(p_payment.customer_id, v_change.kind, v_change.usd, p_payment.id, null, p_actor);
            -- No other transaction can come to these keys, so that nobody waits for them.
            perform gateway.raise_event(
                'payment.reversed', 'payment:' || p_payment.id,
                v_told - array['entry_id', 'owed_before'] || jsonb_build_object(
                    'customer_id', p_payment.customer_id, 'payment_intent', p_payment.payment_intent, 'reason', v_change.kind),
                'payment.reversed:' || (v_told ->> 'entry_id'), p_payment.customer_id);
            if v_told ->> 'debt_usd' <> '0' and not (v_told ->> 'owed_before')::boolean then
                perform gateway.raise_event(
                    'customer.in_debt', 'customer:' || p_payment.customer_id,
                    jsonb_build_object('customer_id', p_payment.customer_id, 'debt_usd', v_told -> 'debt_usd'),
                    'customer.in_debt:' || (v_told ->> 'entry_id'), p_payment.customer_id);
            end if;
        end if;
    end loop;
    update gateway.payments
    set credited_usd = p_payment.credited_usd, refunded_usd = v_refund, disputed_usd = v_dispute
    where id = p_payment.id;
    return v_unexpected;
end
$$;
comment on function gateway.reconcile_payment(gateway.payments, text) is 'Books the difference between what is known of a payment and what was booked of it.';
revoke all on function gateway.reconcile_payment(gateway.payments, text) from public;

-- api.record_payment_event: takes in what an event of Stripe's tells of a payment, once, and brings the books to it. p_event: {"id", "type",
-- "created": time, "livemode", "payment_intent", and of these what it tells: "checkout_session", "customer_id" (as we put it there), "asked_usd",
-- "currency", "paid_minor", "failed": true, "refunded_minor" (all refunds together), "refund": {"id", "amount_minor", "failed"}, "dispute":
-- {"id", "amount_minor", "withdrawn", "returned"}}. Facts only grow (the most, the first, the last, once true for ever), and what is booked follows from
-- them alone: any order, any repetition and any two at once come to the same account.
-- {"outcome": recorded | duplicate, "payment": as list_payments has it, or null for a duplicate, "unexpected": why it was not credited, or not
-- as asked (see gateway.reconcile_payment), or null}. Locks the event's id, then the payment, then the account.
create function api.record_payment_event(p_event jsonb, p_actor text default 'stripe') returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_payment gateway.payments;
    v_at timestamptz := (p_event ->> 'created')::timestamptz;
    v_customer_id bigint;
    v_unexpected text;
    v_disputed text;
begin
    perform set_config('gateway.actor', p_actor, true);
    perform set_config('gateway.engine', 'on', true);
    -- before the event, whose row refers to it
    insert into gateway.payments (payment_intent, livemode)
    values (p_event ->> 'payment_intent', (p_event ->> 'livemode')::boolean)
    on conflict (payment_intent) do nothing;
    select * into v_payment from gateway.payments where payment_intent = p_event ->> 'payment_intent' for update;
    insert into gateway.payment_events (id, kind, payment_id, created_at)
    values (p_event ->> 'id', p_event ->> 'type', v_payment.id, v_at)
    on conflict (id) do nothing;
    if not found then
        perform set_config('gateway.engine', 'off', true);
        return jsonb_build_object('outcome', 'duplicate', 'payment', null, 'unexpected', null);
    end if;

    -- Before anything refers to it, which would lock it by half: two who then want the whole would wait for each other.
    select customer_id into v_customer_id from gateway.accounts
    where customer_id = coalesce(v_payment.customer_id, (p_event ->> 'customer_id')::bigint)
    for update;
    update gateway.payments
    set checkout_session = coalesce(checkout_session, p_event ->> 'checkout_session'),
        customer_id = v_customer_id,  -- null where there is no such customer
        currency = coalesce(currency, p_event ->> 'currency'),
        asked_usd = coalesce(asked_usd, (p_event ->> 'asked_usd')::numeric),
        paid_at = case when p_event ->> 'paid_minor' is not null then least(paid_at, v_at) else paid_at end,
        paid_minor = coalesce(paid_minor, (p_event ->> 'paid_minor')::bigint),
        failed_at = case when (p_event ->> 'failed')::boolean then least(failed_at, v_at) else failed_at end,
        refunded_minor = greatest(refunded_minor, (p_event ->> 'refunded_minor')::bigint)
    where id = v_payment.id
    returning * into v_payment;
    if p_event ? 'refund' then
        insert into gateway.payment_refunds as r (id, payment_id, amount_minor, failed)
        values (p_event #>> '{refund,id}', v_payment.id, (p_event #>> '{refund,amount_minor}')::bigint, (p_event #>> '{refund,failed}')::boolean)
        on conflict (id) do update set
            amount_minor = greatest(r.amount_minor, excluded.amount_minor), failed = r.failed or excluded.failed;
    end if;
    if p_event ? 'dispute' then
        v_disputed := p_event #>> '{dispute,id}';
        insert into gateway.payment_disputes as d (id, payment_id, amount_minor, withdrawn_at, returned_at)
        values (v_disputed, v_payment.id, (p_event #>> '{dispute,amount_minor}')::bigint,
                case when (p_event #>> '{dispute,withdrawn}')::boolean then v_at end,
                case when (p_event #>> '{dispute,returned}')::boolean then v_at end)
        on conflict (id) do update set
            amount_minor = greatest(d.amount_minor, excluded.amount_minor),
            withdrawn_at = greatest(d.withdrawn_at, excluded.withdrawn_at), returned_at = greatest(d.returned_at, excluded.returned_at);
    end if;

    v_unexpected := gateway.reconcile_payment(v_payment, p_actor);
    perform set_config('gateway.engine', 'off', true);

    if v_disputed is not null then
        perform gateway.raise_event(
            'payment.disputed', 'payment:' || v_payment.id,
            jsonb_build_object(
                'customer_id', v_payment.customer_id, 'payment_intent', v_payment.payment_intent, 'dispute', v_disputed,
                'amount_minor', p_event #> '{dispute,amount_minor}'),
            'payment.disputed:' || v_disputed, v_payment.customer_id);
    end if;
    if v_unexpected is not null then
        perform gateway.raise_event(
            'payment.unexpected', 'payment:' || v_payment.id,
            jsonb_build_object(
                'customer_id', v_payment.customer_id, 'payment_intent', v_payment.payment_intent, 'reason', v_unexpected,
                'currency', v_payment.currency, 'paid_minor', v_payment.paid_minor, 'asked_usd', gateway.show_usd(v_payment.asked_usd)),
            'payment.unexpected:' || v_payment.id || ':' || v_unexpected, v_payment.customer_id);
    end if;
    select * into v_payment from gateway.payments where id = v_payment.id;
    return jsonb_build_object('outcome', 'recorded', 'payment', gateway.describe_payment(v_payment, true), 'unexpected', v_unexpected);
end
$$;
revoke all on function api.record_payment_event(jsonb, text) from public;
grant execute on function api.record_payment_event(jsonb, text) to service_role;
comment on function api.record_payment_event(jsonb, text) is 'Takes in an event of Stripe''s, once, and brings the books to what it tells.';
