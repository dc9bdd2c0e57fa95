-- gateway.correct_counters: adds (possibly negative) amounts to the counters of the windows that admitted a request.
-- A window that has passed is left alone, unless it was kept for its soft marks: its counter counts another one by now. Locks the counters in
-- key order, which is the order of every function here, so that no two wait for each other in a circle.
-- Where a soft mark may have been crossed it looks closer (record_crossings.sql): the counter is marked, or a request used more than its bound.
create function gateway.correct_counters(p_corrections gateway.counted[]) returns void
language plpgsql set search_path = ''
as $$
declare
    v_correction gateway.counted;
    v_counter gateway.limit_counters;
    v_marked boolean;
    v_near boolean := false;
begin
    if cardinality(p_corrections) > 1 then
        p_corrections := array(select x from unnest(p_corrections) as x order by x.subject, x.subject_id, x.model_id, x.per);
    end if;
    -- One look by the primary key for each, as in gateway.lock_counters.
    foreach v_correction in array p_corrections loop
        -- greatest(): an operator may have set a counter back by hand, and a settlement must not fail for it.
        update gateway.limit_counters as c
        set requests = greatest(c.requests + v_correction.requests, 0),
            tokens = greatest(c.tokens + v_correction.tokens, 0),
            spend_usd = greatest(c.spend_usd + v_correction.spend_usd, 0)
        where c.subject = v_correction.subject and c.subject_id = v_correction.subject_id and c.model_id = v_correction.model_id
            and c.per = v_correction.per and c.window_start = v_correction.window_start
        returning c.marked into v_marked;
        if found then
            v_near := v_near or v_marked or v_correction.tokens > 0 or v_correction.spend_usd > 0;
            continue;
        end if;
        -- locked all the same: whoever turns a window keeps the older one under this lock
        select * into v_counter from gateway.limit_counters as c
        where c.subject = v_correction.subject and c.subject_id = v_correction.subject_id and c.model_id = v_correction.model_id
            and c.per = v_correction.per
        for update;
        if v_counter.window_start > v_correction.window_start then
            update gateway.turned_windows as t
            set requests = greatest(t.requests + v_correction.requests, 0),
                tokens = greatest(t.tokens + v_correction.tokens, 0),
                spend_usd = greatest(t.spend_usd + v_correction.spend_usd, 0)
            where t.subject = v_correction.subject and t.subject_id = v_correction.subject_id and t.model_id = v_correction.model_id
                and t.per = v_correction.per and t.window_start = v_correction.window_start;
            v_near := v_near or found;
        end if;
    end loop;
    if v_near then
        perform gateway.record_crossings(p_corrections);
    end if;
end
$$;
comment on function gateway.correct_counters(gateway.counted[]) is 'Adds amounts to the counters of the windows named, where they still run or are kept.';
revoke all on function gateway.correct_counters(gateway.counted[]) from public;
