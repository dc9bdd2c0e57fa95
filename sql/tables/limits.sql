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
