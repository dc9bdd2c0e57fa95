-- gateway.fold_usage: adds rows of the rollups to usage_periods: to those of their customers or, with p_of_all, to everybody's, and to
-- key_days and active_days. Its callers hold the row of usage_closing: nobody else writes here. Rows are summed by day first, and only
-- then for every grouping.
create function gateway.fold_usage(p_rows gateway.usage_rollups[], p_of_all boolean) returns void
language plpgsql set search_path = ''
as $$
begin
    insert into gateway.usage_periods as p (
        customer_id, per, grouped_by, period, key_id, model_id, service_id,
        requests, errors, failures, input_tokens, cached_input_tokens, cache_write_tokens, audio_input_tokens, image_input_tokens,
        output_tokens, reasoning_tokens, audio_output_tokens, image_output_tokens, images, total_tokens, cost_usd, charge_usd,
        uncollected_usd, latency_ms, latencies, time_to_first_token_ms, first_tokens, latency_counts, first_token_counts, last_request_at,
        last_failure_at)
    with by_day as materialized (
        select
            case when p_of_all then 0 else c.id end as customer_id,
            case
                when p_of_all then r.bucket at time zone 'UTC'
                else date_trunc('day', r.bucket at time zone c.time_zone)
            end as period,
            case when p_of_all then 0 else r.key_id end as key_id,
            r.model_id,
            r.service_id,
            sum(r.requests) as requests, sum(r.errors) as errors, sum(r.failures) as failures, sum(r.input_tokens) as input_tokens,
            sum(r.cached_input_tokens) as cached_input_tokens, sum(r.cache_write_tokens) as cache_write_tokens,
            sum(r.audio_input_tokens) as audio_input_tokens, sum(r.image_input_tokens) as image_input_tokens,
            sum(r.output_tokens) as output_tokens, sum(r.reasoning_tokens) as reasoning_tokens,
            sum(r.audio_output_tokens) as audio_output_tokens, sum(r.image_output_tokens) as image_output_tokens, sum(r.images) as images,
            sum(r.total_tokens) as total_tokens, sum(r.cost_usd) as cost_usd, sum(r.charge_usd) as charge_usd,
            sum(r.uncollected_usd) as uncollected_usd, sum(r.latency_ms) as latency_ms, sum(r.latencies) as latencies,
            sum(r.time_to_first_token_ms) as time_to_first_token_ms, sum(r.first_tokens) as first_tokens,
            gateway.sum_counts(array_agg(row(r.latency_counts)::gateway.time_counts)) as latency_counts,
            gateway.sum_counts(array_agg(row(r.first_token_counts)::gateway.time_counts)) as first_token_counts,
            max(r.last_request_at) as last_request_at, max(r.last_failure_at) as last_failure_at
        from unnest(p_rows) as r
        join gateway.customers as c on c.id = r.customer_id
        group by 1, 2, 3, 4, 5
    ),
    by_period as (
        select v.per, d.customer_id, case v.per when 'quarter' then d.period else date_trunc(v.per, d.period) end as period,
            d.key_id, d.model_id, d.service_id,
            d.requests, d.errors, d.failures, d.input_tokens, d.cached_input_tokens, d.cache_write_tokens, d.audio_input_tokens,
            d.image_input_tokens, d.output_tokens, d.reasoning_tokens, d.audio_output_tokens, d.image_output_tokens, d.images,
            d.total_tokens, d.cost_usd, d.charge_usd, d.uncollected_usd, d.latency_ms, d.latencies, d.time_to_first_token_ms,
            d.first_tokens, d.latency_counts, d.first_token_counts, d.last_request_at, d.last_failure_at
        from by_day as d
        join (values ('quarter', true), ('day', true), ('day', false), ('month', true), ('month', false)) as v (per, of_all)
            on v.of_all = p_of_all
    ),
    grouped as (
        select d.customer_id, d.per, d.period,
            case grouping(d.key_id, d.model_id, d.service_id)
                when 7 then 'all' when 3 then 'key' when 5 then 'model' when 6 then 'service' when 1 then 'key_model' when 2 then 'key_service'
            end as grouped_by,
            coalesce(d.key_id, 0) as key_id, coalesce(d.model_id, 0) as model_id, coalesce(d.service_id, 0) as service_id,
            sum(d.requests) as requests, sum(d.errors) as errors, sum(d.failures) as failures, sum(d.input_tokens) as input_tokens,
            sum(d.cached_input_tokens) as cached_input_tokens, sum(d.cache_write_tokens) as cache_write_tokens,
            sum(d.audio_input_tokens) as audio_input_tokens, sum(d.image_input_tokens) as image_input_tokens,
            sum(d.output_tokens) as output_tokens, sum(d.reasoning_tokens) as reasoning_tokens,
            sum(d.audio_output_tokens) as audio_output_tokens, sum(d.image_output_tokens) as image_output_tokens, sum(d.images) as images,
            sum(d.total_tokens) as total_tokens, sum(d.cost_usd) as cost_usd, sum(d.charge_usd) as charge_usd,
            sum(d.uncollected_usd) as uncollected_usd, sum(d.latency_ms) as latency_ms, sum(d.latencies) as latencies,
            sum(d.time_to_first_token_ms) as time_to_first_token_ms, sum(d.first_tokens) as first_tokens,
            gateway.sum_counts(array_agg(row(d.latency_counts)::gateway.time_counts)) as latency_counts,
            gateway.sum_counts(array_agg(row(d.first_token_counts)::gateway.time_counts)) as first_token_counts,
            max(d.last_request_at) as last_request_at, max(d.last_failure_at) as last_failure_at
        from by_period as d
        group by grouping sets (
            (d.customer_id, d.per, d.period), (d.customer_id, d.per, d.period, d.key_id), (d.customer_id, d.per, d.period, d.model_id),
            (d.customer_id, d.per, d.period, d.service_id), (d.customer_id, d.per, d.period, d.key_id, d.model_id),
            (d.customer_id, d.per, d.period, d.key_id, d.service_id))
    )
    select g.customer_id, g.per, g.grouped_by, g.period, g.key_id, g.model_id, g.service_id,
        g.requests, g.errors, g.failures, g.input_tokens, g.cached_input_tokens, g.cache_write_tokens, g.audio_input_tokens,
        g.image_input_tokens, g.output_tokens, g.reasoning_tokens, g.audio_output_tokens, g.image_output_tokens, g.images, g.total_tokens,
        g.cost_usd, g.charge_usd, g.uncollected_usd, g.latency_ms, g.latencies, g.time_to_first_token_ms, g.first_tokens, g.latency_counts,
        g.first_token_counts, g.last_request_at, g.last_failure_at
    from grouped as g
    where not p_of_all or g.grouped_by in ('all', 'model', 'service')
    on conflict (customer_id, per, grouped_by, period, key_id, model_id, service_id) do update set
        requests = p.requests + excluded.requests,
        errors = p.errors + excluded.errors,
        failures = p.failures + excluded.failures,
        input_tokens = p.input_tokens + excluded.input_tokens,
        cached_input_tokens = p.cached_input_tokens + excluded.cached_input_tokens,
        cache_write_tokens = p.cache_write_tokens + excluded.cache_write_tokens,
        audio_input_tokens = p.audio_input_tokens + excluded.audio_input_tokens,
        image_input_tokens = p.image_input_tokens + excluded.image_input_tokens,
        output_tokens = p.output_tokens + excluded.output_tokens,
        reasoning_tokens = p.reasoning_tokens + excluded.reasoning_tokens,
        audio_output_tokens = p.audio_output_tokens + excluded.audio_output_tokens,
        image_output_tokens = p.image_output_tokens + excluded.image_output_tokens,
        images = p.images + excluded.images,
        total_tokens = p.total_tokens + excluded.total_tokens,
        cost_usd = p.cost_usd + excluded.cost_usd,
        charge_usd = p.charge_usd + excluded.charge_usd,
        uncollected_usd = p.uncollected_usd + excluded.uncollected_usd,
        latency_ms = p.latency_ms + excluded.latency_ms,
        latencies = p.latencies + excluded.latencies,
        time_to_first_token_ms = p.time_to_first_token_ms + excluded.time_to_first_token_ms,
        first_tokens = p.first_tokens + excluded.first_tokens,
        latency_counts = gateway.add_counts(p.latency_counts, excluded.latency_counts),
        first_token_counts = gateway.add_counts(p.first_token_counts, excluded.first_token_counts),
        last_request_at = greatest(p.last_request_at, excluded.last_request_at),
        last_failure_at = greatest(p.last_failure_at, excluded.last_failure_at);
    if p_of_all then
        insert into gateway.active_days as a (day, customers)
        select n.day, count(*)
        from (select distinct (r.bucket at time zone 'UTC')::date as day, r.customer_id from unnest(p_rows) as r where r.requests > 0) as n
        where not exists (select from gateway.key_days as d where d.day = n.day and d.customer_id = n.customer_id)
        group by n.day
        on conflict (day) do update set customers = a.customers + excluded.customers;
        insert into gateway.key_days as d (day, customer_id, key_id, requests, total_tokens, charge_usd)
        select (r.bucket at time zone 'UTC')::date, r.customer_id, r.key_id, sum(r.requests), sum(r.total_tokens), sum(r.charge_usd)
        from unnest(p_rows) as r
        where (r.requests, r.total_tokens, r.charge_usd) <> (0, 0, 0)
        group by 1, 2, 3
        on conflict (day, customer_id, key_id) do update set
            requests = d.requests + excluded.requests,
            total_tokens = d.total_tokens + excluded.total_tokens,
            charge_usd = d.charge_usd + excluded.charge_usd;
    end if;
