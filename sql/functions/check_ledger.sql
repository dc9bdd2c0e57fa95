-- The entries of each customer since its last checkpoint, by the index from account to account, whatever the planner thinks of how many they
-- are: a scan would read the whole of the books for each account, and so would the primary key where a customer's checkpoint is old. For
-- that the condition is on both columns at once.
create function gateway.recent_entries() returns table (customer_id bigint, request_id text, amount_usd numeric)
language plpgsql stable set search_path = '' set enable_seqscan = off
as $$
begin
    return query
    select a.customer_id, e.request_id, e.amount_usd
    from gateway.accounts as a
    left join lateral (
        select p.through_entry_id from gateway.ledger_checkpoints as p where p.customer_id = a.customer_id order by p.month desc limit 1
    ) as c on true
    cross join lateral (
        select l.request_id, l.amount_usd
        from gateway.ledger_entries as l
        where (l.customer_id, l.id) > (a.customer_id, coalesce(c.through_entry_id, 0)) and l.customer_id <= a.customer_id
        offset 0
    ) as e;
end
$$;
comment on function gateway.recent_entries() is 'The entries of each customer since its last checkpoint.';
revoke all on function gateway.recent_entries() from public;

-- gateway.count_misbooked: requests whose entries do not come to what was collected for them, and entries for requests that are not there.
-- Of the months that are not closed yet, and whatever else the entries since then name; with p_full of all times. There the requests of
-- dropped logs, which nobody can look up any more, are held to their months' sums.
create function gateway.count_misbooked(p_full boolean) returns bigint
language plpgsql stable set search_path = ''
as $$
declare
    v_open_from timestamptz := coalesce((select (max(month) + interval '1 month') at time zone 'UTC' from gateway.ledger_months), '-infinity');
begin
    if p_full then
        return (
            with doubtful as (
                select r.id as in_log, b.total
                from (select id, collected_usd from gateway.requests where collected_usd <> 0) as r
                full join (
                    select request_id, -sum(amount_usd) as total
                    from gateway.ledger_entries
                    where request_id is not null
                    group by request_id
                    having sum(amount_usd) <> 0
                ) as b on b.request_id = r.id
                where r.collected_usd is distinct from b.total
            )
            select d.in_log + case
                when (d.gone, d.total) = (m.gone, m.total) then 0
                else greatest(abs(d.gone - m.gone), 1)
            end
            from (
                select count(in_log) as in_log, count(*) - count(in_log) as gone, coalesce(sum(total) filter (where in_log is null), 0) as total
                from doubtful
            ) as d
            cross join (
                select coalesce(sum(booked_requests), 0)::bigint as gone, coalesce(sum(collected_usd), 0) as total from gateway.ledger_months
            ) as m
        );
    end if;
    return (
        with doubtful as (
            select coalesce(r.id, b.request_id) as id
            from (select id, collected_usd from gateway.requests where collected_usd <> 0 and admitted_at >= v_open_from) as r
            full join (
                select e.request_id, -sum(e.amount_usd) as total
                from gateway.recent_entries() as e
                where e.request_id is not null
                group by e.request_id
                having sum(e.amount_usd) <> 0
            ) as b on b.request_id = r.id
            where r.collected_usd is distinct from b.total
        )
        -- A late settlement may name a request of a closed month: each is looked at whole.
        select count(*)
        from doubtful as d
        where (select coalesce(sum(r.collected_usd), 0) from gateway.requests as r where r.id = d.id)
            <> (select coalesce(-sum(e.amount_usd), 0) from gateway.ledger_entries as e where e.request_id = d.id)
    );
end
$$;
comment on function gateway.count_misbooked(boolean) is 'Requests whose entries do not come to what was collected for them.';
revoke all on function gateway.count_misbooked(boolean) from public;

create function gateway.count_misbooked_payments() returns bigint
language plpgsql stable set search_path = ''
as $$
begin
    return (
        select count(*)
        from gateway.payments as p
        full join (
            select payment_id, sum(amount_usd - coalesce(debt_change_usd, 0)) as total
            from gateway.ledger_entries
            where payment_id is not null
            group by payment_id
        ) as e on e.payment_id = p.id
        where coalesce(p.credited_usd - p.refunded_usd - p.disputed_usd, 0) <> coalesce(e.total, 0)
    );
end
$$;
comment on function gateway.count_misbooked_payments() is 'Payments whose entries do not come to what was credited, less what was taken back.';
revoke all on function gateway.count_misbooked_payments() from public;

