-- How money that is no request's gets into the books and out of them. Whoever calls holds the account's lock, and writes as the engine.

create function gateway.book_income(
    p_customer_id bigint, p_kind text, p_usd numeric, p_reference text, p_note text, p_actor text, p_payment_id bigint default null
) returns gateway.accounts
language plpgsql set search_path = ''
as $$
declare
    v_account gateway.accounts;
    v_paid numeric;
begin
    select least(debt_usd, p_usd) into v_paid from gateway.accounts where customer_id = p_customer_id;
    delete from gateway.exhausted_accounts where customer_id = p_customer_id;
    update gateway.accounts
    set balance_usd = balance_usd + p_usd - v_paid, debt_usd = debt_usd - v_paid
    where customer_id = p_customer_id
    returning * into v_account;
    insert into gateway.ledger_entries (customer_id, kind, amount_usd, balance_after_usd, reference, note, actor, payment_id)
    values (p_customer_id, p_kind, p_usd, v_account.balance_usd + v_paid, p_reference, p_note, p_actor, p_payment_id);
    if v_paid > 0 then
        insert into gateway.ledger_entries (customer_id, kind, amount_usd, balance_after_usd, debt_change_usd, actor)
        values (p_customer_id, 'debt_payment', -v_paid, v_account.balance_usd, -v_paid, p_actor);
    end if;
    return v_account;
end
$$;
comment on function gateway.book_income(bigint, text, numeric, text, text, text, bigint) is 'Books what comes in, and pays the debt of it first. Returns the account.';
revoke all on function gateway.book_income(bigint, text, numeric, text, text, text, bigint) from public;

-- {"entry_id", "taken_usd", "debt_usd": what it added to the debt, "owed_before": whether there was one}.
create function gateway.book_reversal(
    p_customer_id bigint, p_kind text, p_usd numeric, p_payment_id bigint, p_note text, p_actor text
) returns jsonb
language plpgsql set search_path = ''
as $$
declare
    v_account gateway.accounts;
    v_taken numeric;
    v_entry_id bigint;
begin
    select * into v_account from gateway.accounts where customer_id = p_customer_id;
    v_taken := least(v_account.balance_usd - v_account.held_usd, p_usd);
    update gateway.accounts
    set balance_usd = balance_usd - v_taken, debt_usd = debt_usd + p_usd - v_taken
    where customer_id = p_customer_id;
    insert into gateway.ledger_entries (customer_id, kind, amount_usd, balance_after_usd, debt_change_usd, note, actor, payment_id)
    values (p_customer_id, p_kind, -v_taken, v_account.balance_usd - v_taken, nullif(p_usd - v_taken, 0), p_note, p_actor, p_payment_id)
    returning id into v_entry_id;
    perform gateway.record_balance(p_customer_id, v_account.balance_usd);
    return jsonb_build_object(
        'entry_id', v_entry_id, 'taken_usd', gateway.show_usd(v_taken), 'debt_usd', gateway.show_usd(p_usd - v_taken),
        'owed_before', v_account.debt_usd > 0);
end
$$;
comment on function gateway.book_reversal(bigint, text, numeric, bigint, text, text) is 'Takes back what a refund or dispute took: of what is free, and the rest becomes a debt.';
revoke all on function gateway.book_reversal(bigint, text, numeric, bigint, text, text) from public;

create trigger refuse_hand_edit before insert or update or delete or truncate on gateway.payments
    for each statement execute function gateway.refuse_hand_edit();
create trigger refuse_hand_edit before insert or update or delete or truncate on gateway.payment_refunds
    for each statement execute function gateway.refuse_hand_edit();
create trigger refuse_hand_edit before insert or update or delete or truncate on gateway.payment_disputes
    for each statement execute function gateway.refuse_hand_edit();
create trigger refuse_hand_edit before insert or update or delete or truncate on gateway.payment_events
    for each statement execute function gateway.refuse_hand_edit();
create trigger refuse_hand_edit before insert or update or delete or truncate on gateway.statements
    for each statement execute function gateway.refuse_hand_edit();
