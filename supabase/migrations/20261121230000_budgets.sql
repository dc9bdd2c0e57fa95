alter type gateway.limit_state add attribute turned boolean;

create function gateway.refuse_row(p_table text, p_rule text) returns boolean
language plpgsql immutable set search_path = ''
as $$
begin
    raise exception 'the row violates the rule "%" of gateway.%', p_rule, p_table
        using errcode = 'check_violation', constraint = p_rule, table = p_table, schema = 'gateway';
end
$$;

comment on function gateway.refuse_row(text, text) is 'Raises check_violation under the name of the rule.';

revoke all on function gateway.refuse_row(text, text) from public;

create function gateway.is_account(p_balance_usd numeric, p_held_usd numeric, p_debt_usd numeric) returns boolean
language plpgsql immutable set search_path = ''
as $$
declare
    v_broken constant text := case
        when 'NaN' in (p_balance_usd, p_held_usd) then 'accounts_are_numbers'
        when p_held_usd < 0 then 'accounts_held_not_negative'
        when p_debt_usd < 0 or p_debt_usd = 'NaN' then 'accounts_debt_not_negative'
        -- whoever owes has nothing free: what is paid in or released goes to the debt in the same statement
        when p_debt_usd <> 0 and p_balance_usd <> p_held_usd then 'accounts_debt_takes_what_is_free'
    end;
begin
    return v_broken is null or gateway.refuse_row('accounts', v_broken);
end
$$;

comment on function gateway.is_account(numeric, numeric, numeric) is 'Constraint: amounts are numbers, none is negative, and whoever owes has nothing free.';

revoke all on function gateway.is_account(numeric, numeric, numeric) from public;

create function gateway.is_ledger_entry(
    p_kind text, p_amount_usd numeric, p_debt_change_usd numeric, p_request_id text, p_payment_id bigint, p_reference text, p_note text
) returns boolean
language plpgsql immutable set search_path = ''
as $$
declare
    v_broken constant text := case
        when p_kind not in ('credit', 'correction', 'charge', 'late_settlement', 'refund', 'dispute', 'reinstatement', 'debt_payment')
            then 'ledger_entries_kind_check'
        when (p_amount_usd = 0 and not coalesce(p_debt_change_usd > 0, false)) or p_amount_usd = 'NaN' then 'ledger_entries_amount_usd_check'
        when length(p_reference) not between 1 and 255 then 'ledger_entries_reference_check'
        when length(p_note) > 1000 then 'ledger_entries_note_check'
        when p_debt_change_usd in (0, 'NaN') then 'ledger_entries_debt_change_usd_check'
        when (p_request_id is not null) <> (p_kind in ('charge', 'late_settlement')) then 'ledger_request_kinds'
        when p_kind = 'credit' and p_amount_usd <= 0 then 'ledger_credit_is_positive'
        when p_kind = 'charge' and p_amount_usd >= 0 then 'ledger_charge_is_negative'
        when p_kind in ('refund', 'dispute') and p_amount_usd > 0 then 'ledger_reversal_is_negative'
        when p_kind = 'reinstatement' and p_amount_usd <= 0 then 'ledger_reinstatement_is_positive'
        when p_payment_id is null and p_kind in ('refund', 'dispute', 'reinstatement') then 'ledger_payment_kinds'
        when p_payment_id is not null and p_kind not in ('credit', 'refund', 'dispute', 'reinstatement') then 'ledger_payment_kinds'
        when p_kind = 'debt_payment' and not coalesce(p_debt_change_usd = p_amount_usd and p_amount_usd < 0, false) then 'ledger_debt_kinds'
        when p_debt_change_usd <= 0 and p_kind in ('refund', 'dispute') then 'ledger_debt_kinds'
        when p_debt_change_usd is not null and p_kind not in ('refund', 'dispute', 'debt_payment') then 'ledger_debt_kinds'
    end;
begin
    return v_broken is null or gateway.refuse_row('ledger_entries', v_broken);
end
$$;

comment on function gateway.is_ledger_entry(text, numeric, numeric, text, bigint, text, text) is 'Constraint: each kind of entry has its direction, and what it is of.';

revoke all on function gateway.is_ledger_entry(text, numeric, numeric, text, bigint, text, text) from public;

create function gateway.is_request(
    p_id text, p_state text, p_outcome text, p_hold_usd numeric, p_cost_usd numeric, p_charge_usd numeric, p_collected_usd numeric,
    p_uncollected_usd numeric
) returns boolean
language plpgsql immutable set search_path = ''
as $$
declare
    v_broken constant text := case
        when length(p_id) not between 8 and 64 then 'requests_id_check'
        when p_state not in ('held', 'settled', 'expired', 'refused') then 'requests_state_check'
        when p_outcome not in ('succeeded', 'failed', 'cancelled', 'cut') then 'requests_outcome_check'
        when (p_state = 'settled') <> (p_outcome is not null) then 'requests_settled_has_outcome'
        when p_hold_usd < 0 then 'requests_hold_usd_check'
        when p_cost_usd < 0 then 'requests_cost_usd_check'
        when p_charge_usd < 0 then 'requests_charge_usd_check'
        when p_collected_usd < 0 then 'requests_collected_usd_check'
        when p_uncollected_usd < 0 then 'requests_uncollected_usd_check'
        when p_charge_usd <> p_collected_usd + p_uncollected_usd then 'requests_charge_is_booked'
    end;
begin
    return v_broken is null or gateway.refuse_row('requests', v_broken);
end
$$;

comment on function gateway.is_request(text, text, text, numeric, numeric, numeric, numeric, numeric) is 'Constraint: a request''s states, and that what is owed is either taken or booked as not taken.';

revoke all on function gateway.is_request(text, text, text, numeric, numeric, numeric, numeric, numeric) from public;

create function gateway.is_counter(p_subject text, p_per text, p_requests bigint, p_tokens bigint, p_spend_usd numeric) returns boolean
language plpgsql immutable set search_path = ''
as $$
declare
    v_broken constant text := case
        when p_subject not in ('key', 'customer', 'service') then 'limit_counters_subject_check'
        when p_per not in ('minute', 'hour', 'day', 'month') then 'limit_counters_per_check'
        when p_requests < 0 then 'limit_counters_requests_check'
        when p_tokens < 0 then 'limit_counters_tokens_check'
        when p_spend_usd < 0 then 'limit_counters_spend_usd_check'
    end;
begin
    return v_broken is null or gateway.refuse_row('limit_counters', v_broken);
end
$$;

comment on function gateway.is_counter(text, text, bigint, bigint, numeric) is 'Constraint: nothing is counted below zero.';

revoke all on function gateway.is_counter(text, text, bigint, bigint, numeric) from public;

alter table gateway.accounts
    drop constraint accounts_are_numbers,
    drop constraint accounts_held_not_negative,
    drop constraint accounts_debt_not_negative,
    drop constraint accounts_debt_takes_what_is_free,
    add constraint accounts_rules check (gateway.is_account(balance_usd, held_usd, debt_usd));

alter table gateway.ledger_entries
    drop constraint ledger_entries_kind_check,
    drop constraint ledger_entries_amount_usd_check,
    drop constraint ledger_entries_reference_check,
    drop constraint ledger_entries_note_check,
    drop constraint ledger_entries_debt_change_usd_check,
    drop constraint ledger_request_kinds,
    drop constraint ledger_credit_is_positive,
    drop constraint ledger_charge_is_negative,
    drop constraint ledger_payment_kinds,
    drop constraint ledger_reversal_is_negative,
    drop constraint ledger_reinstatement_is_positive,
    drop constraint ledger_debt_kinds,
    add constraint ledger_entries_rules
        check (gateway.is_ledger_entry(kind, amount_usd, debt_change_usd, request_id, payment_id, reference, note));

alter table gateway.limit_counters
    drop constraint limit_counters_subject_check,
    drop constraint limit_counters_per_check,
    drop constraint limit_counters_requests_check,
    drop constraint limit_counters_tokens_check,
    drop constraint limit_counters_spend_usd_check,
    add constraint limit_counters_rules check (gateway.is_counter(subject, per, requests, tokens, spend_usd));

alter table gateway.requests
    drop constraint requests_id_check,
    drop constraint requests_state_check,
    drop constraint requests_outcome_check,
    drop constraint requests_hold_usd_check,
    drop constraint requests_cost_usd_check,
    drop constraint requests_charge_usd_check,
    drop constraint requests_collected_usd_check,
    drop constraint requests_uncollected_usd_check,
    drop constraint requests_input_tokens_bound_check,
    drop constraint requests_output_tokens_bound_check,
    drop constraint requests_input_tokens_check,
    drop constraint requests_cached_input_tokens_check,
    drop constraint requests_cache_write_tokens_check,
    drop constraint requests_audio_input_tokens_check,
    drop constraint requests_image_input_tokens_check,
    drop constraint requests_output_tokens_check,
    drop constraint requests_reasoning_tokens_check,
    drop constraint requests_audio_output_tokens_check,
    drop constraint requests_image_output_tokens_check,
    drop constraint requests_images_check,
    drop constraint requests_latency_ms_check,
    drop constraint requests_time_to_first_token_ms_check,
    drop constraint requests_cache_write_1h_tokens_check,
    drop constraint requests_charge_is_booked,
    drop constraint requests_settled_has_outcome,
    add constraint requests_rules
        check (gateway.is_request(id, state, outcome, hold_usd, cost_usd, charge_usd, collected_usd, uncollected_usd)),
    add constraint requests_tokens_check check (least(
        input_tokens_bound, output_tokens_bound, input_tokens, cached_input_tokens, cache_write_tokens, cache_write_1h_tokens,
        audio_input_tokens, image_input_tokens, output_tokens, reasoning_tokens, audio_output_tokens, image_output_tokens, images
    ) >= 0),
    add constraint requests_times_check check (least(latency_ms, time_to_first_token_ms) >= 0);

comment on constraint accounts_rules on gateway.accounts is 'Amounts are numbers, none is negative, and whoever owes has nothing free: what is paid in or released goes to the debt in the same statement.';

-- gateway.correct_counters: adds (possibly negative) amounts to the counters of the windows that admitted a request.
-- A window that has passed is left alone, unless it was kept for its soft marks: its counter counts another one by now. Locks the counters in
-- key order, which is the order of every function here, so that no two wait for each other in a circle.
-- Where a soft mark may have been crossed it looks closer (record_crossings.sql): the counter is marked, or a request used more than its bound.
create or replace function gateway.correct_counters(p_corrections gateway.counted[]) returns void
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

drop function gateway.resolve_candidates(text[], bigint, text, bigint[], boolean, boolean);