-- api.check_ledger: recomputes every balance from the ledger, every hold from the running requests, and every request's charge from its
-- entries. It goes on from each customer's last checkpoint, so that it costs the same however old the books are; with p_full from the first
-- entry, and proves the checkpoints as well. {"ok", "full", "accounts", "closed_through": last closed month or null,
-- "mismatches": [{customer_id, balance_usd, ledger_usd, held_usd, requests_held_usd, debt_usd, ledger_debt_usd}, …at most 100],
-- "misbooked_requests": n, "misbooked_payments": n (their entries do not come to what was credited and taken back of them),
-- "wrong_checkpoints": n or null, "orphan_holds": n (their lease has run out and nobody ended them)}. Reads one snapshot; locks nothing.
create function api.check_ledger(p_full boolean default false) returns jsonb
language plpgsql stable security definer set search_path = '' set statement_timeout = '120s' set plan_cache_mode = force_custom_plan
as $$
declare
    v_misbooked bigint := gateway.count_misbooked(p_full);
    v_misbooked_payments bigint := gateway.count_misbooked_payments();
    v_wrong_checkpoints bigint;
begin
    if p_full then
        v_wrong_checkpoints := (
            select count(*)
            from (
                select c.*, lag(c.balance_usd, 1, 0) over of_customer as before_usd, lag(c.through_entry_id, 1, 0) over of_customer as after_entry_id
                from gateway.ledger_checkpoints as c
                window of_customer as (partition by c.customer_id order by c.month)
            ) as c
            cross join lateral (
                select count(*) as entries, coalesce(sum(e.amount_usd), 0) as total, max(e.id) as last_id
                from gateway.ledger_entries as e
                where e.customer_id = c.customer_id and e.id > c.after_entry_id and e.id <= c.through_entry_id
            ) as e
            where (e.entries, e.last_id, c.before_usd + e.total) is distinct from (c.entries, c.through_entry_id, c.balance_usd)
        );
    end if;
    return (
        with entries as (
            select c.customer_id, sum(c.amount_usd) as total
            from (
                select e.customer_id, e.amount_usd from gateway.ledger_entries as e where p_full
                union all
                select e.customer_id, e.amount_usd from gateway.recent_entries() as e where not p_full
                union all
                select a.customer_id, c.balance_usd
                from gateway.accounts as a
                cross join lateral (
                    select p.balance_usd from gateway.ledger_checkpoints as p where p.customer_id = a.customer_id order by p.month desc limit 1
                ) as c
                where not p_full
            ) as c
            group by c.customer_id
        ),
        holds as (
            select customer_id, sum(hold_usd) as total, count(*) filter (where lease_until < now()) as orphans
            from gateway.requests
            where state = 'held'
            group by customer_id
        ),
        -- reversals and what has paid for them are few: these are always summed whole
        debts as (
            select customer_id, sum(debt_change_usd) as total
            from gateway.ledger_entries
            where debt_change_usd is not null
            group by customer_id
        ),
        mismatches as (
            select a.customer_id, a.balance_usd, coalesce(e.total, 0) as ledger_usd, a.held_usd, coalesce(h.total, 0) as requests_held_usd,
                a.debt_usd, coalesce(d.total, 0) as ledger_debt_usd
            from gateway.accounts as a
            left join entries as e using (customer_id)
            left join holds as h using (customer_id)
            left join debts as d using (customer_id)
            where a.balance_usd <> coalesce(e.total, 0) or a.held_usd <> coalesce(h.total, 0) or a.debt_usd <> coalesce(d.total, 0)
        )
        select jsonb_build_object(
            'ok', not exists (select from mismatches) and v_misbooked = 0 and v_misbooked_payments = 0 and coalesce(v_wrong_checkpoints, 0) = 0,
            'full', p_full,
            'accounts', (select count(*) from gateway.accounts),
            'closed_through', (select to_char(max(month), 'YYYY-MM') from gateway.ledger_months),
            'mismatches', coalesce((
                select jsonb_agg(jsonb_build_object(
                    'customer_id', m.customer_id, 'balance_usd', gateway.show_usd(m.balance_usd), 'ledger_usd', gateway.show_usd(m.ledger_usd),
                    'held_usd', gateway.show_usd(m.held_usd), 'requests_held_usd', gateway.show_usd(m.requests_held_usd),
                    'debt_usd', gateway.show_usd(m.debt_usd), 'ledger_debt_usd', gateway.show_usd(m.ledger_debt_usd)))
                from (select * from mismatches order by customer_id limit 100) as m
            ), '[]'),
            'misbooked_requests', v_misbooked,
            'misbooked_payments', v_misbooked_payments,
            'wrong_checkpoints', v_wrong_checkpoints,
            'orphan_holds', coalesce((select sum(orphans) from holds), 0))
    );
end
$$;
revoke all on function api.check_ledger(boolean) from public;
grant execute on function api.check_ledger(boolean) to service_role;
comment on function api.check_ledger(boolean) is 'Recomputes every balance from the ledger and every hold from the running requests, from the last checkpoints on or whole.';
