create function gateway.bucket_lock(p_bucket timestamptz) returns bigint
language plpgsql immutable parallel safe set search_path = ''
as $$
begin
    return 5836::bigint << 32 | (extract(epoch from p_bucket - '2000-01-01 00:00+00'::timestamptz) / 900)::bigint;
end
$$;
comment on function gateway.bucket_lock(timestamptz) is 'The advisory lock of a bucket: shared by those who add to it, exclusive to who closes it.';
revoke all on function gateway.bucket_lock(timestamptz) from public;

-- Holds the bucket's lock, shared, until its transaction ends, so that what it adds is either seen by the closing of the bucket, or finds it
-- closed and is marked as late. The closing never waits for that lock, and takes no bucket before it is two minutes past: no settlement
-- in time waits for it either. Relies on the isolation level read committed, which is that of every caller.
create function gateway.merge_rollup(p_row gateway.usage_rollups, p_closing boolean default false) returns void
language plpgsql set search_path = ''
as $$
begin
    if not p_closing then
        perform pg_advisory_xact_lock_shared(gateway.bucket_lock(p_row.bucket));
        if p_row.bucket + interval '17 minutes' <= clock_timestamp() then
            -- a statement after the lock, so that it sees a closing that has ended meanwhile
            p_row.late := coalesce(p_row.bucket < (select c.closed_until from gateway.usage_closing as c), false);
        end if;
    end if;
    insert into gateway.usage_rollups as r
    select p_row.*
    on conflict (customer_id, bucket, key_id, model_id, service_id, late) do update set
        requests = r.requests + excluded.requests,
        errors = r.errors + excluded.errors,
        failures = r.failures + excluded.failures,
        input_tokens = r.input_tokens + excluded.input_tokens,
        cached_input_tokens = r.cached_input_tokens + excluded.cached_input_tokens,
        cache_write_tokens = r.cache_write_tokens + excluded.cache_write_tokens,
        audio_input_tokens = r.audio_input_tokens + excluded.audio_input_tokens,
        image_input_tokens = r.image_input_tokens + excluded.image_input_tokens,
        output_tokens = r.output_tokens + excluded.output_tokens,
        reasoning_tokens = r.reasoning_tokens + excluded.reasoning_tokens,
        audio_output_tokens = r.audio_output_tokens + excluded.audio_output_tokens,
        image_output_tokens = r.image_output_tokens + excluded.image_output_tokens,
        images = r.images + excluded.images,
        total_tokens = r.total_tokens + excluded.total_tokens,
        cost_usd = r.cost_usd + excluded.cost_usd,
        charge_usd = r.charge_usd + excluded.charge_usd,
        uncollected_usd = r.uncollected_usd + excluded.uncollected_usd,
        latency_ms = r.latency_ms + excluded.latency_ms,
        latencies = r.latencies + excluded.latencies,
        time_to_first_token_ms = r.time_to_first_token_ms + excluded.time_to_first_token_ms,
        first_tokens = r.first_tokens + excluded.first_tokens,
        latency_counts = gateway.add_counts(r.latency_counts, excluded.latency_counts),
        first_token_counts = gateway.add_counts(r.first_token_counts, excluded.first_token_counts),
        last_request_at = greatest(r.last_request_at, excluded.last_request_at),
        last_failure_at = greatest(r.last_failure_at, excluded.last_failure_at);
end
$$;
comment on function gateway.merge_rollup(gateway.usage_rollups, boolean) is 'Adds a row to the rollups: as a late one where its bucket has been closed, unless it is the closing itself that adds it.';
revoke all on function gateway.merge_rollup(gateway.usage_rollups, boolean) from public;

create function gateway.add_to_rollup(
    p_request gateway.requests, p_model_id bigint, p_service_id bigint, p_requests integer, p_errors integer, p_usage jsonb,
    p_cost_usd numeric, p_charge_usd numeric, p_uncollected_usd numeric, p_latency_ms integer, p_time_to_first_token_ms integer default null
) returns void
language plpgsql set search_path = ''
as $$
declare
    v_row gateway.usage_rollups;
