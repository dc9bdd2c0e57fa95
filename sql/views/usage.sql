-- What the operator looks at in Studio. All of it is read only, reads what a question costs and no more (the sums by day and month, not the
-- log), and runs with the rights of whoever asks: nobody but the owner has any.
create function gateway.refuse_view_edit() returns trigger
language plpgsql set search_path = ''
as $$
begin
    raise exception '%.% is a view: it shows, and is not edited', tg_table_schema, tg_table_name
        using errcode = 'restrict_violation', hint = tg_argv[0];
end
$$;
comment on function gateway.refuse_view_edit() is 'Trigger: views are read only; its argument says where to edit instead.';
revoke all on function gateway.refuse_view_edit() from public;

create view gateway.customer_spend with (security_invoker = true) as
with used as (
    select p.customer_id, true as in_all, p.period = date_trunc('month', now() at time zone c.time_zone) as in_month, false as in_day,
        p.requests, p.errors, p.total_tokens, p.cost_usd, p.charge_usd, p.uncollected_usd, p.last_request_at
    from gateway.customers as c
    -- offset 0: a look into the index for each customer, instead of all that was ever closed
    cross join lateral (
        select * from gateway.usage_periods where customer_id = c.id and per = 'month' and grouped_by = 'all' offset 0
    ) as p
    union all
    select p.customer_id, false, false, true,
        p.requests, p.errors, p.total_tokens, p.cost_usd, p.charge_usd, p.uncollected_usd, p.last_request_at
    from gateway.customers as c
    join gateway.usage_periods as p on p.customer_id = c.id and p.per = 'day' and p.grouped_by = 'all'
        and p.period = date_trunc('day', now() at time zone c.time_zone)
    union all
    -- what has come since the last closing
    select r.customer_id, true,
        r.bucket >= gateway.window_start('month', now(), c.time_zone), r.bucket >= gateway.window_start('day', now(), c.time_zone),
        r.requests, r.errors, r.total_tokens, r.cost_usd, r.charge_usd, r.uncollected_usd, r.last_request_at
    from gateway.find_live_usage(null, '-infinity', (select closed_until from gateway.usage_closing), 'infinity') as r
    join gateway.customers as c on c.id = r.customer_id
),
summed as (
    select customer_id,
        sum(charge_usd) filter (where in_day) as spend_today_usd,
        sum(charge_usd) filter (where in_month) as spend_this_month_usd,
        sum(charge_usd) filter (where in_all) as spend_usd,
        sum(requests) filter (where in_day) as requests_today,
        sum(requests) filter (where in_month) as requests_this_month,
        sum(requests) filter (where in_all) as requests,
        sum(errors) filter (where in_month) as errors_this_month,
        sum(total_tokens) filter (where in_month) as tokens_this_month,
        sum(charge_usd - uncollected_usd - cost_usd) filter (where in_month) as margin_this_month_usd,
        sum(uncollected_usd) filter (where in_all) as uncollected_usd,
        max(last_request_at) as last_request_at
    from used
    group by customer_id
)
select c.id as customer_id, c.name, c.email, c.company, c.active, a.balance_usd, a.held_usd, a.balance_usd - a.held_usd as free_usd,
    gateway.show_credits(a.balance_usd, s.credit_value_usd) as credits,
    coalesce(u.spend_today_usd, 0) as spend_today_usd,
    coalesce(u.spend_this_month_usd, 0) as spend_this_month_usd,
    coalesce(u.spend_usd, 0) as spend_usd,
    coalesce(u.requests_today, 0)::bigint as requests_today,
    coalesce(u.requests_this_month, 0)::bigint as requests_this_month,
    coalesce(u.requests, 0)::bigint as requests,
    coalesce(u.errors_this_month, 0)::bigint as errors_this_month,
    coalesce(u.tokens_this_month, 0)::bigint as tokens_this_month,
    coalesce(u.margin_this_month_usd, 0) as margin_this_month_usd,
    coalesce(u.uncollected_usd, 0) as uncollected_usd,
    u.last_request_at
