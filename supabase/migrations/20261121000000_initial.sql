-- The first schema: sql/ as it stood. Later changes are migrations of their own.

-- The whole database, in the order in which it is built. Read this first; edit the files it names; then write the
-- migration. `make test` builds one database from here and one from supabase/migrations and fails on any difference.
-- It needs plain PostgreSQL 15 or later, the roles anon, authenticated and service_role (Supabase has them), no extension.

-- gateway holds the tables and is exposed to nobody; api holds the functions and is the one schema that PostgREST shows.
create schema gateway;
create schema api;
revoke all on schema gateway from public;
revoke all on schema api from public;
-- Only the gateway's own functions call the database; a browser with an anon or an Auth token has nothing to do here.
grant usage on schema api to service_role;
comment on schema gateway is 'Sluice''s tables. Private: reached only through the functions of schema api, and by the operator in Studio.';
comment on schema api is 'Sluice''s functions, and nothing else. The one schema exposed by PostgREST.';

create table gateway.settings (
    singleton boolean primary key default true check (singleton),
    commission_percent numeric(9, 6) not null default 5 check (commission_percent between 0 and 1000),
    billing_mode text not null default 'markup' check (billing_mode in ('markup', 'flat')),
    flat_usd_per_1k_tokens numeric(20, 10) not null default 0.02 check (flat_usd_per_1k_tokens >= 0),
    credit_value_usd numeric(20, 10) not null default 0.00002 check (credit_value_usd > 0),
    default_max_output_tokens bigint not null default 8192 check (default_max_output_tokens between 16 and 10000000),
    default_requests_per_minute bigint default 60 check (default_requests_per_minute > 0),
    default_tokens_per_minute bigint check (default_tokens_per_minute > 0),
    expired_hold_policy text not null default 'release' check (expired_hold_policy in ('release', 'charge')),
    constraint settings_are_numbers check ('NaN' <> all (array[flat_usd_per_1k_tokens, credit_value_usd]))
);
insert into gateway.settings default values;
alter table gateway.settings enable row level security;

comment on table gateway.settings is 'The system''s settings: exactly one row.';
comment on column gateway.settings.singleton is 'Always true: there is one row.';
comment on column gateway.settings.commission_percent is 'Markup mode: what is added to the provider''s cost, in percent. Requests already admitted keep the one they were admitted under.';
comment on column gateway.settings.billing_mode is 'markup: cost of each token class times (1 + commission). flat: all tokens at one price; what is not a token is marked up.';
comment on column gateway.settings.flat_usd_per_1k_tokens is 'Flat mode: USD per 1,000 tokens of any class.';
comment on column gateway.settings.credit_value_usd is 'What one credit is worth, in USD. Credits are a way of showing USD: the books are in USD.';
comment on column gateway.settings.default_max_output_tokens is 'Output bound of a call whose client named none, where the model, the balance and the limits allow as much.';
comment on column gateway.settings.default_requests_per_minute is 'Requests per minute for each key and model where no limit of the key says otherwise; empty: none.';
comment on column gateway.settings.default_tokens_per_minute is 'Tokens per minute for each key and model where no limit of the key says otherwise; empty: none.';
comment on column gateway.settings.expired_hold_policy is 'What a hold costs that nobody settled: release (nothing; the operator''s loss) or charge (the whole hold).';

-- In a check constraint, so that a hand edit in Studio can't name a zone that windows could not be computed in.
create function gateway.is_time_zone(p_name text) returns boolean
language plpgsql stable strict set search_path = ''
as $$
begin
    return pg_catalog.date_trunc('day', '2000-01-01 00:00+00'::timestamptz, p_name) is not null;
exception when invalid_parameter_value then
    return false;
end
$$;
comment on function gateway.is_time_zone(text) is 'Whether PostgreSQL knows a time zone of this name.';
revoke all on function gateway.is_time_zone(text) from public;

create table gateway.customers (
    id bigint generated always as identity primary key,
    name text not null check (length(name) between 1 and 200),
    username text not null unique check (length(username) between 1 and 320),
    email text check (length(email) between 3 and 320 and email like '_%@_%'),
    company text check (length(company) <= 200),
    time_zone text not null default 'UTC' check (gateway.is_time_zone(time_zone)),
    active boolean not null default true,
    created_at timestamptz not null default now()
);
create unique index customers_email_key on gateway.customers (lower(email));
alter table gateway.customers enable row level security;

comment on table gateway.customers is 'Who pays: a person or a company. Its money is in accounts, its keys in api_keys.';
comment on column gateway.customers.id is 'Identifies the customer in the API (user_id).';
comment on column gateway.customers.name is 'Display name.';
comment on column gateway.customers.username is 'Unique name for the older routes'' user header; the email unless another was chosen.';
comment on column gateway.customers.email is 'Address, unique whatever its case; empty for customers made without one.';
comment on column gateway.customers.company is 'Company, if any.';
comment on column gateway.customers.time_zone is 'IANA zone in which the customer''s days and months begin, for limits and analytics.';
comment on column gateway.customers.active is 'False suspends at once: every key of the customer is refused.';
comment on column gateway.customers.created_at is 'When the customer was added.';

-- Apart from customers, because this row is written twice a request and that one is read by people.
create table gateway.accounts (
    customer_id bigint primary key references gateway.customers,
    balance_usd numeric(20, 10) not null default 0,
    held_usd numeric(20, 10) not null default 0,
    constraint accounts_are_numbers check ('NaN' <> all (array[balance_usd, held_usd])),
    constraint accounts_held_not_negative check (held_usd >= 0),
    constraint accounts_holds_are_covered check (balance_usd - held_usd >= 0)
) with (fillfactor = 50);
alter table gateway.accounts enable row level security;

comment on table gateway.accounts is 'A customer''s prepaid money. Written by the engine''s functions only: use add_credits to change a balance.';
comment on column gateway.accounts.customer_id is 'Whose account.';
comment on column gateway.accounts.balance_usd is 'Sum of the customer''s ledger entries, in USD; what is held is still in it.';
comment on column gateway.accounts.held_usd is 'Sum of the holds of the customer''s running requests, in USD.';
comment on constraint accounts_holds_are_covered on gateway.accounts is 'The hard cap: no call is admitted whose whole bound is not covered by free money.';

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

create table gateway.services (
    id bigint generated by default as identity primary key,
    name text not null check (length(name) between 1 and 200),
    provider text not null check (provider ~ '^[a-z0-9][a-z0-9-]{0,63}$'),
    base_url text check (base_url ~ '^https?://[^/@]+(/|$)' and length(base_url) <= 2000),
    provider_key text check (provider_key ~ '^v[0-9]+\.'),
    provider_key_last4 text check (length(provider_key_last4) <= 4),
    priority integer not null default 100,
    active boolean not null default true,
    created_at timestamptz not null default now(),
    deleted_at timestamptz,
    check (deleted_at is null or not active)
);
create unique index services_name_key on gateway.services (name) where deleted_at is null;
alter table gateway.services enable row level security;

comment on table gateway.services is 'A configured connection to a provider.';
comment on column gateway.services.id is 'Identifies the service; part of what the provider key''s encryption is bound to.';
comment on column gateway.services.name is 'The operator''s name for it, unique among those not deleted.';
comment on column gateway.services.provider is 'The provider, by its name in the registry.';
comment on column gateway.services.base_url is 'Base URL; empty: the provider''s own. Moving it to another origin demands the provider key anew.';
comment on column gateway.services.provider_key is 'The provider''s key, AES-256-GCM under a master key that this database never sees. Never plain text: the check refuses it.';
comment on column gateway.services.provider_key_last4 is 'The last four characters of the provider''s key, to tell keys apart.';
comment on column gateway.services.priority is 'Lower is tried first; equal ones share the traffic by their routes'' weights.';
comment on column gateway.services.active is 'False: no request is routed to it.';
comment on column gateway.services.created_at is 'When it was added.';
comment on column gateway.services.deleted_at is 'When it was deleted. The row stays for the books.';

create table gateway.routes (
    id bigint generated always as identity primary key,
    service_id bigint not null references gateway.services,
    offer_id bigint not null references gateway.offers,
    priority integer,
    weight numeric(12, 4) not null default 1 check (weight > 0 and weight <> 'NaN'),
    active boolean not null default true,
    unique (service_id, offer_id)
);
create index routes_offer_idx on gateway.routes (offer_id);
alter table gateway.routes enable row level security;

comment on table gateway.routes is 'The models that are enabled on a service: the ways in which a request may go.';
comment on column gateway.routes.id is 'Identifies the route.';
comment on column gateway.routes.service_id is 'Through which service.';
comment on column gateway.routes.offer_id is 'To which model of its provider.';
comment on column gateway.routes.priority is 'Lower is tried first; empty: the service''s.';
comment on column gateway.routes.weight is 'Share of the traffic among routes of equal priority.';
comment on column gateway.routes.active is 'False: no request goes this way.';

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
    constraint prices_are_numbers check ('NaN' <> all (array[
        input, cached_input, cache_write, audio_input, image_input, output, audio_output, image_output, per_request, per_image])),
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

create table gateway.api_keys (
    id bigint generated always as identity primary key,
    customer_id bigint references gateway.customers,
    name text not null check (length(name) between 1 and 200),
    prefix text not null check (length(prefix) between 4 and 16),
    secret_hash bytea not null unique check (length(secret_hash) = 32),
    scopes text[] not null default '{chat,usage}'
        check (scopes <@ '{chat,usage,keys,billing,admin}' and cardinality(scopes) > 0),
    allowed_models bigint[] check (array_position(allowed_models, null) is null),
    allowed_services bigint[] check (array_position(allowed_services, null) is null),
    active boolean not null default true,
    expires_at timestamptz,
    revoked_at timestamptz,
    created_at timestamptz not null default now(),
    constraint api_keys_customer_or_admin check (customer_id is not null or scopes = '{admin}'),
    constraint api_keys_revoked_is_inactive check (revoked_at is null or not active)
);
create index api_keys_customer_idx on gateway.api_keys (customer_id);
alter table gateway.api_keys enable row level security;

comment on table gateway.api_keys is 'The keys that clients authenticate with. The secret itself is nowhere.';
comment on column gateway.api_keys.id is 'Identifies the key.';
comment on column gateway.api_keys.customer_id is 'Who pays for its requests; empty for an operator''s key, which is for administration alone.';
comment on column gateway.api_keys.name is 'What its owner calls it.';
comment on column gateway.api_keys.prefix is 'First characters of the key, to tell keys apart.';
comment on column gateway.api_keys.secret_hash is 'SHA-256 of the whole key. The key has 200 random bits, so a plain hash can''t be guessed back.';
comment on column gateway.api_keys.scopes is 'What it may do: chat, usage (its customer''s log), keys, billing, admin.';
comment on column gateway.api_keys.allowed_models is 'Ids of the models it may use; null: all, {}: none.';
comment on column gateway.api_keys.allowed_services is 'Ids of the services it may be routed to; null: all, {}: none.';
comment on column gateway.api_keys.active is 'False: refused until switched on again.';
comment on column gateway.api_keys.expires_at is 'Refused from here on; empty: never.';
comment on column gateway.api_keys.revoked_at is 'When it was revoked, for good.';
comment on column gateway.api_keys.created_at is 'When it was made.';

create table gateway.limits (
    id bigint generated always as identity primary key,
    key_id bigint references gateway.api_keys,
    customer_id bigint references gateway.customers,
    service_id bigint references gateway.services,
    model_id bigint references gateway.models,
    each_model boolean not null default false,
    per text not null check (per in ('minute', 'hour', 'day', 'month')),
    requests bigint check (requests >= 0),
    tokens bigint check (tokens >= 0),
    spend_usd numeric(20, 10) check (spend_usd >= 0),
    warn_requests bigint check (warn_requests >= 0),
    warn_tokens bigint check (warn_tokens >= 0),
    warn_spend_usd numeric(20, 10) check (warn_spend_usd >= 0),
    constraint limits_are_numbers check ('NaN' <> all (array[spend_usd, warn_spend_usd])),
    constraint limits_one_subject check (num_nonnulls(key_id, customer_id, service_id) = 1),
    constraint limits_model_of_a_key check (key_id is not null or (model_id is null and not each_model)),
    constraint limits_one_or_each_model check (model_id is null or not each_model),
    unique nulls not distinct (key_id, customer_id, service_id, model_id, each_model, per)
);
create index limits_customer_idx on gateway.limits (customer_id) where customer_id is not null;
create index limits_service_idx on gateway.limits (service_id) where service_id is not null;
create index limits_model_idx on gateway.limits (model_id) where model_id is not null;
alter table gateway.limits enable row level security;

comment on table gateway.limits is 'Rate and spending limits. A row is one window (minute, hour, day, month) of one subject; edits take effect with the next request.';
comment on column gateway.limits.id is 'Identifies the limit.';
comment on column gateway.limits.key_id is 'The subject, if it is a key.';
comment on column gateway.limits.customer_id is 'The subject, if it is a customer: over all its keys.';
comment on column gateway.limits.service_id is 'The subject, if it is a service: over all customers. Requests go round a service that is at its limit.';
comment on column gateway.limits.model_id is 'With a key: counts this model''s requests alone.';
comment on column gateway.limits.each_model is 'With a key: holds for every model by itself, where no row names the model.';
comment on column gateway.limits.per is 'The window. Days and months begin in the customer''s time zone, a service''s in UTC.';
comment on column gateway.limits.requests is 'Most requests in the window; 0 refuses all, empty: no limit.';
comment on column gateway.limits.tokens is 'Most tokens in the window, those of running requests included at their bound.';
comment on column gateway.limits.spend_usd is 'Most USD in the window, running requests included at their hold: charges for a key or customer, costs for a service.';
comment on column gateway.limits.warn_requests is 'Soft mark: beyond it requests are served with a warning.';
comment on column gateway.limits.warn_tokens is 'Soft mark for tokens.';
comment on column gateway.limits.warn_spend_usd is 'Soft mark for USD.';

-- Written by every admission and settlement of a limited subject: no index but the key, so that updates stay HOT.
create table gateway.limit_counters (
    subject text not null check (subject in ('key', 'customer', 'service')),
    subject_id bigint not null,
    model_id bigint not null default 0,
    per text not null check (per in ('minute', 'hour', 'day', 'month')),
    window_start timestamptz not null,
    requests bigint not null default 0 check (requests >= 0),
    tokens bigint not null default 0 check (tokens >= 0),
    spend_usd numeric(20, 10) not null default 0 check (spend_usd >= 0),
    primary key (subject, subject_id, model_id, per)
) with (fillfactor = 50);
alter table gateway.limit_counters enable row level security;

comment on table gateway.limit_counters is 'What was used of each limited window. A window of the past is not reset by a job: the first request of the next one starts it.';
comment on column gateway.limit_counters.subject is 'key, customer or service.';
comment on column gateway.limit_counters.subject_id is 'Its id.';
comment on column gateway.limit_counters.model_id is 'With a key: the one model that is counted; 0: all.';
comment on column gateway.limit_counters.per is 'The window''s length.';
comment on column gateway.limit_counters.window_start is 'Start of the window that the figures are of.';
comment on column gateway.limit_counters.requests is 'Requests admitted in the window.';
comment on column gateway.limit_counters.tokens is 'Tokens used in the window; those of running requests at their bound.';
comment on column gateway.limit_counters.spend_usd is 'USD used in the window; those of running requests at their hold.';

-- What one request has counted where, so that its settlement corrects the windows that admitted it and no other.
create type gateway.counted as (
    subject text,
    subject_id bigint,
    model_id bigint,
    per text,
    window_start timestamptz,
    requests bigint,
    tokens bigint,
    spend_usd numeric
);
comment on type gateway.counted is 'What a request added to a counter (or, as a correction, is to add).';

