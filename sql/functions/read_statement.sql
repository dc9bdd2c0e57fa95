-- What settle_request has charged, once more from what the log has: the prices that were pinned, the usage that was told.
create function gateway.recompute_charge(p_request gateway.requests) returns numeric
language plpgsql stable set search_path = ''
as $$
declare
    c_most_usd constant numeric := 9999999999.9999999999;
    v_prices constant jsonb := (
        select r -> 'prices'
        from jsonb_array_elements(p_request.routes) as r
        where (r ->> 'service_id')::bigint = p_request.service_id and (r ->> 'model_id')::bigint = p_request.model_id
        limit 1
    );
    v_usage constant jsonb := jsonb_build_object(
        'input', p_request.input_tokens, 'cached_input', p_request.cached_input_tokens, 'cache_write', p_request.cache_write_tokens,
        'cache_write_1h', p_request.cache_write_1h_tokens, 'audio_input', p_request.audio_input_tokens,
        'image_input', p_request.image_input_tokens, 'output', p_request.output_tokens, 'audio_output', p_request.audio_output_tokens,
        'image_output', p_request.image_output_tokens, 'images', p_request.images);
    v_commission constant numeric := 1 + p_request.commission_percent * 0.01;
    v_fixed numeric;
begin
    if p_request.state = 'expired' then
        return case when p_request.charge_usd = 0 then 0 else p_request.hold_usd end;
    elsif v_prices is null then
        return 0;
    end if;
    v_fixed := gateway.fixed_cost_usd(v_prices, v_usage) * v_commission;
    return least(gateway.round_up_usd(case p_request.billing_mode
        when 'flat' then gateway.total_tokens(v_usage) * p_request.flat_usd_per_1k_tokens * 0.001 + v_fixed
        else gateway.tokens_cost_usd(v_prices, v_usage) * v_commission + v_fixed
    end), c_most_usd);
end
$$;
comment on function gateway.recompute_charge(gateway.requests) is 'What a request is to be charged, by the prices and terms that it was admitted under.';
revoke all on function gateway.recompute_charge(gateway.requests) from public;

-- The lines of charges, where the log has every request that was charged; null where some of it was dropped. A request whose hold was charged
-- when it expired, and that was settled in a later month, is there with its hold alone: its tokens are the later month's.
create function gateway.statement_of_log(p_customer_id bigint, p_after_id bigint, p_through_id bigint) returns jsonb
language plpgsql stable set search_path = ''
as $$
declare
    v_from timestamptz := (
        select min(created_at) from gateway.ledger_entries where customer_id = p_customer_id and id > p_after_id and id <= p_through_id
    ) - interval '2 days';
    v_to timestamptz := (
        select max(created_at) from gateway.ledger_entries where customer_id = p_customer_id and id > p_after_id and id <= p_through_id
    );
