-- Times are counted in bins, so that percentiles of any sum of rows come from the sum of their counts. A bin's upper end is 2^(1/4) of its lower
-- end, and what is read back is its geometric middle: at most 9.1 % (2^(1/8)) off, or half a millisecond. Arrays hold the bins that
-- are in use: PostgreSQL extends them at either end, and what lies between is null, which counts as 0.

create function gateway.time_bin(p_ms integer) returns integer
language plpgsql immutable parallel safe set search_path = ''
as $$
begin
    return floor(ln(greatest(p_ms, 1)::double precision) * (4 / ln(2::double precision)) + 0.000000001)::integer;
end
$$;
comment on function gateway.time_bin(integer) is 'The bin of a time in milliseconds: from 2^(bin/4) up to 2^((bin+1)/4). Whatever is less than a millisecond is in bin 0.';
revoke all on function gateway.time_bin(integer) from public;

create function gateway.time_of_bin(p_bin integer) returns integer
language plpgsql immutable parallel safe set search_path = ''
as $$
begin
    return round(power(2::double precision, (p_bin + 0.5) / 4))::integer;
end
$$;
comment on function gateway.time_of_bin(integer) is 'The geometric middle of a bin, in milliseconds.';
revoke all on function gateway.time_of_bin(integer) from public;

create function gateway.add_counts(p_counts integer[], p_more integer[]) returns integer[]
language plpgsql immutable parallel safe set search_path = ''
as $$
begin
    if p_more is null or p_more = '{}' then
        return p_counts;
    elsif p_counts is null or p_counts = '{}' then
        return p_more;
    end if;
    for v_bin in array_lower(p_more, 1) .. array_upper(p_more, 1) loop
        if p_more[v_bin] is not null then
            p_counts[v_bin] := coalesce(p_counts[v_bin], 0) + p_more[v_bin];
        end if;
    end loop;
    return p_counts;
end
$$;
comment on function gateway.add_counts(integer[], integer[]) is 'The sum of two rows of counts, bin by bin.';
revoke all on function gateway.add_counts(integer[], integer[]) from public;

-- Wrapped, because rows of counts have bounds of their own, and an array of arrays can't.
create type gateway.time_counts as (counts integer[]);
comment on type gateway.time_counts is 'One row of counts.';

-- No aggregate: it could not have a search_path, which is what Supabase's advisor asks of every function, and takes as long.
create function gateway.sum_counts(p_rows gateway.time_counts[]) returns integer[]
language plpgsql immutable parallel safe set search_path = ''
as $$
declare
    v_sum integer[] := '{}'::integer[];
    v_row gateway.time_counts;
    v_bin integer;
    v_count integer;
begin
    if cardinality(p_rows) = 1 then
        return coalesce(p_rows[1].counts, v_sum);  -- as nearly always in a chart
    end if;
    foreach v_row in array coalesce(p_rows, '{}'::gateway.time_counts[]) loop
        continue when v_row.counts is null or v_row.counts = '{}'::integer[];
        v_bin := array_lower(v_row.counts, 1) - 1;
        foreach v_count in array v_row.counts loop
            v_bin := v_bin + 1;
            continue when v_count is null;
            v_sum[v_bin] := coalesce(v_sum[v_bin], 0) + v_count;
        end loop;
    end loop;
    return v_sum;
end
$$;
comment on function gateway.sum_counts(gateway.time_counts[]) is 'The sum of rows of counts, bin by bin.';
revoke all on function gateway.sum_counts(gateway.time_counts[]) from public;

-- Called twice for each point of a chart, so it walks the bins once and computes their middles (as time_of_bin does) in place: 7 µs.
create function gateway.describe_times(p_counts integer[], p_sum bigint, p_times bigint) returns jsonb
language plpgsql immutable parallel safe set search_path = ''
as $$
declare
    v_wanted bigint := (p_times + 1) / 2;
    v_bin integer := array_lower(p_counts, 1) - 1;
    v_count integer;
    v_seen bigint := 0;
    v_p50 integer;
begin
    if p_counts is null or p_counts = '{}'::integer[] or coalesce(p_times, 0) = 0 then
        return '{"p50": null, "p95": null, "average": null}'::jsonb;
    end if;
    foreach v_count in array p_counts loop
        v_bin := v_bin + 1;
        v_seen := v_seen + coalesce(v_count, 0);
        continue when v_seen < v_wanted;
        if v_p50 is null then
            v_p50 := round(power(2::double precision, (v_bin + 0.5) / 4))::integer;
            v_wanted := (p_times * 95 + 99) / 100;
            continue when v_seen < v_wanted;
        end if;
        return jsonb_build_object(
            'p50', v_p50, 'p95', round(power(2::double precision, (v_bin + 0.5) / 4))::integer, 'average', p_sum / p_times);
    end loop;
    return null::jsonb;  -- counts that do not come to p_times
end
$$;
comment on function gateway.describe_times(integer[], bigint, bigint) is 'The percentiles of counted times and their average, in milliseconds, given their sum and how many they are. Nulls where there are none.';
revoke all on function gateway.describe_times(integer[], bigint, bigint) from public;
