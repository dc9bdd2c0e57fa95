-- api.drop_request_partitions: drops the oldest month of the request log that is older than the setting log_retention_months allows: that many
-- whole months are kept beside the current one. Only once nothing can be missed: the month's books are closed, nothing of it is running, each
-- of its requests is booked as it was charged, and no entry since the last checkpoints names one. What they come to is written down first.
-- Books, sums and the record of who nears a limit stay. For maintenance; one month a call.
-- {"dropped": "2026-08" or null, "waits": null | "not_closed" | "holds" | "misbooked" | "late_entries" | "busy"}. Locks the log for a moment,
-- and waits two seconds at most for that: the next call tries again.
create function api.drop_request_partitions() returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '300s'
as $$
declare
    v_month date;
    v_name text;
    v_from timestamptz;
    v_to timestamptz;
    v_requests bigint;
    v_collected_usd numeric;
    v_last_entry_id bigint;
    v_late boolean;
begin
    select to_date(c.relname, '"requests_"YYYY_MM'), c.relname into v_month, v_name
    from pg_inherits as i
    join pg_class as c on c.oid = i.inhrelid
    where i.inhparent = 'gateway.requests'::regclass and c.relname ~ '^requests_\d{4}_\d\d$'
    order by c.relname
    limit 1;
    if v_month is null or v_month >= (
        select date_trunc('month', now() at time zone 'UTC') - make_interval(months => log_retention_months) from gateway.settings
    ) is not false then
        return jsonb_build_object('dropped', null, 'waits', null);
    end if;
    v_from := v_month::timestamp at time zone 'UTC';
    v_to := (v_month + interval '1 month') at time zone 'UTC';
    if not exists (select from gateway.ledger_months where month = v_month) then
        return jsonb_build_object('dropped', null, 'waits', 'not_closed');
    elsif exists (select from gateway.requests where state = 'held' and admitted_at >= v_from and admitted_at < v_to) then
        return jsonb_build_object('dropped', null, 'waits', 'holds');
    end if;
    v_last_entry_id := (select max(id) from gateway.ledger_entries);
    if exists (
        select from gateway.recent_entries() as e
        join gateway.requests as r on r.id = e.request_id and r.admitted_at >= v_from and r.admitted_at < v_to
    ) then
        return jsonb_build_object('dropped', null, 'waits', 'late_entries');
    end if;
    begin
        perform set_config('lock_timeout', '2s', true);
        -- As api.create_request_partitions: only one at a time makes or drops one. Reading and writing go on.
        lock table only gateway.requests in share update exclusive mode;
        select count(*), coalesce(sum(r.collected_usd), 0) into v_requests, v_collected_usd
        from gateway.requests as r
        where r.collected_usd <> 0 and r.admitted_at >= v_from and r.admitted_at < v_to;
        if exists (
            select from gateway.requests as r
            where r.admitted_at >= v_from and r.admitted_at < v_to
                and r.collected_usd <> (select coalesce(-sum(e.amount_usd), 0) from gateway.ledger_entries as e where e.request_id = r.id)
        ) then
            return jsonb_build_object('dropped', null, 'waits', 'misbooked');
        end if;
        execute format('alter table gateway.requests detach partition gateway.%I', v_name);
        -- Nobody writes to it any more. What came since it was looked at has left an entry: among the last, and with a smaller number than the
        -- last one of then only where its transaction was running at that moment.
        execute format(
            'select exists (select from gateway.ledger_entries as e join gateway.%I as r on r.id = e.request_id where e.id > $1 - 100000 and '
            'e.id > (select coalesce(max(c.through_entry_id), 0) from gateway.ledger_checkpoints as c where c.customer_id = e.customer_id))', v_name)
            into v_late using v_last_entry_id;
        if v_late then
            raise exception using errcode = 'no_data_found';
        end if;
        perform set_config('gateway.engine', 'on', true);
        update gateway.ledger_months
        set log_dropped_at = clock_timestamp(), booked_requests = v_requests, collected_usd = v_collected_usd
        where month = v_month;
        perform set_config('gateway.engine', 'off', true);
        execute format('drop table gateway.%I', v_name);
    exception
        when no_data_found then  -- attached again
            return jsonb_build_object('dropped', null, 'waits', 'late_entries');
        when lock_not_available then
            return jsonb_build_object('dropped', null, 'waits', 'busy');
    end;
    return jsonb_build_object('dropped', to_char(v_month, 'YYYY-MM'), 'waits', null);
end
$$;
revoke all on function api.drop_request_partitions() from public;
grant execute on function api.drop_request_partitions() to service_role;
comment on function api.drop_request_partitions() is 'Drops the oldest month of the request log, where the settings say so and the books need it no more.';
