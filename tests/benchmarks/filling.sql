-- What filling.py runs. {names} are filled in; a name heads each part.

-- name: world
do $$
declare
    v_providers text[] := {providers};
begin
    for n in 1 .. {models} loop
        perform api.create_model(
            p_name => 'bench-' || n, p_context_length => 128000, p_max_output_tokens => 16384,
            p_offers => jsonb_build_array(jsonb_build_object(
                'provider', v_providers[1 + n % 3], 'upstream_model', 'bench-' || n,
                'prices', jsonb_build_object('input', '0.25', 'cached_input', '0.03', 'output', '1.25'))));
    end loop;
    for n in 1 .. 3 loop
        perform api.create_service(
            p_id => api.reserve_service_id(), p_name => 'bench ' || n, p_provider => v_providers[n],
            p_base_url => 'https://' || v_providers[n] || '.example.org/v1',
            p_enabled_models => array(
                select m.name from gateway.models as m join gateway.offers as o on o.model_id = m.id where o.provider = v_providers[n]));
    end loop;
end
$$;
insert into gateway.customers (name, username, email, time_zone)
select 'Bench ' || n, 'bench-' || n, n || '@example.org',
    (array['UTC', 'Asia/Kolkata', 'America/New_York', 'Europe/Berlin'])[1 + n % 4]
from generate_series(1, {customers}) as n
order by n;
select api.add_credits(p_customer_id => id, p_usd => {paid_in}) from gateway.customers;
insert into gateway.api_keys (customer_id, name, prefix, secret_hash)
select c.id, 'bench ' || k, 'sk_bench', sha256(convert_to(c.username || ' ' || k, 'UTF8'))
from gateway.customers as c
cross join generate_series(1, {keys_each}) as k;
insert into gateway.limits (key_id, each_model, per, requests) select id, true, 'minute', 1000000000 from gateway.api_keys;

-- name: sessions
create schema filling;
create unlogged table filling.customers as
select c.id, c.number, array(select k.id from gateway.api_keys as k where k.customer_id = c.id order by k.id) as keys
from (select id, row_number() over (order by id) as number from gateway.customers) as c;
create unlogged table filling.routes as
select m.id as model_id, m.name, s.id as service_id, row_number() over (order by m.id) as number,
    jsonb_build_array(jsonb_build_object(
        'route_id', r.id, 'service_id', s.id, 'model_id', m.id,
        'prices', jsonb_build_object('input', 0.25, 'cached_input', 0.03, 'output', 1.25))) as routes
from gateway.models as m
join gateway.offers as o on o.model_id = m.id
join gateway.routes as r on r.offer_id = o.id
join gateway.services as s on s.id = r.service_id;

select setseed(0.5);
create unlogged table filling.sessions as
select s.started, c.id as customer_id, c.keys[1 + floor({keys_each} * random())::integer] as key_id,
    r.model_id, r.name, r.service_id, r.routes, s.number, s.length
from (
    select n as number, {now} - {days} * random() * interval '1 day' as started,
        1 + floor({customers} * random() ^ 2)::integer as customer, floor({models_each} * random() ^ 1.5)::integer as model,
        1 + floor(20 * random())::integer as length
    from generate_series(1, greatest(({requests} / 10.5)::integer, 1)) as n
) as s
join filling.customers as c on c.number = s.customer
join filling.routes as r on r.number = 1 + (s.customer * 7 + s.model) % {models}
order by s.started;
analyze filling.sessions;

-- name: months
-- Filled before it is attached: its indexes are then made at once, and nothing of it goes into the log.
select to_char(m, 'YYYY_MM'), m at time zone 'UTC', (m + interval '1 month') at time zone 'UTC'
from generate_series(
    date_trunc('month', ({now} - {days} * interval '1 day') at time zone 'UTC'), {now} at time zone 'UTC', interval '1 month') as m

-- name: partition
drop table if exists gateway.{partition};
create table gateway.{partition} (like gateway.requests including defaults including constraints);