from gateway.customers as c
join gateway.accounts as a on a.customer_id = c.id
cross join gateway.settings as s
left join summed as u on u.customer_id = c.id;
create trigger read_only instead of insert or update or delete on gateway.customer_spend
    for each row execute function gateway.refuse_view_edit('Edit gateway.customers; change a balance with api.add_credits.');

comment on view gateway.customer_spend is 'Who spends: every customer with balance, and what it spent today, this month and ever, in its own time zone. Exact up to the last request that has ended.';
comment on column gateway.customer_spend.customer_id is 'The customer.';
comment on column gateway.customer_spend.name is 'Display name.';
comment on column gateway.customer_spend.email is 'Address.';
comment on column gateway.customer_spend.company is 'Company, if any.';
comment on column gateway.customer_spend.active is 'False: suspended.';
comment on column gateway.customer_spend.balance_usd is 'What is paid in and not spent, in USD; what is held is still in it.';
comment on column gateway.customer_spend.held_usd is 'Of it, what running requests hold.';
comment on column gateway.customer_spend.free_usd is 'Of it, what a new request can have.';
comment on column gateway.customer_spend.credits is 'The balance in credits, rounded down.';
comment on column gateway.customer_spend.spend_today_usd is 'Charged today.';
comment on column gateway.customer_spend.spend_this_month_usd is 'Charged this month.';
comment on column gateway.customer_spend.spend_usd is 'Charged ever.';
comment on column gateway.customer_spend.requests_today is 'Requests that have ended, of today.';
comment on column gateway.customer_spend.requests_this_month is 'Requests that have ended, of this month.';
comment on column gateway.customer_spend.requests is 'Requests that have ended, ever.';
comment on column gateway.customer_spend.errors_this_month is 'Of this month''s requests, those that failed or expired.';
comment on column gateway.customer_spend.tokens_this_month is 'Tokens of all classes, this month.';
comment on column gateway.customer_spend.margin_this_month_usd is 'This month: what was collected less what the providers take.';
comment on column gateway.customer_spend.uncollected_usd is 'Charged ever, and not to be had: the provider billed beyond the bound.';
comment on column gateway.customer_spend.last_request_at is 'When the last request that has ended was admitted.';

-- By the model alone and by the service alone: usage is summed by each, not by both.
create view gateway.model_margin with (security_invoker = true) as
select m.name as model, sum(u.requests)::bigint as requests, sum(u.errors)::bigint as errors,
    sum(u.total_tokens)::bigint as tokens,
    sum(u.input_tokens + u.cached_input_tokens + u.cache_write_tokens + u.audio_input_tokens + u.image_input_tokens)::bigint as input_tokens,
    sum(u.output_tokens + u.audio_output_tokens + u.image_output_tokens)::bigint as output_tokens,
    sum(u.cost_usd) as cost_usd, sum(u.charge_usd) as charge_usd, sum(u.uncollected_usd) as uncollected_usd,
    sum(u.charge_usd - u.uncollected_usd - u.cost_usd) as margin_usd,
    round(100 * sum(u.charge_usd - u.uncollected_usd - u.cost_usd) / nullif(sum(u.cost_usd), 0), 2) as margin_percent,
    round(sum(u.latency_ms) / nullif(sum(u.latencies), 0)) as average_latency_ms
from gateway.find_usage(null, null, 'month', 'model', 'UTC', gateway.window_start('month', now(), 'UTC'),
                        gateway.window_end('month', gateway.window_start('month', now(), 'UTC'), 'UTC')) as u
join gateway.models as m on m.id = u.model_id
group by m.id, m.name
having sum(u.requests) > 0;
create trigger read_only instead of insert or update or delete on gateway.model_margin
    for each row execute function gateway.refuse_view_edit('Prices are in gateway.prices, the commission in gateway.settings.');