begin
    return (
        with booked as materialized (
            select e.request_id as id, -sum(e.amount_usd) as usd, bool_or(e.kind = 'late_settlement') as late,
                bool_or(e.note = 'hold expired') as lapsed
            from gateway.ledger_entries as e
            where e.customer_id = p_customer_id and e.id > p_after_id and e.id <= p_through_id and e.request_id is not null
            group by e.request_id
        ),
        near as materialized (
            select r from gateway.requests as r
            where r.customer_id = p_customer_id and r.admitted_at >= v_from and r.admitted_at <= v_to and r.collected_usd <> 0
        ),
        logged as materialized (
            select b.id, b.usd, b.late, b.lapsed, coalesce((n.r).id, (f.r).id) as log_id, coalesce(n.r, f.r) as r
            from booked as b
            left join near as n on (n.r).id = b.id
            -- a settlement that came late; each of these few is looked for in every month
            left join lateral (select q as r from gateway.requests as q where n.r is null and q.id = b.id) as f on true
        ),
        -- what it was charged in all is to be what the prices make of it; of what is not at its end yet, the hold
        recomputed as materialized (
            select l.usd, l.r, u.final,
                case when u.final then gateway.recompute_charge(l.r) - (l.r).uncollected_usd else (l.r).hold_usd end
                -- what an earlier month has charged of it
                + case when l.late and not coalesce(l.lapsed, false) then coalesce((
                    select sum(e.amount_usd) from gateway.ledger_entries as e where e.request_id = l.id and e.id <= p_after_id
                ), 0) else 0 end as recomputed_usd
            from logged as l
            cross join lateral (
                select not coalesce(l.lapsed, false) or l.late or (l.r).state = 'expired' as final
            ) as u
        ),
        lines as (
            select (c.r).model_id as model_id, (c.r).billing_mode as billing_mode, (c.r).commission_percent as commission_percent,
                case when (c.r).billing_mode = 'flat' then (c.r).flat_usd_per_1k_tokens end as flat_usd_per_1k_tokens,
                p.prices, not c.final or (c.r).state = 'expired' as lapsed, count(*) as requests,
                sum((c.r).input_tokens) filter (where c.final) as input_tokens,
                sum((c.r).cached_input_tokens) filter (where c.final) as cached_input_tokens,
                sum((c.r).cache_write_tokens) filter (where c.final) as cache_write_tokens,
                sum((c.r).audio_input_tokens) filter (where c.final) as audio_input_tokens,
                sum((c.r).image_input_tokens) filter (where c.final) as image_input_tokens,
                sum((c.r).output_tokens) filter (where c.final) as output_tokens,
                sum((c.r).reasoning_tokens) filter (where c.final) as reasoning_tokens,
                sum((c.r).audio_output_tokens) filter (where c.final) as audio_output_tokens,
                sum((c.r).image_output_tokens) filter (where c.final) as image_output_tokens,
                sum((c.r).images) filter (where c.final) as images,
                sum(c.usd) as charge_usd, sum(c.recomputed_usd) as recomputed_usd,
                count(*) filter (where c.usd <> c.recomputed_usd) as differing
            from recomputed as c
            left join lateral (
                -- at a flat price what the provider takes is the operator's affair
                select route -> 'prices' as prices
                from jsonb_array_elements((c.r).routes) as route
                where (c.r).billing_mode = 'markup' and c.final
                    and (route ->> 'service_id')::bigint = (c.r).service_id and (route ->> 'model_id')::bigint = (c.r).model_id
                limit 1
            ) as p on true
            group by 1, 2, 3, 4, 5, 6
        )
        select case when not exists (select from logged where log_id is null) then jsonb_build_object(
            'requests', coalesce((select sum(requests) from lines), 0),
            'differing', coalesce((select sum(differing) from lines), 0),
            'difference_usd', gateway.show_usd(coalesce((select sum(charge_usd - recomputed_usd) from lines), 0)),
            'lines', coalesce((
                select jsonb_agg(jsonb_build_object(
                    'model', m.name, 'requests', l.requests, 'expired_holds', l.lapsed, 'billing_mode', l.billing_mode,
                    'commission_percent', trim_scale(l.commission_percent)::text,
                    'flat_usd_per_1k_tokens', gateway.show_usd(l.flat_usd_per_1k_tokens),
                    'prices', l.prices,
                    'input_tokens', coalesce(l.input_tokens, 0), 'cached_input_tokens', coalesce(l.cached_input_tokens, 0),
                    'cache_write_tokens', coalesce(l.cache_write_tokens, 0), 'audio_input_tokens', coalesce(l.audio_input_tokens, 0),
                    'image_input_tokens', coalesce(l.image_input_tokens, 0), 'output_tokens', coalesce(l.output_tokens, 0),
                    'reasoning_tokens', coalesce(l.reasoning_tokens, 0), 'audio_output_tokens', coalesce(l.audio_output_tokens, 0),
                    'image_output_tokens', coalesce(l.image_output_tokens, 0), 'images', coalesce(l.images, 0),
                    'charge_usd', gateway.show_usd(l.charge_usd), 'recomputed_usd', gateway.show_usd(l.recomputed_usd)
                ) order by l.charge_usd desc, m.name, l.billing_mode, l.prices::text, l.commission_percent, l.lapsed)
                from lines as l
                left join gateway.models as m on m.id = l.model_id
            ), '[]')) end
    );
end
$$;
comment on function gateway.statement_of_log(bigint, bigint, bigint) is 'What the requests of a run of entries were charged, by model and price, beside what their prices make of it.';
revoke all on function gateway.statement_of_log(bigint, bigint, bigint) from public;