-- name: attach
alter table gateway.requests attach partition gateway.{partition} for values from ({since}) to ({until})

-- name: ledger_indexes
select indexname, indexdef from pg_indexes
where schemaname = 'gateway' and tablename = 'ledger_entries' and indexname <> 'ledger_entries_pkey'

-- name: requests
-- A fiftieth fails. The rest costs what its tokens cost, rounded up as the engine does.
insert into gateway.{partition} (
    id, admitted_at, customer_id, key_id, model_id, service_id, requested_model, endpoint, streamed, state, outcome, hold_usd,
    cost_usd, charge_usd, collected_usd, lease_until, input_tokens_bound, output_tokens_bound, input_tokens, cached_input_tokens,
    output_tokens, billing_mode, commission_percent, flat_usd_per_1k_tokens, routes, counted, status, finish_reason, latency_ms,
    time_to_first_token_ms, settled_at)
select
    'req_' || lpad(to_hex((extract(epoch from q.at) * 1000)::bigint), 12, '0') || substr(md5(q.number || '/' || q.n), 1, 20),
    q.at, q.customer_id, q.key_id, q.model_id, case when q.paid then q.service_id end, q.name, 'chat.completions', q.streamed, 'settled',
    case when q.paid then 'succeeded' else 'failed' end, 0.05,
    case when q.paid then q.cost else 0 end, case when q.paid then q.charge else 0 end, case when q.paid then q.charge else 0 end,
    q.at + interval '15 minutes', 8000, 4096,
    case when q.paid then q.input end, case when q.paid then q.cached end, case when q.paid then q.output end,
    'markup', 5, 0.02,
    q.routes, '{{}}', case when q.paid then 200 else 502 end, case when q.paid then 'stop' end, q.latency, case when q.streamed and q.paid then q.latency / 4 end,
    q.at + q.latency * interval '1 millisecond'
from (
    select t.*, gateway.round_up_usd(t.exact) as cost, gateway.round_up_usd(t.exact * 1.05) as charge
    from (
        select u.*, (u.input * 0.25 + u.cached * 0.03 + u.output * 1.25) * 0.000001 as exact
        from (
            select s.*, n.n, least(s.started + (n.n - 1) * interval '25 seconds', {now}) as at,
                (s.number + n.n) % 50 <> 0 as paid, s.number % 3 > 0 as streamed,
                200 + (s.number * 37 + n.n * 101) % 3800 as input, (s.number % 5) * 100 as cached, 50 + (s.number * 13 + n.n * 7) % 750 as output,
                (exp(6.5 + sqrt(-2 * ln(random() + 1e-9)) * cos(6.283185 * random())))::integer + 1 as latency
            from (
                select * from filling.sessions where started >= {since}::timestamptz - interval '1 hour' and started < {until}
            ) as s
            cross join lateral generate_series(1, s.length) as n
        ) as u
        where u.at >= {since} and u.at < {until}
    ) as t
) as q

-- name: ledger
insert into gateway.ledger_entries (customer_id, kind, amount_usd, balance_after_usd, request_id, actor, created_at)
select customer_id, 'charge', -charge_usd,
    {paid_in} - sum(charge_usd) over (partition by customer_id order by admitted_at, id rows unbounded preceding), id, 'gateway', settled_at
from gateway.requests
where charge_usd > 0 and customer_id % 2 = {half}

-- name: rollups
insert into gateway.usage_rollups (
    bucket, customer_id, key_id, model_id, service_id, requests, errors, input_tokens, cached_input_tokens, output_tokens, total_tokens,
    cost_usd, charge_usd, latency_ms, latencies, time_to_first_token_ms, first_tokens, last_request_at, latency_counts, first_token_counts)
