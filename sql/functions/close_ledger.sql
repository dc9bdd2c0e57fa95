create function gateway.write_checkpoints(p_month date, p_end timestamptz) returns void
language plpgsql set search_path = '' set enable_seqscan = off
as $$
begin
    insert into gateway.ledger_checkpoints (customer_id, month, through_entry_id, entries, balance_usd)
    select a.customer_id, p_month, t.entry_id, n.entries, coalesce(c.balance_usd, 0) + n.total
    from gateway.accounts as a
    left join lateral (
        select p.through_entry_id, p.balance_usd from gateway.ledger_checkpoints as p where p.customer_id = a.customer_id order by p.month desc limit 1
    ) as c on true
    cross join lateral (
        select e.id as entry_id
        from gateway.ledger_entries as e
        where (e.customer_id, e.id) > (a.customer_id, coalesce(c.through_entry_id, 0)) and e.customer_id <= a.customer_id and e.created_at < p_end
        order by e.customer_id desc, e.id desc
        limit 1
    ) as t
    cross join lateral (
        select count(*) as entries, sum(e.amount_usd) as total
        from gateway.ledger_entries as e
        where (e.customer_id, e.id) > (a.customer_id, coalesce(c.through_entry_id, 0)) and (e.customer_id, e.id) <= (a.customer_id, t.entry_id)
        offset 0
    ) as n;
end
$$;
comment on function gateway.write_checkpoints(date, timestamptz) is 'Writes what each customer''s entries of a month, and those left over from before, come to.';
revoke all on function gateway.write_checkpoints(date, timestamptz) from public;

-- api.close_ledger: closes the oldest month (UTC) that is over by a day and not closed yet, if the books agree: writes each customer's balance
-- at its end into ledger_checkpoints. What is booked later, and if it is for a request of that month, counts from then on. For maintenance.
-- {"closed": "2026-10" or null, "disagree": whether it had to be left open, because check_ledger finds fault}. Locks no account: a customer's
-- entries are numbered under the lock of its account, so that those which can be seen have none missing between them.
create function api.close_ledger() returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '300s'
as $$
declare
    v_month date := coalesce(
        (select (max(month) + interval '1 month')::date from gateway.ledger_months),
        (select date_trunc('month', created_at at time zone 'UTC')::date from gateway.ledger_entries order by id limit 1));
    v_end timestamptz := (v_month + interval '1 month') at time zone 'UTC';
begin
    if v_end is null or v_end + interval '1 day' > clock_timestamp() then
        return jsonb_build_object('closed', null, 'disagree', false);
    end if;
    -- Nobody waits for another who does the same.
    if not pg_try_advisory_xact_lock(hashtext('gateway.close_ledger')) then
        return jsonb_build_object('closed', null, 'disagree', false);
    end if;
    if exists (select from gateway.ledger_months where month = v_month) then  -- another has, since
        return jsonb_build_object('closed', null, 'disagree', false);
    end if;
    if not (api.check_ledger() ->> 'ok')::boolean then
        return jsonb_build_object('closed', null, 'disagree', true);
    end if;
    perform set_config('gateway.engine', 'on', true);
    insert into gateway.ledger_months (month) values (v_month);
    perform gateway.write_checkpoints(v_month, v_end);
    perform set_config('gateway.engine', 'off', true);
    return jsonb_build_object('closed', to_char(v_month, 'YYYY-MM'), 'disagree', false);
end
$$;
revoke all on function api.close_ledger() from public;
grant execute on function api.close_ledger() to service_role;
comment on function api.close_ledger() is 'Closes the books of a month that is over.';