-- Where the log was dropped: what is kept of the month, by model. It counts requests by when they were admitted and not when they were charged,
-- so that what it leaves to the ledger's sum is a line of its own.
create function gateway.statement_of_sums(p_customer_id bigint, p_month date, p_charged_usd numeric) returns jsonb
language plpgsql stable set search_path = ''
as $$
begin
    return (
        with lines as (
            select m.name, p.requests, p.input_tokens, p.cached_input_tokens, p.cache_write_tokens, p.audio_input_tokens, p.image_input_tokens,
                p.output_tokens, p.reasoning_tokens, p.audio_output_tokens, p.image_output_tokens, p.images,
                p.charge_usd - p.uncollected_usd as charge_usd
            from gateway.usage_periods as p
            left join gateway.models as m on m.id = p.model_id
            where (p.customer_id, p.per, p.grouped_by, p.period) = (p_customer_id, 'month', 'model', p_month::timestamp)
                and p.charge_usd <> p.uncollected_usd
            union all
            select null, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, p_charged_usd - coalesce((
                select sum(p.charge_usd - p.uncollected_usd)
                from gateway.usage_periods as p
                where (p.customer_id, p.per, p.grouped_by, p.period) = (p_customer_id, 'month', 'model', p_month::timestamp)
            ), 0)
        )
        select jsonb_build_object(
            'requests', coalesce(sum(l.requests), 0), 'differing', null, 'difference_usd', null,
            'lines', coalesce(jsonb_agg(jsonb_build_object(
                'model', l.name, 'requests', l.requests, 'expired_holds', false, 'billing_mode', null, 'commission_percent', null,
                'flat_usd_per_1k_tokens', null, 'prices', null,
                'input_tokens', l.input_tokens, 'cached_input_tokens', l.cached_input_tokens, 'cache_write_tokens', l.cache_write_tokens,
                'audio_input_tokens', l.audio_input_tokens, 'image_input_tokens', l.image_input_tokens, 'output_tokens', l.output_tokens,
                'reasoning_tokens', l.reasoning_tokens, 'audio_output_tokens', l.audio_output_tokens,
                'image_output_tokens', l.image_output_tokens, 'images', l.images,
                'charge_usd', gateway.show_usd(l.charge_usd), 'recomputed_usd', null
            ) order by l.name is null, l.charge_usd desc, l.name), '[]'))
        from lines as l
        where l.charge_usd <> 0
    );
end
$$;
comment on function gateway.statement_of_sums(bigint, date, numeric) is 'What a month''s requests were charged, by model, from the sums that outlive the log.';
revoke all on function gateway.statement_of_sums(bigint, date, numeric) from public;

create function gateway.make_statement(
    p_customer_id bigint, p_month date, p_time_zone text, p_starts_at timestamptz, p_ends_at timestamptz, p_after_id bigint, p_through_id bigint
) returns jsonb
language plpgsql stable set search_path = ''
as $$
declare
    v_opening numeric := coalesce((
        select balance_after_usd from gateway.ledger_entries where customer_id = p_customer_id and id <= p_after_id order by id desc limit 1
    ), 0);
    v_closing numeric := coalesce((
        select balance_after_usd from gateway.ledger_entries where customer_id = p_customer_id and id <= p_through_id order by id desc limit 1
    ), 0);
    v_opening_debt numeric := coalesce((
        select sum(debt_change_usd) from gateway.ledger_entries
        where customer_id = p_customer_id and debt_change_usd is not null and id <= p_after_id
    ), 0);
    v_debt numeric := coalesce((
        select sum(debt_change_usd) from gateway.ledger_entries
        where customer_id = p_customer_id and debt_change_usd is not null and id > p_after_id and id <= p_through_id
    ), 0);
    v_sums record;
    v_charges jsonb := gateway.statement_of_log(p_customer_id, p_after_id, p_through_id);
    v_of_log constant boolean := v_charges is not null;
