create type gateway.candidate as (
    model_id bigint,
    model_name text,
    context_length bigint,
    max_output_tokens bigint,
    route_id bigint,
    service_id bigint,
    service_name text,
    provider text,
    base_url text,
    provider_key text,
    upstream_model text,
    prices jsonb,
    input_rate numeric,
    output_rate numeric,
    fixed_usd numeric,
    input_bound bigint,
    output_bound bigint,
    cost_bound_usd numeric,
    hold_usd numeric,
    output_modalities text[],
    probe_due boolean
);
comment on type gateway.candidate is 'A route that a request might take, with its pinned prices and what it may cost. Rates are USD per token at the dearest class that can occur, those of a short prompt until gateway.reach_tiers has seen its bound.';

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

-- gateway.reach_tiers: the candidate, whose input bound is known, at the dearest rates of each kind that any length of input up to the bound
-- may be settled at. Only for one whose prices have tiers: others don't pay for the call.
create function gateway.reach_tiers(p_candidate gateway.candidate, p_media_input boolean, p_media_output boolean, p_cache_write_1h boolean)
returns gateway.candidate
language plpgsql immutable set search_path = ''
as $$
declare
    v_tier jsonb;
begin
    for v_tier in
        select value from jsonb_array_elements(p_candidate.prices -> 'tiers')
        where (value ->> 'above_input_tokens')::bigint < p_candidate.input_bound
    loop
        p_candidate.input_rate := greatest(
            p_candidate.input_rate,
            greatest(
                (v_tier ->> 'input')::numeric, (v_tier ->> 'cached_input')::numeric, (v_tier ->> 'cache_write')::numeric,
                case when p_media_input then greatest((v_tier ->> 'audio_input')::numeric, (v_tier ->> 'image_input')::numeric) end,
                case when p_cache_write_1h then (v_tier ->> 'cache_write_1h')::numeric end
            ) * 0.000001);
        p_candidate.output_rate := greatest(
            p_candidate.output_rate,
            greatest(
                (v_tier ->> 'output')::numeric,
                case when p_media_output then greatest((v_tier ->> 'audio_output')::numeric, (v_tier ->> 'image_output')::numeric) end
            ) * 0.000001);
    end loop;
    return p_candidate;
end
$$;
comment on function gateway.reach_tiers(gateway.candidate, boolean, boolean, boolean) is 'A candidate at the dearest rates that its input bound can reach over the tiers of its prices.';
revoke all on function gateway.reach_tiers(gateway.candidate, boolean, boolean, boolean) from public;