-- gateway.resolve_candidates: the routes that a request for these models might take, in the order in which to try them: by the
-- client's order of models, then priority, then at random by weight; services that are set aside (record_health.sql) come last, of these
-- first the one whose last failure is the longest ago. probe_due: the time aside is over, and somebody has to try. A model that has no usable route gives one row without a
-- route; a route without a price in force gives one without prices. Reads only. PL/pgSQL, here and below on the chat path, because it
-- keeps its plans: a SQL function with a search_path of its own is planned anew at every call. A statement for each name, because the rules of
-- all names in one query cost every request more than the request's own name does.
create function gateway.resolve_candidates(
    p_models text[], p_model_id bigint, p_provider text, p_allowed_services bigint[], p_media_input boolean, p_media_output boolean
) returns gateway.candidate[]
language plpgsql stable set search_path = ''
as $$
declare
    v_name text;
    v_provider text;
    v_model_id bigint;
    v_model_ids bigint[] := '{}'::bigint[];
    v_providers text[] := '{}'::text[];
begin
    if p_model_id is not null then
        select m.id into v_model_id from gateway.models as m where m.id = p_model_id and m.active;
        if found then
            v_model_ids := array[v_model_id];
            v_providers := array[p_provider];
        end if;
    end if;
    foreach v_name in array coalesce(p_models, '{}') loop
        -- the whole string
        select m.id into v_model_id from gateway.models as m where m.name = v_name and m.active;
        if found and v_model_id <> all (v_model_ids) then
            v_model_ids := v_model_ids || v_model_id;
            v_providers := v_providers || p_provider;
        end if;
        -- only then provider/model, and under a named provider the provider's own name of the model; ours goes before it
        continue when p_provider is null and strpos(v_name, '/') < 2;
        -- a name of the catalogue that nobody serves here, such as OpenRouter's openai/gpt-4o, does not hide openai's gpt-4o
        continue when exists (
            select
            from gateway.models as whole
            join gateway.offers as sold on sold.model_id = whole.id
            join gateway.routes as way on way.offer_id = sold.id and way.active
            join gateway.services as seller on seller.id = way.service_id and seller.active
            where whole.name = v_name and whole.active
                and (p_provider is null or sold.provider = p_provider)
                and (p_allowed_services is null or seller.id = any (p_allowed_services))
        );
        v_provider := coalesce(p_provider, split_part(v_name, '/', 1));
        if p_provider is null then
            v_name := substr(v_name, strpos(v_name, '/') + 1);
        end if;
        select known.model_id
        into v_model_id
        from (
            select o.model_id, 1 as rank
            from gateway.models as m
            join gateway.offers as o on o.model_id = m.id and o.provider = v_provider
            where m.name = v_name and m.active
            union all
            select o.model_id, 2
            from gateway.offers as o
            join gateway.models as m on m.id = o.model_id and m.active
            where o.provider = v_provider and o.upstream_model = v_name
        ) as known
        order by known.rank, known.model_id
        limit 1;
        if found and v_model_id <> all (v_model_ids) then
            v_model_ids := v_model_ids || v_model_id;
            v_providers := v_providers || v_provider;
        end if;
    end loop;
    if v_model_ids = '{}' then
        return '{}'::gateway.candidate[];
    end if;

    return array(
        select (
            m.id, m.name, m.context_length, m.max_output_tokens,
            r.id, s.id, s.name, s.provider, s.base_url, s.provider_key, o.upstream_model,
            p.prices,
            case
                when p_media_input then greatest(p.input, p.cached_input, p.cache_write, p.audio_input, p.image_input)
                else greatest(p.input, p.cached_input, p.cache_write)
            end * 0.000001,
            case when p_media_output then greatest(p.output, p.audio_output, p.image_output) else p.output end * 0.000001,
            p.per_request,
            null, null, null, null,
            m.output_modalities,
            coalesce(not h.is_aside and h.was_aside, false)
        )::gateway.candidate
        from unnest(v_model_ids, v_providers) with ordinality as wanted_model (id, provider, position)
        join gateway.models as m on m.id = wanted_model.id
        left join (
            gateway.offers as o
            join gateway.routes as r on r.offer_id = o.id and r.active
            join gateway.services as s on s.id = r.service_id and s.active
        ) on o.model_id = m.id
            and (wanted_model.provider is null or o.provider = wanted_model.provider)
            and (p_allowed_services is null or s.id = any (p_allowed_services))
        left join lateral (
            select v.input, v.cached_input, v.cache_write, v.audio_input, v.image_input, v.output, v.audio_output, v.image_output,
                coalesce(v.per_request, 0) as per_request,
                jsonb_strip_nulls(jsonb_build_object(
                    'input', v.input, 'cached_input', v.cached_input, 'cache_write', v.cache_write, 'audio_input', v.audio_input,
                    'image_input', v.image_input, 'output', v.output, 'audio_output', v.audio_output, 'image_output', v.image_output,
                    'per_request', v.per_request, 'per_image', v.per_image, 'cache_write_1h', v.cache_write_1h,
                    'tiers', v.tiers)) as prices
            from gateway.prices as v
            where v.offer_id = o.id and (v.service_id = s.id or v.service_id is null) and v.effective_from <= clock_timestamp()
            order by v.service_id is null, v.effective_from desc
            limit 1
        ) as p on true
        left join lateral (
            select bool_or(coalesce(greatest(x.set_aside_until, x.probing_until) > clock_timestamp(), false)) as is_aside,
                bool_or(x.set_asides > 0) as was_aside, max(x.last_failure_at) as last_failure_at
            from gateway.service_health as x
            where x.service_id = s.id and x.route_id in (0, r.id)
        ) as h on true
        order by coalesce(h.is_aside, false), case when h.is_aside then h.last_failure_at end, wanted_model.position,
            coalesce(r.priority, s.priority), -ln(1 - random()) / r.weight
    );
end
$$;

comment on function gateway.resolve_candidates(text[], bigint, text, bigint[], boolean, boolean) is 'The routes that a request might take, in the order in which to try them.';

revoke all on function gateway.resolve_candidates(text[], bigint, text, bigint[], boolean, boolean) from public;

comment on type gateway.limit_state is 'One limited window of one subject: its limits, its soft marks and what is used of it. turned: its counter is still of an older window, which is marked.';

-- A limited key must not multiply its limits by making keys: what these do counts as its own. Only rows of the maker's own bind; the
-- system's default is for each key by itself.
create or replace function gateway.limits_of_makers(
    p_maker_key_ids bigint[], p_model_ids bigint[], p_time_zone text, p_at timestamptz
) returns gateway.limit_state[]
language plpgsql stable set search_path = ''
as $$
begin
    return (
        with of_makers as (
            select * from gateway.limits where key_id = any (p_maker_key_ids)
        ),
        found as (
            select l.key_id, 0::bigint as model_id, l.per,
                l.requests, l.tokens, l.spend_usd, l.warn_requests, l.warn_tokens, l.warn_spend_usd
            from of_makers as l
            where l.model_id is null and not l.each_model
            union all
            select o.key_id, m.id, o.per,
                coalesce(x.requests, e.requests), coalesce(x.tokens, e.tokens), coalesce(x.spend_usd, e.spend_usd),
                coalesce(x.warn_requests, e.warn_requests), coalesce(x.warn_tokens, e.warn_tokens), coalesce(x.warn_spend_usd, e.warn_spend_usd)
            from (select distinct l.key_id, l.per from of_makers as l where l.model_id is not null or l.each_model) as o
            cross join unnest(p_model_ids) as m (id)
            left join of_makers as x on x.key_id = o.key_id and x.per = o.per and x.model_id = m.id
            left join of_makers as e on e.key_id = o.key_id and e.per = o.per and e.each_model
        )
        select coalesce(array_agg(
            ('key', f.key_id, f.model_id, f.per, w.start, gateway.window_end(f.per, w.start, p_time_zone),
             f.requests, f.tokens, f.spend_usd, f.warn_requests, f.warn_tokens, f.warn_spend_usd, 0, 0, 0, false)::gateway.limit_state
            order by f.key_id, f.model_id, f.per
        ), '{}')
        from found as f
        cross join lateral (select gateway.window_start(f.per, p_at, p_time_zone) as start) as w
        where num_nonnulls(f.requests, f.tokens, f.spend_usd, f.warn_requests, f.warn_tokens, f.warn_spend_usd) > 0
    );
end
$$;

-- One statement, and then loops: over the few rows that a request falls under they cost a quarter of what a query of joins does (40 and 160 µs).
create or replace function gateway.applicable_limits(
    p_key_id bigint, p_customer_id bigint, p_model_ids bigint[], p_service_ids bigint[], p_time_zone text, p_at timestamptz,
    p_maker_key_ids bigint[]
) returns gateway.limit_state[]
language plpgsql stable set search_path = ''
as $$
declare
    v_settings gateway.settings;
    v_rows gateway.limits[];
    v_row gateway.limits;
    v_own gateway.limits;  -- the key's row of a minute, over all models
    v_exact gateway.limits;
    v_each gateway.limits;
    v_by_model boolean := false;
    v_time_zone text;
    v_start timestamptz;
    v_per text;
    v_model_id bigint;
    v_limits gateway.limit_state[] := '{}'::gateway.limit_state[];