begin
    select coalesce(sum(e.amount_usd), 0) as all_usd,
        coalesce(-sum(e.amount_usd) filter (where e.request_id is not null), 0) as charged,
        coalesce(sum(e.amount_usd) filter (where e.kind = 'credit'), 0) as credits,
        coalesce(sum(e.amount_usd) filter (where e.kind = 'correction'), 0) as corrections,
        coalesce(sum(e.amount_usd) filter (where e.kind in ('refund', 'dispute', 'reinstatement')), 0) as reversals,
        coalesce(sum(e.amount_usd) filter (where e.kind = 'debt_payment'), 0) as debt_payments
    into v_sums
    from gateway.ledger_entries as e
    where e.customer_id = p_customer_id and e.id > p_after_id and e.id <= p_through_id;
    if not v_of_log then
        v_charges := gateway.statement_of_sums(p_customer_id, p_month, v_sums.charged);
    end if;
    return jsonb_build_object(
        'customer_id', p_customer_id, 'month', to_char(p_month, 'YYYY-MM'), 'time_zone', p_time_zone, 'from', p_starts_at, 'to', p_ends_at,
        'opening_balance_usd', gateway.show_usd(v_opening), 'credits_usd', gateway.show_usd(v_sums.credits),
        'corrections_usd', gateway.show_usd(v_sums.corrections), 'reversals_usd', gateway.show_usd(v_sums.reversals),
        'debt_payments_usd', gateway.show_usd(v_sums.debt_payments), 'charges_usd', gateway.show_usd(v_sums.charged),
        'closing_balance_usd', gateway.show_usd(v_closing),
        'opening_debt_usd', gateway.show_usd(v_opening_debt), 'closing_debt_usd', gateway.show_usd(v_opening_debt + v_debt),
        'charges', v_charges -> 'lines',
        'entries', coalesce((
            select jsonb_agg(jsonb_build_object(
                'at', e.created_at, 'kind', e.kind, 'amount_usd', gateway.show_usd(e.amount_usd),
                'debt_change_usd', gateway.show_usd(coalesce(e.debt_change_usd, 0)),
                'balance_after_usd', gateway.show_usd(e.balance_after_usd), 'reference', e.reference, 'payment_id', e.payment_id) order by e.id)
            from gateway.ledger_entries as e
            where e.customer_id = p_customer_id and e.id > p_after_id and e.id <= p_through_id and e.request_id is null
        ), '[]'),
        'check', jsonb_build_object(
            'source', case when v_of_log then 'request_log' else 'sums' end,
            'requests', v_charges -> 'requests', 'differing', v_charges -> 'differing', 'difference_usd', v_charges -> 'difference_usd',
            'balance_agrees', v_opening + v_sums.all_usd = v_closing));
end
$$;
comment on function gateway.make_statement(bigint, date, text, timestamptz, timestamptz, bigint, bigint) is 'A statement of a customer''s entries from after one up to another.';
revoke all on function gateway.make_statement(bigint, date, text, timestamptz, timestamptz, bigint, bigint) from public;

-- api.read_statement: a customer's statement of a month ('YYYY-MM'), as gateway.make_statement makes it, with "closed". A month that ended an hour
-- ago or earlier is closed when it is first asked for, and those before it, and stays as it is from then on; another one is "so far". A month
-- goes on from the entry with which the one before ended, so that none is missing or in two, and each is the customer's by the time zone of the
-- day on which it was closed. {"error": "unknown_customer" | "no_statement": before the first entry, or to come}. Locks no account.
-- An hour, because an entry that is written at the turn of the month can be seen a little later, when its transaction is over.
create function api.read_statement(p_customer_id bigint, p_month text) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '60s' set plan_cache_mode = force_custom_plan
as $$
declare
    v_month date := to_date(p_month, 'YYYY-MM');
    v_time_zone text := (select time_zone from gateway.customers where id = p_customer_id);
    v_statement gateway.statements;
    v_next gateway.statements;
