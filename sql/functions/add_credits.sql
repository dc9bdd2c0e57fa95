-- api.add_credits: pays in, or corrects by a negative amount, in USD or in credits. Of p_customer_id, p_key_hash and p_email one names the
-- customer. The same reference twice counts once ("duplicate": true); another amount under it is an error. What is paid in pays a debt first.
-- Locks the account.
-- {"customer_id", "added_usd", "credits_added", "balance_after_usd", "credits_after", "debt_usd": still owed, "duplicate"}, or {"error": "unknown_customer" |
-- "erased_customer" (nothing is paid in any more, but what is left can be paid out) | "invalid_amount" (zero, beyond a billion USD, a
-- balance beyond ten, or finer than the tenth decimal) | "reserved_reference" (stripe:…, of payments alone: one that was taken would keep its
-- payment out of the books) | "reference_conflict" | "more_than_free", "free_usd"}.
create function api.add_credits(
    p_customer_id bigint default null, p_key_hash text default null, p_email text default null,
    p_usd numeric default null, p_credits numeric default null, p_reference text default null, p_note text default null, p_actor text default null
) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_customer_id bigint;
    v_credit_value numeric := (select credit_value_usd from gateway.settings);
    v_amount numeric(20, 10);
    v_account gateway.accounts;
    v_entry gateway.ledger_entries;
begin
    if num_nonnulls(p_usd, p_credits) <> 1 or num_nonnulls(p_customer_id, p_key_hash, p_email) <> 1 then
        raise exception 'one amount and one customer' using errcode = 'invalid_parameter_value';
    end if;
    if abs(coalesce(p_usd, p_credits * v_credit_value)) > 1000000000 then
        return jsonb_build_object('error', 'invalid_amount');
    end if;
    v_amount := coalesce(p_usd, p_credits * v_credit_value);
    if v_amount = 0 or v_amount <> coalesce(p_usd, p_credits * v_credit_value) then
        return jsonb_build_object('error', 'invalid_amount');
    end if;
    if starts_with(p_reference, 'stripe:') then
        return jsonb_build_object('error', 'reserved_reference');
    end if;
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    select c.id into v_customer_id
    from gateway.customers as c
    where c.id = p_customer_id
        or lower(c.email) = lower(p_email)
        or c.id = (select k.customer_id from gateway.api_keys as k where k.id = gateway.find_key(decode(p_key_hash, 'hex')));
    if v_customer_id is null then
        return jsonb_build_object('error', 'unknown_customer');
    end if;

    select * into v_account from gateway.accounts where customer_id = v_customer_id for update;
    -- asked only now: an erasure locks the account, too
    if v_amount > 0 and exists (select from gateway.customers where id = v_customer_id and erased_at is not null) then
        return jsonb_build_object('error', 'erased_customer');
    end if;
    select * into v_entry from gateway.ledger_entries where customer_id = v_customer_id and reference = p_reference;
    if v_entry.id is not null and v_entry.amount_usd <> v_amount then
        return jsonb_build_object('error', 'reference_conflict');
    elsif v_entry.id is null then
        if v_amount < 0 and v_account.balance_usd - v_account.held_usd < -v_amount then
            return jsonb_build_object('error', 'more_than_free', 'free_usd', gateway.show_usd(v_account.balance_usd - v_account.held_usd));
        end if;
        if v_account.balance_usd + v_amount >= 10000000000 then
            return jsonb_build_object('error', 'invalid_amount');
        end if;
        perform set_config('gateway.engine', 'on', true);
        if v_amount > 0 then
            v_account := gateway.book_income(v_customer_id, 'credit', v_amount, p_reference, p_note, coalesce(p_actor, session_user));
        else
            update gateway.accounts set balance_usd = balance_usd + v_amount where customer_id = v_customer_id returning * into v_account;
            insert into gateway.ledger_entries (customer_id, kind, amount_usd, balance_after_usd, reference, note, actor)
            values (v_customer_id, 'correction', v_amount, v_account.balance_usd, p_reference, p_note, coalesce(p_actor, session_user));
            perform gateway.record_balance(v_customer_id, v_account.balance_usd - v_amount);
        end if;
        perform set_config('gateway.engine', 'off', true);
    end if;
    return jsonb_build_object(
        'customer_id', v_customer_id, 'added_usd', gateway.show_usd(v_amount), 'credits_added', trim_scale(v_amount / v_credit_value),
        'balance_after_usd', gateway.show_usd(v_account.balance_usd), 'credits_after', gateway.show_credits(v_account.balance_usd, v_credit_value),
        'debt_usd', gateway.show_usd(v_account.debt_usd), 'duplicate', v_entry.id is not null);
end
$$;
revoke all on function api.add_credits(bigint, text, text, numeric, numeric, text, text, text) from public;
grant execute on function api.add_credits(bigint, text, text, numeric, numeric, text, text, text) to service_role;
comment on function api.add_credits(bigint, text, text, numeric, numeric, text, text, text) is 'Pays in, or corrects by a negative amount.';