-- The log and the hold in one row. Partitioned by month, so that old months are dropped, not deleted.
create table gateway.requests (
    id text not null check (length(id) between 8 and 64),
    admitted_at timestamptz not null,
    customer_id bigint not null,
    key_id bigint not null,
    model_id bigint,
    service_id bigint,
    requested_model text not null,
    endpoint text not null,
    streamed boolean not null,
    state text not null check (state in ('held', 'settled', 'expired', 'refused')),
    outcome text check (outcome in ('succeeded', 'failed', 'cancelled', 'cut')),
    hold_usd numeric(20, 10) not null check (hold_usd >= 0),
    cost_usd numeric(20, 10) not null default 0 check (cost_usd >= 0),
    charge_usd numeric(20, 10) not null default 0 check (charge_usd >= 0),
    collected_usd numeric(20, 10) not null default 0 check (collected_usd >= 0),
    uncollected_usd numeric(20, 10) not null default 0 check (uncollected_usd >= 0),
    lease_until timestamptz not null,
    input_tokens_bound bigint not null check (input_tokens_bound >= 0),
    output_tokens_bound bigint not null check (output_tokens_bound >= 0),
    input_tokens bigint check (input_tokens >= 0),
    cached_input_tokens bigint check (cached_input_tokens >= 0),
    cache_write_tokens bigint check (cache_write_tokens >= 0),
    audio_input_tokens bigint check (audio_input_tokens >= 0),
    image_input_tokens bigint check (image_input_tokens >= 0),
    output_tokens bigint check (output_tokens >= 0),
    reasoning_tokens bigint check (reasoning_tokens >= 0),
    audio_output_tokens bigint check (audio_output_tokens >= 0),
    image_output_tokens bigint check (image_output_tokens >= 0),
    images bigint check (images >= 0),
    usage_estimated boolean not null default false,
    billing_mode text not null,
    commission_percent numeric(9, 6) not null,
    flat_usd_per_1k_tokens numeric(20, 10) not null,
    routes jsonb not null,
    counted gateway.counted[] not null,
    failed_routes jsonb,
    status integer,
    error_code text,
    finish_reason text,
    latency_ms integer check (latency_ms >= 0),
    time_to_first_token_ms integer check (time_to_first_token_ms >= 0),
    provider_request_id text,
    provider_cost_usd numeric(20, 10),
    idempotency_key text,
    settled_at timestamptz,
    primary key (id, admitted_at),
    constraint requests_charge_is_booked check (charge_usd = collected_usd + uncollected_usd),
    constraint requests_settled_has_outcome check ((state = 'settled') = (outcome is not null))
) partition by range (admitted_at);
create index requests_customer_idx on gateway.requests (customer_id, admitted_at desc);
create index requests_lease_idx on gateway.requests (lease_until) where state = 'held';
alter table gateway.requests enable row level security;

comment on table gateway.requests is 'Every admitted request: its hold while it runs, its record afterwards. Refused ones are counted in refusal_rollups, and here by a sample. Never the content. Written by the engine''s functions only.';
comment on column gateway.requests.id is 'The request''s id, as in x-request-id; sorts by time.';
comment on column gateway.requests.admitted_at is 'When it was admitted; its month is the partition.';
comment on column gateway.requests.customer_id is 'Who pays.';
comment on column gateway.requests.key_id is 'The key that it came with.';
comment on column gateway.requests.model_id is 'The model that answered; while it runs, the first candidate''s.';
comment on column gateway.requests.service_id is 'The service that answered; empty where none did.';
comment on column gateway.requests.requested_model is 'What the client wrote.';
comment on column gateway.requests.endpoint is 'Which API: chat.completions, generate, ….';
comment on column gateway.requests.streamed is 'Whether the client asked for a stream.';
comment on column gateway.requests.state is 'held (running) → settled; held → expired (its lease ran out), which may still be settled, once. refused: a sampled refusal.';
comment on column gateway.requests.outcome is 'succeeded, failed (not charged), cancelled (the client left), cut (the provider or the deadline ended it).';
comment on column gateway.requests.hold_usd is 'Upper bound of the charge, held while it ran.';
comment on column gateway.requests.cost_usd is 'What the provider takes.';
comment on column gateway.requests.charge_usd is 'What the customer owes for it.';
comment on column gateway.requests.collected_usd is 'What was taken from the balance.';
comment on column gateway.requests.uncollected_usd is 'What the balance could not give, because the provider billed beyond the bound.';
comment on column gateway.requests.lease_until is 'From then on the sweeper may end the hold.';
comment on column gateway.requests.input_tokens_bound is 'Bound of the input in tokens, as admitted.';
comment on column gateway.requests.output_tokens_bound is 'Bound of the output in tokens over all choices, as admitted.';
comment on column gateway.requests.input_tokens is 'Input tokens in no other class. The classes are disjoint; empty: not told.';
comment on column gateway.requests.cached_input_tokens is 'Input tokens read from the provider''s cache.';
comment on column gateway.requests.cache_write_tokens is 'Input tokens written to the provider''s cache.';
comment on column gateway.requests.audio_input_tokens is 'Audio tokens read.';
comment on column gateway.requests.image_input_tokens is 'Image tokens read.';
comment on column gateway.requests.output_tokens is 'Output tokens in no other class; reasoning is inside.';
comment on column gateway.requests.reasoning_tokens is 'Of the output tokens, those spent on reasoning.';
comment on column gateway.requests.audio_output_tokens is 'Audio tokens answered.';
comment on column gateway.requests.image_output_tokens is 'Image tokens answered.';
comment on column gateway.requests.images is 'Images made.';
comment on column gateway.requests.usage_estimated is 'True: the provider told no usage, and it was counted here.';
comment on column gateway.requests.billing_mode is 'The billing mode that it was admitted under.';
comment on column gateway.requests.commission_percent is 'The commission that it was admitted under.';
comment on column gateway.requests.flat_usd_per_1k_tokens is 'The flat price that it was admitted under.';
comment on column gateway.requests.routes is 'The routes that it might take, in order, each with the prices that it was admitted under.';
comment on column gateway.requests.counted is 'What it added to which counter.';
comment on column gateway.requests.failed_routes is 'Routes that were tried and failed: service, status, error.';
comment on column gateway.requests.status is 'HTTP status that the client was given.';
comment on column gateway.requests.error_code is 'Error code that the client was given.';
comment on column gateway.requests.finish_reason is 'Why the answer ended, as the provider told.';
comment on column gateway.requests.latency_ms is 'From admission to the end, in milliseconds.';
comment on column gateway.requests.time_to_first_token_ms is 'From admission to the provider''s first token, in milliseconds.';
comment on column gateway.requests.provider_request_id is 'The provider''s own id of it, for support.';
comment on column gateway.requests.provider_cost_usd is 'What the provider said that it cost, where it says so, to compare with cost_usd.';
comment on column gateway.requests.idempotency_key is 'The client''s Idempotency-Key.';
comment on column gateway.requests.settled_at is 'When it was settled or expired.';

-- Apart from requests: uniqueness can't span partitions without the time in it.
create table gateway.idempotency_keys (
    key_id bigint not null references gateway.api_keys,
    idempotency_key text not null check (length(idempotency_key) between 1 and 255),
    body_hash bytea not null check (length(body_hash) = 32),
    request_id text not null,
    charged boolean not null default false,
    freed boolean not null default false,
    created_at timestamptz not null default now(),
    primary key (key_id, idempotency_key)
);
create index idempotency_keys_created_idx on gateway.idempotency_keys (created_at);
alter table gateway.idempotency_keys enable row level security;

comment on table gateway.idempotency_keys is 'Idempotency-Keys, for 24 hours. A request that was not charged frees its key.';
comment on column gateway.idempotency_keys.key_id is 'The API key that it was sent with.';
comment on column gateway.idempotency_keys.idempotency_key is 'What the client sent.';
comment on column gateway.idempotency_keys.body_hash is 'SHA-256 of the request''s body: another body under the same key is refused.';
comment on column gateway.idempotency_keys.request_id is 'The request that holds it.';
comment on column gateway.idempotency_keys.charged is 'Whether that request was charged: another one with the key is refused.';
comment on column gateway.idempotency_keys.freed is 'Whether that request ended uncharged: the key may be used anew.';
comment on column gateway.idempotency_keys.created_at is 'When that request came.';

create table gateway.ledger_entries (
    id bigint generated always as identity primary key,
    customer_id bigint not null references gateway.accounts,
    kind text not null check (kind in ('credit', 'correction', 'charge', 'late_settlement')),
    amount_usd numeric(20, 10) not null check (amount_usd <> 0 and amount_usd <> 'NaN'),
    balance_after_usd numeric(20, 10) not null,
    request_id text,
    reference text check (length(reference) between 1 and 255),
    note text check (length(note) <= 1000),
    actor text not null,
    created_at timestamptz not null default clock_timestamp(),
    constraint ledger_request_kinds check ((request_id is not null) = (kind in ('charge', 'late_settlement'))),
    constraint ledger_credit_is_positive check (kind <> 'credit' or amount_usd > 0),
    constraint ledger_charge_is_negative check (kind <> 'charge' or amount_usd < 0)
);
-- A request is charged once and adjusted once: not by care but by these.
create unique index ledger_one_entry_per_request on gateway.ledger_entries (request_id, kind) where request_id is not null;
create unique index ledger_reference_key on gateway.ledger_entries (customer_id, reference) where reference is not null;
create index ledger_customer_idx on gateway.ledger_entries (customer_id, id);
alter table gateway.ledger_entries enable row level security;

comment on table gateway.ledger_entries is 'The books: append-only. A balance is the sum of its entries. Written by the engine''s functions only.';
comment on column gateway.ledger_entries.id is 'Identifies the entry; later entries of one customer have larger ids.';
comment on column gateway.ledger_entries.customer_id is 'Whose account.';
comment on column gateway.ledger_entries.kind is 'credit (paid in), correction (by an admin), charge (of a request), late_settlement (of a request whose hold had expired).';
comment on column gateway.ledger_entries.amount_usd is 'Positive raises the balance, negative lowers it.';
comment on column gateway.ledger_entries.balance_after_usd is 'The balance after this entry.';
comment on column gateway.ledger_entries.request_id is 'The request that it is for.';
comment on column gateway.ledger_entries.reference is 'The payer''s or admin''s reference, used once for each customer.';
comment on column gateway.ledger_entries.note is 'Free text.';
comment on column gateway.ledger_entries.actor is 'Who did it.';
comment on column gateway.ledger_entries.created_at is 'When.';

-- Quarters of an hour, because time zones differ by multiples of them: a day in any zone is a whole number of buckets.
create table gateway.usage_rollups (
    bucket timestamptz not null,
    customer_id bigint not null,
    key_id bigint not null,
    model_id bigint not null,
    service_id bigint not null default 0,
    requests bigint not null default 0,
    errors bigint not null default 0,
    input_tokens bigint not null default 0,
    cached_input_tokens bigint not null default 0,
    cache_write_tokens bigint not null default 0,
    output_tokens bigint not null default 0,
    reasoning_tokens bigint not null default 0,
    total_tokens bigint not null default 0,
    cost_usd numeric(24, 10) not null default 0,
    charge_usd numeric(24, 10) not null default 0,
    uncollected_usd numeric(24, 10) not null default 0,
    latency_ms bigint not null default 0,
    last_request_at timestamptz not null,
    primary key (customer_id, bucket, key_id, model_id, service_id)
) with (fillfactor = 70);
create index usage_rollups_bucket_idx on gateway.usage_rollups (bucket);
alter table gateway.usage_rollups enable row level security;

comment on table gateway.usage_rollups is 'Sums over the requests, kept exact by settlement: what analytics read. Written by the engine''s functions only.';
comment on column gateway.usage_rollups.bucket is 'Start of the quarter of an hour in which the requests were admitted.';
comment on column gateway.usage_rollups.customer_id is 'Whose requests.';
comment on column gateway.usage_rollups.key_id is 'With which key.';
comment on column gateway.usage_rollups.model_id is 'Of which model.';
comment on column gateway.usage_rollups.service_id is 'Answered by which service; 0: by none.';
comment on column gateway.usage_rollups.requests is 'Requests that have ended.';
comment on column gateway.usage_rollups.errors is 'Of these, those that failed or expired.';
comment on column gateway.usage_rollups.input_tokens is 'Input tokens in no other class.';
comment on column gateway.usage_rollups.cached_input_tokens is 'Input tokens read from a cache.';
comment on column gateway.usage_rollups.cache_write_tokens is 'Input tokens written to a cache.';
comment on column gateway.usage_rollups.output_tokens is 'Output tokens in no other class.';
comment on column gateway.usage_rollups.reasoning_tokens is 'Of the output tokens, those spent on reasoning.';
comment on column gateway.usage_rollups.total_tokens is 'Tokens of all classes.';
comment on column gateway.usage_rollups.cost_usd is 'What the providers take.';
comment on column gateway.usage_rollups.charge_usd is 'What the customer owes.';
comment on column gateway.usage_rollups.uncollected_usd is 'Of the charge, what could not be taken.';
comment on column gateway.usage_rollups.latency_ms is 'Sum of the latencies, in milliseconds.';
comment on column gateway.usage_rollups.last_request_at is 'When the last of them was admitted.';

create table gateway.refusal_rollups (
    bucket timestamptz not null,
    customer_id bigint not null,
    key_id bigint not null,
    code text not null,
    refusals bigint not null,
    primary key (customer_id, bucket, key_id, code)
) with (fillfactor = 70);
alter table gateway.refusal_rollups enable row level security;

comment on table gateway.refusal_rollups is 'Requests that were refused before they cost anything, counted.';
comment on column gateway.refusal_rollups.bucket is 'Start of the quarter of an hour.';
comment on column gateway.refusal_rollups.customer_id is 'Whose requests.';
comment on column gateway.refusal_rollups.key_id is 'With which key.';
comment on column gateway.refusal_rollups.code is 'Why: insufficient_credits, rate_limit_exceeded, ….';
comment on column gateway.refusal_rollups.refusals is 'How many.';

create table gateway.audit_log (
    id bigint generated always as identity primary key,
    at timestamptz not null default clock_timestamp(),
    actor text not null,
    action text not null check (action in ('insert', 'update', 'delete')),
    entity text not null,
    entity_id text not null,
    before jsonb,
    after jsonb
);
create index audit_log_entity_idx on gateway.audit_log (entity, entity_id, id);
alter table gateway.audit_log enable row level security;

comment on table gateway.audit_log is 'Who changed what when: every change of customers, keys, services, routes, models, offers, prices, limits and settings, by the API or by hand. No secrets.';
comment on column gateway.audit_log.id is 'Identifies the record.';
comment on column gateway.audit_log.at is 'When.';
comment on column gateway.audit_log.actor is 'Who: an admin key''s or user''s name as the gateway tells it, else the database role (Studio is postgres).';
comment on column gateway.audit_log.action is 'insert, update or delete.';
comment on column gateway.audit_log.entity is 'Which table.';
comment on column gateway.audit_log.entity_id is 'Which row.';
comment on column gateway.audit_log.before is 'The row before, without secrets; of an update, only what changed.';
comment on column gateway.audit_log.after is 'The row after, without secrets; of an update, only what changed.';

-- The one place where money is rounded.
create function gateway.round_up_usd(p_exact numeric) returns numeric
language sql immutable parallel safe
as $$ select ceil(p_exact * 10000000000) * 0.0000000001 $$;
comment on function gateway.round_up_usd(numeric) is 'An exact amount, rounded up at the tenth decimal: once for a cost, once for a charge, never in between.';
revoke all on function gateway.round_up_usd(numeric) from public;

create function gateway.show_credits(p_usd numeric, p_credit_value_usd numeric) returns numeric
language sql immutable parallel safe
as $$ select trim_scale(floor(p_usd / p_credit_value_usd * 10000) * 0.0001) $$;
comment on function gateway.show_credits(numeric, numeric) is 'USD shown as credits, rounded down at the fourth decimal. For showing only: the books are in USD.';
revoke all on function gateway.show_credits(numeric, numeric) from public;

create function gateway.show_usd(p_usd numeric) returns text
language sql immutable parallel safe
as $$ select trim_scale(p_usd)::text $$;
comment on function gateway.show_usd(numeric) is 'An amount as it crosses the wire: exact decimal text.';
revoke all on function gateway.show_usd(numeric) from public;

