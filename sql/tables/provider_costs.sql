-- What providers that tell their cost (OpenRouter) took in a day, beside what our prices came to. For comparison: nobody is charged by it.
create table gateway.provider_costs (
    day date not null,
    service_id bigint not null,
    requests bigint not null constraint provider_costs_requests_check check (requests > 0),
    cost_usd numeric(20, 10) not null,
    provider_cost_usd numeric(20, 10) not null,
    constraint provider_costs_pkey primary key (service_id, day)
);
create index provider_costs_day_idx on gateway.provider_costs (day);
-- Of the few providers that tell it; what else is read of the log does not grow by it.
create index requests_provider_cost_idx on gateway.requests (admitted_at) where provider_cost_usd is not null;
alter table gateway.provider_costs enable row level security;

comment on table gateway.provider_costs is 'What providers say that a day''s requests cost, and what they cost by our prices. Written by the maintenance.';
comment on column gateway.provider_costs.day is 'The day on which the requests were admitted (UTC).';
comment on column gateway.provider_costs.service_id is 'The service that answered them.';
comment on column gateway.provider_costs.requests is 'Requests whose cost the provider told.';
comment on column gateway.provider_costs.cost_usd is 'What they cost by our prices.';
comment on column gateway.provider_costs.provider_cost_usd is 'What they cost by what the provider told.';