begin
    if v_time_zone is null then
        return jsonb_build_object('error', 'unknown_customer');
    end if;
    select * into v_statement from gateway.statements where customer_id = p_customer_id and month = v_month;
    if found then
        return v_statement.document || jsonb_build_object('closed', true);
    end if;
    -- two at once would close the same months twice
    perform pg_advisory_xact_lock(hashtextextended('gateway.read_statement', p_customer_id));
    select * into v_statement from gateway.statements where customer_id = p_customer_id order by month desc limit 1;
    v_next.customer_id := p_customer_id;
    v_next.time_zone := v_time_zone;
    v_next.through_entry_id := coalesce(v_statement.through_entry_id, 0);
    v_next.month := coalesce(
        (v_statement.month + interval '1 month')::date,
        (select date_trunc('month', created_at at time zone v_time_zone)::date
         from gateway.ledger_entries where customer_id = p_customer_id order by id limit 1));
    v_next.ends_at := coalesce(v_statement.ends_at, gateway.first_moment(v_next.month::timestamp, v_time_zone));
    loop
        if v_next.month is null or v_next.month > v_month or v_next.ends_at > clock_timestamp() then
            -- another may have closed it since it was looked for
            select * into v_statement from gateway.statements where customer_id = p_customer_id and month = v_month;
            return case
                when found then v_statement.document || jsonb_build_object('closed', true)
                else jsonb_build_object('error', 'no_statement')
            end;
        end if;
        v_next.starts_at := v_next.ends_at;
        v_next.ends_at := greatest(gateway.first_moment((v_next.month + interval '1 month')::timestamp, v_time_zone), v_next.starts_at);
        v_next.after_entry_id := v_next.through_entry_id;
        v_next.through_entry_id := coalesce((
            select e.id - 1 from gateway.ledger_entries as e
            where e.customer_id = p_customer_id and e.id > v_next.after_entry_id and e.created_at >= v_next.ends_at
            order by e.id
            limit 1
        ), (select max(e.id) from gateway.ledger_entries as e where e.customer_id = p_customer_id and e.id > v_next.after_entry_id),
        v_next.after_entry_id);
        exit when v_next.ends_at + interval '1 hour' > clock_timestamp();
        v_next.document := gateway.make_statement(
            p_customer_id, v_next.month, v_time_zone, v_next.starts_at, v_next.ends_at, v_next.after_entry_id, v_next.through_entry_id);
        v_next.closed_at := clock_timestamp();
        perform set_config('gateway.engine', 'on', true);
        insert into gateway.statements values (v_next.*);
        perform set_config('gateway.engine', 'off', true);
        if v_next.month = v_month then
            return v_next.document || jsonb_build_object('closed', true);
        end if;
        v_next.month := (v_next.month + interval '1 month')::date;
    end loop;
    if v_next.month <> v_month then
        return jsonb_build_object('error', 'no_statement');
    end if;
    return gateway.make_statement(
        p_customer_id, v_next.month, v_time_zone, v_next.starts_at, v_next.ends_at, v_next.after_entry_id, v_next.through_entry_id)
        || jsonb_build_object('closed', false);
end
$$;
revoke all on function api.read_statement(bigint, text) from public;
grant execute on function api.read_statement(bigint, text) to service_role;
comment on function api.read_statement(bigint, text) is 'A customer''s statement of a month; of one that is over always the same.';

-- api.list_statements: the months that have a statement, the newest first: from that of the first entry to the current one, in the customer's
-- time zone. [{"month": 'YYYY-MM', "closed": whether it is over and can't change}]; null where there is no such customer. p_before: a month as
-- the number YYYYMM. Reads only.
create function api.list_statements(p_customer_id bigint, p_limit integer, p_before integer default null) returns jsonb
language plpgsql stable security definer set search_path = ''
as $$
declare
    v_time_zone text := (select time_zone from gateway.customers where id = p_customer_id);
begin
    if v_time_zone is null then
        return null;
    end if;
    return (
        select coalesce(jsonb_agg(jsonb_build_object('month', to_char(m.month, 'YYYY-MM'), 'closed', m.closed) order by m.month desc), '[]')
        from (
            select g::date as month,
                gateway.first_moment(g + interval '1 month', v_time_zone) + interval '1 hour' <= clock_timestamp()
                    or exists (select from gateway.statements as s where s.customer_id = p_customer_id and s.month = g::date) as closed
            from generate_series(
                (select date_trunc('month', least(
                     (select e.created_at from gateway.ledger_entries as e where e.customer_id = p_customer_id order by e.id limit 1) at time zone v_time_zone,
                     (select min(s.month)::timestamp from gateway.statements as s where s.customer_id = p_customer_id)))),
                date_trunc('month', clock_timestamp() at time zone v_time_zone), interval '1 month') as g
            where p_before is null or to_char(g, 'YYYYMM')::integer < p_before
            order by g desc
            limit p_limit
        ) as m
    );
end
$$;
revoke all on function api.list_statements(bigint, integer, integer) from public;
grant execute on function api.list_statements(bigint, integer, integer) to service_role;
comment on function api.list_statements(bigint, integer, integer) is 'The months that a customer has statements of.';