comment on view gateway.model_margin is 'What each model brings this month (UTC): requests, tokens, cost, charge, margin.';
comment on column gateway.model_margin.model is 'The model that answered.';
comment on column gateway.model_margin.requests is 'Requests that have ended.';
comment on column gateway.model_margin.errors is 'Of these, those that failed or expired.';
comment on column gateway.model_margin.tokens is 'Tokens of all classes.';
comment on column gateway.model_margin.input_tokens is 'Of these, read: all input classes.';
comment on column gateway.model_margin.output_tokens is 'Of these, answered: all output classes.';
comment on column gateway.model_margin.cost_usd is 'What the providers take.';
comment on column gateway.model_margin.charge_usd is 'What the customers owe.';
comment on column gateway.model_margin.uncollected_usd is 'Of the charge, what could not be taken.';
comment on column gateway.model_margin.margin_usd is 'What was collected less the cost.';
comment on column gateway.model_margin.margin_percent is 'The margin in percent of the cost.';
comment on column gateway.model_margin.average_latency_ms is 'From admission to the end, in milliseconds.';

create view gateway.provider_margin with (security_invoker = true) as
select s.provider, s.name as service, sum(u.requests)::bigint as requests, sum(u.total_tokens)::bigint as tokens,
    sum(u.cost_usd) as cost_usd, sum(u.charge_usd) as charge_usd, sum(u.uncollected_usd) as uncollected_usd,
    sum(u.charge_usd - u.uncollected_usd - u.cost_usd) as margin_usd,
    round(100 * sum(u.charge_usd - u.uncollected_usd - u.cost_usd) / nullif(sum(u.cost_usd), 0), 2) as margin_percent
from gateway.find_usage(null, null, 'month', 'service', 'UTC', gateway.window_start('month', now(), 'UTC'),
                        gateway.window_end('month', gateway.window_start('month', now(), 'UTC'), 'UTC')) as u
join gateway.services as s on s.id = u.service_id
group by s.id, s.provider, s.name
having sum(u.requests) > 0;
create trigger read_only instead of insert or update or delete on gateway.provider_margin
    for each row execute function gateway.refuse_view_edit('Services are in gateway.services, prices in gateway.prices.');

comment on view gateway.provider_margin is 'What each provider and service brings this month (UTC), by the requests that it answered.';
comment on column gateway.provider_margin.provider is 'The provider.';
comment on column gateway.provider_margin.service is 'The service.';
comment on column gateway.provider_margin.requests is 'Requests that it answered.';
comment on column gateway.provider_margin.tokens is 'Tokens of all classes.';
comment on column gateway.provider_margin.cost_usd is 'What the provider takes.';
comment on column gateway.provider_margin.charge_usd is 'What the customers owe.';
comment on column gateway.provider_margin.uncollected_usd is 'Of the charge, what could not be taken.';
comment on column gateway.provider_margin.margin_usd is 'What was collected less the cost.';
comment on column gateway.provider_margin.margin_percent is 'The margin in percent of the cost.';

-- The figures come from the sums; only why is read from the log, through an index that holds nothing but the requests with a failed route.
create view gateway.provider_errors with (security_invoker = true) as
with used as (
    select u.service_id, u.requests, u.failures, u.last_failure_at, u.period >= date_trunc('day', now() at time zone 'UTC') as is_today
    from gateway.find_usage(null, null, 'day', 'service', 'UTC', gateway.window_start('day', now(), 'UTC') - interval '6 days',
                            gateway.window_start('day', now(), 'UTC') + interval '1 day') as u
),
summed as (
    select service_id,
        sum(requests + failures) filter (where is_today) as attempts_today, sum(failures) filter (where is_today) as failures_today,
        sum(requests + failures) as attempts_7_days, sum(failures) as failures_7_days, max(last_failure_at) as last_failure_at
    from used
    group by service_id
),
faults as (
    select f.service_id, jsonb_object_agg(f.fault, f.times order by f.fault) as faults_7_days
    from (
        select (x.failed ->> 'service_id')::bigint as service_id,
            concat_ws(' ', x.failed ->> 'fault', x.failed ->> 'status') as fault, count(*) as times
        from gateway.requests as r
        cross join lateral jsonb_array_elements(r.failed_routes) as x (failed)
        where r.failed_routes is not null and r.admitted_at >= gateway.window_start('day', now(), 'UTC') - interval '6 days'
        group by 1, 2
    ) as f
    group by f.service_id
)
select s.provider, s.name as service, s.active,
    coalesce(u.attempts_today, 0)::bigint as attempts_today,
    coalesce(u.failures_today, 0)::bigint as failures_today,
    round(100.0 * u.failures_today / nullif(u.attempts_today, 0), 2) as failed_percent_today,
    coalesce(u.attempts_7_days, 0)::bigint as attempts_7_days,
    coalesce(u.failures_7_days, 0)::bigint as failures_7_days,
    round(100.0 * u.failures_7_days / nullif(u.attempts_7_days, 0), 2) as failed_percent_7_days,
    f.faults_7_days, u.last_failure_at
