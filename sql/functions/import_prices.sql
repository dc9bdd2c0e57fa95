create type gateway.price_line as (
    model text,
    provider text,
    upstream_model text,
    context_length bigint,
    max_output_tokens bigint,
    input_modalities text[],
    output_modalities text[],
    input numeric,
    cached_input numeric,
    cache_write numeric,
    audio_input numeric,
    image_input numeric,
    output numeric,
    audio_output numeric,
    image_output numeric,
    per_request numeric,
    per_image numeric,
    source text,
    source_date date,
    cache_write_1h numeric,
    tiers jsonb
);
comment on type gateway.price_line is 'A line of a price list: what a provider takes for a model, and what is known of the model.';

-- api.import_prices: brings a price list in, all of it or nothing. p_lines: [{"model", "provider", "upstream_model"?, "context_length"?,
-- "max_output_tokens"?, "input_modalities"?, "output_modalities"?, "input", "output", other classes of gateway.prices?, "source"?,
-- "source_date"?, "tiers"?: [{"above_input_tokens", the same classes}]}], each offer once. Models and offers that are not there are added; where a provider's price for all its services is
-- another than the one in force at p_effective_from (now, if null; never in the past), a new version begins there. A version that was to
-- begin at that very moment is replaced. Nothing else is changed: not what the list lacks, not what is known of a model, no service's
-- own price. p_dry_run: tells the same and writes nothing.
-- Locks: what it adds by name, then the offers by id, so that of two lists with an offer in common one comes after the other. Returns {"dry_run", "lines", "models_added", "offers_added", "prices_changed",
-- "unchanged"} (each line is one of the last three), or {"error": "duplicate_offer" | "in_the_past"}.
create function api.import_prices(
    p_lines jsonb, p_dry_run boolean default false, p_effective_from timestamptz default null, p_actor text default null
) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '25s'
as $$
declare
    v_at timestamptz;
    v_lines gateway.price_line[];
    v_models_added text[] := '{}'::text[];
    v_offers_added bigint[] := '{}'::bigint[];
    v_told jsonb;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    select array_agg(l) into v_lines from jsonb_populate_recordset(null::gateway.price_line, p_lines) as l;
    if (select count(*) > count(distinct (l.model, l.provider)) from unnest(v_lines) as l) then
        return jsonb_build_object('error', 'duplicate_offer');
    end if;
    if p_effective_from < clock_timestamp() then
        return jsonb_build_object('error', 'in_the_past');
    end if;

    if p_dry_run then
        select coalesce(array_agg(distinct l.model), '{}') into v_models_added
        from unnest(v_lines) as l
        where not exists (select from gateway.models as m where m.name = l.model);
    else
        with added as (
            insert into gateway.models (name, context_length, max_output_tokens, input_modalities, output_modalities)
            select l.model, max(l.context_length), max(l.max_output_tokens),
                coalesce(max(l.input_modalities), '{text}'), coalesce(max(l.output_modalities), '{text}')
            from unnest(v_lines) as l
            group by l.model
            order by l.model
            on conflict (name) do nothing
            returning name
        )
        select coalesce(array_agg(name), '{}') into v_models_added from added;
        with added as (
            insert into gateway.offers (model_id, provider, upstream_model)
            select m.id, l.provider, coalesce(l.upstream_model, l.model)
            from unnest(v_lines) as l
            join gateway.models as m on m.name = l.model
            order by m.id, l.provider
            on conflict (model_id, provider) do nothing
            returning id
        )
        select coalesce(array_agg(id), '{}') into v_offers_added from added;
        -- As in api.create_price: what is compared below is what is in force when it is replaced.
        perform from gateway.offers as o
        where (o.model_id, o.provider) in (
            select m.id, l.provider from unnest(v_lines) as l join gateway.models as m on m.name = l.model
        )
        order by o.id
        for no key update;
    end if;
    v_at := greatest(p_effective_from, clock_timestamp());
    with compared as materialized (
        select l.*, o.id as offer_id, o.id is null or n.id is not null as new_offer, c.changes
        from unnest(v_lines) as l
        left join gateway.models as m on m.name = l.model
        left join gateway.offers as o on o.model_id = m.id and o.provider = l.provider
        left join unnest(v_offers_added) as n (id) on n.id = o.id
        left join lateral (
            select v.* from gateway.prices as v
            where v.offer_id = o.id and v.service_id is null and v.effective_from <= v_at
            order by v.effective_from desc
            limit 1
        ) as p on true
        cross join lateral (
            select jsonb_object_agg(k.class, jsonb_build_object('old', gateway.show_usd(k.old), 'new', gateway.show_usd(k.new))) as changes
            from (
                values ('input', p.input, l.input), ('cached_input', p.cached_input, l.cached_input),
                    ('cache_write', p.cache_write, l.cache_write), ('audio_input', p.audio_input, l.audio_input),
                    ('image_input', p.image_input, l.image_input), ('output', p.output, l.output),
                    ('audio_output', p.audio_output, l.audio_output), ('image_output', p.image_output, l.image_output),
                    ('per_request', p.per_request, l.per_request), ('per_image', p.per_image, l.per_image),
                    ('cache_write_1h', p.cache_write_1h, l.cache_write_1h)
                union all
                select e.key || '_above_' || (t.tier ->> 'above_input_tokens'),
                    max(e.value::numeric) filter (where not t.is_new), max(e.value::numeric) filter (where t.is_new)
                from (
                    select false as is_new, jsonb_array_elements(p.tiers) as tier
                    union all
                    select true, jsonb_array_elements(gateway.read_price_tiers(l.tiers))
                ) as t
                cross join lateral jsonb_each_text(t.tier) as e
                where e.key <> 'above_input_tokens'
                group by 1
            ) as k (class, old, new)
            where k.old is distinct from k.new
        ) as c
    ),
    written as (
        insert into gateway.prices as p (offer_id, effective_from, input, cached_input, cache_write, audio_input, image_input,
                                         output, audio_output, image_output, per_request, per_image, source, source_date, cache_write_1h,
                                         tiers)
        select c.offer_id, v_at, c.input, c.cached_input, c.cache_write, c.audio_input, c.image_input,
            c.output, c.audio_output, c.image_output, c.per_request, c.per_image, c.source, c.source_date, c.cache_write_1h,
            gateway.read_price_tiers(c.tiers)
        from compared as c
        where not p_dry_run and c.changes is not null
        order by c.offer_id
        on conflict (offer_id, service_id, effective_from) do update set
            input = excluded.input, cached_input = excluded.cached_input, cache_write = excluded.cache_write,
            audio_input = excluded.audio_input, image_input = excluded.image_input, output = excluded.output,
            audio_output = excluded.audio_output, image_output = excluded.image_output, per_request = excluded.per_request,
            per_image = excluded.per_image, source = excluded.source, source_date = excluded.source_date,
            cache_write_1h = excluded.cache_write_1h, tiers = excluded.tiers
    )
    select jsonb_build_object(
        'dry_run', p_dry_run,
        'lines', count(*),
        'models_added', (select coalesce(jsonb_agg(a.name order by a.name), '[]') from unnest(v_models_added) as a (name)),
        'offers_added', coalesce(jsonb_agg(
            jsonb_build_object('model', c.model, 'provider', c.provider) order by c.model, c.provider) filter (where c.new_offer), '[]'),
        'prices_changed', coalesce(jsonb_agg(
            jsonb_build_object('model', c.model, 'provider', c.provider, 'changes', c.changes) order by c.model, c.provider
        ) filter (where not c.new_offer and c.changes is not null), '[]'),
        'unchanged', count(*) filter (where not c.new_offer and c.changes is null))
    into v_told
    from compared as c;
    return v_told;
end
$$;
revoke all on function api.import_prices(jsonb, boolean, timestamptz, text) from public;
grant execute on function api.import_prices(jsonb, boolean, timestamptz, text) to service_role;
comment on function api.import_prices(jsonb, boolean, timestamptz, text) is 'Brings a price list in, all of it or nothing; or tells what it would change.';