select g.bucket, g.customer_id, g.key_id, g.model_id, g.service_id, g.requests, g.errors, g.input_tokens, g.cached_input_tokens, g.output_tokens,
    g.input_tokens + g.cached_input_tokens + g.output_tokens, g.cost_usd, g.charge_usd, g.latency_ms, g.latencies, g.first_token_ms,
    g.first_tokens, g.last_request_at,
    (
        select coalesce(gateway.sum_counts(array_agg(row(array_fill(c.n::integer, array[1], array[c.bin]))::gateway.time_counts)), '{{}}')
        from (select gateway.time_bin(ms) as bin, count(*) as n from unnest(g.latency_times) as ms where ms is not null group by 1) as c
    ),
    (
        select coalesce(gateway.sum_counts(array_agg(row(array_fill(c.n::integer, array[1], array[c.bin]))::gateway.time_counts)), '{{}}')
        from (select gateway.time_bin(ms) as bin, count(*) as n from unnest(g.first_token_times) as ms where ms is not null group by 1) as c
    )
from (
    select date_bin('15 minutes', admitted_at, '2000-01-01 00:00+00') as bucket, customer_id, key_id, model_id, coalesce(service_id, 0) as service_id,
        count(*) as requests, count(*) filter (where outcome = 'failed') as errors, coalesce(sum(input_tokens), 0) as input_tokens,
        coalesce(sum(cached_input_tokens), 0) as cached_input_tokens, coalesce(sum(output_tokens), 0) as output_tokens,
        sum(cost_usd) as cost_usd, sum(charge_usd) as charge_usd, sum(latency_ms) as latency_ms, count(latency_ms) as latencies,
        coalesce(sum(time_to_first_token_ms), 0) as first_token_ms, count(time_to_first_token_ms) as first_tokens,
        max(admitted_at) as last_request_at, array_agg(latency_ms) as latency_times, array_agg(time_to_first_token_ms) as first_token_times
    from gateway.requests
    where admitted_at >= {since} and admitted_at < {until}
    group by 1, 2, 3, 4, 5
) as g

-- name: closing
-- As api.close_usage does it, which would take a day at a time and add to the same months sixty times. The quarter of an hour that has
-- begun, and one more, are left to it.
select gateway.fold_usage(array(
    select r from gateway.usage_rollups as r
    where r.bucket >= day and r.bucket < least(day + interval '10 days', gateway.rollup_bucket({now} - interval '15 minutes'))
        and (r.customer_id % 2 = {half} or {of_all})
), {of_all})
from generate_series(gateway.rollup_bucket({now} - ({days} + 1) * interval '1 day'), {now}, interval '10 days') as day

-- name: end
update gateway.accounts as a
set balance_usd = balance_usd + e.total
from (select customer_id, sum(amount_usd) as total from gateway.ledger_entries where request_id is not null group by 1) as e
where e.customer_id = a.customer_id;
update gateway.usage_closing set closed_until = gateway.rollup_bucket({now} - interval '15 minutes');
drop schema filling cascade;

-- name: disagree
with log as (
    select count(*) as n, sum(charge_usd) as charge, sum(coalesce(input_tokens, 0) + coalesce(cached_input_tokens, 0) + coalesce(output_tokens, 0)) as tokens
    from gateway.requests where state = 'settled'
),
rollups as (
    select sum(requests) as n, sum(charge_usd) as charge, sum(total_tokens) as tokens from gateway.usage_rollups
),
periods as (
    select sum(requests) as n, sum(charge_usd) as charge, sum(total_tokens) as tokens
    from (
        select requests, charge_usd, total_tokens from gateway.usage_periods where per = 'day' and grouped_by = 'all' and customer_id > 0
        union all
        select requests, charge_usd, total_tokens from gateway.usage_rollups
        where bucket >= (select closed_until from gateway.usage_closing) or late
    ) as each
),
ledger as (
    select -sum(amount_usd) as charge from gateway.ledger_entries where request_id is not null
)
select to_jsonb(log), to_jsonb(rollups), to_jsonb(periods), ledger.charge::text
from log, rollups, periods, ledger
where (log.n, log.charge, log.tokens) is distinct from (rollups.n, rollups.charge, rollups.tokens)
    or (log.n, log.charge, log.tokens) is distinct from (periods.n, periods.charge, periods.tokens)
    or log.charge is distinct from ledger.charge