create function gateway.tokens_cost_usd(p_prices jsonb, p_usage jsonb) returns numeric
language sql immutable parallel safe
as $$
    select (
        coalesce((p_usage ->> 'input')::bigint, 0) * input
        + coalesce((p_usage ->> 'cached_input')::bigint, 0) * coalesce((p_prices ->> 'cached_input')::numeric, input)
        + coalesce((p_usage ->> 'cache_write')::bigint, 0) * coalesce((p_prices ->> 'cache_write')::numeric, input)
        + coalesce((p_usage ->> 'audio_input')::bigint, 0) * coalesce((p_prices ->> 'audio_input')::numeric, input)
        + coalesce((p_usage ->> 'image_input')::bigint, 0) * coalesce((p_prices ->> 'image_input')::numeric, input)
        + coalesce((p_usage ->> 'output')::bigint, 0) * output
        + coalesce((p_usage ->> 'audio_output')::bigint, 0) * coalesce((p_prices ->> 'audio_output')::numeric, output)
        + coalesce((p_usage ->> 'image_output')::bigint, 0) * coalesce((p_prices ->> 'image_output')::numeric, output)
    ) * 0.000001
    from (select (p_prices ->> 'input')::numeric as input, (p_prices ->> 'output')::numeric as output) as base
$$;
comment on function gateway.tokens_cost_usd(jsonb, jsonb) is 'Exact cost of the tokens of each class at pinned prices (USD per million). A class without a price of its own costs what its base class costs.';
revoke all on function gateway.tokens_cost_usd(jsonb, jsonb) from public;

create function gateway.fixed_cost_usd(p_prices jsonb, p_usage jsonb) returns numeric
language sql immutable parallel safe
as $$
    select coalesce((p_prices ->> 'per_request')::numeric, 0)
        + coalesce((p_usage ->> 'images')::bigint, 0) * coalesce((p_prices ->> 'per_image')::numeric, 0)
$$;
comment on function gateway.fixed_cost_usd(jsonb, jsonb) is 'Exact cost of what is not a token: the request itself, and the images made.';
revoke all on function gateway.fixed_cost_usd(jsonb, jsonb) from public;

create function gateway.total_tokens(p_usage jsonb) returns bigint
language sql immutable parallel safe
as $$
    select coalesce((p_usage ->> 'input')::bigint, 0) + coalesce((p_usage ->> 'cached_input')::bigint, 0)
        + coalesce((p_usage ->> 'cache_write')::bigint, 0) + coalesce((p_usage ->> 'audio_input')::bigint, 0)
        + coalesce((p_usage ->> 'image_input')::bigint, 0) + coalesce((p_usage ->> 'output')::bigint, 0)
        + coalesce((p_usage ->> 'audio_output')::bigint, 0) + coalesce((p_usage ->> 'image_output')::bigint, 0)
$$;
comment on function gateway.total_tokens(jsonb) is 'Tokens of all the disjoint classes; reasoning is inside the output.';
revoke all on function gateway.total_tokens(jsonb) from public;

create function gateway.window_start(p_per text, p_at timestamptz, p_time_zone text) returns timestamptz
language sql stable parallel safe
as $$ select date_trunc(p_per, p_at, p_time_zone) $$;
comment on function gateway.window_start(text, timestamptz, text) is 'Start of the minute, hour, day or month that a moment lies in, in a time zone.';
revoke all on function gateway.window_start(text, timestamptz, text) from public;

create function gateway.window_end(p_per text, p_start timestamptz, p_time_zone text) returns timestamptz
language sql stable parallel safe
as $$
    select case
        when p_per in ('minute', 'hour') then p_start + ('1 ' || p_per)::interval
        -- truncated again: where clocks change at midnight a day may begin at one o'clock, but only that day
        else date_trunc(p_per, (p_start at time zone p_time_zone) + ('1 ' || p_per)::interval) at time zone p_time_zone
    end
$$;
comment on function gateway.window_end(text, timestamptz, text) is 'Start of the next window. A day has 23 to 25 hours where clocks change.';
revoke all on function gateway.window_end(text, timestamptz, text) from public;

create function gateway.rollup_bucket(p_at timestamptz) returns timestamptz
language sql immutable parallel safe
as $$ select date_bin('15 minutes', p_at, '2000-01-01 00:00+00'::timestamptz) $$;
comment on function gateway.rollup_bucket(timestamptz) is 'Start of the quarter of an hour that a moment lies in.';
revoke all on function gateway.rollup_bucket(timestamptz) from public;

-- What constraints can't say. All of it holds for the operator in Studio too.

-- Statement-level, so that it costs a few microseconds a request. The flag is local to the transaction; a setting of the
-- function itself would need a superuser, and Supabase's postgres is none.
create function gateway.refuse_hand_edit() returns trigger
language plpgsql set search_path = ''
as $$
begin
    if current_setting('gateway.engine', true) is distinct from 'on' then
        raise exception 'gateway.% is written by the engine''s functions only', tg_table_name
            using errcode = 'restrict_violation', hint = 'To change a balance call api.add_credits; a charge is never edited.';
    end if;
    return null;
end
$$;
comment on function gateway.refuse_hand_edit() is 'Trigger: the books are written through the functions of schema api, never by hand.';
revoke all on function gateway.refuse_hand_edit() from public;

create function gateway.refuse_change() returns trigger
language plpgsql set search_path = ''
as $$
begin
    raise exception '% on gateway.% is refused: what was written stays', lower(tg_op), tg_table_name using errcode = 'restrict_violation';
end
$$;
comment on function gateway.refuse_change() is 'Trigger: what was written stays.';
revoke all on function gateway.refuse_change() from public;

create function gateway.refuse_delete() returns trigger
language plpgsql set search_path = ''
as $$
begin
    raise exception 'rows of gateway.% are not deleted: the books refer to them', tg_table_name
        using errcode = 'restrict_violation', hint = 'Set active to false instead.';
end
$$;
comment on function gateway.refuse_delete() is 'Trigger: rows that the books refer to are switched off, not deleted.';
revoke all on function gateway.refuse_delete() from public;

create function gateway.open_account() returns trigger
language plpgsql security definer set search_path = ''
as $$
begin
    perform set_config('gateway.engine', 'on', true);
    insert into gateway.accounts (customer_id) values (new.id);
    perform set_config('gateway.engine', 'off', true);
    return null;
end
$$;
comment on function gateway.open_account() is 'Trigger: every customer has an account, however it was added.';
revoke all on function gateway.open_account() from public;

create function gateway.version_price() returns trigger
language plpgsql security definer set search_path = ''
as $$
begin
    if old.effective_from > clock_timestamp() then
        -- not in force yet: nothing was admitted under it, and nothing in the past will have been
        new.effective_from := greatest(new.effective_from, clock_timestamp());
        return new;
    end if;
    if (new.offer_id, new.service_id) is distinct from (old.offer_id, old.service_id) then
        raise exception 'a price stays with its offer: insert a new one' using errcode = 'restrict_violation';
    end if;
    new.effective_from := case
        when new.effective_from is distinct from old.effective_from and new.effective_from > clock_timestamp() then new.effective_from
        else clock_timestamp()
    end;
    insert into gateway.prices (offer_id, service_id, effective_from, input, cached_input, cache_write, audio_input, image_input,
                                output, audio_output, image_output, per_request, per_image, source, source_date)
    values (new.offer_id, new.service_id, new.effective_from, new.input, new.cached_input, new.cache_write, new.audio_input, new.image_input,
            new.output, new.audio_output, new.image_output, new.per_request, new.per_image, new.source, new.source_date);
    return null;  -- the old version stays as it is
end
$$;
comment on function gateway.version_price() is 'Trigger: editing a price that is or was in force writes a new version, in force from now or from the later time given.';
revoke all on function gateway.version_price() from public;

create function gateway.refuse_price_delete() returns trigger
language plpgsql set search_path = ''
as $$
begin
    if old.effective_from <= clock_timestamp() then
        raise exception 'a price that was in force is not deleted' using errcode = 'restrict_violation';
    end if;
    return old;
end
$$;
comment on function gateway.refuse_price_delete() is 'Trigger: only a price that is not in force yet can be taken back.';
revoke all on function gateway.refuse_price_delete() from public;

create function gateway.record_audit() returns trigger
language plpgsql security definer set search_path = ''
as $$
declare
    v_old jsonb := case when tg_op <> 'INSERT' then to_jsonb(old) end;
    v_new jsonb := case when tg_op <> 'DELETE' then to_jsonb(new) end;
    v_id text := coalesce(v_new ->> 'id', v_old ->> 'id', '1');
    v_before jsonb := v_old;
    v_after jsonb := v_new;
    v_secret text;
begin
    if tg_op = 'UPDATE' then
        select coalesce(jsonb_object_agg(o.key, o.value), '{}'), coalesce(jsonb_object_agg(o.key, v_new -> o.key), '{}')
        into v_before, v_after
        from jsonb_each(v_old) as o
        where o.value is distinct from v_new -> o.key;
        if v_after = '{}' then
            return null;
        end if;
    end if;
    foreach v_secret in array array['secret_hash', 'provider_key'] loop
        if v_before ->> v_secret is not null then
            v_before := v_before || jsonb_build_object(v_secret, '(not shown)');
        end if;
        if v_after ->> v_secret is not null then
            v_after := v_after || jsonb_build_object(v_secret, '(not shown)');
        end if;
    end loop;
    insert into gateway.audit_log (actor, action, entity, entity_id, before, after)
    values (coalesce(nullif(current_setting('gateway.actor', true), ''), session_user), lower(tg_op), tg_table_name, v_id, v_before, v_after);
    return null;
end
$$;
comment on function gateway.record_audit() is 'Trigger: writes the change to audit_log; of secrets only that they changed.';
revoke all on function gateway.record_audit() from public;

create trigger refuse_hand_edit before insert or update or delete or truncate on gateway.accounts
    for each statement execute function gateway.refuse_hand_edit();
create trigger refuse_hand_edit before insert on gateway.ledger_entries
    for each statement execute function gateway.refuse_hand_edit();
create trigger refuse_change before update or delete or truncate on gateway.ledger_entries
    for each statement execute function gateway.refuse_change();
create trigger refuse_hand_edit before insert or update or delete or truncate on gateway.requests
    for each statement execute function gateway.refuse_hand_edit();
create trigger refuse_hand_edit before insert or update or delete or truncate on gateway.usage_rollups
    for each statement execute function gateway.refuse_hand_edit();
create trigger refuse_hand_edit before insert or update or truncate on gateway.idempotency_keys
    for each statement execute function gateway.refuse_hand_edit();
create trigger refuse_change before update or delete or truncate on gateway.audit_log
    for each statement execute function gateway.refuse_change();

create trigger refuse_delete before delete or truncate on gateway.settings for each statement execute function gateway.refuse_delete();
create trigger refuse_delete before delete or truncate on gateway.customers for each statement execute function gateway.refuse_delete();
create trigger refuse_delete before delete or truncate on gateway.api_keys for each statement execute function gateway.refuse_delete();
create trigger refuse_delete before delete or truncate on gateway.services for each statement execute function gateway.refuse_delete();
create trigger refuse_delete before delete or truncate on gateway.models for each statement execute function gateway.refuse_delete();
create trigger refuse_delete before delete or truncate on gateway.offers for each statement execute function gateway.refuse_delete();
create trigger refuse_truncate before truncate on gateway.prices for each statement execute function gateway.refuse_change();
-- A truncation would pass the audit log by.
create trigger refuse_truncate before truncate on gateway.limits for each statement execute function gateway.refuse_change();
create trigger refuse_truncate before truncate on gateway.routes for each statement execute function gateway.refuse_change();
create trigger refuse_price_delete before delete on gateway.prices for each row execute function gateway.refuse_price_delete();

create trigger open_account after insert on gateway.customers for each row execute function gateway.open_account();
create trigger version_price before update on gateway.prices for each row execute function gateway.version_price();

create trigger record_audit after insert or update or delete on gateway.settings for each row execute function gateway.record_audit();
create trigger record_audit after insert or update or delete on gateway.customers for each row execute function gateway.record_audit();
create trigger record_audit after insert or update or delete on gateway.api_keys for each row execute function gateway.record_audit();
create trigger record_audit after insert or update or delete on gateway.services for each row execute function gateway.record_audit();
create trigger record_audit after insert or update or delete on gateway.routes for each row execute function gateway.record_audit();
create trigger record_audit after insert or update or delete on gateway.models for each row execute function gateway.record_audit();
create trigger record_audit after insert or update or delete on gateway.offers for each row execute function gateway.record_audit();
create trigger record_audit after insert or update or delete on gateway.prices for each row execute function gateway.record_audit();
create trigger record_audit after insert or update or delete on gateway.limits for each row execute function gateway.record_audit();

-- api.create_request_partitions: makes the request log's monthly partitions from this month to p_months ahead.
-- Returns the names of those that it made. Locks the default partition, and so the log, only when it makes one. For maintenance.
-- The default partition is a safety net, so that a missed job never refuses a request; its rows move out here.
create function api.create_request_partitions(p_months integer default 3) returns text[]
language plpgsql security definer set search_path = ''
as $$
declare
    v_month date;
    v_name text;
    v_from timestamptz;
    v_to timestamptz;
    v_made text[] := '{}';
begin
    perform set_config('gateway.engine', 'on', true);
    for i in 0 .. p_months loop
        v_month := date_trunc('month', now() at time zone 'UTC') + make_interval(months => i);
        v_name := 'requests_' || to_char(v_month, 'YYYY_MM');
        v_from := v_month::timestamp at time zone 'UTC';
        v_to := (v_month + interval '1 month') at time zone 'UTC';
        if to_regclass('gateway.' || v_name) is null then
            -- In this order, so that two makers don't make the same one, and that nothing enters the default partition while it is emptied.
            lock table only gateway.requests in share update exclusive mode;
            lock table gateway.requests_default in access exclusive mode;
            continue when to_regclass('gateway.' || v_name) is not null;
            execute format('create table gateway.%I (like gateway.requests including defaults including constraints)', v_name);
            execute format('alter table gateway.%I enable row level security', v_name);
            execute format('comment on table gateway.%I is %L', v_name, 'Requests of ' || to_char(v_month, 'YYYY-MM') || ' (UTC): a partition of gateway.requests.');
            execute format('with moved as (delete from gateway.requests_default where admitted_at >= %L and admitted_at < %L returning *) '
                           'insert into gateway.%I select * from moved', v_from, v_to, v_name);
            execute format('alter table gateway.requests attach partition gateway.%I for values from (%L) to (%L)', v_name, v_from, v_to);
            execute format('create trigger refuse_hand_edit before insert or update or delete or truncate on gateway.%I '
                           'for each statement execute function gateway.refuse_hand_edit()', v_name);
            v_made := v_made || v_name;
        end if;
    end loop;
    perform set_config('gateway.engine', 'off', true);
    return v_made;
end
$$;
revoke all on function api.create_request_partitions(integer) from public;
grant execute on function api.create_request_partitions(integer) to service_role;
comment on function api.create_request_partitions(integer) is 'Makes the request log''s monthly partitions ahead; returns the names of the new ones.';

create table gateway.requests_default partition of gateway.requests default;
alter table gateway.requests_default enable row level security;
comment on table gateway.requests_default is 'Requests of months whose partition was not made in time; normally empty.';
create trigger refuse_hand_edit before insert or update or delete or truncate on gateway.requests_default
    for each statement execute function gateway.refuse_hand_edit();

select api.create_request_partitions(3);

