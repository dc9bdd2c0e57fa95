-- api.list_models: the models that can be called: active, with a route of an active service, and a price; for a key only those that it
-- may use. p_key_hash null: the public list. {"models": [{id, name, …, "pricing": what the customer pays, of the route tried first, in USD
-- for one token, as text; what a long prompt costs instead is under its "overrides"}]}, or {"error"} as api.authenticate_key gives it. Reads only.
create function api.list_models(p_key_hash text default null, p_name text default null) returns jsonb
language plpgsql stable security definer set search_path = ''
as $$
declare
    v_key jsonb;
    v_allowed_models bigint[];
    v_allowed_services bigint[];
begin
    if p_key_hash is not null then
        v_key := api.authenticate_key(p_key_hash);
        if v_key ? 'error' then
            return v_key;
        end if;
        v_allowed_models := (select array_agg(value::bigint) from jsonb_array_elements_text(nullif(v_key -> 'allowed_models', 'null')));
        v_allowed_services := (select array_agg(value::bigint) from jsonb_array_elements_text(nullif(v_key -> 'allowed_services', 'null')));
    end if;
    return jsonb_build_object('models', (
        select coalesce(jsonb_agg(jsonb_build_object(
            'id', m.id, 'name', m.name, 'display_name', m.display_name, 'created_at', m.created_at, 'context_length', m.context_length,
            'max_output_tokens', m.max_output_tokens, 'input_modalities', m.input_modalities, 'output_modalities', m.output_modalities,
            'provider', r.provider, 'pricing', r.pricing) order by m.name), '[]')
        from gateway.models as m
        cross join lateral (
            select s.provider, jsonb_strip_nulls(jsonb_build_object(
                'prompt', gateway.show_usd(case when c.flat then c.rate else p.input * c.rate end),
                'completion', gateway.show_usd(case when c.flat then c.rate else p.output * c.rate end),
                'input_cache_read', gateway.show_usd(case when c.flat then c.rate else p.cached_input * c.rate end),
                'input_cache_write', gateway.show_usd(case when c.flat then c.rate else p.cache_write * c.rate end),
                'audio', gateway.show_usd(case when c.flat then c.rate else p.audio_input * c.rate end),
                'request', gateway.show_usd(coalesce(p.per_request, 0) * c.commission),
                'image', gateway.show_usd(p.per_image * c.commission),
                -- at a flat price no prompt is too long
                'overrides', case when not c.flat then (
                    select jsonb_agg(jsonb_build_object(
                        'min_prompt_tokens', t.value -> 'above_input_tokens',
                        'prompt', gateway.show_usd((t.value ->> 'input')::numeric * c.rate),
                        'completion', gateway.show_usd((t.value ->> 'output')::numeric * c.rate),
                        'input_cache_read', gateway.show_usd((t.value ->> 'cached_input')::numeric * c.rate),
                        'input_cache_write', gateway.show_usd((t.value ->> 'cache_write')::numeric * c.rate),
                        'audio', gateway.show_usd((t.value ->> 'audio_input')::numeric * c.rate)) order by t.ordinality)
                    from jsonb_array_elements(p.tiers) with ordinality as t
                ) end)) as pricing
            from gateway.offers as o
            join gateway.routes as t on t.offer_id = o.id and t.active
            join gateway.services as s on s.id = t.service_id and s.active
            cross join lateral (
                select v.* from gateway.prices as v
                where v.offer_id = o.id and (v.service_id = s.id or v.service_id is null) and v.effective_from <= clock_timestamp()
                order by v.service_id is null, v.effective_from desc
                limit 1
            ) as p
            cross join (
                select t.billing_mode = 'flat' as flat, 1 + t.commission_percent * 0.01 as commission,
                    case when t.billing_mode = 'flat' then t.flat_usd_per_1k_tokens * 0.001 else (1 + t.commission_percent * 0.01) * 0.000001 end as rate
                from gateway.settings as t
            ) as c
            where o.model_id = m.id and (v_allowed_services is null or s.id = any (v_allowed_services))
            order by coalesce(t.priority, s.priority), t.id
            limit 1
        ) as r
        where m.active and (p_name is null or m.name = p_name) and (v_allowed_models is null or m.id = any (v_allowed_models))
    ));
end
$$;
revoke all on function api.list_models(text, text) from public;
grant execute on function api.list_models(text, text) to service_role;
comment on function api.list_models(text, text) is 'The models that can be called, for a key those that it may use.';