begin
    v_rows := array(
        select l from gateway.limits as l
        where l.key_id = p_key_id or l.customer_id = p_customer_id or l.service_id = any (p_service_ids)
    );
    foreach v_row in array v_rows loop
        if v_row.model_id is not null or v_row.each_model then
            v_by_model := true;
            continue;
        end if;
        if v_row.key_id is not null and v_row.per = 'minute' then
            v_own := v_row;
        end if;
        continue when num_nonnulls(v_row.requests, v_row.tokens, v_row.spend_usd, v_row.warn_requests, v_row.warn_tokens, v_row.warn_spend_usd) = 0;
        v_time_zone := case when v_row.service_id is not null then 'UTC' else p_time_zone end;
        v_start := gateway.window_start(v_row.per, p_at, v_time_zone);
        v_limits := v_limits || (
            case when v_row.key_id is not null then 'key' when v_row.customer_id is not null then 'customer' else 'service' end,
            coalesce(v_row.key_id, v_row.customer_id, v_row.service_id), 0, v_row.per, v_start, gateway.window_end(v_row.per, v_start, v_time_zone),
            v_row.requests, v_row.tokens, v_row.spend_usd, v_row.warn_requests, v_row.warn_tokens, v_row.warn_spend_usd, 0, 0, 0, false
        )::gateway.limit_state;
    end loop;

    -- for each model by itself: the row that names it, then the key's row for each model, then the system's default, which
    -- gives way to whatever the key's own rows say of the same window
    select * into v_settings from gateway.settings;
    v_settings.default_requests_per_minute := case when v_own.requests is null then v_settings.default_requests_per_minute end;
    v_settings.default_tokens_per_minute := case when v_own.tokens is null then v_settings.default_tokens_per_minute end;
    if p_key_id is not null and (v_by_model or num_nonnulls(v_settings.default_requests_per_minute, v_settings.default_tokens_per_minute) > 0) then
        foreach v_model_id in array p_model_ids loop
            foreach v_per in array case when v_by_model then '{day,hour,minute,month}'::text[] else '{minute}'::text[] end loop
                v_exact := null;
                v_each := null;
                foreach v_row in array v_rows loop
                    if v_row.per = v_per and v_row.model_id = v_model_id then
                        v_exact := v_row;
                    elsif v_row.per = v_per and v_row.each_model then
                        v_each := v_row;
                    end if;
                end loop;
                v_exact.requests := coalesce(v_exact.requests, v_each.requests, case when v_per = 'minute' then v_settings.default_requests_per_minute end);
                v_exact.tokens := coalesce(v_exact.tokens, v_each.tokens, case when v_per = 'minute' then v_settings.default_tokens_per_minute end);
                v_exact.spend_usd := coalesce(v_exact.spend_usd, v_each.spend_usd);
                v_exact.warn_requests := coalesce(v_exact.warn_requests, v_each.warn_requests);
                v_exact.warn_tokens := coalesce(v_exact.warn_tokens, v_each.warn_tokens);
                v_exact.warn_spend_usd := coalesce(v_exact.warn_spend_usd, v_each.warn_spend_usd);
                continue when num_nonnulls(
                    v_exact.requests, v_exact.tokens, v_exact.spend_usd, v_exact.warn_requests, v_exact.warn_tokens, v_exact.warn_spend_usd) = 0;
                v_start := gateway.window_start(v_per, p_at, p_time_zone);
                v_limits := v_limits || (
                    'key', p_key_id, v_model_id, v_per, v_start, gateway.window_end(v_per, v_start, p_time_zone),
                    v_exact.requests, v_exact.tokens, v_exact.spend_usd, v_exact.warn_requests, v_exact.warn_tokens, v_exact.warn_spend_usd,
                    0, 0, 0, false
                )::gateway.limit_state;
            end loop;
        end loop;
    end if;

    if cardinality(p_maker_key_ids) > 0 then
        v_limits := v_limits || gateway.limits_of_makers(p_maker_key_ids, p_model_ids, p_time_zone, p_at);
    end if;
    if cardinality(v_limits) > 1 then
        v_limits := array(
            select l
            from unnest(v_limits) as l
            order by l.subject, l.subject_id, l.model_id, l.per
        );
    end if;
    return v_limits;
end
$$;

-- One look by the primary key for each: a join of the table with the array is planned once for any length, and then reads the whole table
-- (a quarter of all CPU at 770 counters, measured).
create or replace function gateway.lock_counters(p_limits gateway.limit_state[]) returns gateway.limit_state[]
language plpgsql set search_path = ''
as $$
declare
    v_limit gateway.limit_state;
    v_counter gateway.limit_counters;
begin
    for v_at in 1 .. cardinality(p_limits) loop
        v_limit := p_limits[v_at];
        loop
            select * into v_counter from gateway.limit_counters as c
            where c.subject = v_limit.subject and c.subject_id = v_limit.subject_id and c.model_id = v_limit.model_id and c.per = v_limit.per
            for update;
            exit when found;
            -- made, and so locked, in its turn: whoever makes the same one waits as for a lock
            insert into gateway.limit_counters (subject, subject_id, model_id, per, window_start)
            values (v_limit.subject, v_limit.subject_id, v_limit.model_id, v_limit.per, v_limit.window_start)
            on conflict do nothing;
        end loop;
        -- A request that waited for the lock over the turn of a window joins the newer one, never an older one.
        if v_counter.window_start > v_limit.window_start then
            v_limit.window_end := v_counter.window_start + (v_limit.window_end - v_limit.window_start);
            v_limit.window_start := v_counter.window_start;
        end if;
        if v_counter.window_start = v_limit.window_start then
            v_limit.used_requests := v_counter.requests;
            v_limit.used_tokens := v_counter.tokens;
            v_limit.used_spend_usd := v_counter.spend_usd;
        else
            v_limit.turned := v_counter.marked;
        end if;
        p_limits[v_at] := v_limit;
    end loop;
    return p_limits;
end
$$;

create or replace function gateway.describe_limits(p_limits gateway.limit_state[], p_at timestamptz) returns jsonb
language plpgsql stable set search_path = ''
as $$
declare
    v_limit gateway.limit_state;
    v_requests gateway.limit_state;
    v_tokens gateway.limit_state;
begin
    foreach v_limit in array coalesce(p_limits, '{}') loop
        continue when v_limit.subject = 'service';
        -- of two that leave as much, the one that lasts longer
        if (v_limit.requests - v_limit.used_requests, v_requests.window_end) < (v_requests.requests - v_requests.used_requests, v_limit.window_end)
            or (v_requests.requests is null and v_limit.requests is not null)
        then
            v_requests := v_limit;
        end if;
        if (v_limit.tokens - v_limit.used_tokens, v_tokens.window_end) < (v_tokens.tokens - v_tokens.used_tokens, v_limit.window_end)
            or (v_tokens.tokens is null and v_limit.tokens is not null)
        then
            v_tokens := v_limit;
        end if;
    end loop;
    return jsonb_build_object(
        'requests', case when v_requests.requests is not null then jsonb_build_object(
            'limit', v_requests.requests, 'remaining', greatest(v_requests.requests - v_requests.used_requests, 0),
            'reset_seconds', ceil(extract(epoch from v_requests.window_end - p_at))::bigint) end,
        'tokens', case when v_tokens.tokens is not null then jsonb_build_object(
            'limit', v_tokens.tokens, 'remaining', greatest(v_tokens.tokens - v_tokens.used_tokens, 0),
            'reset_seconds', ceil(extract(epoch from v_tokens.window_end - p_at))::bigint) end);
end
$$;

-- Those who want the rows of one customer wait here, in the order in which they came: for one lock, where a wait for a row is two, and
-- whoever comes last may get it first. Sixteen connections on one customer: 2.7 ms of CPU a pair instead of 3.3, and a standard deviation of the
-- latency of 6 ms instead of 24 (measured). Nothing relies on it: what has to be locked is locked by its row.
create function gateway.queue_for_customer(p_customer_id bigint) returns void
language plpgsql set search_path = ''
as $$
begin
    perform pg_advisory_xact_lock(5837, (p_customer_id % 2147483647)::integer);
end
$$;

comment on function gateway.queue_for_customer(bigint) is 'Waits for the transactions of the customer''s other requests, first come first served.';

revoke all on function gateway.queue_for_customer(bigint) from public;

-- api.admit_request: decides, in one transaction, whether a request may go to a provider, and holds its whole upper bound.
--
-- Returns a row either way. {"admitted": true, "request_id", "admitted_at", …, "max_output_tokens", "candidates": [the routes to
-- try, in order, with the sealed provider keys]}, or {"admitted": false, "refusal": code, …}. A refusal consumes nothing.
--
-- The hold: for each candidate, input bound × its dearest input price + output bound × its dearest output price + what is fixed,
-- with the commission (or at the flat price), rounded up; of the candidates the dearest. Tiers of a price count as far as the input bound
-- reaches. The input bound is p_input_tokens_bound or,
-- where that is null, the model's context length. The output bound is p_max_output_tokens × p_choices or, where the client named
-- none, what the model, the setting, the balance and the limits allow; below 16 the request is refused. Input that holds media
-- counts at the media classes' prices: p_media_input says so; null says that what has no p_input_tokens_bound holds media.
--
-- p_output: what the request is for, as models' output_modalities name it (text, image, embedding); a model that does not give it is
-- refused. p_output_bounds, where the provider can't be told a bound: provider -> the most that one choice takes, cut to the model's
-- max_output_tokens; providers that are not in it are not asked. A model whose output costs nothing by the token is held for without.
--
-- p_cache_write_1h: whether the request may write to a provider's cache for an hour, which is dearer; routes without a price for that are
-- not taken.
--
-- Locks, in this order: the idempotency key, the customer's queue, the limit counters (in key order), the account; where a service is to
-- be probed, its health, for which nobody waits. Everything else is only read.
-- Generic plans: through PostgREST the planner otherwise plans anew at each call, which took 1.5 ms of the 3.4 (measured). No scans of whole
-- tables: a connection plans once, and a log or counters that are empty at that moment would be read whole by every call until the next
-- analyze (a settlement took 0.8 ms at first, and 2.9 after 7,000 requests). No JIT, which the planner would think worth its while for what
-- has no index. Whatever calls the same inner functions plans them for this one, too, and forbids scans as well: api.settle_request,
-- api.expire_holds, api.read_limits and api.read_key.
create or replace function api.admit_request(
    p_key_hash text,
    p_request_id text,
    p_models text[],
    p_endpoint text,
    p_lease_seconds integer,
    p_input_tokens_bound bigint default null,
    p_max_output_tokens bigint default null,
    p_choices integer default 1,
    p_streamed boolean default false,
    p_model_id bigint default null,
    p_provider text default null,
    p_username text default null,
    p_media_output boolean default false,
    p_idempotency_key text default null,
    p_body_hash text default null,
    p_output text default 'text',
    p_media_input boolean default null,
    p_output_bounds jsonb default null,
    p_cache_write_1h boolean default false
) returns jsonb
language plpgsql security definer set search_path = '' set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off
as $$
declare
    c_least_output constant bigint := 16;
    c_most_tokens constant bigint := 1000000000000;  -- beyond any model and any balance, and far from overflow
    v_at timestamptz := clock_timestamp();
    v_key record;
    v_settings gateway.settings;
    v_requested text := left(coalesce(p_models[1], p_model_id::text, ''), 300);
    v_commission numeric;
    v_found boolean := false;
    v_allowed boolean := false;
    v_fit boolean := false;
    v_gives text[];
    v_routed boolean := false;
    v_candidate gateway.candidate;
    v_resolved gateway.candidate[] := '{}'::gateway.candidate[];
    v_candidates gateway.candidate[] := '{}'::gateway.candidate[];
    v_idempotency gateway.idempotency_keys;
    v_idempotency_is_new boolean := false;
    v_limits gateway.limit_state[];
    v_limit gateway.limit_state;
    v_account gateway.accounts;
    v_free numeric;
    v_rate_in numeric;
    v_rate_out numeric;
    v_fixed numeric;
    v_bound bigint;
    v_least bigint;
    v_tokens bigint;
    v_requests_left bigint;
    v_tokens_left bigint;
    v_spend_left numeric;
    v_cost_left numeric;
    v_reason jsonb;
    v_refusal jsonb;
    v_hold numeric := 0;
    v_model_ids bigint[] := '{}'::bigint[];
    v_service_ids bigint[] := '{}'::bigint[];
    v_reserved gateway.limit_state[] := '{}'::gateway.limit_state[];
    v_counted gateway.counted[] := '{}'::gateway.counted[];
    v_spend numeric;
    v_marked boolean := false;
    v_warnings text[] := '{}'::text[];
    v_routes jsonb := '[]'::jsonb;
    v_told jsonb := '[]'::jsonb;
    v_input_bound bigint;
    v_output_bound bigint;
