-- Soft marks: what is really used of a window goes beyond one, once.
--
-- Counters hold the running requests at their bound, some times what they will use; a bound that is given back has crossed nothing. So:
-- 1. api.admit_request marks a counter (limit_counters.marked) whose reservation goes beyond a mark. Nothing can cross before that, but by a
--    provider that bills beyond the bound, which gateway.correct_counters sees by itself.
-- 2. Where a request ends that is counted by a marked counter, gateway.correct_counters looks closer: at what is counted, less what still runs.
--    Nobody else pays for it.
-- 3. Where a window turns while it is marked, its counter is kept in gateway.turned_windows: what ran then may yet carry it beyond the mark.
-- 4. Requests are used when they are admitted: that crossing is recorded then, unless another model's counter or a service's may give it back.
-- All of it under the lock of the counter, so that a crossing is found once.

create function gateway.soft_marks(p_subject text, p_subject_id bigint, p_model_id bigint, p_per text) returns gateway.limits
language plpgsql stable set search_path = ''
as $$
declare
    v_found gateway.limits;
    v_each gateway.limits;
begin
    if p_subject = 'customer' then
        select * into v_found from gateway.limits where customer_id = p_subject_id and per = p_per;
    elsif p_subject = 'service' then
        select * into v_found from gateway.limits where service_id = p_subject_id and per = p_per;
    elsif p_model_id = 0 then
        select * into v_found from gateway.limits where key_id = p_subject_id and model_id is null and not each_model and per = p_per;
    else
        select * into v_found from gateway.limits where key_id = p_subject_id and model_id = p_model_id and per = p_per;
        select * into v_each from gateway.limits where key_id = p_subject_id and each_model and per = p_per;
        v_found.warn_requests := coalesce(v_found.warn_requests, v_each.warn_requests);
        v_found.warn_tokens := coalesce(v_found.warn_tokens, v_each.warn_tokens);
        v_found.warn_spend_usd := coalesce(v_found.warn_spend_usd, v_each.warn_spend_usd);
    end if;
    return v_found;
end
$$;
comment on function gateway.soft_marks(text, bigint, bigint, text) is 'The soft marks that hold for a counter now, as gateway.applicable_limits has them.';
revoke all on function gateway.soft_marks(text, bigint, bigint, text) from public;

-- Costs a look at each running request: only for a window that is beyond a mark by its bounds, and not by what is known to be used.
-- A request that this transaction has locked is the one that it ends, and runs no more: its row says so (xmax), by the transaction's own id, so
-- that whoever ends requests does it at the outermost level, not below a savepoint.
create function gateway.still_running(p_counter gateway.counted, p_customer_id bigint) returns gateway.counted
language plpgsql set search_path = ''
as $$
begin
    select coalesce(sum(x.requests), 0), coalesce(sum(x.tokens), 0), coalesce(sum(x.spend_usd), 0)
    into p_counter.requests, p_counter.tokens, p_counter.spend_usd
    from gateway.requests as r
    cross join unnest(r.counted) as x
    where r.state = 'held' and r.xmax is distinct from pg_current_xact_id()::xid
        and (r.customer_id = p_customer_id or p_customer_id is null)
        and (x.subject, x.subject_id, x.model_id, x.per, x.window_start)
            = (p_counter.subject, p_counter.subject_id, p_counter.model_id, p_counter.per, p_counter.window_start);
    return p_counter;
end
$$;
comment on function gateway.still_running(gateway.counted, bigint) is 'What the requests that run now have reserved of a window. p_customer_id null: of all customers.';
revoke all on function gateway.still_running(gateway.counted, bigint) from public;

create function gateway.record_crossing(
    p_subject text, p_subject_id bigint, p_model_id bigint, p_per text, p_window_start timestamptz, p_metric text, p_mark numeric, p_used numeric
) returns void
language plpgsql set search_path = ''
as $$
declare
    v_customer_id bigint := case p_subject
        when 'customer' then p_subject_id
        when 'key' then (select k.customer_id from gateway.api_keys as k where k.id = p_subject_id)
    end;
