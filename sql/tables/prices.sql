-- For the constraint of the table below. p_rates: the version's own prices of c_classes, in that order; a tier has the same classes, or
-- a price that was forgotten would be taken for its base class's.
create function gateway.are_price_tiers(p_tiers jsonb, p_rates numeric[]) returns boolean
language plpgsql immutable set search_path = ''
as $$
declare
    c_classes constant text[] := array[
        'input', 'cached_input', 'cache_write', 'cache_write_1h', 'audio_input', 'image_input', 'output', 'audio_output', 'image_output'];
    v_tier jsonb;
    v_entry record;
    v_above numeric := 0;
begin
    if jsonb_typeof(p_tiers) <> 'array' then
        return false;
    elsif jsonb_array_length(p_tiers) not between 1 and 16 then
        return false;
    end if;
    for v_tier in select value from jsonb_array_elements(p_tiers) loop
        if jsonb_typeof(v_tier) <> 'object' then
            return false;
        elsif not v_tier ? 'above_input_tokens' then
            return false;
        end if;
        for v_entry in select key, value from jsonb_each(v_tier) loop
            if jsonb_typeof(v_entry.value) <> 'number' then
                return false;
            elsif v_entry.key = 'above_input_tokens' then
                continue;
            elsif p_rates[array_position(c_classes, v_entry.key)] is null
                or v_entry.value::numeric not between 0 and 9999999999.9999999999
                or v_entry.value::numeric <> round(v_entry.value::numeric, 10)
            then
                return false;
            end if;
        end loop;
        if exists (
            select from unnest(c_classes, p_rates) as c (name, rate) where c.rate is not null and not v_tier ? c.name
        ) then
            return false;
        end if;
        -- ascending, so that no two begin at the same length
        if (v_tier -> 'above_input_tokens')::numeric not between v_above + 1 and 1000000000000
            or v_tier ->> 'above_input_tokens' !~ '^[0-9]+$'  -- nor 1000.0, which is read as a whole number where it counts
        then
            return false;
        end if;
        v_above := (v_tier -> 'above_input_tokens')::numeric;
    end loop;
    return true;
end
$$;
comment on function gateway.are_price_tiers(jsonb, numeric[]) is 'Whether these are tiers of a price: numbers only, ascending, each with the classes of the price and no other.';
revoke all on function gateway.are_price_tiers(jsonb, numeric[]) from public;

create table gateway.prices (
    id bigint generated always as identity primary key,
    offer_id bigint not null references gateway.offers,
    service_id bigint references gateway.services,
    effective_from timestamptz not null default now(),
    input numeric(20, 10) not null check (input >= 0),
    cached_input numeric(20, 10) check (cached_input >= 0),
    cache_write numeric(20, 10) check (cache_write >= 0),
    audio_input numeric(20, 10) check (audio_input >= 0),
    image_input numeric(20, 10) check (image_input >= 0),
    output numeric(20, 10) not null check (output >= 0),
    audio_output numeric(20, 10) check (audio_output >= 0),
    image_output numeric(20, 10) check (image_output >= 0),
    per_request numeric(20, 10) check (per_request >= 0),
    per_image numeric(20, 10) check (per_image >= 0),
    source text,
    source_date date,
    created_at timestamptz not null default now(),
    cache_write_1h numeric(20, 10) constraint prices_cache_write_1h_check check (cache_write_1h >= 0),
    tiers jsonb constraint prices_tiers_check check (tiers is null or gateway.are_price_tiers(tiers, array[
        input, cached_input, cache_write, cache_write_1h, audio_input, image_input, output, audio_output, image_output])),
    constraint prices_are_numbers check ('NaN' <> all (array[
        input, cached_input, cache_write, audio_input, image_input, output, audio_output, image_output, per_request, per_image,
        cache_write_1h])),
    unique nulls not distinct (offer_id, service_id, effective_from)
);
create index prices_service_idx on gateway.prices (service_id) where service_id is not null;
alter table gateway.prices enable row level security;

comment on table gateway.prices is 'What a provider takes, from when on: USD per million tokens of each class. Rows are versions: a changed price is a new row, and each request keeps those it was admitted under.';
comment on column gateway.prices.id is 'Identifies the version.';
comment on column gateway.prices.offer_id is 'Whose price: a provider''s offer of a model.';
comment on column gateway.prices.service_id is 'Empty: for every service of the provider. Else for this service alone, before the general one.';
comment on column gateway.prices.effective_from is 'In force from here until the next row''s.';
comment on column gateway.prices.input is 'USD per million input tokens.';
comment on column gateway.prices.cached_input is 'USD per million input tokens read from the provider''s cache. Empty: as input.';
comment on column gateway.prices.cache_write is 'USD per million input tokens written to the provider''s cache. Empty: as input.';
comment on column gateway.prices.audio_input is 'USD per million audio tokens read. Empty: as input.';
comment on column gateway.prices.image_input is 'USD per million image tokens read. Empty: as input.';
comment on column gateway.prices.output is 'USD per million output tokens, reasoning included.';
comment on column gateway.prices.audio_output is 'USD per million audio tokens answered. Empty: as output.';
comment on column gateway.prices.image_output is 'USD per million image tokens answered. Empty: as output.';
comment on column gateway.prices.per_request is 'USD for each request, beside its tokens.';
comment on column gateway.prices.per_image is 'USD for each image made, beside its tokens.';
comment on column gateway.prices.source is 'Where the price was read.';
comment on column gateway.prices.source_date is 'When it was read there.';
comment on column gateway.prices.created_at is 'When the row was written.';
comment on column gateway.prices.cache_write_1h is 'USD per million input tokens written to the provider''s cache for an hour. Empty: requests that may write for so long are refused.';
comment on column gateway.prices.tiers is 'Dearer rates for long prompts, ascending: [{"above_input_tokens": 200000, "input": 2.5, "output": 15, …}, …], numbers, each with every class that the price itself has. A request with more input tokens than that, cached and written ones included, costs the tier''s rates from its first token on; per_request and per_image stay. Empty: one price for any length.';
