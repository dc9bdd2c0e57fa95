create function gateway.window_start(p_per text, p_at timestamptz, p_time_zone text) returns timestamptz
language plpgsql stable parallel safe set search_path = ''
as $$
begin
    return date_trunc(p_per, p_at, p_time_zone);
end
$$;
comment on function gateway.window_start(text, timestamptz, text) is 'Start of the minute, hour, day or month that a moment lies in, in a time zone.';
revoke all on function gateway.window_start(text, timestamptz, text) from public;

create function gateway.window_end(p_per text, p_start timestamptz, p_time_zone text) returns timestamptz
language plpgsql stable parallel safe set search_path = ''
as $$
begin
    return case
        when p_per in ('minute', 'hour') then p_start + ('1 ' || p_per)::interval
        -- truncated again: where clocks change at midnight a day may begin at one o'clock, but only that day
        else date_trunc(p_per, (p_start at time zone p_time_zone) + ('1 ' || p_per)::interval) at time zone p_time_zone
    end;
end
$$;
comment on function gateway.window_end(text, timestamptz, text) is 'Start of the next window. A day has 23 to 25 hours where clocks change.';
revoke all on function gateway.window_end(text, timestamptz, text) from public;

create function gateway.rollup_bucket(p_at timestamptz) returns timestamptz
language plpgsql immutable parallel safe set search_path = ''
as $$
begin
    return date_bin('15 minutes', p_at, '2000-01-01 00:00+00'::timestamptz);
end
$$;
comment on function gateway.rollup_bucket(timestamptz) is 'Start of the quarter of an hour that a moment lies in.';
revoke all on function gateway.rollup_bucket(timestamptz) from public;
