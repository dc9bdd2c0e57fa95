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