begin
    -- In SQL an absent bound passes every comparison: it has to be refused here or it would hold nothing.
    if p_choices is null or p_choices < 1 or p_max_output_tokens < 0 or p_input_tokens_bound < 0 or p_lease_seconds is null
        or p_output is null
    then
        raise exception 'choices, tokens and lease are to be numbers, not negative ones' using errcode = 'invalid_parameter_value';
    end if;
    if p_max_output_tokens > c_most_tokens / p_choices then
        p_max_output_tokens := c_most_tokens / p_choices;
    end if;
    if p_input_tokens_bound > c_most_tokens then
        p_input_tokens_bound := c_most_tokens;
    end if;

    select k.id, k.customer_id, k.prefix, k.scopes, k.allowed_models, k.allowed_services, k.active, k.expires_at, k.maker_key_ids,
        c.active as customer_active, c.username, c.time_zone, c.low_balance_usd
    into v_key
    from gateway.api_keys as k
    left join gateway.customers as c on c.id = k.customer_id
    where k.secret_hash = decode(p_key_hash, 'hex');
    if v_key.id is null then  -- a secret that was replaced, in its grace
        select k.id, k.customer_id, k.prefix, k.scopes, k.allowed_models, k.allowed_services, k.active, k.expires_at, k.maker_key_ids,
            c.active as customer_active, c.username, c.time_zone, c.low_balance_usd
        into v_key
        from gateway.retired_secrets as r
        join gateway.api_keys as k on k.id = r.key_id
        left join gateway.customers as c on c.id = k.customer_id
        where r.secret_hash = decode(p_key_hash, 'hex') and r.expires_at > v_at;
    end if;

    <<admission>>
    begin
        if v_key.id is null then
            return jsonb_build_object('admitted', false, 'refusal', 'unknown_key');
        elsif v_key.active is not true then
            v_refusal := jsonb_build_object('refusal', 'inactive_key');
            exit admission;
        elsif v_key.expires_at <= v_at then
            v_refusal := jsonb_build_object('refusal', 'expired_key');
            exit admission;
        elsif v_key.customer_id is null or not 'chat' = any (v_key.scopes) then
            v_refusal := jsonb_build_object('refusal', 'scope_missing', 'scope', 'chat');
            exit admission;
        elsif p_username is not null and p_username is distinct from v_key.username then
            v_refusal := jsonb_build_object('refusal', 'wrong_user');
            exit admission;
        elsif not v_key.customer_active then
            v_refusal := jsonb_build_object('refusal', 'customer_suspended');
            exit admission;
        end if;

        select * into v_settings from gateway.settings;
        v_commission := 1 + v_settings.commission_percent * 0.01;

        foreach v_candidate in array gateway.resolve_candidates(
            p_models, p_model_id, p_provider, v_key.allowed_services, coalesce(p_media_input, p_input_tokens_bound is null), p_media_output)
        loop
            v_found := true;
            continue when v_key.allowed_models is not null and not v_candidate.model_id = any (v_key.allowed_models);
            v_allowed := true;
            if not p_output = any (v_candidate.output_modalities) then
                v_gives := coalesce(v_gives, v_candidate.output_modalities);
                continue;
            end if;
            v_fit := true;
            continue when v_candidate.route_id is null or not p_output_bounds ? v_candidate.provider;
            v_routed := true;
            continue when v_candidate.prices is null;
            if p_cache_write_1h then
                if not v_candidate.prices ? 'cache_write_1h' then
                    v_reason := coalesce(v_reason, jsonb_build_object('refusal', 'cache_write_1h_not_priced', 'model', v_candidate.model_name));
                    continue;
                end if;
                v_candidate.input_rate := greatest(v_candidate.input_rate, (v_candidate.prices ->> 'cache_write_1h')::numeric * 0.000001);
            end if;
            -- several texts to embed, and several images, are each read in a context of its own
            v_candidate.input_bound := case
                when p_output = 'text' or p_input_tokens_bound is null then least(p_input_tokens_bound, v_candidate.context_length)
                else p_input_tokens_bound
            end;
            if v_candidate.input_bound is null then
                v_reason := coalesce(v_reason, jsonb_build_object('refusal', 'input_unbounded', 'model', v_candidate.model_name));
                continue;
            end if;
            if v_candidate.prices ? 'tiers' then
                v_candidate := gateway.reach_tiers(
                    v_candidate, coalesce(p_media_input, p_input_tokens_bound is null), p_media_output, p_cache_write_1h);
            end if;
            v_resolved := v_resolved || v_candidate;
            if v_candidate.model_id <> all (v_model_ids) then
                v_model_ids := v_model_ids || v_candidate.model_id;
            end if;
            if v_candidate.service_id <> all (v_service_ids) then
                v_service_ids := v_service_ids || v_candidate.service_id;
            end if;
        end loop;
        if cardinality(v_resolved) = 0 then
            v_refusal := case
                when not v_found then jsonb_build_object('refusal', 'model_not_found')
                when not v_allowed then jsonb_build_object('refusal', 'model_not_allowed')
                when not v_fit then jsonb_build_object('refusal', 'model_wrong_output', 'output', p_output, 'output_modalities', v_gives)
                when not v_routed then jsonb_build_object('refusal', 'model_not_served')
                else coalesce(v_reason, jsonb_build_object('refusal', 'model_not_priced'))
            end || jsonb_build_object('model', v_requested);
            exit admission;
        end if;

        v_reason := null;  -- of a candidate that could not be considered; what refuses those that could is of more use

        if p_idempotency_key is not null then
            perform set_config('gateway.engine', 'on', true);
            loop
                insert into gateway.idempotency_keys (key_id, idempotency_key, body_hash, request_id)
                values (v_key.id, p_idempotency_key, decode(p_body_hash, 'hex'), p_request_id)
                on conflict do nothing;
                v_idempotency_is_new := found;
                exit when v_idempotency_is_new;
                select * into v_idempotency from gateway.idempotency_keys
                where key_id = v_key.id and idempotency_key = p_idempotency_key
                for update;
                exit when found;  -- else it was forgotten in between
            end loop;
            -- one that is free is taken over below, when nothing can refuse the request any more
            if not v_idempotency_is_new and not v_idempotency.freed and v_idempotency.created_at >= v_at - interval '24 hours' then
                v_refusal := jsonb_build_object('refusal', case
                    when v_idempotency.body_hash is distinct from decode(p_body_hash, 'hex') then 'idempotency_mismatch'
                    when v_idempotency.charged then 'idempotency_reused'
                    else 'idempotency_running'
                end, 'first_request_id', v_idempotency.request_id);
                exit admission;
            end if;
        end if;

        v_limits := gateway.applicable_limits(
            v_key.id, v_key.customer_id, v_model_ids, v_service_ids, v_key.time_zone, v_at, v_key.maker_key_ids);
        perform gateway.queue_for_customer(v_key.customer_id);
        if cardinality(v_limits) > 0 then
            v_limits := gateway.lock_counters(v_limits);
        end if;
        select * into v_account from gateway.accounts where customer_id = v_key.customer_id for update;
        v_free := v_account.balance_usd - v_account.held_usd;
        if v_account.debt_usd > 0 then
            v_refusal := jsonb_build_object('refusal', 'customer_in_debt', 'debt_usd', gateway.show_usd(v_account.debt_usd));
            exit admission;
        end if;

        foreach v_candidate in array v_resolved loop
            -- what the limits leave to this candidate: those of the key and the customer, of the key and its model, of its service,
            -- whose spending limit is on its cost
            v_requests_left := null;
            v_tokens_left := null;
            v_spend_left := null;
            v_cost_left := null;
            foreach v_limit in array v_limits loop
                continue when v_limit.subject = 'service' and v_limit.subject_id <> v_candidate.service_id;
                continue when v_limit.model_id not in (0, v_candidate.model_id);
                v_requests_left := least(v_requests_left, v_limit.requests - v_limit.used_requests);
                v_tokens_left := least(v_tokens_left, v_limit.tokens - v_limit.used_tokens);
                if v_limit.subject = 'service' then
                    v_cost_left := least(v_cost_left, v_limit.spend_usd - v_limit.used_spend_usd);
                else
                    v_spend_left := least(v_spend_left, v_limit.spend_usd - v_limit.used_spend_usd);
                end if;
            end loop;

            if p_media_output then  -- an image for each choice
                v_candidate.fixed_usd := v_candidate.fixed_usd + p_choices * coalesce((v_candidate.prices ->> 'per_image')::numeric, 0);
            end if;
            v_rate_in := v_candidate.input_rate * v_commission;
            v_rate_out := v_candidate.output_rate * v_commission;
            if v_settings.billing_mode = 'flat' then
                v_rate_in := v_settings.flat_usd_per_1k_tokens * 0.001;
                v_rate_out := v_rate_in;
            end if;
            v_fixed := v_candidate.fixed_usd * v_commission + v_candidate.input_bound * v_rate_in;

            if p_output_bounds is not null then
                v_candidate.output_bound := case
                    when v_candidate.output_rate = 0 then 0
                    else least((p_output_bounds ->> v_candidate.provider)::bigint, v_candidate.max_output_tokens)
                end;
                if (p_output_bounds ->> v_candidate.provider) is null or v_candidate.output_bound not between 0 and c_most_tokens / p_choices then
                    raise exception 'output bounds are to be numbers, not negative ones' using errcode = 'invalid_parameter_value';
                end if;
            elsif p_max_output_tokens is not null then
                v_candidate.output_bound := p_max_output_tokens;
            else
                v_candidate.output_bound := least(v_bound, v_candidate.max_output_tokens, v_settings.default_max_output_tokens);
                v_least := least(c_least_output, v_candidate.output_bound);
                v_candidate.output_bound := greatest(v_least, least(
                    v_candidate.output_bound,
                    div(v_tokens_left - v_candidate.input_bound, p_choices),
                    case when v_rate_out > 0 then div(least(v_free, v_spend_left) - v_fixed, v_rate_out * p_choices) end));
            end if;
            v_tokens := v_candidate.input_bound + v_candidate.output_bound * p_choices;
            v_candidate.hold_usd := gateway.round_up_usd(v_fixed + v_candidate.output_bound * p_choices * v_rate_out);
            v_candidate.cost_bound_usd := gateway.round_up_usd(
                v_candidate.fixed_usd + v_candidate.input_bound * v_candidate.input_rate
                + v_candidate.output_bound * p_choices * v_candidate.output_rate);

            if v_requests_left < 1 or v_tokens > v_tokens_left
                or (v_candidate.hold_usd > v_spend_left and v_candidate.hold_usd > 0)
                or (v_candidate.cost_bound_usd > v_cost_left and v_candidate.cost_bound_usd > 0) then
                v_reason := coalesce(v_reason, gateway.describe_excess(
                    v_limits, v_candidate.service_id, v_candidate.model_id, v_tokens, v_candidate.hold_usd, v_candidate.cost_bound_usd, v_at));
                continue;
            elsif v_candidate.hold_usd > v_free then
                v_reason := coalesce(v_reason, jsonb_build_object(
                    'refusal', 'insufficient_credits',
                    'needed_usd', gateway.show_usd(v_candidate.hold_usd),
                    'available_usd', gateway.show_usd(v_free),
                    'affordable_output_tokens', case
                        when v_rate_out > 0 and p_output_bounds is null
                            then greatest(least(div(v_free - v_fixed, v_rate_out * p_choices), v_candidate.output_bound), 0)::bigint
                        else 0
                    end));
                continue;
            end if;

            -- the first candidate that fits sets the bound; a dearer one further down is kept if it can be afforded at that
            v_bound := coalesce(v_bound, v_candidate.output_bound);
            v_hold := greatest(v_hold, v_candidate.hold_usd);
            v_candidates := v_candidates || v_candidate;
        end loop;
        if cardinality(v_candidates) = 0 then
            v_refusal := v_reason;
            exit admission;
        end if;
    end admission;

    if v_refusal is not null then
        -- It consumed nothing: what a crash may take of it, a count and a line of the log, is not worth waiting for the disk.
        perform set_config('synchronous_commit', 'off', true);
        if v_idempotency_is_new then
            delete from gateway.idempotency_keys
            where key_id = v_key.id and idempotency_key = p_idempotency_key;
        end if;
        perform set_config('gateway.engine', 'on', true);
        if v_key.customer_id is not null then
            perform gateway.record_refusal(p_request_id, v_key.customer_id, v_key.id, v_requested, p_endpoint, p_streamed, v_refusal ->> 'refusal');
        end if;
        -- not a call that is merely too dear: one for whose least answer there is no money
        if v_refusal ->> 'refusal' = 'customer_in_debt'
            or (v_refusal ->> 'refusal' = 'insufficient_credits' and (v_refusal ->> 'affordable_output_tokens')::bigint < c_least_output)
        then
            perform gateway.record_exhaustion(v_account, v_refusal);
        end if;
        perform set_config('gateway.engine', 'off', true);
        return v_refusal || jsonb_build_object(
            'admitted', false, 'key_prefix', v_key.prefix, 'rate_limits', gateway.describe_limits(v_limits, v_at));
    end if;

    -- a service that was set aside is probed by one request, and by others only if nothing else is left
    for v_turn in 2 .. cardinality(v_candidates) loop
        exit when not v_candidates[1].probe_due
            or gateway.begin_probe(v_candidates[1].service_id, v_candidates[1].route_id, v_at);
        v_candidates := v_candidates[2:] || v_candidates[1];
    end loop;

    perform set_config('gateway.engine', 'on', true);
    if p_idempotency_key is not null and not v_idempotency_is_new then
        update gateway.idempotency_keys
        set body_hash = decode(p_body_hash, 'hex'), request_id = p_request_id, charged = false, freed = false, created_at = v_at
        where key_id = v_key.id and idempotency_key = p_idempotency_key;
    end if;
    foreach v_limit in array v_limits loop
        -- a limit of a model or a service reserves what its own candidates may use; the settlement gives back what they did not
        v_tokens := null;
        v_spend := null;
        foreach v_candidate in array v_candidates loop
            if (v_limit.subject <> 'service' or v_candidate.service_id = v_limit.subject_id) and v_limit.model_id in (0, v_candidate.model_id) then
                v_tokens := greatest(v_tokens, v_candidate.input_bound + v_candidate.output_bound * p_choices);
                v_spend := greatest(v_spend, case when v_limit.subject = 'service' then v_candidate.cost_bound_usd else v_candidate.hold_usd end);
            end if;
        end loop;
        continue when v_tokens is null;
        if v_limit.turned then  -- what still runs of the window that has passed is yet to be seen (record_crossings.sql)
            insert into gateway.turned_windows (subject, subject_id, model_id, per, window_start, requests, tokens, spend_usd)
            select c.subject, c.subject_id, c.model_id, c.per, c.window_start, c.requests, c.tokens, c.spend_usd
            from gateway.limit_counters as c
            where c.subject = v_limit.subject and c.subject_id = v_limit.subject_id and c.model_id = v_limit.model_id and c.per = v_limit.per
                and c.marked and c.window_start < v_limit.window_start
            on conflict do nothing;
        end if;
        update gateway.limit_counters as c
        set requests = case when c.window_start = v_limit.window_start then c.requests else 0 end + 1,
            tokens = case when c.window_start = v_limit.window_start then c.tokens else 0 end + v_tokens,
            spend_usd = case when c.window_start = v_limit.window_start then c.spend_usd else 0 end + v_spend,
            window_start = v_limit.window_start,
            marked = c.marked and c.window_start = v_limit.window_start
        where c.subject = v_limit.subject and c.subject_id = v_limit.subject_id and c.model_id = v_limit.model_id and c.per = v_limit.per;
        v_counted := v_counted || (
            v_limit.subject, v_limit.subject_id, v_limit.model_id, v_limit.per, v_limit.window_start, 1, v_tokens, v_spend)::gateway.counted;
        -- what the client is told counts this request
        v_limit.used_requests := v_limit.used_requests + 1;
        v_limit.used_tokens := v_limit.used_tokens + v_tokens;
        v_limit.used_spend_usd := v_limit.used_spend_usd + v_spend;
        v_reserved := v_reserved || v_limit;
        if v_limit.used_requests > v_limit.warn_requests or v_limit.used_tokens > v_limit.warn_tokens
            or v_limit.used_spend_usd > v_limit.warn_spend_usd
        then
            v_marked := true;
            if v_limit.subject <> 'service' then
                v_warnings := v_warnings || array_remove(array[
                    case when v_limit.used_requests > v_limit.warn_requests then 'requests_per_' || v_limit.per end,
                    case when v_limit.used_tokens > v_limit.warn_tokens then 'tokens_per_' || v_limit.per end,
                    case when v_limit.used_spend_usd > v_limit.warn_spend_usd then 'spend_usd_per_' || v_limit.per end
                ], null);
            end if;
        end if;
    end loop;
    v_limits := v_reserved;

    update gateway.accounts
    set held_usd = held_usd + v_hold, low_mark_usd = coalesce(v_key.low_balance_usd, v_settings.low_balance_usd)
    where customer_id = v_key.customer_id;

    foreach v_candidate in array v_candidates loop
        v_input_bound := greatest(v_input_bound, v_candidate.input_bound);
        v_output_bound := greatest(v_output_bound, v_candidate.output_bound);
        v_routes := v_routes || jsonb_build_object(
            'route_id', v_candidate.route_id, 'service_id', v_candidate.service_id, 'model_id', v_candidate.model_id,
            'provider', v_candidate.provider, 'upstream_model', v_candidate.upstream_model, 'prices', v_candidate.prices);
        v_told := v_told || jsonb_build_object(
            'route_id', v_candidate.route_id, 'service_id', v_candidate.service_id, 'service_name', v_candidate.service_name,
            'provider', v_candidate.provider, 'base_url', v_candidate.base_url, 'provider_key', v_candidate.provider_key,
            'model', v_candidate.model_name, 'upstream_model', v_candidate.upstream_model, 'max_output_tokens', v_candidate.output_bound);
    end loop;
    insert into gateway.requests (
        id, admitted_at, customer_id, key_id, model_id, requested_model, endpoint, streamed, state, hold_usd, lease_until,
        input_tokens_bound, output_tokens_bound, billing_mode, commission_percent, flat_usd_per_1k_tokens, routes, counted, idempotency_key)
    values (
        p_request_id, v_at, v_key.customer_id, v_key.id, v_candidates[1].model_id, v_requested, p_endpoint, p_streamed, 'held', v_hold,
        v_at + make_interval(secs => p_lease_seconds), v_input_bound, v_output_bound * p_choices,
        v_settings.billing_mode, v_settings.commission_percent, v_settings.flat_usd_per_1k_tokens, v_routes, v_counted, p_idempotency_key);
    perform set_config('gateway.engine', 'off', true);

    if v_marked then
        v_warnings := array(select distinct w from unnest(v_warnings) as w order by w);
        -- from here on the settlements of the window look whether what is really used is beyond the mark, too (record_crossings.sql)
        update gateway.limit_counters as c
        set marked = true
        from unnest(v_limits) as l
        where (c.subject, c.subject_id, c.model_id, c.per) = (l.subject, l.subject_id, l.model_id, l.per) and not c.marked
            and (l.used_requests > l.warn_requests or l.used_tokens > l.warn_tokens or l.used_spend_usd > l.warn_spend_usd);
        -- requests are used by being admitted, but where another model may answer, whose counter would keep this one instead
        for v_limit in
            select * from unnest(v_limits) as l
            where l.subject <> 'service' and l.used_requests > l.warn_requests and l.used_requests - 1 <= l.warn_requests
                and (l.model_id = 0 or not exists (select from unnest(v_candidates) as c where c.model_id <> l.model_id))
        loop
            perform gateway.record_crossing(
                v_limit.subject, v_limit.subject_id, v_limit.model_id, v_limit.per, v_limit.window_start,
                'requests', v_limit.warn_requests, v_limit.used_requests);
        end loop;
    end if;

    return jsonb_build_object(
        'admitted', true,
        'request_id', p_request_id,
        'admitted_at', v_at,
        'key_id', v_key.id,
        'key_prefix', v_key.prefix,
        'customer_id', v_key.customer_id,
        'max_output_tokens', v_bound,
        'unsupported_parameters', v_settings.unsupported_parameters,
        'hold_usd', gateway.show_usd(v_hold),
        'rate_limits', gateway.describe_limits(v_limits, v_at),
        'warnings', to_jsonb(v_warnings),
        'candidates', v_told);