end
$$;
comment on function gateway.fold_usage(gateway.usage_rollups[], boolean) is 'Adds rows of the rollups to the closed tier.';
revoke all on function gateway.fold_usage(gateway.usage_rollups[], boolean) from public;

-- api.close_usage: adds the buckets that ended two minutes ago or earlier, and what has come late, to usage_periods, and deletes rollups older
-- than the setting usage_detail_days. One transaction; at most a day of buckets and, from the second bucket on, p_limit rows, so that what was
-- not closed for weeks is closed by as many calls: "behind" says that there is more to do. For the maintenance function, every minute.
-- About 0.2 ms for each row.
-- {"closed_until", "rows", "late", "deleted", "behind"}; {"busy": true, "behind": false} where another one is at it.
-- Locks the row of usage_closing, and of each bucket its advisory lock; waits for nobody: what is in use is left for the next time.
create function api.close_usage(p_limit integer default 10000) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '120s'
as $$
declare
    c_most_buckets constant integer := 96;
    v_closing gateway.usage_closing;
    v_due timestamptz := gateway.rollup_bucket(clock_timestamp() - interval '2 minutes');
    v_until timestamptz;
    v_kept_from timestamptz;
    v_count bigint := 0;
    v_rows gateway.usage_rollups[];
    v_late gateway.usage_rollups[];
    v_row gateway.usage_rollups;
    v_deleted integer;