from gateway.services as s
left join summed as u on u.service_id = s.id
left join faults as f on f.service_id = s.id
where s.deleted_at is null or u.failures_7_days > 0;
create trigger read_only instead of insert or update or delete on gateway.provider_errors
    for each row execute function gateway.refuse_view_edit('Services are in gateway.services.');

comment on view gateway.provider_errors is 'What fails: each provider''s services today and in seven days (UTC), today included, and why.';
comment on column gateway.provider_errors.provider is 'The provider.';
comment on column gateway.provider_errors.service is 'The service.';
comment on column gateway.provider_errors.active is 'False: no request is routed to it.';
comment on column gateway.provider_errors.attempts_today is 'Requests that it answered and those for which it failed, today.';
comment on column gateway.provider_errors.failures_today is 'Of these, failed: whoever answered in the end. What the client got wrong doesn''t count.';
comment on column gateway.provider_errors.failed_percent_today is 'Failed, in percent of the attempts.';
comment on column gateway.provider_errors.attempts_7_days is 'The same in seven days.';
comment on column gateway.provider_errors.failures_7_days is 'The same in seven days.';
comment on column gateway.provider_errors.failed_percent_7_days is 'The same in seven days.';
comment on column gateway.provider_errors.faults_7_days is 'Why, with the provider''s HTTP status where there was one, and how often in seven days; what the client got wrong included.';
comment on column gateway.provider_errors.last_failure_at is 'When the last request was admitted for which it failed, in seven days.';

create view gateway.provider_cost_differences with (security_invoker = true) as
select c.day, s.provider, s.name as service, c.requests, c.cost_usd, c.provider_cost_usd,
    c.provider_cost_usd - c.cost_usd as difference_usd,
    round(100.0 * (c.provider_cost_usd - c.cost_usd) / nullif(c.cost_usd, 0), 2) as difference_percent
from gateway.provider_costs as c
join gateway.services as s on s.id = c.service_id;
create trigger read_only instead of insert or update or delete on gateway.provider_cost_differences
    for each row execute function gateway.refuse_view_edit('The maintenance writes gateway.provider_costs.');

comment on view gateway.provider_cost_differences is 'Where our prices are off: what providers that tell their cost took, day by day (UTC), beside what it came to here.';
comment on column gateway.provider_cost_differences.day is 'The day on which the requests were admitted (UTC).';
comment on column gateway.provider_cost_differences.provider is 'The provider.';
comment on column gateway.provider_cost_differences.service is 'The service.';
comment on column gateway.provider_cost_differences.requests is 'Requests whose cost the provider told.';
comment on column gateway.provider_cost_differences.cost_usd is 'What they cost by our prices.';
comment on column gateway.provider_cost_differences.provider_cost_usd is 'What they cost by what the provider told.';
comment on column gateway.provider_cost_differences.difference_usd is 'What the provider takes beyond our prices; below zero: less.';
comment on column gateway.provider_cost_differences.difference_percent is 'The same in percent of our cost; empty: by our prices they cost nothing.';