-- gateway.correct_counters: adds (possibly negative) amounts to the counters of the windows that admitted a request.
-- A window that has passed is left alone: its counter counts another one by now. Locks the counters in key order, which is
-- the order of every function here, so that no two wait for each other in a circle.
create function gateway.correct_counters(p_corrections gateway.counted[]) returns void
language plpgsql set search_path = ''
as $$
begin
    perform 1
    from gateway.limit_counters as c
    join unnest(p_corrections) as x
        on (c.subject, c.subject_id, c.model_id, c.per) = (x.subject, x.subject_id, x.model_id, x.per)
    order by c.subject, c.subject_id, c.model_id, c.per
    for update of c;

    -- greatest(): an operator may have set a counter back by hand, and a settlement must not fail for it.
    update gateway.limit_counters as c
    set requests = greatest(c.requests + x.requests, 0),
        tokens = greatest(c.tokens + x.tokens, 0),
        spend_usd = greatest(c.spend_usd + x.spend_usd, 0)
    from (
        select subject, subject_id, model_id, per, window_start,
            sum(requests)::bigint as requests, sum(tokens)::bigint as tokens, sum(spend_usd) as spend_usd
        from unnest(p_corrections)
        group by subject, subject_id, model_id, per, window_start
    ) as x
    where (c.subject, c.subject_id, c.model_id, c.per, c.window_start) = (x.subject, x.subject_id, x.model_id, x.per, x.window_start)
        and (x.requests <> 0 or x.tokens <> 0 or x.spend_usd <> 0);
end
$$;
comment on function gateway.correct_counters(gateway.counted[]) is 'Adds amounts to the counters of the windows named, where they still run.';
revoke all on function gateway.correct_counters(gateway.counted[]) from public;

-- gateway.record_refusal: counts a refusal, and logs the first and then every hundredth of a quarter of an hour, so that
-- neither an empty balance nor a runaway client fills the log.
create function gateway.record_refusal(
    p_request_id text, p_customer_id bigint, p_key_id bigint, p_requested_model text, p_endpoint text, p_streamed boolean, p_code text
) returns void
language plpgsql set search_path = ''
as $$
declare
    v_count bigint;
begin
    insert into gateway.refusal_rollups as r (bucket, customer_id, key_id, code, refusals)
    values (gateway.rollup_bucket(now()), p_customer_id, p_key_id, p_code, 1)
    on conflict (customer_id, bucket, key_id, code) do update set refusals = r.refusals + 1
    returning refusals into v_count;
    if v_count % 100 = 1 then
        insert into gateway.requests (id, admitted_at, customer_id, key_id, requested_model, endpoint, streamed, state, hold_usd, lease_until,
                                      input_tokens_bound, output_tokens_bound, billing_mode, commission_percent, flat_usd_per_1k_tokens,
                                      routes, counted, error_code)
        select p_request_id, now(), p_customer_id, p_key_id, p_requested_model, p_endpoint, p_streamed, 'refused', 0, now(),
            0, 0, s.billing_mode, s.commission_percent, s.flat_usd_per_1k_tokens, '[]', '{}', p_code
        from gateway.settings as s
        on conflict do nothing;
    end if;
end
$$;
comment on function gateway.record_refusal(text, bigint, bigint, text, text, boolean, text) is 'Counts a refused request; logs a sample.';
revoke all on function gateway.record_refusal(text, bigint, bigint, text, text, boolean, text) from public;

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
    hold_usd numeric
);
comment on type gateway.candidate is 'A route that a request might take, with its pinned prices and what it may cost. Rates are USD per token at the dearest class that can occur.';

-- gateway.resolve_candidates: the routes that a request for these models might take, in the order in which to try them: by the
-- client's order of models, then priority, then at random by weight. A model that has no usable route gives one row without a
-- route; a route without a price in force gives one without prices. Reads only. PL/pgSQL, here and below on the chat path, because it
-- keeps its plans: a SQL function with a search_path of its own is planned anew at every call.
create function gateway.resolve_candidates(
    p_models text[], p_model_id bigint, p_provider text, p_allowed_services bigint[], p_media_input boolean, p_media_output boolean
) returns setof gateway.candidate
language plpgsql stable set search_path = ''
as $$
begin
    return query
    with wanted as (
        select w.name, w.position from unnest(p_models) with ordinality as w (name, position)
    ),
    resolved as (
        -- the whole string, or the id
        select w.position, m.id, p_provider as provider
        from wanted as w
        join gateway.models as m on m.name = w.name and m.active
        union all
        select 0, m.id, p_provider from gateway.models as m where m.id = p_model_id and m.active
        union all
        -- only then provider/model, and under a named provider the provider's own name of the model; ours goes before it
        select n.position, o.model_id, n.provider
        from (
            select w.position, coalesce(p_provider, split_part(w.name, '/', 1)) as provider,
                case when p_provider is null then substr(w.name, strpos(w.name, '/') + 1) else w.name end as name
            from wanted as w
            where not exists (select from gateway.models as whole where whole.name = w.name and whole.active)
                and (p_provider is not null or strpos(w.name, '/') > 1)
        ) as n
        cross join lateral (
            select found.model_id
            from (
                select o.model_id, 1 as rank
                from gateway.models as m
                join gateway.offers as o on o.model_id = m.id and o.provider = n.provider
                where m.name = n.name and m.active
                union all
                select o.model_id, 2
                from gateway.offers as o
                join gateway.models as m on m.id = o.model_id and m.active
                where o.provider = n.provider and o.upstream_model = n.name
            ) as found
            order by found.rank, found.model_id
            limit 1
        ) as o
    )
    select
        m.id, m.name, m.context_length, m.max_output_tokens,
        r.id, s.id, s.name, s.provider, s.base_url, s.provider_key, o.upstream_model,
        p.prices,
        case
            when p_media_input then greatest(p.input, p.cached_input, p.cache_write, p.audio_input, p.image_input)
            else greatest(p.input, p.cached_input, p.cache_write)
        end * 0.000001,
        case when p_media_output then greatest(p.output, p.audio_output, p.image_output) else p.output end * 0.000001,
        p.per_request,
        null::bigint, null::bigint, null::numeric, null::numeric
    from (select distinct on (id) position, id, provider from resolved order by id, position) as wanted_model
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
                'per_request', v.per_request, 'per_image', v.per_image)) as prices
        from gateway.prices as v
        where v.offer_id = o.id and (v.service_id = s.id or v.service_id is null) and v.effective_from <= clock_timestamp()
        order by v.service_id is null, v.effective_from desc
        limit 1
    ) as p on true
    order by wanted_model.position, coalesce(r.priority, s.priority), -ln(1 - random()) / r.weight;
end
$$;
comment on function gateway.resolve_candidates(text[], bigint, text, bigint[], boolean, boolean) is 'The routes that a request might take, in the order in which to try them.';
revoke all on function gateway.resolve_candidates(text[], bigint, text, bigint[], boolean, boolean) from public;

create type gateway.limit_state as (
    subject text,
    subject_id bigint,
    model_id bigint,
    per text,
    window_start timestamptz,
    window_end timestamptz,
    requests bigint,
    tokens bigint,
    spend_usd numeric,
    warn_requests bigint,
    warn_tokens bigint,
    warn_spend_usd numeric,
    used_requests bigint,
    used_tokens bigint,
    used_spend_usd numeric
);
comment on type gateway.limit_state is 'One limited window of one subject: its limits, its soft marks and what is used of it.';

create function gateway.applicable_limits(
    p_key_id bigint, p_customer_id bigint, p_model_ids bigint[], p_service_ids bigint[], p_time_zone text, p_at timestamptz
) returns gateway.limit_state[]
language plpgsql stable set search_path = ''
as $$
begin
    return (
        with settings as (
            select default_requests_per_minute, default_tokens_per_minute from gateway.settings
        ),
        of_key as (
            select * from gateway.limits where key_id = p_key_id
        ),
        found as (
            select 'key' as subject, p_key_id as subject_id, 0::bigint as model_id, l.per,
                l.requests, l.tokens, l.spend_usd, l.warn_requests, l.warn_tokens, l.warn_spend_usd
            from of_key as l
            where l.model_id is null and not l.each_model
            union all
            -- for each model by itself: the row that names it, then the key's row for each model, then the system's default, which
            -- gives way to whatever the key's own rows say of the same window
            select 'key', p_key_id, m.id, w.per,
                coalesce(x.requests, e.requests, case when w.per = 'minute' and k.requests is null then s.default_requests_per_minute end),
                coalesce(x.tokens, e.tokens, case when w.per = 'minute' and k.tokens is null then s.default_tokens_per_minute end),
                coalesce(x.spend_usd, e.spend_usd),
                coalesce(x.warn_requests, e.warn_requests), coalesce(x.warn_tokens, e.warn_tokens), coalesce(x.warn_spend_usd, e.warn_spend_usd)
            from settings as s
            cross join unnest(p_model_ids) as m (id)
            cross join (values ('minute'), ('hour'), ('day'), ('month')) as w (per)
            left join of_key as x on x.model_id = m.id and x.per = w.per
            left join of_key as e on e.each_model and e.per = w.per
            left join of_key as k on k.model_id is null and not k.each_model and k.per = w.per
            union all
            select 'customer', p_customer_id, 0, l.per, l.requests, l.tokens, l.spend_usd, l.warn_requests, l.warn_tokens, l.warn_spend_usd
            from gateway.limits as l
            where l.customer_id = p_customer_id
            union all
            select 'service', l.service_id, 0, l.per, l.requests, l.tokens, l.spend_usd, l.warn_requests, l.warn_tokens, l.warn_spend_usd
            from gateway.limits as l
            where l.service_id = any (p_service_ids)
        )
        select coalesce(array_agg(
            (subject, subject_id, model_id, per, window_start,
             gateway.window_end(per, window_start, time_zone),
             requests, tokens, spend_usd, warn_requests, warn_tokens, warn_spend_usd, 0, 0, 0)::gateway.limit_state
            order by subject, subject_id, model_id, per
        ), '{}')
        from (
            select f.*, z.time_zone, gateway.window_start(f.per, p_at, z.time_zone) as window_start
            from found as f
            cross join lateral (select case when f.subject = 'service' then 'UTC' else p_time_zone end as time_zone) as z
            where num_nonnulls(f.requests, f.tokens, f.spend_usd, f.warn_requests, f.warn_tokens, f.warn_spend_usd) > 0
        ) as windowed
    );
end
$$;
comment on function gateway.applicable_limits(bigint, bigint, bigint[], bigint[], text, timestamptz) is 'The limits that a request of a key falls under, in the order in which their counters are locked. Usage is not filled in.';
revoke all on function gateway.applicable_limits(bigint, bigint, bigint[], bigint[], text, timestamptz) from public;

create function gateway.lock_counters(p_limits gateway.limit_state[]) returns gateway.limit_state[]
language plpgsql set search_path = ''
as $$
declare
    v_limits gateway.limit_state[];
begin
    loop
        -- Missing counters are made before any is locked, in key order: otherwise two could wait for each other.
        insert into gateway.limit_counters (subject, subject_id, model_id, per, window_start)
        select l.subject, l.subject_id, l.model_id, l.per, l.window_start
        from unnest(p_limits) as l
        where not exists (
            select from gateway.limit_counters as c
            where (c.subject, c.subject_id, c.model_id, c.per) = (l.subject, l.subject_id, l.model_id, l.per)
        )
        order by l.subject, l.subject_id, l.model_id, l.per
        on conflict do nothing;

        -- A request that waited for the lock over the turn of a window joins the newer one, never an older one.
        select array_agg(
            (l.subject, l.subject_id, l.model_id, l.per, greatest(l.window_start, c.window_start),
             case when c.window_start > l.window_start then c.window_start + (l.window_end - l.window_start) else l.window_end end,
             l.requests, l.tokens, l.spend_usd, l.warn_requests, l.warn_tokens, l.warn_spend_usd,
             case when c.window_start >= l.window_start then c.requests else 0 end,
             case when c.window_start >= l.window_start then c.tokens else 0 end,
             case when c.window_start >= l.window_start then c.spend_usd else 0 end)::gateway.limit_state
        )
        into v_limits
        from unnest(p_limits) as l
        join (
            select c.*
            from gateway.limit_counters as c
            join unnest(p_limits) as x on (c.subject, c.subject_id, c.model_id, c.per) = (x.subject, x.subject_id, x.model_id, x.per)
            order by c.subject, c.subject_id, c.model_id, c.per
            for update of c
        ) as c on (c.subject, c.subject_id, c.model_id, c.per) = (l.subject, l.subject_id, l.model_id, l.per);
        exit when cardinality(v_limits) = cardinality(p_limits);  -- else one was deleted by hand meanwhile
    end loop;
    return v_limits;
end
$$;
comment on function gateway.lock_counters(gateway.limit_state[]) is 'Locks the counters of these limits, in key order, and fills in what is used of each window.';
revoke all on function gateway.lock_counters(gateway.limit_state[]) from public;

create function gateway.describe_limits(p_limits gateway.limit_state[], p_at timestamptz) returns jsonb
language plpgsql stable set search_path = ''
as $$
begin
    return (
        select jsonb_build_object(
            'requests', (
                select jsonb_build_object('limit', l.requests, 'remaining', greatest(l.requests - l.used_requests, 0),
                                          'reset_seconds', ceil(extract(epoch from l.window_end - p_at))::bigint)
                from unnest(p_limits) as l
                where l.requests is not null and l.subject <> 'service'
                order by l.requests - l.used_requests, l.window_end desc
                limit 1
            ),
            'tokens', (
                select jsonb_build_object('limit', l.tokens, 'remaining', greatest(l.tokens - l.used_tokens, 0),
                                          'reset_seconds', ceil(extract(epoch from l.window_end - p_at))::bigint)
                from unnest(p_limits) as l
                where l.tokens is not null and l.subject <> 'service'
                order by l.tokens - l.used_tokens, l.window_end desc
                limit 1
            )
        )
    );
end
$$;
comment on function gateway.describe_limits(gateway.limit_state[], timestamptz) is 'The tightest of the windows for requests and for tokens, as the x-ratelimit headers show them. A service''s are the operator''s affair.';
revoke all on function gateway.describe_limits(gateway.limit_state[], timestamptz) from public;

-- api.admit_request: decides, in one transaction, whether a request may go to a provider, and holds its whole upper bound.
--
-- Returns a row either way. {"admitted": true, "request_id", "admitted_at", …, "max_output_tokens", "candidates": [the routes to
-- try, in order, with the sealed provider keys]}, or {"admitted": false, "refusal": code, …}. A refusal consumes nothing.
--
-- The hold: for each candidate, input bound × its dearest input price + output bound × its dearest output price + what is fixed,
-- with the commission (or at the flat price), rounded up; of the candidates the dearest. The input bound is p_input_tokens_bound or,
-- where that is null, the model's context length. The output bound is p_max_output_tokens × p_choices or, where the client named
-- none, what the model, the setting, the balance and the limits allow; below 16 the request is refused. Input that holds media
-- is not bounded here: p_input_tokens_bound is to be null for it, for then the media classes' prices count.
--
-- Locks, in this order: the idempotency key, the limit counters (in key order), the account. Everything else is only read.
-- Generic plans: through PostgREST the planner otherwise plans anew at each call, which took 1.5 ms of the 3.4 (measured).
create function api.admit_request(
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
    p_body_hash text default null
) returns jsonb
language plpgsql security definer set search_path = '' set plan_cache_mode = force_generic_plan
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
    v_routed boolean := false;
    v_candidate gateway.candidate;
    v_resolved gateway.candidate[] := '{}';
    v_candidates gateway.candidate[] := '{}';
    v_idempotency gateway.idempotency_keys;
    v_idempotency_is_new boolean := false;
    v_limits gateway.limit_state[];
    v_limit gateway.limit_state;
    v_account gateway.accounts;
    v_free numeric;
    v_money numeric;
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
    v_counted gateway.counted[] := '{}';
    v_warnings text[];
