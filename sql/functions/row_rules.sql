-- What rows of the tables that every request writes may be. Constraints, but in functions: PostgreSQL reads the text of a CHECK anew, and plans
-- it, in every statement that writes a row, and with a dozen of them on the ledger that took 60 of the 80 µs of an entry (measured). A function is
-- compiled once for each connection. Each rule has the name of a constraint, which an error tells. As with any CHECK: what is unknown passes.
-- Rows that are there already are not looked at again when a rule changes here: drop the constraint and add it anew.

create function gateway.refuse_row(p_table text, p_rule text) returns boolean
language plpgsql immutable set search_path = ''
as $$
begin
    raise exception 'the row violates the rule "%" of gateway.%', p_rule, p_table
        using errcode = 'check_violation', constraint = p_rule, table = p_table, schema = 'gateway';
end
$$;
comment on function gateway.refuse_row(text, text) is 'Raises check_violation under the name of the rule.';
revoke all on function gateway.refuse_row(text, text) from public;

create function gateway.is_account(p_balance_usd numeric, p_held_usd numeric, p_debt_usd numeric) returns boolean
language plpgsql immutable set search_path = ''
as $$
declare
    v_broken constant text := case
        when 'NaN' in (p_balance_usd, p_held_usd) then 'accounts_are_numbers'
        when p_held_usd < 0 then 'accounts_held_not_negative'
        when p_debt_usd < 0 or p_debt_usd = 'NaN' then 'accounts_debt_not_negative'
        -- whoever owes has nothing free: what is paid in or released goes to the debt in the same statement
        when p_debt_usd <> 0 and p_balance_usd <> p_held_usd then 'accounts_debt_takes_what_is_free'
    end;
begin
    return v_broken is null or gateway.refuse_row('accounts', v_broken);
end
$$;
comment on function gateway.is_account(numeric, numeric, numeric) is 'Constraint: amounts are numbers, none is negative, and whoever owes has nothing free.';
revoke all on function gateway.is_account(numeric, numeric, numeric) from public;

create function gateway.is_ledger_entry(
    p_kind text, p_amount_usd numeric, p_debt_change_usd numeric, p_request_id text, p_payment_id bigint, p_reference text, p_note text
) returns boolean
language plpgsql immutable set search_path = ''
as $$
declare
    v_broken constant text := case
        when p_kind not in ('credit', 'correction', 'charge', 'late_settlement', 'refund', 'dispute', 'reinstatement', 'debt_payment')
            then 'ledger_entries_kind_check'
        when (p_amount_usd = 0 and not coalesce(p_debt_change_usd > 0, false)) or p_amount_usd = 'NaN' then 'ledger_entries_amount_usd_check'
        when length(p_reference) not between 1 and 255 then 'ledger_entries_reference_check'
        when length(p_note) > 1000 then 'ledger_entries_note_check'
        when p_debt_change_usd in (0, 'NaN') then 'ledger_entries_debt_change_usd_check'
        when (p_request_id is not null) <> (p_kind in ('charge', 'late_settlement')) then 'ledger_request_kinds'
        when p_kind = 'credit' and p_amount_usd <= 0 then 'ledger_credit_is_positive'
        when p_kind = 'charge' and p_amount_usd >= 0 then 'ledger_charge_is_negative'
        when p_kind in ('refund', 'dispute') and p_amount_usd > 0 then 'ledger_reversal_is_negative'
        when p_kind = 'reinstatement' and p_amount_usd <= 0 then 'ledger_reinstatement_is_positive'
        when p_payment_id is null and p_kind in ('refund', 'dispute', 'reinstatement') then 'ledger_payment_kinds'
        when p_payment_id is not null and p_kind not in ('credit', 'refund', 'dispute', 'reinstatement') then 'ledger_payment_kinds'
        when p_kind = 'debt_payment' and not coalesce(p_debt_change_usd = p_amount_usd and p_amount_usd < 0, false) then 'ledger_debt_kinds'
        when p_debt_change_usd <= 0 and p_kind in ('refund', 'dispute') then 'ledger_debt_kinds'
        when p_debt_change_usd is not null and p_kind not in ('refund', 'dispute', 'debt_payment') then 'ledger_debt_kinds'
    end;
begin
    return v_broken is null or gateway.refuse_row('ledger_entries', v_broken);
end
$$;
comment on function gateway.is_ledger_entry(text, numeric, numeric, text, bigint, text, text) is 'Constraint: each kind of entry has its direction, and what it is of.';
revoke all on function gateway.is_ledger_entry(text, numeric, numeric, text, bigint, text, text) from public;

create function gateway.is_request(
    p_id text, p_state text, p_outcome text, p_hold_usd numeric, p_cost_usd numeric, p_charge_usd numeric, p_collected_usd numeric,
    p_uncollected_usd numeric
) returns boolean
language plpgsql immutable set search_path = ''
as $$
declare
    v_broken constant text := case
        when length(p_id) not between 8 and 64 then 'requests_id_check'
        when p_state not in ('held', 'settled', 'expired', 'refused') then 'requests_state_check'
        when p_outcome not in ('succeeded', 'failed', 'cancelled', 'cut') then 'requests_outcome_check'
        when (p_state = 'settled') <> (p_outcome is not null) then 'requests_settled_has_outcome'
        when p_hold_usd < 0 then 'requests_hold_usd_check'
        when p_cost_usd < 0 then 'requests_cost_usd_check'
        when p_charge_usd < 0 then 'requests_charge_usd_check'
        when p_collected_usd < 0 then 'requests_collected_usd_check'
        when p_uncollected_usd < 0 then 'requests_uncollected_usd_check'
        when p_charge_usd <> p_collected_usd + p_uncollected_usd then 'requests_charge_is_booked'
    end;
begin
    return v_broken is null or gateway.refuse_row('requests', v_broken);
end
$$;
comment on function gateway.is_request(text, text, text, numeric, numeric, numeric, numeric, numeric) is 'Constraint: a request''s states, and that what is owed is either taken or booked as not taken.';
revoke all on function gateway.is_request(text, text, text, numeric, numeric, numeric, numeric, numeric) from public;

create function gateway.is_counter(p_subject text, p_per text, p_requests bigint, p_tokens bigint, p_spend_usd numeric) returns boolean
language plpgsql immutable set search_path = ''
as $$
declare
    v_broken constant text := case
        when p_subject not in ('key', 'customer', 'service') then 'limit_counters_subject_check'
        when p_per not in ('minute', 'hour', 'day', 'month') then 'limit_counters_per_check'
        when p_requests < 0 then 'limit_counters_requests_check'
        when p_tokens < 0 then 'limit_counters_tokens_check'
        when p_spend_usd < 0 then 'limit_counters_spend_usd_check'
    end;
begin
    return v_broken is null or gateway.refuse_row('limit_counters', v_broken);
end
$$;
comment on function gateway.is_counter(text, text, bigint, bigint, numeric) is 'Constraint: nothing is counted below zero.';
revoke all on function gateway.is_counter(text, text, bigint, bigint, numeric) from public;
