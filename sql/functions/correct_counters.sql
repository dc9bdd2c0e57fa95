-- gateway.correct_counters: adds (possibly negative) amounts to the counters of the windows that admitted a request.
-- A window that has passed is left alone, unless it was kept for its soft marks: its counter counts another one by now. Locks the counters in
-- key order, which is the order of every function here, so that no two wait for each other in a circle.
-- Where a soft mark may have been crossed it looks closer (record_crossings.sql): the counter is marked, or a request used more than its bound.
create function gateway.correct_counters(p_corrections gateway.counted[]) returns void
language plpgsql set search_path = ''
as $$
declare
    v_near boolean;
    v_turned boolean;
begin
    select bool_or(l.near), bool_or(l.turned) into v_near, v_turned
    from (
        select c.window_start = x.window_start and (c.marked or x.tokens > 0 or x.spend_usd > 0) as near, c.window_start > x.window_start as turned
        from gateway.limit_counters as c
        join unnest(p_corrections) as x
            on (c.subject, c.subject_id, c.model_id, c.per) = (x.subject, x.subject_id, x.model_id, x.per)
        order by c.subject, c.subject_id, c.model_id, c.per
        for update of c
    ) as l;

    -- greatest(): an operator may have set a counter back by hand, and a settlement must not fail for it.
    update gateway.limit_counters as c
    set requests = greatest(c.requests + x.requests, 0),
        tokens = greatest(c.tokens + x.tokens, 0),
        spend_usd = greatest(c.spend_usd + x.spend_usd, 0)
    from (
        select subject, subject_id, model_id, per, window_start,
            sum(requests)::bigint as requests, sum(tokens)::bigint as tokens, sum(spend_usd) as spend_usd
        from unnest(p_corrections)
        group by subject, subject_id, model_id, per, window_start
    ) as x
    where (c.subject, c.subject_id, c.model_id, c.per, c.window_start) = (x.subject, x.subject_id, x.model_id, x.per, x.window_start)
        and (x.requests <> 0 or x.tokens <> 0 or x.spend_usd <> 0);

    if v_turned then
        update gateway.turned_windows as t
        set requests = greatest(t.requests + x.requests, 0),
            tokens = greatest(t.tokens + x.tokens, 0),
            spend_usd = greatest(t.spend_usd + x.spend_usd, 0)
        from (
            select subject, subject_id, model_id, per, window_start,
                sum(requests)::bigint as requests, sum(tokens)::bigint as tokens, sum(spend_usd) as spend_usd
            from unnest(p_corrections)
            group by subject, subject_id, model_id, per, window_start
        ) as x
        where (t.subject, t.subject_id, t.model_id, t.per, t.window_start) = (x.subject, x.subject_id, x.model_id, x.per, x.window_start);
        v_near := v_near or found;
    end if;
    if v_near then
        perform gateway.record_crossings(p_corrections);
    end if;
end
$$;
comment on function gateway.correct_counters(gateway.counted[]) is 'Adds amounts to the counters of the windows named, where they still run or are kept.';
revoke all on function gateway.correct_counters(gateway.counted[]) from public;