end
$$;

create or replace function gateway.add_to_rollup(
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

create or replace function gateway.describe_settlement(p_request gateway.requests, p_tokens bigint, p_balance_usd numeric, p_already boolean) returns jsonb
language plpgsql stable set search_path = ''
as $$
declare
    v_credit_value_usd numeric;
begin
    select credit_value_usd into v_credit_value_usd from gateway.settings;
    return jsonb_build_object(
        'status', 'settled',
        'already', p_already,
        'request_id', p_request.id,
        'billing_mode', p_request.billing_mode,
        'tokens_charged', p_tokens,
        'cost_usd', gateway.show_usd(p_request.cost_usd),
        'charge_usd', gateway.show_usd(p_request.charge_usd),
        'uncollected_usd', gateway.show_usd(p_request.uncollected_usd),
        'credits_charged', gateway.show_credits(p_request.charge_usd, v_credit_value_usd),
        'balance_after_usd', gateway.show_usd(p_balance_usd),
        'credits_after', gateway.show_credits(p_balance_usd, v_credit_value_usd));
end
$$;

create or replace function gateway.tame_usage(p_usage jsonb) returns jsonb
language plpgsql immutable set search_path = ''
as $$
begin
    -- whole numbers of up to twelve digits, as they nearly always are: a tenth of the time
    if p_usage::text ~ '^\{("\w+": \d{1,12}(, )?)*\}$' then
        return p_usage;
    end if;
    return (
        select coalesce(jsonb_object_agg(u.key, least(greatest(u.value::numeric, 0), 1000000000000)::bigint), '{}')
        from jsonb_each_text(p_usage) as u
        where u.value is not null
    );
end
$$;

-- api.settle_request: ends a request, once. Charges what was used at the prices that the route was admitted under, frees the hold,
-- corrects the counters of the windows that admitted it, writes ledger and rollup.
--
-- p_settlement: {"request_id", "admitted_at", "outcome": succeeded | failed | cancelled | cut, "route_id": of the route that
-- answered, "usage": tokens by disjoint class, or null if nothing is to be charged, "usage_estimated", "status", "error_code",
-- "finish_reason", "latency_ms", "time_to_first_token_ms", "provider_request_id", "provider_cost_usd", "failed_routes"}.
-- failed_routes: the routes that were tried in vain, in their order: {"route_id", "service_id", "status", "fault", "after_ms", "retry_after"}.
-- The whole of it in one document, so that a settlement that could not be made can be kept and replayed as it is.
--
-- Idempotent: a second call changes nothing and answers the same with "already": true. A hold that expired meanwhile is settled
-- late, once, by an adjustment. Never fails for money: what the balance can't give is booked as uncollected_usd, and what a provider
-- claims beyond all measure is cut to what the books can hold.
-- {"status": "unknown_request"} where there is no such request.
-- Locks, in this order: the request, its idempotency key, the customer's queue, the limit counters (in key order), the account, the health
-- of services (only where one has failed).
-- Generic plans and no scans, as for api.admit_request: 1.5 -> 1.0 ms a call.
create or replace function api.settle_request(p_settlement jsonb) returns jsonb
language plpgsql security definer set search_path = '' set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off
as $$
declare
    c_most_usd constant numeric := 9999999999.9999999999;
    v_request gateway.requests;
    v_first_model_id bigint;
    v_usage jsonb := case when p_settlement -> 'usage' <> 'null' then gateway.tame_usage(p_settlement -> 'usage') end;
    v_claimed_usd numeric := (p_settlement ->> 'provider_cost_usd')::numeric;
    v_route jsonb;
    v_tokens bigint;
    v_late boolean;
    v_release numeric;
    v_corrections gateway.counted[] := '{}'::gateway.counted[];
    v_counted gateway.counted;
    v_used boolean;
    v_exact_tokens numeric;
    v_exact_fixed numeric;
    v_commission numeric;
    v_account gateway.accounts;
    v_before numeric;
    v_due numeric;
    v_take numeric;
    v_paid numeric := 0;
    v_asked_again boolean := false;
    v_outcome text := p_settlement ->> 'outcome';
begin
    select * into v_request
    from gateway.requests
    where id = p_settlement ->> 'request_id' and admitted_at = (p_settlement ->> 'admitted_at')::timestamptz and state <> 'refused'
    for update;
    if v_request.id is null then
        return jsonb_build_object('status', 'unknown_request');
    end if;
    if v_request.state = 'settled' then
        return gateway.describe_settlement(
            v_request,
            coalesce(v_request.input_tokens, 0) + coalesce(v_request.cached_input_tokens, 0) + coalesce(v_request.cache_write_tokens, 0)
            + coalesce(v_request.audio_input_tokens, 0) + coalesce(v_request.image_input_tokens, 0) + coalesce(v_request.output_tokens, 0)
            + coalesce(v_request.audio_output_tokens, 0) + coalesce(v_request.image_output_tokens, 0),
            (select balance_usd from gateway.accounts where customer_id = v_request.customer_id),
            true);
    end if;
    v_first_model_id := v_request.model_id;
    v_late := v_request.state = 'expired';
    v_release := case when v_late then 0 else v_request.hold_usd end;
    v_before := v_request.collected_usd;  -- what an expired hold was charged, where the policy is to charge

    if v_usage is not null then
        select r into v_route
        from jsonb_array_elements(v_request.routes) as r
        where (r ->> 'route_id')::bigint = (p_settlement ->> 'route_id')::bigint;
        if v_route is null then
            raise exception 'request % was not admitted to this route', v_request.id using errcode = 'invalid_parameter_value';
        end if;
        v_exact_tokens := gateway.tokens_cost_usd(v_route -> 'prices', v_usage);
        v_exact_fixed := gateway.fixed_cost_usd(v_route -> 'prices', v_usage);
        v_commission := 1 + v_request.commission_percent * 0.01;
        v_tokens := gateway.total_tokens(v_usage);
        v_request.cost_usd := least(gateway.round_up_usd(v_exact_tokens + v_exact_fixed), c_most_usd);
        v_request.charge_usd := least(gateway.round_up_usd(case v_request.billing_mode
            when 'flat' then v_tokens * v_request.flat_usd_per_1k_tokens * 0.001 + v_exact_fixed * v_commission
            else (v_exact_tokens + v_exact_fixed) * v_commission
        end), c_most_usd);
        v_request.model_id := (v_route ->> 'model_id')::bigint;
        v_request.service_id := (v_route ->> 'service_id')::bigint;
    else
        v_tokens := 0;
        v_request.cost_usd := 0;
        v_request.charge_usd := 0;
    end if;
    v_due := v_request.charge_usd - v_before;

    perform set_config('gateway.engine', 'on', true);
    -- Before what others wait for, and so as if all that is due could be taken: it nearly always can.
    v_request.collected_usd := v_request.charge_usd;
    v_request.uncollected_usd := 0;
    update gateway.requests
    set state = 'settled', outcome = v_outcome,
        model_id = v_request.model_id, service_id = v_request.service_id,
        cost_usd = v_request.cost_usd, charge_usd = v_request.charge_usd,
        collected_usd = v_request.collected_usd, uncollected_usd = v_request.uncollected_usd,
        input_tokens = (v_usage ->> 'input')::bigint, cached_input_tokens = (v_usage ->> 'cached_input')::bigint,
        cache_write_tokens = (v_usage ->> 'cache_write')::bigint, audio_input_tokens = (v_usage ->> 'audio_input')::bigint,
        image_input_tokens = (v_usage ->> 'image_input')::bigint, output_tokens = (v_usage ->> 'output')::bigint,
        reasoning_tokens = (v_usage ->> 'reasoning')::bigint, audio_output_tokens = (v_usage ->> 'audio_output')::bigint,
        image_output_tokens = (v_usage ->> 'image_output')::bigint, images = (v_usage ->> 'images')::bigint,
        cache_write_1h_tokens = (v_usage ->> 'cache_write_1h')::bigint,
        usage_estimated = coalesce((p_settlement ->> 'usage_estimated')::boolean, false),
        failed_routes = nullif(p_settlement -> 'failed_routes', 'null'),
        status = (p_settlement ->> 'status')::integer, error_code = p_settlement ->> 'error_code',
        finish_reason = p_settlement ->> 'finish_reason',
        latency_ms = (p_settlement ->> 'latency_ms')::integer,
        time_to_first_token_ms = (p_settlement ->> 'time_to_first_token_ms')::integer,
        provider_request_id = p_settlement ->> 'provider_request_id',
        provider_cost_usd = case when abs(v_claimed_usd) <= c_most_usd then v_claimed_usd end,
        settled_at = clock_timestamp()
    where id = v_request.id and admitted_at = v_request.admitted_at;
    if v_request.idempotency_key is not null then
        -- Its own key, or one that its expiry freed and that nobody has taken since or has failed with. Kept when it is freed: a hold that
        -- expired under it may still be charged, and must then be found by the next one who asks.
        update gateway.idempotency_keys
        set request_id = v_request.id, charged = v_usage is not null, freed = v_usage is null
        where (key_id, idempotency_key) = (v_request.key_id, v_request.idempotency_key) and (request_id = v_request.id or freed);
        -- or else the client has asked again meanwhile: it is not to pay twice
        v_asked_again := not found and exists (
            select from gateway.idempotency_keys as i
            where (i.key_id, i.idempotency_key) = (v_request.key_id, v_request.idempotency_key)
        );
    end if;
    perform gateway.queue_for_customer(v_request.customer_id);
    if cardinality(v_request.counted) > 0 then
        -- limits of a model or a service that did not answer get everything back; the first model keeps a failed request's count
        foreach v_counted in array v_request.counted loop
            v_used := case
                when v_counted.subject = 'service' then v_counted.subject_id is not distinct from v_request.service_id
                else v_counted.model_id in (0, v_request.model_id)
            end;
            v_counted.requests := case when v_used then 0 else -v_counted.requests end;
            v_counted.tokens := case when v_used then v_tokens else 0 end - v_counted.tokens;
            v_counted.spend_usd := case
                when not v_used then 0
                when v_counted.subject = 'service' then v_request.cost_usd
                else v_request.charge_usd
            end - v_counted.spend_usd;
            v_corrections := v_corrections || v_counted;
        end loop;
        perform gateway.correct_counters(v_corrections);
    end if;

    v_take := v_due;
    -- as nearly always: what is due is there, and nothing is owed
    update gateway.accounts
    set balance_usd = balance_usd - v_due, held_usd = held_usd - v_release
    where customer_id = v_request.customer_id and debt_usd = 0 and balance_usd - held_usd + v_release >= v_due
        and not (v_late and v_asked_again)
    returning * into v_account;
    if not found then
        select * into v_account from gateway.accounts where customer_id = v_request.customer_id for update;
        v_take := least(v_due, v_account.balance_usd - v_account.held_usd + v_release);
        if v_late and v_asked_again then
            v_take := least(v_take, 0);
        end if;
        if v_account.debt_usd > 0 then  -- it gets what is released
            v_paid := least(v_account.debt_usd, v_account.balance_usd - v_account.held_usd + v_release - v_take);
        end if;
        update gateway.accounts
        set balance_usd = balance_usd - v_take - v_paid, held_usd = held_usd - v_release, debt_usd = debt_usd - v_paid
        where customer_id = v_request.customer_id
        returning * into v_account;
    end if;
    if v_take <> 0 then
        insert into gateway.ledger_entries (customer_id, kind, amount_usd, balance_after_usd, request_id, actor)
        values (v_request.customer_id, case when v_late then 'late_settlement' else 'charge' end, -v_take, v_account.balance_usd + v_paid, v_request.id, 'gateway');
    end if;
    if v_paid > 0 then
        insert into gateway.ledger_entries (customer_id, kind, amount_usd, balance_after_usd, debt_change_usd, actor)
        values (v_request.customer_id, 'debt_payment', -v_paid, v_account.balance_usd, -v_paid, 'gateway');
    end if;
    if v_take <> v_due then
        v_request.collected_usd := v_before + v_take;
        v_request.uncollected_usd := v_request.charge_usd - v_request.collected_usd;
        update gateway.requests
        set collected_usd = v_request.collected_usd, uncollected_usd = v_request.uncollected_usd
        where id = v_request.id and admitted_at = v_request.admitted_at;
    end if;

    if v_late then  -- what its expiry counted
        perform gateway.add_to_rollup(v_request, v_first_model_id, null, -1, -1, '{}', 0, -v_before, 0, null);
    end if;
    perform gateway.add_to_rollup(
        v_request, v_request.model_id, v_request.service_id, 1, case when v_outcome = 'failed' then 1 else 0 end, coalesce(v_usage, '{}'),
        v_request.cost_usd, v_request.charge_usd, v_request.uncollected_usd, (p_settlement ->> 'latency_ms')::integer,
        (p_settlement ->> 'time_to_first_token_ms')::integer);
    if jsonb_typeof(p_settlement -> 'failed_routes') = 'array' then
        perform gateway.add_failures(v_request, p_settlement -> 'failed_routes');
    end if;

    perform set_config('gateway.engine', 'off', true);

    if v_account.balance_usd < v_account.low_mark_usd and v_account.balance_usd + v_take + v_paid >= v_account.low_mark_usd then
        perform gateway.record_balance(v_request.customer_id, v_account.balance_usd + v_take + v_paid);
    end if;
    if v_request.uncollected_usd > 0 then
        perform gateway.record_uncollected(v_request, v_late);
    end if;
    if jsonb_typeof(p_settlement -> 'failed_routes') = 'array' then
        perform gateway.record_failures(v_request, p_settlement -> 'failed_routes', case when v_outcome = 'succeeded' then v_request.service_id end);
    end if;
    if v_outcome in ('succeeded', 'cancelled') and exists (select from gateway.service_health where service_id = v_request.service_id) then
        perform gateway.record_success(v_request.service_id, (v_route ->> 'route_id')::bigint, v_request.admitted_at + make_interval(secs => coalesce(
            (p_settlement ->> 'time_to_first_token_ms')::integer,
            case when v_outcome = 'succeeded' then (p_settlement ->> 'latency_ms')::integer end) * 0.001));
    end if;

    return gateway.describe_settlement(v_request, v_tokens, v_account.balance_usd, false);
end
$$;

-- api.expire_holds: ends the holds whose lease has run out, at most p_limit, the oldest first. By the setting expired_hold_policy they
-- are released (nothing is charged; the operator's loss) or charged whole. Either way the request can still be settled, once.
-- Returns {"expired": n, "charged_usd", "released_usd": the upper bound of what was given up}. For the maintenance function.
-- What is given up is told of by hold.expired_unsettled, one event for the whole batch: the operator may have to pay for it.
-- Skips requests that are being settled. Locks as all do, for the whole batch at a time: requests, idempotency keys, counters, accounts.
-- No scans, as for api.admit_request.
create or replace function api.expire_holds(p_limit integer default 500) returns jsonb
language plpgsql security definer set search_path = '' set enable_seqscan = off set jit = off
as $$
declare
    c_most_ids constant integer := 20;
    v_policy text := (select expired_hold_policy from gateway.settings);
    v_requests gateway.requests[];
    v_request gateway.requests;
    v_charge numeric;
    v_charged numeric := 0;
    v_released numeric := 0;
    v_account record;
begin
    v_requests := array(
        select r from gateway.requests as r
        where r.state = 'held' and r.lease_until < clock_timestamp()
        order by r.lease_until
        limit p_limit
        for update skip locked
    );
    if cardinality(v_requests) = 0 then
        return jsonb_build_object('expired', 0, 'charged_usd', '0', 'released_usd', '0');
    end if;

    perform set_config('gateway.engine', 'on', true);
    perform 1
    from gateway.idempotency_keys as i
    join unnest(v_requests) as r on (i.key_id, i.idempotency_key, i.request_id) = (r.key_id, r.idempotency_key, r.id)
    order by i.key_id, i.idempotency_key
    for update of i;
    -- what was in flight no longer is; the request itself still counts
    perform gateway.correct_counters(array(
        select (x.subject, x.subject_id, x.model_id, x.per, x.window_start, 0, -x.tokens,
                case when v_policy = 'charge' and x.subject <> 'service' then r.hold_usd else 0 end - x.spend_usd)::gateway.counted
        from unnest(v_requests) as r
        cross join unnest(r.counted) as x
    ));
    perform 1
    from gateway.accounts
    where customer_id = any (array(select r.customer_id from unnest(v_requests) as r))
    order by customer_id
    for update;

    foreach v_request in array v_requests loop
        v_charge := case when v_policy = 'charge' then v_request.hold_usd else 0 end;
        -- what is released goes to the debt
        update gateway.accounts as a
        set held_usd = a.held_usd - v_request.hold_usd, balance_usd = a.balance_usd - v_charge - d.paid_usd, debt_usd = a.debt_usd - d.paid_usd
        from (
            select customer_id, least(debt_usd, balance_usd - held_usd + v_request.hold_usd - v_charge) as paid_usd
            from gateway.accounts
            where customer_id = v_request.customer_id
        ) as d
        where a.customer_id = d.customer_id
        returning a.balance_usd, a.low_mark_usd, d.paid_usd into v_account;
        if v_charge > 0 then
            insert into gateway.ledger_entries (customer_id, kind, amount_usd, balance_after_usd, request_id, note, actor)
            values (v_request.customer_id, 'charge', -v_charge, v_account.balance_usd + v_account.paid_usd, v_request.id, 'hold expired', 'gateway');
        end if;
        if v_account.paid_usd > 0 then
            insert into gateway.ledger_entries (customer_id, kind, amount_usd, balance_after_usd, debt_change_usd, actor)
            values (v_request.customer_id, 'debt_payment', -v_account.paid_usd, v_account.balance_usd, -v_account.paid_usd, 'gateway');
        end if;
        if v_account.balance_usd < v_account.low_mark_usd then
            perform gateway.record_balance(v_request.customer_id, v_account.balance_usd + v_charge + v_account.paid_usd);
        end if;
        v_charged := v_charged + v_charge;
        v_released := v_released + v_request.hold_usd - v_charge;
        if v_request.idempotency_key is not null then
            update gateway.idempotency_keys set charged = v_charge > 0, freed = v_charge = 0
            where (key_id, idempotency_key, request_id) = (v_request.key_id, v_request.idempotency_key, v_request.id);
        end if;
        perform gateway.add_to_rollup(v_request, v_request.model_id, null, 1, 1, '{}', 0, v_charge, 0, null);
        update gateway.requests
        set state = 'expired', charge_usd = v_charge, collected_usd = v_charge, error_code = 'hold_expired', settled_at = clock_timestamp(),
            -- a late settlement corrects from what is counted now
            counted = array(
                select (x.subject, x.subject_id, x.model_id, x.per, x.window_start, x.requests, 0,
                        case when x.subject <> 'service' then v_charge else 0 end)::gateway.counted
                from unnest(v_request.counted) as x)
        where id = v_request.id and admitted_at = v_request.admitted_at;
    end loop;
    perform set_config('gateway.engine', 'off', true);
    if v_released > 0 then
        perform gateway.raise_event('hold.expired_unsettled', 'holds', (
            select jsonb_build_object(
                'holds', count(*), 'customers', count(distinct r.customer_id), 'released_usd', gateway.show_usd(v_released),
                'first_admitted_at', min(r.admitted_at), 'last_admitted_at', max(r.admitted_at),
                'request_ids', (array_agg(r.id order by r.admitted_at))[:c_most_ids])
            from unnest(v_requests) as r
        ));
    end if;
    return jsonb_build_object('expired', cardinality(v_requests), 'charged_usd', gateway.show_usd(v_charged), 'released_usd', gateway.show_usd(v_released));
end
$$;

-- api.read_limits: the limits that a key (p_key_id null: the customer's keys together) falls under now, and whether admission would let its next
-- request pass, however small.
--
-- {"time_zone", "limits": {"requests_per_minute": {"limit", "used", "mark": its soft mark or null}, …}, "reset_times": {"minute", "hour", "day", "month"},
--  "refusal": null | what api.admit_request would refuse with}; null where there is no such customer or key.
--
-- limits: the key's own, those of the keys that made it, and the customer's; where several windows have one name, the one with the
-- least left, as in the x-ratelimit headers. Of limits for each model by itself: with p_model this model's; without, those of the models
-- that were used in the running window, and what any other model would have. So the system's default of requests per minute shows.
-- Running requests count at their bound, as they do for admission. A service's limits are the operator's affair: not shown, but obeyed.
-- refusal: without p_model of the first of these windows that is full, with the name of its model ("of_model") where it is one model's.
-- Reads only, and locks nothing: a request that runs meanwhile may change the answer. No scans, as for api.admit_request.
create or replace function api.read_limits(p_customer_id bigint, p_key_id bigint default null, p_model text default null) returns jsonb
language plpgsql stable security definer set search_path = '' set enable_seqscan = off set jit = off
as $$
declare
    c_any_other_model constant bigint := -1;
    c_least_usd constant numeric := 0.0000000001;
    v_at timestamptz := clock_timestamp();
    v_caller record;
    v_settings gateway.settings;
    v_candidate gateway.candidate;
    v_candidates gateway.candidate[] := '{}'::gateway.candidate[];
    v_found boolean := false;
    v_allowed boolean := false;
    v_routed boolean := false;
    v_model_ids bigint[] := '{}'::bigint[];
    v_model_id bigint;
    v_limits gateway.limit_state[];
    v_charge numeric;
    v_excess jsonb;
    v_refusal jsonb;
begin
    select c.id, c.time_zone, a.balance_usd - a.held_usd as free_usd, a.debt_usd,
        k.id as key_id, k.scopes, k.allowed_models, k.allowed_services, coalesce(k.maker_key_ids, '{}') as maker_key_ids
    into v_caller
    from gateway.customers as c
    join gateway.accounts as a on a.customer_id = c.id
    left join gateway.api_keys as k on k.id = p_key_id and k.customer_id = c.id
    where c.id = p_customer_id;
    if v_caller.id is null or v_caller.key_id is distinct from p_key_id then
        return null;
    end if;
    select * into v_settings from gateway.settings;

    if p_model is not null then
        foreach v_candidate in array gateway.resolve_candidates(array[p_model], null, null, v_caller.allowed_services, false, false) loop
            v_found := true;
            v_model_ids := v_model_ids || v_candidate.model_id;
            continue when v_caller.allowed_models is not null and not v_candidate.model_id = any (v_caller.allowed_models);
            v_allowed := true;
            continue when v_candidate.route_id is null;
            v_routed := true;
            continue when v_candidate.prices is null;
            v_candidates := v_candidates || v_candidate;
        end loop;
        v_refusal := case
            when not v_found then jsonb_build_object('refusal', 'model_not_found', 'model', p_model)
            when not v_allowed then jsonb_build_object('refusal', 'model_not_allowed', 'model', p_model)
            when not v_routed then jsonb_build_object('refusal', 'model_not_served', 'model', p_model)
            when cardinality(v_candidates) = 0 then jsonb_build_object('refusal', 'model_not_priced', 'model', p_model)
        end;
    elsif p_key_id is not null then
        v_model_ids := c_any_other_model || array(
            select distinct c.model_id
            from gateway.limit_counters as c
            where c.subject = 'key' and c.subject_id = any (p_key_id || v_caller.maker_key_ids) and c.model_id <> 0 and c.requests > 0
            order by c.model_id
        );
    end if;

    v_limits := gateway.read_counters(gateway.applicable_limits(
        v_caller.key_id, v_caller.id, case when p_key_id is null then '{}' else array(select distinct m from unnest(v_model_ids) as m) end,
        array(select distinct c.service_id from unnest(v_candidates) as c), v_caller.time_zone, v_at, v_caller.maker_key_ids));
    if p_model is null then
        -- a model's counter may be of a window that has passed
        v_limits := array(select l from unnest(v_limits) as l where l.model_id <= 0 or l.used_requests > 0);
    end if;

    if p_key_id is not null and not 'chat' = any (v_caller.scopes) then
        v_refusal := jsonb_build_object('refusal', 'scope_missing', 'scope', 'chat');
    elsif p_model is null then
        foreach v_model_id in array coalesce(nullif(v_model_ids, '{}'), array[c_any_other_model]) loop
            v_refusal := gateway.describe_excess(v_limits, null, v_model_id, 1, c_least_usd, c_least_usd, v_at);
            if v_refusal is not null then
                if v_model_id <> c_any_other_model then
                    v_refusal := v_refusal || jsonb_build_object('of_model', (select m.name from gateway.models as m where m.id = v_model_id));
                end if;
                exit;
            end if;
        end loop;
        if v_refusal is null and v_caller.free_usd <= 0 then
            v_refusal := jsonb_build_object(
                'refusal', 'insufficient_credits', 'needed_usd', gateway.show_usd(c_least_usd),
                'available_usd', gateway.show_usd(v_caller.free_usd), 'affordable_output_tokens', 0);
        end if;
    elsif v_refusal is null then
        -- as admission does for each candidate, for a request of one token
        foreach v_candidate in array v_candidates loop
            v_charge := gateway.round_up_usd(
                v_candidate.fixed_usd * (1 + v_settings.commission_percent * 0.01) + case v_settings.billing_mode
                    when 'flat' then v_settings.flat_usd_per_1k_tokens * 0.001
                    else v_candidate.input_rate * (1 + v_settings.commission_percent * 0.01)
                end);
            v_excess := gateway.describe_excess(
                v_limits, v_candidate.service_id, v_candidate.model_id, 1, v_charge,
                gateway.round_up_usd(v_candidate.fixed_usd + v_candidate.input_rate), v_at);
            if v_excess is null and v_charge > v_caller.free_usd then
                v_excess := jsonb_build_object(
                    'refusal', 'insufficient_credits', 'needed_usd', gateway.show_usd(v_charge),
                    'available_usd', gateway.show_usd(v_caller.free_usd), 'affordable_output_tokens', 0);
            end if;
            if v_excess is null then
                v_refusal := null;
                exit;
            end if;
            v_refusal := coalesce(v_refusal, v_excess);
        end loop;
    end if;

    if v_caller.debt_usd > 0 and coalesce(v_refusal ->> 'refusal' in ('rate_limit_exceeded', 'insufficient_credits'), true) then
        -- as admission has it: after what is wrong with key and model, before limits and money
        v_refusal := jsonb_build_object('refusal', 'customer_in_debt', 'debt_usd', gateway.show_usd(v_caller.debt_usd));
    end if;

    return jsonb_build_object(
        'time_zone', v_caller.time_zone,
        'limits', gateway.show_windows(v_limits),
        'refusal', v_refusal,
        'reset_times', (
            select jsonb_object_agg(w.per, gateway.window_end(w.per, gateway.window_start(w.per, v_at, v_caller.time_zone), v_caller.time_zone))
            from (values ('minute'), ('hour'), ('day'), ('month')) as w (per)
        ));
end
$$;

-- api.read_key: the calling key about itself: {"name", "prefix", "scopes", "expires_at", "is_free_tier", "usage": {"total_usd", "day_usd",
-- "week_usd", "month_usd"}, "spend_limit": {"limit_usd", "remaining_usd", "per": day | month} | null, "requests_per_minute"}, or null where the
-- customer has no such key.
--
-- Days, weeks (from Monday) and months are the customer's. spend_limit: of the key's daily and monthly spending limits, and its makers', the one
-- that leaves it least; running requests count at their hold. requests_per_minute: of all models together or, where that is unlimited, of each. is_free_tier: nothing was ever paid in. Reads only. No scans, as for
-- api.admit_request.
create or replace function api.read_key(p_customer_id bigint, p_key_id bigint) returns jsonb
language plpgsql stable security definer set search_path = '' set enable_seqscan = off set jit = off
as $$
declare
    v_key gateway.api_keys;
    v_time_zone text;
    v_limits gateway.limit_state[];
    v_monitor jsonb;
    v_week numeric;
begin
    select * into v_key from gateway.api_keys where id = p_key_id and customer_id = p_customer_id;
    if v_key.id is null then
        return null;
    end if;
    select c.time_zone into v_time_zone from gateway.customers as c where c.id = p_customer_id;
    v_limits := gateway.read_counters(gateway.applicable_limits(
        p_key_id, p_customer_id, array[-1], '{}', v_time_zone, clock_timestamp(), v_key.maker_key_ids));
    v_monitor := api.read_monitor(p_customer_id => p_customer_id, p_key_id => p_key_id);
    select sum((u ->> 'charge_usd')::numeric) into v_week
    from jsonb_array_elements(api.read_usage(
        p_customer_id => p_customer_id, p_key_id => p_key_id, p_from => date_trunc('week', now(), v_time_zone),
        p_to => gateway.window_end('day', gateway.window_start('day', now(), v_time_zone), v_time_zone), p_interval => 'day',
        p_time_zone => v_time_zone)) as u;
    return jsonb_build_object(
        'name', v_key.name, 'prefix', v_key.prefix, 'scopes', v_key.scopes, 'expires_at', v_key.expires_at,
        'is_free_tier', not exists (
            select from gateway.ledger_entries as e where e.customer_id = p_customer_id and e.request_id is null and e.amount_usd > 0),
        'usage', jsonb_build_object(
            'total_usd', v_monitor ->> 'total_charge_usd', 'day_usd', v_monitor ->> 'charge_today_usd',
            'week_usd', gateway.show_usd(coalesce(v_week, 0)), 'month_usd', v_monitor ->> 'charge_this_month_usd'),
        'spend_limit', (
            select jsonb_build_object(
                'limit_usd', gateway.show_usd(l.spend_usd), 'remaining_usd', gateway.show_usd(greatest(l.spend_usd - l.used_spend_usd, 0)),
                'per', l.per)
            from unnest(v_limits) as l
            where l.subject = 'key' and l.model_id = 0 and l.per in ('day', 'month') and l.spend_usd is not null
            order by l.spend_usd - l.used_spend_usd, l.per desc
            limit 1
        ),
        'requests_per_minute', (
            select l.requests
            from unnest(v_limits) as l
            where l.subject = 'key' and l.per = 'minute' and l.requests is not null
            order by l.model_id desc, l.requests
            limit 1
        ));
end
$$;

create or replace view gateway.price_list with (security_invoker = true) as
select m.name as model, o.provider, o.upstream_model, s.name as service, m.active,
    p.input as input_per_million_usd, p.cached_input as cached_input_per_million_usd, p.cache_write as cache_write_per_million_usd,
    p.output as output_per_million_usd, p.audio_input as audio_input_per_million_usd, p.image_input as image_input_per_million_usd,
    p.audio_output as audio_output_per_million_usd, p.image_output as image_output_per_million_usd,
    p.per_request as per_request_usd, p.per_image as per_image_usd,
    trim_scale(p.input * 0.000001) as input_per_token_usd, trim_scale(p.output * 0.000001) as output_per_token_usd,
    p.effective_from, n.effective_from as next_price_from, p.source, p.source_date, p.id as price_id,
    p.cache_write_1h as cache_write_1h_per_million_usd, p.tiers
from gateway.offers as o
join gateway.models as m on m.id = o.model_id
join (
    select distinct on (offer_id, service_id) *
    from gateway.prices
    where effective_from <= now()
    order by offer_id, service_id, effective_from desc
) as p on p.offer_id = o.id
left join gateway.services as s on s.id = p.service_id
left join lateral (
    select min(f.effective_from) as effective_from
    from gateway.prices as f
    where f.offer_id = p.offer_id and f.service_id is not distinct from p.service_id and f.effective_from > now()
) as n on true
order by m.name, o.provider, s.name;

create or replace view legacy.pricing with (security_invoker = true) as
select p.provider, p.model, greatest(
        p.input_per_token_usd, p.output_per_token_usd,
        (select max(trim_scale(greatest((t.value ->> 'input')::numeric, (t.value ->> 'output')::numeric) * 0.000001))
         from jsonb_array_elements(p.tiers) as t)) as price_per_token,
    p.input_per_token_usd as input_price_per_token, p.output_per_token_usd as output_price_per_token, p.effective_from
from gateway.price_list as p
where p.service is null;
