-- api.check_ledger: recomputes every balance from the ledger, every hold from the running requests, and every request's charge from its
-- entries. {"ok", "accounts", "mismatches": [{customer_id, balance_usd, ledger_usd, held_usd, requests_held_usd}, …at most 100],
-- "misbooked_requests": n, "orphan_holds": n (their lease has run out and nobody ended them)}. Reads one snapshot; locks nothing.
create function api.check_ledger() returns jsonb
language sql stable security definer set search_path = '' set statement_timeout = '120s'
as $$
    with entries as (
        select customer_id, sum(amount_usd) as total from gateway.ledger_entries group by customer_id
    ),
    holds as (
        select customer_id, sum(hold_usd) as total, count(*) filter (where lease_until < now()) as orphans
        from gateway.requests
        where state = 'held'
        group by customer_id
    ),
    mismatches as (
        select a.customer_id, a.balance_usd, coalesce(e.total, 0) as ledger_usd, a.held_usd, coalesce(h.total, 0) as requests_held_usd
        from gateway.accounts as a
        left join entries as e using (customer_id)
        left join holds as h using (customer_id)
        where a.balance_usd <> coalesce(e.total, 0) or a.held_usd <> coalesce(h.total, 0)
    ),
    booked as (
        select request_id, -sum(amount_usd) as total from gateway.ledger_entries where request_id is not null group by request_id
    ),
    misbooked as (
        select count(*) as n
        from (select id, collected_usd from gateway.requests where collected_usd <> 0) as r
        full join (select * from booked where total <> 0) as b on b.request_id = r.id
        where r.collected_usd is distinct from b.total
    )
    select jsonb_build_object(
        'ok', not exists (select from mismatches) and misbooked.n = 0,
        'accounts', (select count(*) from gateway.accounts),
        'mismatches', coalesce((
            select jsonb_agg(jsonb_build_object(
                'customer_id', m.customer_id, 'balance_usd', gateway.show_usd(m.balance_usd), 'ledger_usd', gateway.show_usd(m.ledger_usd),
                'held_usd', gateway.show_usd(m.held_usd), 'requests_held_usd', gateway.show_usd(m.requests_held_usd)))
            from (select * from mismatches order by customer_id limit 100) as m
        ), '[]'),
        'misbooked_requests', misbooked.n,
        'orphan_holds', coalesce((select sum(orphans) from holds), 0))
    from misbooked
$$;
revoke all on function api.check_ledger() from public;
grant execute on function api.check_ledger() to service_role;
comment on function api.check_ledger() is 'Recomputes every balance from the ledger and every hold from the running requests.';