begin
    -- In SQL an absent bound passes every comparison: it has to be refused here or it would hold nothing.
    if p_choices is null or p_choices < 1 or p_max_output_tokens < 0 or p_input_tokens_bound < 0 or p_lease_seconds is null then
        raise exception 'choices, tokens and lease are to be numbers, not negative ones' using errcode = 'invalid_parameter_value';
    end if;
    if p_max_output_tokens > c_most_tokens / p_choices then
        p_max_output_tokens := c_most_tokens / p_choices;
    end if;
    if p_input_tokens_bound > c_most_tokens then
        p_input_tokens_bound := c_most_tokens;
    end if;

    select k.id, k.customer_id, k.prefix, k.scopes, k.allowed_models, k.allowed_services, k.active, k.expires_at,
        c.active as customer_active, c.username, c.time_zone
    into v_key
    from gateway.api_keys as k
    left join gateway.customers as c on c.id = k.customer_id
    where k.secret_hash = decode(p_key_hash, 'hex');

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

        for v_candidate in
            select * from gateway.resolve_candidates(p_models, p_model_id, p_provider, v_key.allowed_services,
                                                     p_input_tokens_bound is null, p_media_output)
        loop
            v_found := true;
            continue when v_key.allowed_models is not null and not v_candidate.model_id = any (v_key.allowed_models);
            v_allowed := true;
            continue when v_candidate.route_id is null;
            v_routed := true;
            continue when v_candidate.prices is null;
            v_candidate.input_bound := least(p_input_tokens_bound, v_candidate.context_length);
            if v_candidate.input_bound is null then
                v_reason := coalesce(v_reason, jsonb_build_object('refusal', 'input_unbounded', 'model', v_candidate.model_name));
                continue;
            end if;
            v_resolved := v_resolved || v_candidate;
        end loop;
        if cardinality(v_resolved) = 0 then
            v_refusal := case
                when not v_found then jsonb_build_object('refusal', 'model_not_found')
                when not v_allowed then jsonb_build_object('refusal', 'model_not_allowed')
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
            v_key.id, v_key.customer_id,
            array(select distinct r.model_id from unnest(v_resolved) as r), array(select distinct r.service_id from unnest(v_resolved) as r),
            v_key.time_zone, v_at);
        if cardinality(v_limits) > 0 then
            v_limits := gateway.lock_counters(v_limits);
        end if;
        select * into v_account from gateway.accounts where customer_id = v_key.customer_id for update;
        v_free := v_account.balance_usd - v_account.held_usd;

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

            if p_max_output_tokens is not null then
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
                        when v_rate_out > 0
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
        if v_idempotency_is_new then
            delete from gateway.idempotency_keys
            where key_id = v_key.id and idempotency_key = p_idempotency_key;
        end if;
        perform set_config('gateway.engine', 'on', true);
        if v_key.customer_id is not null then
            perform gateway.record_refusal(p_request_id, v_key.customer_id, v_key.id, v_requested, p_endpoint, p_streamed, v_refusal ->> 'refusal');
        end if;
        perform set_config('gateway.engine', 'off', true);
        return v_refusal || jsonb_build_object(
            'admitted', false, 'key_prefix', v_key.prefix, 'rate_limits', gateway.describe_limits(v_limits, v_at));
    end if;

    -- a limit of a model or a service reserves what its own candidates may use; the settlement gives back what they did not
    select coalesce(array_agg((
        l.subject, l.subject_id, l.model_id, l.per, l.window_start, 1, u.tokens, u.spend_usd
    )::gateway.counted), '{}')
    into v_counted
    from unnest(v_limits) as l
    cross join lateral (
        select max(c.input_bound + c.output_bound * p_choices) as tokens,
            max(case when l.subject = 'service' then c.cost_bound_usd else c.hold_usd end) as spend_usd
        from unnest(v_candidates) as c
        where (l.subject <> 'service' or c.service_id = l.subject_id) and (l.model_id = 0 or c.model_id = l.model_id)
    ) as u
    where u.tokens is not null;

    perform set_config('gateway.engine', 'on', true);
    if p_idempotency_key is not null and not v_idempotency_is_new then
        update gateway.idempotency_keys
        set body_hash = decode(p_body_hash, 'hex'), request_id = p_request_id, charged = false, freed = false, created_at = v_at
        where key_id = v_key.id and idempotency_key = p_idempotency_key;
    end if;
    update gateway.limit_counters as c
    set requests = case when c.window_start = x.window_start then c.requests else 0 end + x.requests,
        tokens = case when c.window_start = x.window_start then c.tokens else 0 end + x.tokens,
        spend_usd = case when c.window_start = x.window_start then c.spend_usd else 0 end + x.spend_usd,
        window_start = x.window_start
    from unnest(v_counted) as x
    where (c.subject, c.subject_id, c.model_id, c.per) = (x.subject, x.subject_id, x.model_id, x.per);

    update gateway.accounts set held_usd = held_usd + v_hold where customer_id = v_key.customer_id;

    insert into gateway.requests (
        id, admitted_at, customer_id, key_id, model_id, requested_model, endpoint, streamed, state, hold_usd, lease_until,
        input_tokens_bound, output_tokens_bound, billing_mode, commission_percent, flat_usd_per_1k_tokens, routes, counted, idempotency_key)
    select p_request_id, v_at, v_key.customer_id, v_key.id, v_candidates[1].model_id, v_requested, p_endpoint, p_streamed, 'held',
        v_hold, v_at + make_interval(secs => p_lease_seconds),
        max(c.input_bound), max(c.output_bound) * p_choices,
        v_settings.billing_mode, v_settings.commission_percent, v_settings.flat_usd_per_1k_tokens,
        jsonb_agg(jsonb_build_object('route_id', c.route_id, 'service_id', c.service_id, 'model_id', c.model_id,
                                     'provider', c.provider, 'upstream_model', c.upstream_model, 'prices', c.prices)),
        v_counted, p_idempotency_key
    from unnest(v_candidates) as c;
    perform set_config('gateway.engine', 'off', true);

    -- what the client is told counts this request
    select array_agg((
        l.subject, l.subject_id, l.model_id, l.per, l.window_start, l.window_end, l.requests, l.tokens, l.spend_usd,
        l.warn_requests, l.warn_tokens, l.warn_spend_usd,
        l.used_requests + x.requests, l.used_tokens + x.tokens, l.used_spend_usd + x.spend_usd
    )::gateway.limit_state)
    into v_limits
    from unnest(v_limits) as l
    join unnest(v_counted) as x on (x.subject, x.subject_id, x.model_id, x.per) = (l.subject, l.subject_id, l.model_id, l.per);

    select array_agg(distinct w.name) into v_warnings
    from unnest(v_limits) as l
    cross join lateral (values
        (case when l.used_requests > l.warn_requests then 'requests_per_' || l.per end),
        (case when l.used_tokens > l.warn_tokens then 'tokens_per_' || l.per end),
        (case when l.used_spend_usd > l.warn_spend_usd then 'spend_usd_per_' || l.per end)
    ) as w (name)
    where w.name is not null and l.subject <> 'service';

    return jsonb_build_object(
        'admitted', true,
        'request_id', p_request_id,
        'admitted_at', v_at,
        'key_id', v_key.id,
        'key_prefix', v_key.prefix,
        'customer_id', v_key.customer_id,
        'max_output_tokens', v_bound,
        'hold_usd', gateway.show_usd(v_hold),
        'rate_limits', gateway.describe_limits(v_limits, v_at),
        'warnings', coalesce(to_jsonb(v_warnings), '[]'),
        'candidates', (
            select jsonb_agg(jsonb_build_object(
                'route_id', c.route_id, 'service_id', c.service_id, 'service_name', c.service_name, 'provider', c.provider,
                'base_url', c.base_url, 'provider_key', c.provider_key, 'model', c.model_name, 'upstream_model', c.upstream_model,
                'max_output_tokens', c.output_bound))
            from unnest(v_candidates) as c
        )
    );
end
$$;
revoke all on function api.admit_request(text, text, text[], text, integer, bigint, bigint, integer, boolean, bigint, text, text, boolean, text, text) from public;
grant execute on function api.admit_request(text, text, text[], text, integer, bigint, bigint, integer, boolean, bigint, text, text, boolean, text, text) to service_role;
comment on function api.admit_request(text, text, text[], text, integer, bigint, bigint, integer, boolean, bigint, text, text, boolean, text, text) is 'Admits a request and holds its whole upper bound, or says why not. One transaction.';

create function gateway.describe_excess(
    p_limits gateway.limit_state[], p_service_id bigint, p_model_id bigint, p_tokens bigint, p_charge_usd numeric, p_cost_usd numeric,
    p_at timestamptz
) returns jsonb
language plpgsql stable set search_path = ''
as $$
begin
    return (
        select jsonb_build_object(
            'refusal', 'rate_limit_exceeded',
            'subject', l.subject,
            'metric', m.metric,
            'per', l.per,
            'limit', gateway.show_usd(m.most),
            'retry_after_seconds', greatest(ceil(extract(epoch from l.window_end - p_at)), 1)::bigint,
            'never', m.needed > m.most)
        from unnest(p_limits) as l
        cross join lateral (values
            ('requests', l.requests::numeric, l.used_requests::numeric, 1::numeric),
            ('tokens', l.tokens, l.used_tokens, p_tokens),
            ('spend_usd', l.spend_usd, l.used_spend_usd, case when l.subject = 'service' then p_cost_usd else p_charge_usd end)
        ) as m (metric, most, used, needed)
        where (l.subject <> 'service' or l.subject_id = p_service_id) and l.model_id in (0, p_model_id)
            and m.used + m.needed > m.most and (m.needed > 0 or m.metric <> 'spend_usd')
        -- what no window can ever admit is told first; else the window that the client has to wait for: the last to end
        order by m.needed > m.most desc, l.window_end desc
        limit 1
    );
end
$$;
comment on function gateway.describe_excess(gateway.limit_state[], bigint, bigint, bigint, numeric, numeric, timestamptz) is 'Which limit refuses a candidate, as the client is told it. never: no window of this size could admit the request.';
revoke all on function gateway.describe_excess(gateway.limit_state[], bigint, bigint, bigint, numeric, numeric, timestamptz) from public;

create function gateway.add_to_rollup(
    p_request gateway.requests, p_model_id bigint, p_service_id bigint, p_requests integer, p_errors integer, p_usage jsonb,
    p_cost_usd numeric, p_charge_usd numeric, p_uncollected_usd numeric, p_latency_ms integer
) returns void
language plpgsql set search_path = ''
as $$
begin
    insert into gateway.usage_rollups as r (
        bucket, customer_id, key_id, model_id, service_id, requests, errors, input_tokens, cached_input_tokens, cache_write_tokens,
        output_tokens, reasoning_tokens, total_tokens, cost_usd, charge_usd, uncollected_usd, latency_ms, last_request_at)
    values (
        gateway.rollup_bucket(p_request.admitted_at), p_request.customer_id, p_request.key_id, p_model_id, coalesce(p_service_id, 0),
        p_requests, p_errors,
        coalesce((p_usage ->> 'input')::bigint, 0), coalesce((p_usage ->> 'cached_input')::bigint, 0),
        coalesce((p_usage ->> 'cache_write')::bigint, 0), coalesce((p_usage ->> 'output')::bigint, 0),
        coalesce((p_usage ->> 'reasoning')::bigint, 0), gateway.total_tokens(p_usage),
        p_cost_usd, p_charge_usd, p_uncollected_usd, coalesce(p_latency_ms, 0), p_request.admitted_at)
    on conflict (customer_id, bucket, key_id, model_id, service_id) do update set
        requests = r.requests + excluded.requests,
        errors = r.errors + excluded.errors,
        input_tokens = r.input_tokens + excluded.input_tokens,
        cached_input_tokens = r.cached_input_tokens + excluded.cached_input_tokens,
        cache_write_tokens = r.cache_write_tokens + excluded.cache_write_tokens,
        output_tokens = r.output_tokens + excluded.output_tokens,
        reasoning_tokens = r.reasoning_tokens + excluded.reasoning_tokens,
        total_tokens = r.total_tokens + excluded.total_tokens,
        cost_usd = r.cost_usd + excluded.cost_usd,
        charge_usd = r.charge_usd + excluded.charge_usd,
        uncollected_usd = r.uncollected_usd + excluded.uncollected_usd,
        latency_ms = r.latency_ms + excluded.latency_ms,
        last_request_at = greatest(r.last_request_at, excluded.last_request_at);
end
$$;
comment on function gateway.add_to_rollup(gateway.requests, bigint, bigint, integer, integer, jsonb, numeric, numeric, numeric, integer) is 'Adds one request, or a correction of one, to its rollup.';
revoke all on function gateway.add_to_rollup(gateway.requests, bigint, bigint, integer, integer, jsonb, numeric, numeric, numeric, integer) from public;

create function gateway.describe_settlement(p_request gateway.requests, p_tokens bigint, p_balance_usd numeric, p_already boolean) returns jsonb
language plpgsql stable set search_path = ''
as $$
begin
    return (
        select jsonb_build_object(
            'status', 'settled',
            'already', p_already,
            'request_id', p_request.id,
            'billing_mode', p_request.billing_mode,
        'tokens_charged', p_tokens,
            'cost_usd', gateway.show_usd(p_request.cost_usd),
            'charge_usd', gateway.show_usd(p_request.charge_usd),
            'uncollected_usd', gateway.show_usd(p_request.uncollected_usd),
            'credits_charged', gateway.show_credits(p_request.charge_usd, s.credit_value_usd),
            'balance_after_usd', gateway.show_usd(p_balance_usd),
            'credits_after', gateway.show_credits(p_balance_usd, s.credit_value_usd))
        from gateway.settings as s
    );
end
$$;
comment on function gateway.describe_settlement(gateway.requests, bigint, numeric, boolean) is 'What settle_request answers with.';
revoke all on function gateway.describe_settlement(gateway.requests, bigint, numeric, boolean) from public;

create function gateway.tame_usage(p_usage jsonb) returns jsonb
language plpgsql immutable set search_path = ''
as $$
begin
    return (
        select coalesce(jsonb_object_agg(u.key, least(greatest(u.value::numeric, 0), 1000000000000)::bigint), '{}')
        from jsonb_each_text(p_usage) as u
        where u.value is not null
    );
end
$$;
comment on function gateway.tame_usage(jsonb) is 'Usage as a provider claims it, each class from 0 to a million million, so that a settlement can''t fail for a figure.';
revoke all on function gateway.tame_usage(jsonb) from public;

-- api.settle_request: ends a request, once. Charges what was used at the prices that the route was admitted under, frees the hold,
-- corrects the counters of the windows that admitted it, writes ledger and rollup.
--
-- p_settlement: {"request_id", "admitted_at", "outcome": succeeded | failed | cancelled | cut, "route_id": of the route that
-- answered, "usage": tokens by disjoint class, or null if nothing is to be charged, "usage_estimated", "status", "error_code",
-- "finish_reason", "latency_ms", "time_to_first_token_ms", "provider_request_id", "provider_cost_usd", "failed_routes"}.
-- The whole of it in one document, so that a settlement that could not be made can be kept and replayed as it is.
--
-- Idempotent: a second call changes nothing and answers the same with "already": true. A hold that expired meanwhile is settled
-- late, once, by an adjustment. Never fails for money: what the balance can't give is booked as uncollected_usd, and what a provider
-- claims beyond all measure is cut to what the books can hold.
-- {"status": "unknown_request"} where there is no such request.
-- Locks, in this order: the request, its idempotency key, the limit counters (in key order), the account.
-- Generic plans, as for api.admit_request: 1.5 -> 1.0 ms a call.
create function api.settle_request(p_settlement jsonb) returns jsonb
language plpgsql security definer set search_path = '' set plan_cache_mode = force_generic_plan
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
    v_exact_tokens numeric;
    v_exact_fixed numeric;
    v_commission numeric;
    v_account gateway.accounts;
    v_before numeric;
    v_due numeric;
    v_take numeric;
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

    perform set_config('gateway.engine', 'on', true);
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
    if cardinality(v_request.counted) > 0 then
        -- limits of a model or a service that did not answer get everything back; the first model keeps a failed request's count
        perform gateway.correct_counters(array(
            select (
                x.subject, x.subject_id, x.model_id, x.per, x.window_start,
                case when used.it then 0 else -x.requests end,
                case when used.it then v_tokens else 0 end - x.tokens,
                case when not used.it then 0 when x.subject = 'service' then v_request.cost_usd else v_request.charge_usd end - x.spend_usd
            )::gateway.counted
            from unnest(v_request.counted) as x
            cross join lateral (
                select case
                    when x.subject = 'service' then x.subject_id is not distinct from v_request.service_id
                    else x.model_id in (0, v_request.model_id)
                end as it
            ) as used
        ));
    end if;

    select * into v_account from gateway.accounts where customer_id = v_request.customer_id for update;
    v_due := v_request.charge_usd - v_before;
    v_take := least(v_due, v_account.balance_usd - v_account.held_usd + case when v_late then 0 else v_request.hold_usd end);
    if v_late and v_asked_again then
        v_take := least(v_take, 0);
    end if;
    update gateway.accounts
    set balance_usd = balance_usd - v_take, held_usd = held_usd - case when v_late then 0 else v_request.hold_usd end
    where customer_id = v_request.customer_id
    returning * into v_account;
    if v_take <> 0 then
        insert into gateway.ledger_entries (customer_id, kind, amount_usd, balance_after_usd, request_id, actor)
        values (v_request.customer_id, case when v_late then 'late_settlement' else 'charge' end, -v_take, v_account.balance_usd, v_request.id, 'gateway');
    end if;
    v_request.collected_usd := v_before + v_take;
    v_request.uncollected_usd := v_request.charge_usd - v_request.collected_usd;

    if v_late then  -- what its expiry counted
        perform gateway.add_to_rollup(v_request, v_first_model_id, null, -1, -1, '{}', 0, -v_before, 0, null);
    end if;
    perform gateway.add_to_rollup(
        v_request, v_request.model_id, v_request.service_id, 1, case when v_outcome = 'failed' then 1 else 0 end, coalesce(v_usage, '{}'),
        v_request.cost_usd, v_request.charge_usd, v_request.uncollected_usd, (p_settlement ->> 'latency_ms')::integer);

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
    perform set_config('gateway.engine', 'off', true);

    return gateway.describe_settlement(v_request, v_tokens, v_account.balance_usd, false);