begin
    insert into gateway.limit_crossings (subject, subject_id, model_id, per, window_start, metric, mark, used, customer_id)
    values (p_subject, p_subject_id, p_model_id, p_per, p_window_start, p_metric, p_mark, p_used, v_customer_id)
    on conflict do nothing;
    if found then
        perform gateway.raise_event('limit.soft_crossed', p_subject || ':' || p_subject_id, jsonb_build_object(
            'subject', p_subject, 'id', p_subject_id, 'customer_id', v_customer_id,
            'model', (select m.name from gateway.models as m where m.id = p_model_id),
            'limit', p_metric || '_per_' || p_per, 'window_start', p_window_start,
            'mark', gateway.show_metric(p_metric, p_mark), 'used', gateway.show_metric(p_metric, p_used)
        ), null, v_customer_id);
    end if;
end
$$;
comment on function gateway.record_crossing(text, bigint, bigint, text, timestamptz, text, numeric, numeric) is 'Writes that a soft mark was crossed, and its event, unless that is known of this window.';
revoke all on function gateway.record_crossing(text, bigint, bigint, text, timestamptz, text, numeric, numeric) from public;

create function gateway.show_metric(p_metric text, p_amount numeric) returns jsonb
language plpgsql stable set search_path = ''
as $$
begin
    return case p_metric when 'spend_usd' then to_jsonb(gateway.show_usd(p_amount)) else to_jsonb(p_amount::bigint) end;
end
$$;
comment on function gateway.show_metric(text, numeric) is 'A figure of a limit as JSON: USD as exact text, requests and tokens as numbers.';
revoke all on function gateway.show_metric(text, numeric) from public;

create function gateway.record_crossings(p_counted gateway.counted[]) returns void
language plpgsql set search_path = ''
as $$
declare
    v_counter gateway.counted;
    v_marks gateway.limits;
    v_running gateway.counted;
    v_metric record;
begin
    for v_counter in
        select x.subject, x.subject_id, x.model_id, x.per, x.window_start, w.requests, w.tokens, w.spend_usd
        from unnest(p_counted) as x
        cross join lateral (
            select c.requests, c.tokens, c.spend_usd
            from gateway.limit_counters as c
            where (c.subject, c.subject_id, c.model_id, c.per, c.window_start) = (x.subject, x.subject_id, x.model_id, x.per, x.window_start)
            union all
            select t.requests, t.tokens, t.spend_usd
            from gateway.turned_windows as t
            where (t.subject, t.subject_id, t.model_id, t.per, t.window_start) = (x.subject, x.subject_id, x.model_id, x.per, x.window_start)
        ) as w
    loop
        v_marks := gateway.soft_marks(v_counter.subject, v_counter.subject_id, v_counter.model_id, v_counter.per);
        v_running := null;
        for v_metric in
            select m.name, m.mark, m.counted
            from (values
                ('requests', v_marks.warn_requests::numeric, v_counter.requests::numeric),
                ('tokens', v_marks.warn_tokens, v_counter.tokens),
                ('spend_usd', v_marks.warn_spend_usd, v_counter.spend_usd)
            ) as m (name, mark, counted)
            where m.counted > m.mark and not exists (
                select from gateway.limit_crossings as k
                where (k.subject, k.subject_id, k.model_id, k.per, k.window_start, k.metric)
                    = (v_counter.subject, v_counter.subject_id, v_counter.model_id, v_counter.per, v_counter.window_start, m.name)
            )
        loop
            if v_running is null then
                v_running := gateway.still_running(v_counter, case v_counter.subject
                    when 'customer' then v_counter.subject_id
                    when 'key' then (select k.customer_id from gateway.api_keys as k where k.id = v_counter.subject_id)
                end);
            end if;
            v_metric.counted := v_metric.counted - case v_metric.name
                when 'requests' then v_running.requests when 'tokens' then v_running.tokens else v_running.spend_usd
            end;
            if v_metric.counted > v_metric.mark then
                perform gateway.record_crossing(
                    v_counter.subject, v_counter.subject_id, v_counter.model_id, v_counter.per, v_counter.window_start,
                    v_metric.name, v_metric.mark, v_metric.counted);
            end if;
        end loop;
    end loop;
end
$$;
comment on function gateway.record_crossings(gateway.counted[]) is 'Records the soft marks that these windows have crossed by what is really used. Their counters are to be locked.';
revoke all on function gateway.record_crossings(gateway.counted[]) from public;