begin
    select * into v_closing from gateway.usage_closing for update skip locked;
    if not found then
        return jsonb_build_object('busy', true, 'behind', false);
    end if;
    v_until := v_closing.closed_until;
    while v_until < v_due and v_until < v_closing.closed_until + c_most_buckets * interval '15 minutes' and v_count < p_limit
        and pg_try_advisory_xact_lock(gateway.bucket_lock(v_until))
    loop
        v_count := v_count + (select count(*) from gateway.usage_rollups where bucket = v_until);
        v_until := v_until + interval '15 minutes';
    end loop;

    perform set_config('gateway.engine', 'on', true);
    v_rows := array(
        select r from gateway.usage_rollups as r where r.bucket >= v_closing.closed_until and r.bucket < v_until and not r.late
    );
    with gone as (
        delete from gateway.usage_rollups as r
        where r.ctid = any (array(select l.ctid from gateway.usage_rollups as l where l.late limit p_limit for update skip locked))
        returning r as late_row
    )
    select coalesce(array_agg(late_row), '{}') into v_late from gone;
    foreach v_row in array v_late loop
        v_row.late := false;
        perform gateway.merge_rollup(v_row, p_closing => true);
    end loop;
    perform gateway.fold_usage(v_rows || v_late, of_all) from (values (false), (true)) as v (of_all);
    -- never what is not closed yet
    select greatest(v_closing.kept_from, case
        when s.usage_detail_days is not null
        then least(date_trunc('day', now() - make_interval(days => s.usage_detail_days), 'UTC'), v_until)
    end)
    into v_kept_from
    from gateway.settings as s;
    delete from gateway.usage_rollups
    where ctid = any (array(
        select r.ctid from gateway.usage_rollups as r
        where r.bucket < v_kept_from and not r.late
        order by r.bucket
        limit p_limit
        for update skip locked
    ));
    get diagnostics v_deleted = row_count;
    delete from gateway.usage_periods where per = 'quarter' and period < v_kept_from at time zone 'UTC';
    delete from gateway.key_days where day < (v_kept_from at time zone 'UTC')::date;
    delete from gateway.active_days where day < (v_kept_from at time zone 'UTC')::date;
    update gateway.usage_closing set closed_until = v_until, kept_from = v_kept_from;
    perform set_config('gateway.engine', 'off', true);
    return jsonb_build_object(
        'closed_until', v_until, 'rows', cardinality(v_rows), 'late', cardinality(v_late), 'deleted', v_deleted,
        'behind', (v_until < v_due and v_until > v_closing.closed_until) or cardinality(v_late) >= p_limit or v_deleted >= p_limit);
end
$$;
revoke all on function api.close_usage(integer) from public;
grant execute on function api.close_usage(integer) to service_role;
comment on function api.close_usage(integer) is 'Adds the quarters of an hour that are over to the sums by day and month; the maintenance function calls it every minute.';