end
$$;
revoke all on function api.settle_request(jsonb) from public;
grant execute on function api.settle_request(jsonb) to service_role;
comment on function api.settle_request(jsonb) is 'Ends a request, once: charges, frees the hold, corrects the counters, writes ledger and rollup. Idempotent; can be replayed.';

-- api.expire_holds: ends the holds whose lease has run out, at most p_limit, the oldest first. By the setting expired_hold_policy they
-- are released (nothing is charged; the operator's loss) or charged whole. Either way the request can still be settled, once.
-- Returns {"expired": n, "charged_usd", "released_usd": the upper bound of what was given up}. For the maintenance function.
-- Skips requests that are being settled. Locks as all do, for the whole batch at a time: requests, idempotency keys, counters, accounts.
create function api.expire_holds(p_limit integer default 500) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_policy text := (select expired_hold_policy from gateway.settings);
    v_requests gateway.requests[];
    v_request gateway.requests;
    v_charge numeric;
    v_charged numeric := 0;
    v_released numeric := 0;
    v_balance numeric;
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
        update gateway.accounts
        set held_usd = held_usd - v_request.hold_usd, balance_usd = balance_usd - v_charge
        where customer_id = v_request.customer_id
        returning balance_usd into v_balance;
        if v_charge > 0 then
            insert into gateway.ledger_entries (customer_id, kind, amount_usd, balance_after_usd, request_id, note, actor)
            values (v_request.customer_id, 'charge', -v_charge, v_balance, v_request.id, 'hold expired', 'gateway');
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
    return jsonb_build_object('expired', cardinality(v_requests), 'charged_usd', gateway.show_usd(v_charged), 'released_usd', gateway.show_usd(v_released));
end
$$;
revoke all on function api.expire_holds(integer) from public;
grant execute on function api.expire_holds(integer) to service_role;
comment on function api.expire_holds(integer) is 'Ends the holds whose lease has run out; the maintenance function calls it every minute.';

-- api.forget_idempotency_keys: deletes the Idempotency-Keys that are older than a day, at most p_limit, the oldest first; returns how many.
-- An old one is taken over by the next request with it anyway: this only keeps the table small. For the maintenance function.
create function api.forget_idempotency_keys(p_limit integer default 10000) returns integer
language plpgsql security definer set search_path = ''
as $$
declare
    v_count integer;
begin
    delete from gateway.idempotency_keys
    where ctid = any (array(
        select ctid from gateway.idempotency_keys
        where created_at < now() - interval '24 hours'
        order by created_at
        limit p_limit
        for update skip locked
    ));
    get diagnostics v_count = row_count;
    return v_count;
end
$$;
revoke all on function api.forget_idempotency_keys(integer) from public;
grant execute on function api.forget_idempotency_keys(integer) to service_role;
comment on function api.forget_idempotency_keys(integer) is 'Deletes Idempotency-Keys that are older than a day.';

-- api.check_ledger: recomputes every balance from the ledger, every hold from the running requests, and every request's charge from its
-- entries. {"ok", "accounts", "mismatches": [{customer_id, balance_usd, ledger_usd, held_usd, requests_held_usd}, …at most 100],
-- "misbooked_requests": n, "orphan_holds": n (their lease has run out and nobody ended them)}. Reads one snapshot; locks nothing.
create function api.check_ledger() returns jsonb
language sql stable security definer set search_path = '' set statement_timeout = '120s'
as $$
    with entries as (
        select customer_id, sum(amount_usd) as total from gateway.ledger_entries group by customer_id
    ),
    holds as (
        select customer_id, sum(hold_usd) as total, count(*) filter (where lease_until < now()) as orphans
        from gateway.requests
        where state = 'held'
        group by customer_id
    ),
    mismatches as (
        select a.customer_id, a.balance_usd, coalesce(e.total, 0) as ledger_usd, a.held_usd, coalesce(h.total, 0) as requests_held_usd
        from gateway.accounts as a
        left join entries as e using (customer_id)
        left join holds as h using (customer_id)
        where a.balance_usd <> coalesce(e.total, 0) or a.held_usd <> coalesce(h.total, 0)
    ),
    booked as (
        select request_id, -sum(amount_usd) as total from gateway.ledger_entries where request_id is not null group by request_id
    ),
    misbooked as (
        select count(*) as n
        from (select id, collected_usd from gateway.requests where collected_usd <> 0) as r
        full join (select * from booked where total <> 0) as b on b.request_id = r.id
        where r.collected_usd is distinct from b.total
    )
    select jsonb_build_object(
        'ok', not exists (select from mismatches) and misbooked.n = 0,
        'accounts', (select count(*) from gateway.accounts),
        'mismatches', coalesce((
            select jsonb_agg(jsonb_build_object(
                'customer_id', m.customer_id, 'balance_usd', gateway.show_usd(m.balance_usd), 'ledger_usd', gateway.show_usd(m.ledger_usd),
                'held_usd', gateway.show_usd(m.held_usd), 'requests_held_usd', gateway.show_usd(m.requests_held_usd)))
            from (select * from mismatches order by customer_id limit 100) as m
        ), '[]'),
        'misbooked_requests', misbooked.n,
        'orphan_holds', coalesce((select sum(orphans) from holds), 0))
    from misbooked
$$;
revoke all on function api.check_ledger() from public;
grant execute on function api.check_ledger() to service_role;
comment on function api.check_ledger() is 'Recomputes every balance from the ledger and every hold from the running requests.';

-- api.authenticate_key: who a key is, for every route but chat (which authenticates inside api.admit_request).
-- {"key_id", "customer_id", "prefix", "scopes", "username", "allowed_models"}, or {"error": unknown_key | inactive_key | expired_key | customer_suspended}.
create function api.authenticate_key(p_key_hash text) returns jsonb
language sql stable security definer set search_path = ''
as $$
    select coalesce((
        select case
            when not k.active then jsonb_build_object('error', 'inactive_key')
            when k.expires_at <= now() then jsonb_build_object('error', 'expired_key')
            when not c.active then jsonb_build_object('error', 'customer_suspended')
            else jsonb_build_object(
                'key_id', k.id, 'customer_id', k.customer_id, 'name', k.name, 'prefix', k.prefix, 'scopes', k.scopes,
                'username', c.username, 'allowed_models', k.allowed_models, 'allowed_services', k.allowed_services)
        end
        from gateway.api_keys as k
        left join gateway.customers as c on c.id = k.customer_id
        where k.secret_hash = decode(p_key_hash, 'hex')
    ), jsonb_build_object('error', 'unknown_key'))
$$;
revoke all on function api.authenticate_key(text) from public;
grant execute on function api.authenticate_key(text) to service_role;
comment on function api.authenticate_key(text) is 'Who a key is, by its SHA-256, or why it is refused.';

-- api.create_customer: adds a customer with an empty account. {"id", "name", "username", "email", "company", "created_at"}, or
-- {"error": "email_taken" | "username_taken"}. Race-free: the unique indexes decide.
create function api.create_customer(
    p_name text, p_email text default null, p_company text default null, p_username text default null, p_actor text default null
) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_customer gateway.customers;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    insert into gateway.customers (name, email, company, username)
    values (p_name, p_email, p_company, coalesce(p_username, p_email, 'customer-' || gen_random_uuid()))
    on conflict do nothing
    returning * into v_customer;
    if v_customer.id is null then
        return jsonb_build_object('error', case
            when exists (select from gateway.customers where lower(email) = lower(p_email)) then 'email_taken'
            else 'username_taken'
        end);
    end if;
    return to_jsonb(v_customer);
end
$$;
revoke all on function api.create_customer(text, text, text, text, text) from public;
grant execute on function api.create_customer(text, text, text, text, text) to service_role;
comment on function api.create_customer(text, text, text, text, text) is 'Adds a customer.';

create function gateway.show_limits(
    p_key_id bigint default null, p_customer_id bigint default null, p_service_id bigint default null, p_model_id bigint default null,
    p_each_model boolean default false
) returns jsonb
language sql stable set search_path = ''
as $$
    select jsonb_build_object(
        'rate_limits', coalesce(jsonb_object_agg(n.name || '_per_' || l.per, n.hard) filter (where n.hard is not null), '{}'),
        'warn', coalesce(jsonb_object_agg(n.name || '_per_' || l.per, n.soft) filter (where n.soft is not null), '{}'))
    from gateway.limits as l
    cross join lateral (values
        ('requests', to_jsonb(l.requests), to_jsonb(l.warn_requests)),
        ('tokens', to_jsonb(l.tokens), to_jsonb(l.warn_tokens)),
        ('spend_usd', to_jsonb(gateway.show_usd(l.spend_usd)), to_jsonb(gateway.show_usd(l.warn_spend_usd)))
    ) as n (name, hard, soft)
    where (l.key_id, l.customer_id, l.service_id, l.model_id, l.each_model)
        is not distinct from (p_key_id, p_customer_id, p_service_id, p_model_id, p_each_model)
$$;
comment on function gateway.show_limits(bigint, bigint, bigint, bigint, boolean) is 'All limits of one subject as {rate_limits, warn}.';
revoke all on function gateway.show_limits(bigint, bigint, bigint, bigint, boolean) from public;

-- api.set_limits: merges limits into those of one subject: a key (p_model names one model of it; p_each_model: every model by itself), a
-- customer or a service (by id, or by p_service_name). p_rate_limits and p_warn: {requests_per_minute: 60, tokens_per_day: …, spend_usd_per_month: …}; null removes.
-- A limit that is set without a soft mark of its own gets one at p_warn_percent. Returns all limits of the subject in the same form as
-- {"rate_limits", "warn"}, or {"error": "unknown_key" | "unknown_customer" | "unknown_service" | "unknown_model"}.
create function api.set_limits(
    p_key_id bigint default null, p_customer_id bigint default null, p_service_id bigint default null, p_key_hash text default null,
    p_model text default null, p_each_model boolean default false, p_rate_limits jsonb default '{}', p_warn jsonb default '{}',
    p_warn_percent numeric default 80, p_actor text default null, p_service_name text default null
) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_key_id bigint := p_key_id;
    v_service_id bigint := p_service_id;
    v_model_id bigint;
    v_per text;
    v_changes jsonb;
    v_metric text;
    v_name text;
    v_limit gateway.limits;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    if p_key_hash is not null then
        select id into v_key_id from gateway.api_keys where secret_hash = decode(p_key_hash, 'hex');
    end if;
    if p_service_name is not null then
        select id into v_service_id from gateway.services where name = p_service_name and deleted_at is null;
    end if;
    if (p_key_id is not null or p_key_hash is not null) and not exists (select from gateway.api_keys where id = v_key_id) then
        return jsonb_build_object('error', 'unknown_key');
    elsif p_customer_id is not null and not exists (select from gateway.customers where id = p_customer_id) then
        return jsonb_build_object('error', 'unknown_customer');
    elsif (p_service_id is not null or p_service_name is not null)
        and not exists (select from gateway.services where id = v_service_id and deleted_at is null) then
        return jsonb_build_object('error', 'unknown_service');
    end if;
    if p_model is not null then
        select id into v_model_id from gateway.models where name = p_model;
        if v_model_id is null then
            return jsonb_build_object('error', 'unknown_model');
        end if;
    end if;

    foreach v_per in array array['minute', 'hour', 'day', 'month'] loop
        v_changes := '{}';
        foreach v_metric in array array['requests', 'tokens', 'spend_usd'] loop
            v_name := v_metric || '_per_' || v_per;
            if p_rate_limits ? v_name then
                v_changes := v_changes || jsonb_build_object(
                    v_metric, p_rate_limits -> v_name,
                    'warn_' || v_metric, case
                        when v_metric = 'spend_usd' then to_jsonb((p_rate_limits ->> v_name)::numeric * p_warn_percent * 0.01)
                        else to_jsonb(floor((p_rate_limits ->> v_name)::numeric * p_warn_percent * 0.01))
                    end);
            end if;
            if p_warn ? v_name then
                v_changes := v_changes || jsonb_build_object('warn_' || v_metric, p_warn -> v_name);
            end if;
        end loop;
        continue when v_changes = '{}';

        -- Found and locked in one step: between two, another call might remove the row, and this change would be lost with it.
        insert into gateway.limits (key_id, customer_id, service_id, model_id, each_model, per)
        values (v_key_id, p_customer_id, v_service_id, v_model_id, p_each_model, v_per)
        on conflict (key_id, customer_id, service_id, model_id, each_model, per) do update set per = excluded.per
        returning * into v_limit;
        v_limit := jsonb_populate_record(v_limit, v_changes);
        if num_nonnulls(v_limit.requests, v_limit.tokens, v_limit.spend_usd, v_limit.warn_requests, v_limit.warn_tokens, v_limit.warn_spend_usd) = 0 then
            delete from gateway.limits where id = v_limit.id;
        else
            update gateway.limits
            set (requests, tokens, spend_usd, warn_requests, warn_tokens, warn_spend_usd) = (
                v_limit.requests, v_limit.tokens, v_limit.spend_usd, v_limit.warn_requests, v_limit.warn_tokens, v_limit.warn_spend_usd)
            where id = v_limit.id;
        end if;
    end loop;

    return gateway.show_limits(v_key_id, p_customer_id, v_service_id, v_model_id, p_each_model);
end
$$;
revoke all on function api.set_limits(bigint, bigint, bigint, text, text, boolean, jsonb, jsonb, numeric, text, text) from public;
grant execute on function api.set_limits(bigint, bigint, bigint, text, text, boolean, jsonb, jsonb, numeric, text, text) to service_role;
comment on function api.set_limits(bigint, bigint, bigint, text, text, boolean, jsonb, jsonb, numeric, text, text) is 'Merges rate and spending limits into those of a key, a customer or a service.';

create function gateway.describe_key(p_key gateway.api_keys) returns jsonb
language sql stable set search_path = ''
as $$
    select to_jsonb(p_key) - 'secret_hash' || jsonb_build_object(
        'last_used_at', (select max(r.last_request_at) from gateway.usage_rollups as r where r.customer_id = p_key.customer_id and r.key_id = p_key.id),
        'rate_limit', coalesce(
            (select l.requests from gateway.limits as l where l.key_id = p_key.id and l.each_model and l.per = 'minute'),
            (select s.default_requests_per_minute from gateway.settings as s)))
$$;
comment on function gateway.describe_key(gateway.api_keys) is 'A key as its owner sees it: everything but the secret.';
revoke all on function gateway.describe_key(gateway.api_keys) from public;

-- Limits must not be escaped by making another key: what holds for the maker holds for what it makes, and what is given may only be tighter.
create function gateway.inherit_limits(p_key_id bigint, p_maker_key_id bigint, p_rate_limit bigint, p_limits jsonb) returns text
language plpgsql set search_path = ''
as $$
declare
    v_settings gateway.settings := (select s from gateway.settings as s);
    v_exceeded text;
begin
    with of_maker as (
        select * from gateway.limits where key_id = p_maker_key_id
    ),
    bounds as (
        -- the system's default gives way to a key's own row, so that it binds such a row too
        select n.name || '_per_' || w.per as name, n.bound
        from (values ('minute'), ('hour'), ('day'), ('month')) as w (per)
        left join of_maker as k on k.model_id is null and not k.each_model and k.per = w.per
        left join of_maker as e on e.each_model and e.per = w.per
        cross join lateral (values
            ('requests', coalesce(k.requests, case when w.per = 'minute' and e.requests is null then v_settings.default_requests_per_minute end)),
            ('tokens', coalesce(k.tokens, case when w.per = 'minute' and e.tokens is null then v_settings.default_tokens_per_minute end)),
            ('spend_usd', k.spend_usd)
        ) as n (name, bound)
        union all
        select 'rate_limit', coalesce(
            (select requests from of_maker where each_model and per = 'minute'),
            (select requests from of_maker where model_id is null and not each_model and per = 'minute'),
            v_settings.default_requests_per_minute)
    )
    select b.name into v_exceeded
    from bounds as b
    join jsonb_each_text(coalesce(p_limits, '{}') || jsonb_strip_nulls(jsonb_build_object('rate_limit', p_rate_limit))) as g on g.key = b.name
    where b.bound is not null and (g.value is null or g.value::numeric > b.bound)
    order by b.name
    limit 1;
    if v_exceeded is not null then
        return v_exceeded;
    end if;
    insert into gateway.limits (key_id, model_id, each_model, per, requests, tokens, spend_usd, warn_requests, warn_tokens, warn_spend_usd)
    select p_key_id, model_id, each_model, per, requests, tokens, spend_usd, warn_requests, warn_tokens, warn_spend_usd
    from gateway.limits
    where key_id = p_maker_key_id;
    return null;
end
$$;
comment on function gateway.inherit_limits(bigint, bigint, bigint, jsonb) is 'Gives a new key the limits of the key that makes it. Returns the name of a wanted limit that is above its maker''s, or null.';
revoke all on function gateway.inherit_limits(bigint, bigint, bigint, jsonb) from public;

-- api.create_key: stores a key by its hash. p_customer_id null: an operator's key (scope admin alone). Models and services that do not
-- exist are refused. p_rate_limit: requests per minute for each model. p_limits: as api.set_limits takes them, over all models.
-- p_maker_key_id: the key that makes it, whose limits it inherits; null where an admin makes it. Returns the key without its secret, or
-- {"error": "unknown_customer" | "unknown_model" | "unknown_service", "id"} | {"error": "limit_exceeds_maker", "limit"}; then nothing was made.
create function api.create_key(
    p_customer_id bigint, p_name text, p_prefix text, p_secret_hash text, p_scopes text[] default '{chat,usage}',
    p_allowed_models bigint[] default null, p_allowed_services bigint[] default null, p_expires_at timestamptz default null,
    p_rate_limit bigint default null, p_actor text default null, p_limits jsonb default null, p_maker_key_id bigint default null
) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_key gateway.api_keys;
    v_unknown bigint;
    v_exceeded text;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    if p_customer_id is not null and not exists (select from gateway.customers where id = p_customer_id) then
        return jsonb_build_object('error', 'unknown_customer', 'id', p_customer_id);
    end if;
    select a.id into v_unknown from unnest(p_allowed_models) as a (id) where not exists (select from gateway.models as m where m.id = a.id) limit 1;
    if found then
        return jsonb_build_object('error', 'unknown_model', 'id', v_unknown);
    end if;
    select a.id into v_unknown from unnest(p_allowed_services) as a (id)
    where not exists (select from gateway.services as s where s.id = a.id and s.deleted_at is null) limit 1;
    if found then
        return jsonb_build_object('error', 'unknown_service', 'id', v_unknown);
    end if;
    begin
        insert into gateway.api_keys (customer_id, name, prefix, secret_hash, scopes, allowed_models, allowed_services, expires_at)
        values (p_customer_id, p_name, p_prefix, decode(p_secret_hash, 'hex'), p_scopes, p_allowed_models, p_allowed_services, p_expires_at)
        returning * into v_key;
        if p_maker_key_id is not null then
            v_exceeded := gateway.inherit_limits(v_key.id, p_maker_key_id, p_rate_limit, p_limits);
            if v_exceeded is not null then
                raise exception using errcode = 'no_data_found';
            end if;
        end if;
    exception when no_data_found then
        return jsonb_build_object('error', 'limit_exceeds_maker', 'limit', v_exceeded);
    end;
    if p_rate_limit is not null then
        insert into gateway.limits as l (key_id, each_model, per, requests) values (v_key.id, true, 'minute', p_rate_limit)
        on conflict (key_id, customer_id, service_id, model_id, each_model, per)
        do update set requests = excluded.requests, warn_requests = least(l.warn_requests, excluded.requests);
    end if;
    if p_limits is not null then
        perform api.set_limits(p_key_id => v_key.id, p_rate_limits => p_limits, p_actor => p_actor);
    end if;
    return gateway.describe_key(v_key);
end
$$;
revoke all on function api.create_key(bigint, text, text, text, text[], bigint[], bigint[], timestamptz, bigint, text, jsonb, bigint) from public;
grant execute on function api.create_key(bigint, text, text, text, text[], bigint[], bigint[], timestamptz, bigint, text, jsonb, bigint) to service_role;
comment on function api.create_key(bigint, text, text, text, text[], bigint[], bigint[], timestamptz, bigint, text, jsonb, bigint) is 'Stores a new key by its hash.';

-- api.set_key_state: switches a key on or off, or revokes it for good. The key is named by id or, with p_key_id null, by p_key_hash.
-- p_customer_id null: an admin's call, any key; else only that customer's keys, and of these none with the scope admin, which only an admin
-- hands out. Returns the key, or {"error": "unknown_key" | "revoked_key" | "admin_key"}. Locks the key.
create function api.set_key_state(
    p_key_id bigint, p_customer_id bigint, p_state text, p_actor text default null, p_key_hash text default null
) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_key gateway.api_keys;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    select * into v_key from gateway.api_keys
    where (id = p_key_id or (p_key_id is null and secret_hash = decode(p_key_hash, 'hex')))
        and (p_customer_id is null or customer_id = p_customer_id)
    for update;
    if v_key.id is null then
        return jsonb_build_object('error', 'unknown_key');
    elsif p_customer_id is not null and 'admin' = any (v_key.scopes) then
        return jsonb_build_object('error', 'admin_key');
    elsif v_key.revoked_at is not null and p_state <> 'revoked' then
        return jsonb_build_object('error', 'revoked_key');
    end if;
    update gateway.api_keys
    set active = case p_state when 'active' then true when 'toggled' then not active else false end,
        revoked_at = case when p_state = 'revoked' then coalesce(revoked_at, now()) end
    where id = v_key.id
    returning * into v_key;
    return gateway.describe_key(v_key);
end
$$;
revoke all on function api.set_key_state(bigint, bigint, text, text, text) from public;
grant execute on function api.set_key_state(bigint, bigint, text, text, text) to service_role;
comment on function api.set_key_state(bigint, bigint, text, text, text) is 'Sets a key active, inactive, toggled or revoked.';

-- api.list_keys: keys by id after p_after, or the one with p_id, without their secrets. p_customer_id null: an admin's call, all keys; else
-- only that customer's. Reads only.
create function api.list_keys(p_limit integer, p_after bigint default 0, p_customer_id bigint default null, p_id bigint default null) returns jsonb
language sql stable security definer set search_path = ''
as $$
    select coalesce(jsonb_agg(gateway.describe_key(k) order by k.id), '[]')
    from (
        select * from gateway.api_keys
        where id > p_after and (p_id is null or id = p_id) and (p_customer_id is null or customer_id = p_customer_id)
        order by id
        limit p_limit
    ) as k
$$;
revoke all on function api.list_keys(integer, bigint, bigint, bigint) from public;
grant execute on function api.list_keys(integer, bigint, bigint, bigint) to service_role;
comment on function api.list_keys(integer, bigint, bigint, bigint) is 'Keys without their secrets, a page of them.';

-- api.add_credits: pays in, or corrects by a negative amount, in USD or in credits. Of p_customer_id, p_key_hash and p_email one names the
-- customer. The same reference twice counts once ("duplicate": true); another amount under it is an error. Locks the account.
-- {"customer_id", "added_usd", "credits_added", "balance_after_usd", "credits_after", "duplicate"}, or {"error": "unknown_customer" |
-- "invalid_amount" (zero, beyond a billion USD, a balance beyond ten, or finer than the tenth decimal) | "reference_conflict" | "more_than_free", "free_usd"}.
create function api.add_credits(
    p_customer_id bigint default null, p_key_hash text default null, p_email text default null,
    p_usd numeric default null, p_credits numeric default null, p_reference text default null, p_note text default null, p_actor text default null
) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_customer_id bigint;
    v_credit_value numeric := (select credit_value_usd from gateway.settings);
    v_amount numeric(20, 10);
    v_account gateway.accounts;
    v_entry gateway.ledger_entries;
begin
    if num_nonnulls(p_usd, p_credits) <> 1 or num_nonnulls(p_customer_id, p_key_hash, p_email) <> 1 then
        raise exception 'one amount and one customer' using errcode = 'invalid_parameter_value';
    end if;
    if abs(coalesce(p_usd, p_credits * v_credit_value)) > 1000000000 then
        return jsonb_build_object('error', 'invalid_amount');
    end if;
    v_amount := coalesce(p_usd, p_credits * v_credit_value);
    if v_amount = 0 or v_amount <> coalesce(p_usd, p_credits * v_credit_value) then
        return jsonb_build_object('error', 'invalid_amount');
    end if;
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    select c.id into v_customer_id
    from gateway.customers as c
    where c.id = p_customer_id
        or lower(c.email) = lower(p_email)
        or c.id = (select k.customer_id from gateway.api_keys as k where k.secret_hash = decode(p_key_hash, 'hex'));
    if v_customer_id is null then
        return jsonb_build_object('error', 'unknown_customer');
    end if;

    select * into v_account from gateway.accounts where customer_id = v_customer_id for update;
    select * into v_entry from gateway.ledger_entries where customer_id = v_customer_id and reference = p_reference;
    if v_entry.id is not null and v_entry.amount_usd <> v_amount then
        return jsonb_build_object('error', 'reference_conflict');
    elsif v_entry.id is null then
        if v_amount < 0 and v_account.balance_usd - v_account.held_usd < -v_amount then
            return jsonb_build_object('error', 'more_than_free', 'free_usd', gateway.show_usd(v_account.balance_usd - v_account.held_usd));
        end if;
        if v_account.balance_usd + v_amount >= 10000000000 then
            return jsonb_build_object('error', 'invalid_amount');
        end if;
        perform set_config('gateway.engine', 'on', true);
        update gateway.accounts set balance_usd = balance_usd + v_amount where customer_id = v_customer_id returning * into v_account;
        insert into gateway.ledger_entries (customer_id, kind, amount_usd, balance_after_usd, reference, note, actor)
        values (v_customer_id, case when v_amount > 0 then 'credit' else 'correction' end, v_amount, v_account.balance_usd, p_reference, p_note,
                coalesce(p_actor, session_user));
        perform set_config('gateway.engine', 'off', true);
    end if;
    return jsonb_build_object(
        'customer_id', v_customer_id, 'added_usd', gateway.show_usd(v_amount), 'credits_added', trim_scale(v_amount / v_credit_value),
        'balance_after_usd', gateway.show_usd(v_account.balance_usd), 'credits_after', gateway.show_credits(v_account.balance_usd, v_credit_value),
        'duplicate', v_entry.id is not null);
end
$$;
revoke all on function api.add_credits(bigint, text, text, numeric, numeric, text, text, text) from public;
grant execute on function api.add_credits(bigint, text, text, numeric, numeric, text, text, text) to service_role;
comment on function api.add_credits(bigint, text, text, numeric, numeric, text, text, text) is 'Pays in, or corrects by a negative amount.';

-- api.create_user: a customer, its first key, its first credits and its limits, all or nothing.
-- {"customer_id", "key_id", "credits"}, or the {"error"} of the part that was refused; then nothing was made.
create function api.create_user(
    p_name text, p_prefix text, p_secret_hash text, p_email text default null, p_company text default null,
    p_credits numeric default null, p_rate_limits jsonb default null, p_actor text default null
) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_customer jsonb := api.create_customer(p_name, p_email, p_company, null, p_actor);
    v_key jsonb;
    v_paid jsonb;
begin
    if v_customer ? 'error' then
        return v_customer;
    end if;
    v_key := api.create_key((v_customer ->> 'id')::bigint, 'default', p_prefix, p_secret_hash, '{chat,usage,keys,billing}', p_actor => p_actor);
    if p_credits > 0 then
        v_paid := api.add_credits(p_customer_id => (v_customer ->> 'id')::bigint, p_credits => p_credits, p_note => 'first credits', p_actor => p_actor);
        if v_paid ? 'error' then
            raise exception 'credits refused: %', v_paid ->> 'error' using errcode = 'invalid_parameter_value';
        end if;
    end if;
    if p_rate_limits is not null then
        perform api.set_limits(p_key_id => (v_key ->> 'id')::bigint, p_rate_limits => p_rate_limits, p_actor => p_actor);
    end if;
    return jsonb_build_object('customer_id', v_customer -> 'id', 'key_id', v_key -> 'id', 'credits', coalesce(v_paid -> 'credits_after', '0'));
end
$$;
revoke all on function api.create_user(text, text, text, text, text, numeric, jsonb, text) from public;
grant execute on function api.create_user(text, text, text, text, text, numeric, jsonb, text) to service_role;
comment on function api.create_user(text, text, text, text, text, numeric, jsonb, text) is 'A customer, its first key, its first credits and limits, all or nothing.';

-- api.read_balance: one customer's account. {"customer_id", "credits", "balance_usd", "held_usd"}. Reads only.
create function api.read_balance(p_customer_id bigint) returns jsonb
language sql stable security definer set search_path = ''
as $$
    select jsonb_build_object(
        'customer_id', a.customer_id, 'credits', gateway.show_credits(a.balance_usd, s.credit_value_usd),
        'balance_usd', gateway.show_usd(a.balance_usd), 'held_usd', gateway.show_usd(a.held_usd))
    from gateway.accounts as a
    cross join gateway.settings as s
    where a.customer_id = p_customer_id
$$;
revoke all on function api.read_balance(bigint) from public;
grant execute on function api.read_balance(bigint) to service_role;
comment on function api.read_balance(bigint) is 'One customer''s balance and what is held of it.';

-- api.list_balances: every customer's account with its keys, by id after p_after. Reads only.
create function api.list_balances(p_limit integer, p_after bigint default 0) returns jsonb
language sql stable security definer set search_path = ''
as $$
    select coalesce(jsonb_agg(jsonb_build_object(
        'user_id', c.id, 'name', c.name, 'email', c.email,
        'credits', gateway.show_credits(a.balance_usd, s.credit_value_usd),
        'balance_usd', gateway.show_usd(a.balance_usd), 'held_usd', gateway.show_usd(a.held_usd),
        'api_keys', coalesce((
            select jsonb_agg(jsonb_build_object('id', k.id, 'prefix', k.prefix, 'active', k.active) order by k.id)
            from gateway.api_keys as k
            where k.customer_id = c.id
        ), '[]')
    ) order by c.id), '[]')
    from (select * from gateway.customers where id > p_after order by id limit p_limit) as c
    join gateway.accounts as a on a.customer_id = c.id
    cross join gateway.settings as s
$$;
revoke all on function api.list_balances(integer, bigint) from public;
grant execute on function api.list_balances(integer, bigint) to service_role;
comment on function api.list_balances(integer, bigint) is 'Customers'' balances and keys, a page of them.';

-- api.find_customer: a customer by email or username. Its id, or null. Reads only.
create function api.find_customer(p_email text default null, p_username text default null) returns bigint
language sql stable security definer set search_path = ''
as $$
    select id from gateway.customers where lower(email) = lower(p_email) or username = p_username limit 1
$$;
revoke all on function api.find_customer(text, text) from public;
grant execute on function api.find_customer(text, text) to service_role;
comment on function api.find_customer(text, text) is 'A customer''s id by email or username.';

create function gateway.describe_price(p_price gateway.prices) returns jsonb
language sql stable set search_path = ''
as $$
    select jsonb_build_object('id', p_price.id, 'effective_from', p_price.effective_from, 'source', p_price.source, 'source_date', p_price.source_date)
        || jsonb_strip_nulls(jsonb_build_object(
            'input', gateway.show_usd(p_price.input), 'cached_input', gateway.show_usd(p_price.cached_input),
            'cache_write', gateway.show_usd(p_price.cache_write), 'audio_input', gateway.show_usd(p_price.audio_input),
            'image_input', gateway.show_usd(p_price.image_input), 'output', gateway.show_usd(p_price.output),
            'audio_output', gateway.show_usd(p_price.audio_output), 'image_output', gateway.show_usd(p_price.image_output),
            'per_request', gateway.show_usd(p_price.per_request), 'per_image', gateway.show_usd(p_price.per_image)))
$$;
comment on function gateway.describe_price(gateway.prices) is 'A price as the API shows it: USD per million tokens, as text; classes without a price of their own are left out.';
revoke all on function gateway.describe_price(gateway.prices) from public;

create function gateway.insert_price(p_offer_id bigint, p_service_id bigint, p_prices jsonb, p_effective_from timestamptz) returns gateway.prices
language sql set search_path = ''
as $$
    insert into gateway.prices (offer_id, service_id, effective_from, input, cached_input, cache_write, audio_input, image_input,
                                output, audio_output, image_output, per_request, per_image, source, source_date)
    select p_offer_id, p_service_id, coalesce(p_effective_from, clock_timestamp()), r.input, r.cached_input, r.cache_write, r.audio_input,
        r.image_input, r.output, r.audio_output, r.image_output, r.per_request, r.per_image, r.source, r.source_date
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

create function gateway.describe_service(p_service gateway.services) returns jsonb
language sql stable set search_path = ''
as $$
    select to_jsonb(p_service) - 'provider_key' - 'deleted_at' || jsonb_build_object(
        'provider_key_set', p_service.provider_key is not null,
        'limits', gateway.show_limits(p_service_id => p_service.id) -> 'rate_limits',
        'enabled_models', coalesce((
            select jsonb_agg(m.name order by m.name)
            from gateway.routes as r
            join gateway.offers as o on o.id = r.offer_id
            join gateway.models as m on m.id = o.model_id
            where r.service_id = p_service.id and r.active
        ), '[]'))
$$;
comment on function gateway.describe_service(gateway.services) is 'A service as an admin sees it: everything but the provider key.';
revoke all on function gateway.describe_service(gateway.services) from public;

create function gateway.enable_models(p_service gateway.services, p_models text[]) returns text
language plpgsql set search_path = ''
as $$
declare
    v_unknown text;
begin
    select w.name into v_unknown
    from unnest(p_models) as w (name)
    where not exists (
        select from gateway.offers as o
        join gateway.models as m on m.id = o.model_id
        where o.provider = p_service.provider and w.name in (m.name, o.upstream_model)
    )
    limit 1;
    if found then
        return v_unknown;
    end if;
    insert into gateway.routes as r (service_id, offer_id)
    select p_service.id, o.id
    from gateway.offers as o
    join gateway.models as m on m.id = o.model_id
    where o.provider = p_service.provider and (m.name = any (p_models) or o.upstream_model = any (p_models))
    on conflict (service_id, offer_id) do update set active = true where not r.active;
    update gateway.routes as r
    set active = false
    from gateway.offers as o
    join gateway.models as m on m.id = o.model_id
    where r.service_id = p_service.id and r.offer_id = o.id and r.active
        and not (m.name = any (p_models) or o.upstream_model = any (p_models));
    return null;
end
$$;
comment on function gateway.enable_models(gateway.services, text[]) is 'Makes these models, and no others, the routes of a service. Returns a name that its provider does not offer, or null.';
revoke all on function gateway.enable_models(gateway.services, text[]) from public;

-- api.reserve_service_id: the id of a service to be, because a provider key's encryption is bound to it.
create function api.reserve_service_id() returns bigint
language sql volatile security definer set search_path = ''
as $$ select nextval('gateway.services_id_seq'::regclass) $$;
revoke all on function api.reserve_service_id() from public;
grant execute on function api.reserve_service_id() to service_role;
comment on function api.reserve_service_id() is 'The id of a service to be.';

-- api.create_service: adds a service with its routes, all or nothing. p_provider_key is sealed already. Models are named by our name or
-- the provider's. p_limits: as api.set_limits takes them. Returns the service, or {"error": "name_taken" | "unknown_model", "model"}.
create function api.create_service(
    p_id bigint, p_name text, p_provider text, p_base_url text default null, p_provider_key text default null,
    p_provider_key_last4 text default null, p_enabled_models text[] default '{}', p_priority integer default 100,
    p_active boolean default true, p_actor text default null, p_limits jsonb default null
) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_service gateway.services;
    v_unknown text;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    begin
        insert into gateway.services (id, name, provider, base_url, provider_key, provider_key_last4, priority, active)
        values (p_id, p_name, p_provider, p_base_url, p_provider_key, p_provider_key_last4, p_priority, p_active)
        returning * into v_service;
        v_unknown := gateway.enable_models(v_service, p_enabled_models);
        if v_unknown is not null then
            raise exception using errcode = 'no_data_found';
        end if;
    exception
        when unique_violation then
            return jsonb_build_object('error', 'name_taken');
        when no_data_found then
            return jsonb_build_object('error', 'unknown_model', 'model', v_unknown);
    end;
    if p_limits is not null then
        perform api.set_limits(p_service_id => p_id, p_rate_limits => p_limits, p_actor => p_actor);
    end if;
    return gateway.describe_service(v_service);
end
$$;
revoke all on function api.create_service(bigint, text, text, text, text, text, text[], integer, boolean, text, jsonb) from public;
grant execute on function api.create_service(bigint, text, text, text, text, text, text[], integer, boolean, text, jsonb) to service_role;
comment on function api.create_service(bigint, text, text, text, text, text, text[], integer, boolean, text, jsonb) is 'Adds a service with its routes.';

-- api.update_service: changes what p_changes names (name, base_url, provider_key, provider_key_last4, priority, active, enabled_models, limits).
-- The caller has seen to it that a key is sealed anew when the origin of the base URL changes. Returns the service, or
-- {"error": "unknown_service" | "name_taken" | "unknown_model"}.
create function api.update_service(p_id bigint, p_changes jsonb, p_actor text default null) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_service gateway.services;
    v_unknown text;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    begin
        select * into v_service from gateway.services where id = p_id and deleted_at is null for update;
        if v_service.id is null then
            return jsonb_build_object('error', 'unknown_service');
        end if;
        v_service := jsonb_populate_record(
            v_service, p_changes - array['id', 'provider', 'created_at', 'deleted_at', 'enabled_models', 'limits']);
        update gateway.services
        set (name, base_url, provider_key, provider_key_last4, priority, active) = (
            v_service.name, v_service.base_url, v_service.provider_key, v_service.provider_key_last4, v_service.priority, v_service.active)
        where id = p_id
        returning * into v_service;
        if p_changes ? 'enabled_models' then
            v_unknown := gateway.enable_models(v_service, array(select jsonb_array_elements_text(p_changes -> 'enabled_models')));
            if v_unknown is not null then
                raise exception using errcode = 'no_data_found';
            end if;
        end if;
    exception
        when unique_violation then
            return jsonb_build_object('error', 'name_taken');
        when no_data_found then
            return jsonb_build_object('error', 'unknown_model', 'model', v_unknown);
    end;
    if p_changes ? 'limits' then
        perform api.set_limits(p_service_id => p_id, p_rate_limits => p_changes -> 'limits', p_actor => p_actor);
    end if;
    return gateway.describe_service(v_service);
end
$$;
revoke all on function api.update_service(bigint, jsonb, text) from public;
grant execute on function api.update_service(bigint, jsonb, text) to service_role;
comment on function api.update_service(bigint, jsonb, text) is 'Changes a service.';

-- api.delete_service: switches a service and its routes off for good; the row stays for the books. Returns whether there was one.
create function api.delete_service(p_id bigint, p_actor text default null) returns boolean
language plpgsql security definer set search_path = ''
as $$
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    update gateway.services set active = false, deleted_at = now(), provider_key = null where id = p_id and deleted_at is null;
    return found;
end
$$;
revoke all on function api.delete_service(bigint, text) from public;
grant execute on function api.delete_service(bigint, text) to service_role;
comment on function api.delete_service(bigint, text) is 'Deletes a service and its provider key.';

-- api.list_services: the services by id after p_after, or the one with p_id. Reads only.
create function api.list_services(p_limit integer, p_after bigint default 0, p_id bigint default null) returns jsonb
language sql stable security definer set search_path = ''
as $$
    select coalesce(jsonb_agg(gateway.describe_service(s) order by s.id), '[]')
    from (
        select * from gateway.services
        where deleted_at is null and id > p_after and (p_id is null or id = p_id)
        order by id
        limit p_limit
    ) as s
$$;
revoke all on function api.list_services(integer, bigint, bigint) from public;
grant execute on function api.list_services(integer, bigint, bigint) to service_role;
comment on function api.list_services(integer, bigint, bigint) is 'Services, a page of them.';

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

-- api.list_catalogue: the catalogue by id after p_after, or the one model with p_id, inactive ones included. Reads only.
create function api.list_catalogue(p_limit integer, p_after bigint default 0, p_id bigint default null) returns jsonb
language sql stable security definer set search_path = ''
as $$
    select coalesce(jsonb_agg(gateway.describe_model(m) order by m.id), '[]')
    from (
        select * from gateway.models where id > p_after and (p_id is null or id = p_id) order by id limit p_limit
    ) as m
$$;
revoke all on function api.list_catalogue(integer, bigint, bigint) from public;
grant execute on function api.list_catalogue(integer, bigint, bigint) to service_role;
comment on function api.list_catalogue(integer, bigint, bigint) is 'The catalogue of models, a page of it.';

-- api.change_settings: changes what p_changes names, and returns all settings. With '{}' it only reads. The table's constraints decide
-- what is valid; a name that is no setting is ignored here and refused by the caller.
create function api.change_settings(p_changes jsonb default '{}', p_actor text default null) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_settings gateway.settings;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    select * into v_settings from gateway.settings for update;
    v_settings := jsonb_populate_record(v_settings, p_changes - 'singleton');
    update gateway.settings
    set (commission_percent, billing_mode, flat_usd_per_1k_tokens, credit_value_usd, default_max_output_tokens,
         default_requests_per_minute, default_tokens_per_minute, expired_hold_policy) = (
        v_settings.commission_percent, v_settings.billing_mode, v_settings.flat_usd_per_1k_tokens, v_settings.credit_value_usd,
        v_settings.default_max_output_tokens, v_settings.default_requests_per_minute, v_settings.default_tokens_per_minute,
        v_settings.expired_hold_policy)
    where p_changes <> '{}';
    return to_jsonb(v_settings) - 'singleton' || jsonb_build_object(
        'commission_percent', trim_scale(v_settings.commission_percent)::text,
        'flat_usd_per_1k_tokens', gateway.show_usd(v_settings.flat_usd_per_1k_tokens),
        'credit_value_usd', gateway.show_usd(v_settings.credit_value_usd));
end
$$;
revoke all on function api.change_settings(jsonb, text) from public;
grant execute on function api.change_settings(jsonb, text) to service_role;
comment on function api.change_settings(jsonb, text) is 'Changes the system''s settings, or only reads them.';

-- api.list_models: the models that can be called: active, with a route of an active service, and a price; for a key only those that it
-- may use. p_key_hash null: the public list. {"models": [{id, name, …, "pricing": what the customer pays, of the route tried first, in USD
-- for one token, as text}]}, or {"error"} as api.authenticate_key gives it. Reads only.
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
                'image', gateway.show_usd(p.per_image * c.commission))) as pricing
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

