-- gateway holds the tables and is exposed to nobody; api holds the functions and is the one schema that PostgREST shows.
create schema gateway;
create schema api;
revoke all on schema gateway from public;
revoke all on schema api from public;
-- Only the gateway's own functions call the database; a browser with an anon or an Auth token has nothing to do here.
grant usage on schema api to service_role;
comment on schema gateway is 'Sluice''s tables. Private: reached only through the functions of schema api, and by the operator in Studio.';
comment on schema api is 'Sluice''s functions, and nothing else. The one schema exposed by PostgREST.';

-- Nobody but its owner has anything to do there, either.
create schema legacy;
revoke all on schema legacy from public;
comment on schema legacy is 'Read-only views under the names that other gateways'' documents use (users, usage_records, rate_limits, pricing, api_usage …), for people who come from there. Exposed to nobody.';
