create function gateway.first_moment(p_clock timestamp, p_time_zone text) returns timestamptz
language plpgsql stable parallel safe set search_path = ''
as $$
declare
    v_moment timestamptz := p_clock at time zone p_time_zone;
begin
    -- of two PostgreSQL takes the later
    if (v_moment - interval '1 hour') at time zone p_time_zone = p_clock then
        return v_moment - interval '1 hour';
    end if;
    return v_moment;
end
$$;
comment on function gateway.first_moment(timestamp, text) is 'When a clock shows this, for the first time where it is put back by an hour over it, as at midnight in Havana.';
revoke all on function gateway.first_moment(timestamp, text) from public;

create function gateway.window_start(p_per text, p_at timestamptz, p_time_zone text) returns timestamptz
language plpgsql stable parallel safe set search_path = ''
as $$
begin
    return case
        when p_per in ('minute', 'hour') then date_trunc(p_per, p_at, p_time_zone)
        else gateway.first_moment(date_trunc(p_per, p_at at time zone p_time_zone), p_time_zone)
    end;
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
        else gateway.first_moment(date_trunc(p_per, (p_start at time zone p_time_zone) + ('1 ' || p_per)::interval), p_time_zone)
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
