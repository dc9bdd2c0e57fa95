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
    created_at timestamptz not null default now(),
    erased_at timestamptz,
    auth_user_id uuid constraint customers_auth_user_id_key unique,
    constraint customers_erased_is_nobody check (erased_at is null or (not active and email is null and company is null)),
    low_balance_usd numeric(20, 10) constraint customers_low_balance_usd_check check (low_balance_usd between 0 and 9999999999)
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
comment on column gateway.customers.erased_at is 'When the person behind it was erased, for good: api.erase_customer does it. The row and the books stay.';
comment on column gateway.customers.auth_user_id is 'The person''s id in Supabase Auth, once one of its access tokens was linked; empty: none.';
comment on column gateway.customers.low_balance_usd is 'The balance below which balance.low tells of this customer; empty: as the settings have it; 0: never.';
