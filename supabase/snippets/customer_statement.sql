-- A customer's account in the current month, day by day, in its own time zone. Put in the address.
with customer as (
    select id, time_zone, date_trunc('month', now(), time_zone) as since from gateway.customers where lower(email) = lower('ada@example.com')
)
select (e.created_at at time zone c.time_zone)::date as day, e.kind, count(*) as entries, sum(e.amount_usd) as amount_usd,
    (array_agg(e.balance_after_usd order by e.id desc))[1] as balance_after_usd,
    string_agg(distinct e.reference, ', ') as "references"
from customer as c
join gateway.ledger_entries as e on e.customer_id = c.id and e.created_at >= c.since
group by 1, 2
order by 1, min(e.id);
