create function gateway.read_price_tiers(p_tiers jsonb) returns jsonb
language sql immutable set search_path = ''
as $$
    select jsonb_agg((
        select jsonb_object_agg(e.key, e.value::numeric) from jsonb_each_text(t.value) as e where e.value is not null
    ) order by (t.value ->> 'above_input_tokens')::numeric)
    from jsonb_array_elements(nullif(p_tiers, 'null')) as t
$$;
comment on function gateway.read_price_tiers(jsonb) is 'Tiers as they cross the wire, in the form of gateway.prices.tiers: numbers, ascending; null for none.';
revoke all on function gateway.read_price_tiers(jsonb) from public;

create function gateway.show_price_tiers(p_tiers jsonb) returns jsonb
language sql immutable set search_path = ''
as $$
    select jsonb_agg(jsonb_build_object('above_input_tokens', t.value -> 'above_input_tokens') || (
        select jsonb_object_agg(e.key, gateway.show_usd(e.value::numeric))
        from jsonb_each(t.value) as e
        where e.key <> 'above_input_tokens'
    ) order by t.ordinality)
    from jsonb_array_elements(p_tiers) with ordinality as t
$$;
comment on function gateway.show_price_tiers(jsonb) is 'The tiers of a price as the API shows them: amounts as text; null for none.';
revoke all on function gateway.show_price_tiers(jsonb) from public;

create function gateway.describe_price(p_price gateway.prices) returns jsonb
language sql stable set search_path = ''
as $$
    select jsonb_build_object('id', p_price.id, 'effective_from', p_price.effective_from, 'source', p_price.source, 'source_date', p_price.source_date)
        || jsonb_strip_nulls(jsonb_build_object(
            'input', gateway.show_usd(p_price.input), 'cached_input', gateway.show_usd(p_price.cached_input),
            'cache_write', gateway.show_usd(p_price.cache_write), 'audio_input', gateway.show_usd(p_price.audio_input),
            'image_input', gateway.show_usd(p_price.image_input), 'output', gateway.show_usd(p_price.output),
            'audio_output', gateway.show_usd(p_price.audio_output), 'image_output', gateway.show_usd(p_price.image_output),
            'per_request', gateway.show_usd(p_price.per_request), 'per_image', gateway.show_usd(p_price.per_image),
            'cache_write_1h', gateway.show_usd(p_price.cache_write_1h), 'tiers', gateway.show_price_tiers(p_price.tiers)))
$$;
comment on function gateway.describe_price(gateway.prices) is 'A price as the API shows it: USD per million tokens, as text; classes without a price of their own are left out, and tiers where it has none.';
revoke all on function gateway.describe_price(gateway.prices) from public;

create function gateway.insert_price(p_offer_id bigint, p_service_id bigint, p_prices jsonb, p_effective_from timestamptz) returns gateway.prices
language sql set search_path = ''
as $$
    insert into gateway.prices (offer_id, service_id, effective_from, input, cached_input, cache_write, audio_input, image_input,
                                output, audio_output, image_output, per_request, per_image, source, source_date, cache_write_1h, tiers)
    select p_offer_id, p_service_id, coalesce(p_effective_from, clock_timestamp()), r.input, r.cached_input, r.cache_write, r.audio_input,
        r.image_input, r.output, r.audio_output, r.image_output, r.per_request, r.per_image, r.source, r.source_date, r.cache_write_1h,
        gateway.read_price_tiers(r.tiers)
    from jsonb_populate_record(null::gateway.prices, p_prices - array['id', 'offer_id', 'service_id', 'effective_from', 'created_at']) as r
    returning *
$$;
comment on function gateway.insert_price(bigint, bigint, jsonb, timestamptz) is 'Writes a version of a price.';
revoke all on function gateway.insert_price(bigint, bigint, jsonb, timestamptz) from public;

-- api.create_price: a new version of what a provider takes for a model, in force from p_effective_from (now, if null; never in the past,
-- because what was admitted is not priced again). p_service_id: for that service alone. An offer that is not there yet is made where
-- p_upstream_model names it. Locks the offer. Returns the price, or {"error": "unknown_model" | "unknown_offer" | "unknown_service" | "in_the_past"}.
create function api.create_price(
    p_model text, p_provider text, p_prices jsonb, p_upstream_model text default null, p_service_id bigint default null,
    p_effective_from timestamptz default null, p_actor text default null
) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_model_id bigint;
    v_offer_id bigint;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    select id into v_model_id from gateway.models where name = p_model;
    if v_model_id is null then
        return jsonb_build_object('error', 'unknown_model');
    end if;
    if p_effective_from < clock_timestamp() then
        return jsonb_build_object('error', 'in_the_past');
    end if;
    if p_service_id is not null
        and not exists (select from gateway.services where id = p_service_id and provider = p_provider and deleted_at is null) then
        return jsonb_build_object('error', 'unknown_service');
    end if;
    if p_upstream_model is not null then
        insert into gateway.offers (model_id, provider, upstream_model) values (v_model_id, p_provider, p_upstream_model)
        on conflict (model_id, provider) do nothing;
    end if;
    -- Locked, so that of two prices made at once one is the later: they may not begin at the same moment.
    select id into v_offer_id from gateway.offers where model_id = v_model_id and provider = p_provider for no key update;
    if v_offer_id is null then
        return jsonb_build_object('error', 'unknown_offer');
    end if;
    return (
        select gateway.describe_price(p) || jsonb_build_object('model', p_model, 'provider', p_provider, 'service_id', p_service_id)
        from gateway.insert_price(v_offer_id, p_service_id, p_prices, p_effective_from) as p
    );
end
$$;
revoke all on function api.create_price(text, text, jsonb, text, bigint, timestamptz, text) from public;
grant execute on function api.create_price(text, text, jsonb, text, bigint, timestamptz, text) to service_role;
comment on function api.create_price(text, text, jsonb, text, bigint, timestamptz, text) is 'A new version of what a provider takes for a model.';

-- api.list_prices: versions of prices, newest first, before p_before; of one model where p_model names it. Reads only.
create function api.list_prices(p_limit integer, p_before bigint default null, p_model text default null) returns jsonb
language sql stable security definer set search_path = ''
as $$
    select coalesce(jsonb_agg(
        gateway.describe_price(v.price) || jsonb_build_object('model', v.model, 'provider', v.provider, 'service_id', (v.price).service_id)
        order by (v.price).id desc), '[]')
    from (
        select p as price, m.name as model, o.provider
        from gateway.prices as p
        join gateway.offers as o on o.id = p.offer_id
        join gateway.models as m on m.id = o.model_id
        where (p_before is null or p.id < p_before) and (p_model is null or m.name = p_model)
        order by p.id desc
        limit p_limit
    ) as v
$$;
revoke all on function api.list_prices(integer, bigint, text) from public;
grant execute on function api.list_prices(integer, bigint, text) to service_role;
comment on function api.list_prices(integer, bigint, text) is 'Versions of prices, a page of them.';