begin
    -- one expression, in the order of the columns: a fifth of the time of an assignment to each
    v_row := (
        gateway.rollup_bucket(p_request.admitted_at), p_request.customer_id, p_request.key_id, p_model_id, coalesce(p_service_id, 0),
        p_requests, p_errors,
        coalesce((p_usage ->> 'input')::bigint, 0), coalesce((p_usage ->> 'cached_input')::bigint, 0),
        coalesce((p_usage ->> 'cache_write')::bigint, 0), coalesce((p_usage ->> 'output')::bigint, 0),
        coalesce((p_usage ->> 'reasoning')::bigint, 0), gateway.total_tokens(p_usage),
        p_cost_usd, p_charge_usd, p_uncollected_usd, coalesce(p_latency_ms, 0), p_request.admitted_at,
        coalesce((p_usage ->> 'audio_input')::bigint, 0), coalesce((p_usage ->> 'image_input')::bigint, 0),
        coalesce((p_usage ->> 'audio_output')::bigint, 0), coalesce((p_usage ->> 'image_output')::bigint, 0),
        coalesce((p_usage ->> 'images')::bigint, 0),
        0, num_nonnulls(p_latency_ms), coalesce(p_time_to_first_token_ms, 0), num_nonnulls(p_time_to_first_token_ms),
        case when p_latency_ms is null then '{}' else array_fill(1, array[1], array[gateway.time_bin(p_latency_ms)]) end,
        case when p_time_to_first_token_ms is null then '{}' else array_fill(1, array[1], array[gateway.time_bin(p_time_to_first_token_ms)]) end,
        null, false
    )::gateway.usage_rollups;
    perform gateway.merge_rollup(v_row);
end
$$;
comment on function gateway.add_to_rollup(gateway.requests, bigint, bigint, integer, integer, jsonb, numeric, numeric, numeric, integer, integer) is 'Adds one request, or a correction of one, to its rollup.';
revoke all on function gateway.add_to_rollup(gateway.requests, bigint, bigint, integer, integer, jsonb, numeric, numeric, numeric, integer, integer) from public;

-- A request that the client got wrong says nothing of the service that refused it.
create function gateway.add_failures(p_request gateway.requests, p_failed_routes jsonb) returns void
language plpgsql set search_path = ''
as $$
declare
    v_failed record;
    v_row gateway.usage_rollups;
begin
    for v_failed in
        select (r ->> 'service_id')::bigint as service_id, coalesce((r ->> 'model_id')::bigint, 0) as model_id, count(*) as failures
        from jsonb_array_elements(p_failed_routes) as f
        join jsonb_array_elements(p_request.routes) as r on r -> 'route_id' = f -> 'route_id'
        where f ->> 'fault' is distinct from 'client'
        group by 1, 2
        order by 1, 2
    loop
        v_row := jsonb_populate_record(v_row, jsonb_build_object(
            'requests', 0, 'errors', 0, 'failures', v_failed.failures,
            'input_tokens', 0, 'cached_input_tokens', 0, 'cache_write_tokens', 0, 'audio_input_tokens', 0, 'image_input_tokens', 0,
            'output_tokens', 0, 'reasoning_tokens', 0, 'audio_output_tokens', 0, 'image_output_tokens', 0, 'images', 0, 'total_tokens', 0,
            'cost_usd', 0, 'charge_usd', 0, 'uncollected_usd', 0, 'latency_ms', 0, 'latencies', 0, 'time_to_first_token_ms', 0,
            'first_tokens', 0,
            'latency_counts', '{}', 'first_token_counts', '{}', 'late', false, 'bucket', gateway.rollup_bucket(p_request.admitted_at),
            'customer_id', p_request.customer_id, 'key_id', p_request.key_id, 'model_id', v_failed.model_id, 'service_id', v_failed.service_id,
            'last_request_at', p_request.admitted_at, 'last_failure_at', p_request.admitted_at));
        perform gateway.merge_rollup(v_row);
    end loop;
end
$$;
comment on function gateway.add_failures(gateway.requests, jsonb) is 'Counts the routes that failed before a request ended, by their services.';
revoke all on function gateway.add_failures(gateway.requests, jsonb) from public;