-- A customer's days are those of its zone. When that changes, they are made anew as far back as there are rollups; older days, and the
-- months that they are in, stay as they were closed. Waits for a closing that is under way.
create function gateway.move_usage_to_zone() returns trigger
language plpgsql security definer set search_path = ''
as $$
declare
    v_engine text := coalesce(current_setting('gateway.engine', true), '');
    v_closing gateway.usage_closing;
    v_first date;
    v_from timestamptz;
begin
    select * into v_closing from gateway.usage_closing for update;
    perform set_config('gateway.engine', 'on', true);
    -- the first day of the old zone that is in the rollups whole
    v_first := case when isfinite(v_closing.kept_from) then (v_closing.kept_from at time zone old.time_zone)::date + 1 else '-infinity' end;
    delete from gateway.usage_periods where customer_id = new.id and per = 'day' and period >= v_first;
    v_from := (
        select min(bucket) from gateway.usage_rollups where customer_id = new.id and (bucket at time zone old.time_zone)::date >= v_first
    );
    while v_from < v_closing.closed_until loop
        perform gateway.fold_usage(array(
            select r
            from gateway.usage_rollups as r
            where r.customer_id = new.id and r.bucket >= v_from and r.bucket < least(v_from + interval '7 days', v_closing.closed_until)
                and not r.late
        ), false);
        v_from := v_from + interval '7 days';
    end loop;
    -- months are what their days come to
    delete from gateway.usage_periods where customer_id = new.id and per = 'month';
    insert into gateway.usage_periods (
        customer_id, per, grouped_by, period, key_id, model_id, service_id,
        requests, errors, failures, input_tokens, cached_input_tokens, cache_write_tokens, audio_input_tokens, image_input_tokens,
        output_tokens, reasoning_tokens, audio_output_tokens, image_output_tokens, images, total_tokens, cost_usd, charge_usd,
        uncollected_usd, latency_ms, latencies, time_to_first_token_ms, first_tokens, latency_counts, first_token_counts, last_request_at,
        last_failure_at)
    select d.customer_id, 'month', d.grouped_by, date_trunc('month', d.period), d.key_id, d.model_id, d.service_id,
        sum(d.requests) as requests, sum(d.errors) as errors, sum(d.failures) as failures, sum(d.input_tokens) as input_tokens,
        sum(d.cached_input_tokens) as cached_input_tokens, sum(d.cache_write_tokens) as cache_write_tokens,
        sum(d.audio_input_tokens) as audio_input_tokens, sum(d.image_input_tokens) as image_input_tokens,
        sum(d.output_tokens) as output_tokens, sum(d.reasoning_tokens) as reasoning_tokens,
        sum(d.audio_output_tokens) as audio_output_tokens, sum(d.image_output_tokens) as image_output_tokens, sum(d.images) as images,
        sum(d.total_tokens) as total_tokens, sum(d.cost_usd) as cost_usd, sum(d.charge_usd) as charge_usd,
        sum(d.uncollected_usd) as uncollected_usd, sum(d.latency_ms) as latency_ms, sum(d.latencies) as latencies,
        sum(d.time_to_first_token_ms) as time_to_first_token_ms, sum(d.first_tokens) as first_tokens,
        gateway.sum_counts(array_agg(row(d.latency_counts)::gateway.time_counts)) as latency_counts,
        gateway.sum_counts(array_agg(row(d.first_token_counts)::gateway.time_counts)) as first_token_counts,
        max(d.last_request_at) as last_request_at, max(d.last_failure_at) as last_failure_at
    from gateway.usage_periods as d
    where d.customer_id = new.id and d.per = 'day'
    group by d.customer_id, d.grouped_by, date_trunc('month', d.period), d.key_id, d.model_id, d.service_id;
    perform set_config('gateway.engine', v_engine, true);
    return null;
end
$$;
comment on function gateway.move_usage_to_zone() is 'Trigger: the closed days and months of a customer whose time zone changes are made anew.';
revoke all on function gateway.move_usage_to_zone() from public;
create trigger move_usage_to_zone after update of time_zone on gateway.customers
    for each row when (old.time_zone is distinct from new.time_zone) execute function gateway.move_usage_to_zone();

create trigger refuse_hand_edit before insert or update or delete or truncate on gateway.usage_periods
    for each statement execute function gateway.refuse_hand_edit();
create trigger refuse_hand_edit before insert or update or delete or truncate on gateway.key_days
    for each statement execute function gateway.refuse_hand_edit();
create trigger refuse_hand_edit before insert or update or delete or truncate on gateway.active_days
    for each statement execute function gateway.refuse_hand_edit();
create trigger refuse_hand_edit before insert or update or delete or truncate on gateway.usage_closing
    for each statement execute function gateway.refuse_hand_edit();
