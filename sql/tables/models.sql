create table gateway.models (
    id bigint generated always as identity primary key,
    name text not null unique check (name ~ '^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}$'),
    display_name text,
    context_length bigint check (context_length between 1 and 1000000000000),
    max_output_tokens bigint check (max_output_tokens between 1 and 1000000000000),
    input_modalities text[] not null default '{text}' check (cardinality(input_modalities) > 0),
    output_modalities text[] not null default '{text}' check (cardinality(output_modalities) > 0),
    active boolean not null default true,
    created_at timestamptz not null default now()
);
alter table gateway.models enable row level security;

comment on table gateway.models is 'The catalogue: what clients may name in "model".';
comment on column gateway.models.id is 'Identifies the model in the API (allowed_models, model_id).';
comment on column gateway.models.name is 'What clients write. The whole string is looked up first; only then is a prefix read as a provider.';
comment on column gateway.models.display_name is 'Name for people.';
comment on column gateway.models.context_length is 'Context window in tokens: the bound of an input that can''t be bounded cheaply. Empty: unknown, and such inputs are refused.';
comment on column gateway.models.max_output_tokens is 'Most tokens that the model can answer with. Empty: unknown.';
comment on column gateway.models.input_modalities is 'What it reads: text, image, audio, video, file.';
comment on column gateway.models.output_modalities is 'What it answers with: text, image, audio, embedding.';
comment on column gateway.models.active is 'False hides the model and refuses it.';
comment on column gateway.models.created_at is 'When it entered the catalogue.';

create table gateway.offers (
    id bigint generated always as identity primary key,
    model_id bigint not null references gateway.models,
    provider text not null check (provider ~ '^[a-z0-9][a-z0-9-]{0,63}$'),
    upstream_model text not null check (length(upstream_model) between 1 and 300),
    unique (model_id, provider)
);
create index offers_provider_upstream_idx on gateway.offers (provider, upstream_model);
alter table gateway.offers enable row level security;

comment on table gateway.offers is 'Which provider sells which model, and under which name.';
comment on column gateway.offers.id is 'Identifies the offer.';
comment on column gateway.offers.model_id is 'The model in our catalogue.';
comment on column gateway.offers.provider is 'The provider, by its name in the registry.';
comment on column gateway.offers.upstream_model is 'What the provider calls the model.';
