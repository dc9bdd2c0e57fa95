-- gateway.correct_counters: adds (possibly negative) amounts to the counters of the windows that admitted a request.
-- A window that has passed is left alone: its counter counts another one by now. Locks the counters in key order, which is
-- the order of every function here, so that no two wait for each other in a circle.
create function gateway.correct_counters(p_corrections gateway.counted[]) returns void
language plpgsql set search_path = ''
as $$
begin
    perform 1
    from gateway.limit_counters as c
    join unnest(p_corrections) as x
        on (c.subject, c.subject_id, c.model_id, c.per) = (x.subject, x.subject_id, x.model_id, x.per)
    order by c.subject, c.subject_id, c.model_id, c.per
    for update of c;

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
end
$$;
comment on function gateway.correct_counters(gateway.counted[]) is 'Adds amounts to the counters of the windows named, where they still run.';
revoke all on function gateway.correct_counters(gateway.counted[]) from public;