-- api.read_request: one request's record, of one customer and, where p_key_id is given, of one key of it; p_customer_id null: an admin's
-- call. The id carries its time (its first 12 hexadecimal digits after req_ are milliseconds), so that one partition is read.
-- Null where there is none. In flat mode the provider's cost is not shown to customers. Reads only.
create function api.read_request(p_request_id text, p_customer_id bigint default null, p_key_id bigint default null) returns jsonb
language plpgsql stable security definer set search_path = ''
as $$
declare
    v_made_at timestamptz;
begin
    if p_request_id is null or p_request_id !~ '^req_[0-9a-f]{32}$' then
        return null;
    end if;
    v_made_at := to_timestamp(('x' || lpad(substr(p_request_id, 5, 12), 16, '0'))::bit(64)::bigint / 1000.0);
    return (
        select jsonb_build_object(
            'id', r.id, 'created_at', r.admitted_at, 'endpoint', r.endpoint, 'key_id', r.key_id, 'customer_id', r.customer_id,
            'model', coalesce(m.name, r.requested_model), 'requested_model', r.requested_model, 'provider', s.provider,
            'state', r.state, 'outcome', r.outcome, 'status', r.status, 'error_code', r.error_code, 'finish_reason', r.finish_reason,
            'streamed', r.streamed, 'usage_estimated', r.usage_estimated,
            'tokens', jsonb_strip_nulls(jsonb_build_object(
                'input', r.input_tokens, 'cached_input', r.cached_input_tokens, 'cache_write', r.cache_write_tokens,
                'audio_input', r.audio_input_tokens, 'image_input', r.image_input_tokens, 'output', r.output_tokens,
                'reasoning', r.reasoning_tokens, 'audio_output', r.audio_output_tokens, 'image_output', r.image_output_tokens,
                'images', r.images)),
            'cost_usd', case when r.billing_mode = 'markup' or p_customer_id is null then gateway.show_usd(r.cost_usd) end,
            'charge_usd', gateway.show_usd(r.charge_usd), 'uncollected_usd', gateway.show_usd(r.uncollected_usd),
            'hold_usd', case when r.state = 'held' then gateway.show_usd(r.hold_usd) end,
            'latency_ms', r.latency_ms, 'time_to_first_token_ms', r.time_to_first_token_ms)
        from gateway.requests as r
        left join gateway.models as m on m.id = r.model_id
        left join gateway.services as s on s.id = r.service_id
        where r.id = p_request_id
            and r.admitted_at between v_made_at - interval '1 day' and v_made_at + interval '1 day'
            and (p_customer_id is null or r.customer_id = p_customer_id)
            and (p_key_id is null or r.key_id = p_key_id)
    );
end
$$;
revoke all on function api.read_request(text, bigint, bigint) from public;
grant execute on function api.read_request(text, bigint, bigint) to service_role;
comment on function api.read_request(text, bigint, bigint) is 'One request''s record.';

-- api.check_health: answers, so that the database is there and its schema is ours. Reads only.
create function api.check_health() returns jsonb
language sql stable security definer set search_path = ''
as $$ select jsonb_build_object('database', 'ok', 'postgres', current_setting('server_version')) $$;
revoke all on function api.check_health() from public;
grant execute on function api.check_health() to service_role;
comment on function api.check_health() is 'Answers when the database is there.';
