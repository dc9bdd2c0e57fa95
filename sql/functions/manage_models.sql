-- api.create_model: adds a model to the catalogue with the providers' offers of it and their prices, all or nothing.
-- p_offers: [{"provider", "upstream_model", "prices": {class: USD per million, "per_request", "per_image", "source", "source_date"}}].
-- Returns {"id", …}, or {"error": "name_taken"}.
create function api.create_model(
    p_name text, p_offers jsonb, p_display_name text default null, p_context_length bigint default null, p_max_output_tokens bigint default null,
    p_input_modalities text[] default '{text}', p_output_modalities text[] default '{text}',
    p_actor text default null
) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_model gateway.models;
    v_offer jsonb;
    v_offer_id bigint;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    insert into gateway.models (name, display_name, context_length, max_output_tokens, input_modalities, output_modalities)
    values (p_name, p_display_name, p_context_length, p_max_output_tokens, p_input_modalities, p_output_modalities)
    on conflict (name) do nothing
    returning * into v_model;
    if v_model.id is null then
        return jsonb_build_object('error', 'name_taken');
    end if;
    for v_offer in select value from jsonb_array_elements(p_offers) loop
        insert into gateway.offers (model_id, provider, upstream_model)
        values (v_model.id, v_offer ->> 'provider', v_offer ->> 'upstream_model')
        returning id into v_offer_id;
        if v_offer -> 'prices' <> 'null' then
            perform gateway.insert_price(v_offer_id, null, v_offer -> 'prices', null);
        end if;
    end loop;
    return gateway.describe_model(v_model);
end
$$;
revoke all on function api.create_model(text, jsonb, text, bigint, bigint, text[], text[], text) from public;
grant execute on function api.create_model(text, jsonb, text, bigint, bigint, text[], text[], text) to service_role;
comment on function api.create_model(text, jsonb, text, bigint, bigint, text[], text[], text) is 'Adds a model with its offers and prices.';

create function gateway.describe_model(p_model gateway.models) returns jsonb
language sql stable set search_path = ''
as $$
    select to_jsonb(p_model) || jsonb_build_object('offers', coalesce((
        select jsonb_agg(jsonb_build_object('id', o.id, 'provider', o.provider, 'upstream_model', o.upstream_model, 'prices', (
            select gateway.describe_price(p)
            from gateway.prices as p
            where p.offer_id = o.id and p.service_id is null and p.effective_from <= clock_timestamp()
            order by p.effective_from desc
            limit 1
        )) order by o.provider)
        from gateway.offers as o
        where o.model_id = p_model.id
    ), '[]'))
$$;
comment on function gateway.describe_model(gateway.models) is 'A model with its offers and their prices in force.';
revoke all on function gateway.describe_model(gateway.models) from public;

-- api.list_catalogue: the catalogue by id after p_after, or the one model with p_id, inactive ones included. p_query: those that have it, in
-- any case, in their name or display name, or in a provider's name of them. p_active: those that are, or are not. Reads only.
create function api.list_catalogue(
    p_limit integer, p_after bigint default 0, p_id bigint default null, p_query text default null, p_active boolean default null
) returns jsonb
language sql stable security definer set search_path = ''
as $$
    select coalesce(jsonb_agg(gateway.describe_model(m) order by m.id), '[]')
    from (
        select * from gateway.models as c
        where id > p_after and (p_id is null or id = p_id) and (p_active is null or active = p_active)
            and (p_query is null or strpos(lower(concat_ws(chr(10), name, display_name)), lower(p_query)) > 0 or exists (
                select from gateway.offers as o where o.model_id = c.id and strpos(lower(o.upstream_model), lower(p_query)) > 0
            ))
        order by id
        limit p_limit
    ) as m
$$;
revoke all on function api.list_catalogue(integer, bigint, bigint, text, boolean) from public;
grant execute on function api.list_catalogue(integer, bigint, bigint, text, boolean) to service_role;
comment on function api.list_catalogue(integer, bigint, bigint, text, boolean) is 'The catalogue of models, a page of it.';

-- api.update_model: changes what p_changes names: display_name, context_length, max_output_tokens, input_modalities, output_modalities,
-- active (false hides the model and refuses it), and offers, as api.create_model takes them: one of a provider that offers the model already
-- gives it another name there or new prices, if it has them; others stay. Locks the model. Returns it, or {"error": "unknown_model"}.
create function api.update_model(p_id bigint, p_changes jsonb, p_actor text default null) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_model gateway.models;
    v_offer jsonb;
    v_offer_id bigint;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    select * into v_model from gateway.models where id = p_id for no key update;
    if v_model.id is null then
        return jsonb_build_object('error', 'unknown_model');
    end if;
    v_model := jsonb_populate_record(v_model, p_changes - 'offers');
    update gateway.models
    set (display_name, context_length, max_output_tokens, input_modalities, output_modalities, active) = (
        v_model.display_name, v_model.context_length, v_model.max_output_tokens, v_model.input_modalities, v_model.output_modalities, v_model.active)
    where id = p_id
    returning * into v_model;
    -- In one order, for whoever does the same.
    for v_offer in select value from jsonb_array_elements(coalesce(p_changes -> 'offers', '[]')) order by value ->> 'provider' loop
        insert into gateway.offers as o (model_id, provider, upstream_model)
        values (p_id, v_offer ->> 'provider', coalesce(v_offer ->> 'upstream_model', v_model.name))
        on conflict (model_id, provider) do update set upstream_model = coalesce(v_offer ->> 'upstream_model', o.upstream_model)
        returning id into v_offer_id;
        if v_offer -> 'prices' <> 'null' then
            perform gateway.insert_price(v_offer_id, null, v_offer -> 'prices', null);
        end if;
    end loop;
    return gateway.describe_model(v_model);
end
$$;
revoke all on function api.update_model(bigint, jsonb, text) from public;
grant execute on function api.update_model(bigint, jsonb, text) to service_role;
comment on function api.update_model(bigint, jsonb, text) is 'Changes a model, adds offers or changes them.';
