-- What "a key" is in all of these: its first characters. The whole key is nowhere.

-- The documents of the OpenRouter gateway: users, usage_records, rate_limits, rate_limit_usage, system_settings.

create view legacy.users with (security_invoker = true) as
select c.id, c.name, c.username, c.email, c.company,
    (select k.prefix || '…' from gateway.api_keys as k where k.customer_id = c.id order by not k.active, k.id limit 1) as api_key,
    gateway.show_credits(a.balance_usd, s.credit_value_usd) as credits, c.active as is_active, c.created_at
from gateway.customers as c
join gateway.accounts as a on a.customer_id = c.id
cross join gateway.settings as s;
create trigger read_only instead of insert or update or delete on legacy.users
    for each row execute function gateway.refuse_view_edit('Edit gateway.customers; add credits with api.add_credits.');

comment on view legacy.users is 'User accounts with key and credits: gateway.customers and gateway.accounts.';
comment on column legacy.users.id is 'The customer''s id: user_id in the API.';
comment on column legacy.users.name is 'Display name.';
comment on column legacy.users.username is 'Unique name: the user header.';
comment on column legacy.users.email is 'Address.';
comment on column legacy.users.company is 'Company, if any.';
comment on column legacy.users.api_key is 'First characters of the oldest key that is active, else of the oldest.';
comment on column legacy.users.credits is 'The balance in credits, rounded down.';
comment on column legacy.users.is_active is 'False: suspended.';
comment on column legacy.users.created_at is 'When the user was added.';

create view legacy.usage_records with (security_invoker = true) as
select r.id, r.customer_id as user_id, k.prefix || '…' as api_key, coalesce(m.name, r.requested_model) as model, r.endpoint,
    t.input_tokens as prompt_tokens, t.output_tokens as completion_tokens, t.input_tokens + t.output_tokens as tokens_used,
    r.charge_usd as cost, r.admitted_at as "timestamp"
from gateway.requests as r
left join gateway.api_keys as k on k.id = r.key_id
left join gateway.models as m on m.id = r.model_id
cross join lateral (
    select
        coalesce(r.input_tokens, 0) + coalesce(r.cached_input_tokens, 0) + coalesce(r.cache_write_tokens, 0)
        + coalesce(r.audio_input_tokens, 0) + coalesce(r.image_input_tokens, 0) as input_tokens,
        coalesce(r.output_tokens, 0) + coalesce(r.audio_output_tokens, 0) + coalesce(r.image_output_tokens, 0) as output_tokens
) as t
where r.state in ('settled', 'expired')
order by r.admitted_at desc, r.id;
create trigger read_only instead of insert or update or delete on legacy.usage_records
    for each row execute function gateway.refuse_view_edit('A request is never edited; give money back with api.add_credits.');

comment on view legacy.usage_records is 'Every request that has ended, newest first. For sums use gateway.customer_spend and gateway.model_margin: they don''t read the log.';
comment on column legacy.usage_records.id is 'The request''s id.';
comment on column legacy.usage_records.user_id is 'Who pays.';
comment on column legacy.usage_records.api_key is 'First characters of the key that it came with.';
comment on column legacy.usage_records.model is 'The model that answered.';
comment on column legacy.usage_records.endpoint is 'Which API: chat.completions, generate, ….';
comment on column legacy.usage_records.prompt_tokens is 'Tokens read, of all classes.';
comment on column legacy.usage_records.completion_tokens is 'Tokens answered, of all classes.';
comment on column legacy.usage_records.tokens_used is 'Both.';
comment on column legacy.usage_records.cost is 'What the user was charged, in USD.';
comment on column legacy.usage_records."timestamp" is 'When it was admitted.';

create view legacy.rate_limits with (security_invoker = true) as
select k.customer_id as user_id, k.prefix || '…' as api_key,
    coalesce(max(l.requests) filter (where l.per = 'minute'), max(s.default_requests_per_minute)) as requests_per_minute,
    max(l.requests) filter (where l.per = 'hour') as requests_per_hour,
    max(l.requests) filter (where l.per = 'day') as requests_per_day,
    max(l.requests) filter (where l.per = 'month') as requests_per_month,
    coalesce(max(l.tokens) filter (where l.per = 'minute'), max(s.default_tokens_per_minute)) as tokens_per_minute,
    max(l.tokens) filter (where l.per = 'hour') as tokens_per_hour,
    max(l.tokens) filter (where l.per = 'day') as tokens_per_day,
    max(l.tokens) filter (where l.per = 'month') as tokens_per_month,
    k.id as key_id
from gateway.api_keys as k
cross join gateway.settings as s
left join gateway.limits as l on l.key_id = k.id and l.model_id is null and not l.each_model
where k.customer_id is not null
group by k.id;
create trigger read_only instead of insert or update or delete on legacy.rate_limits
    for each row execute function gateway.refuse_view_edit('Edit gateway.limits, or POST /admin/limit.');

comment on view legacy.rate_limits is 'The limits of each key over all models, a row each; empty: none. All limits, also of customers, services and single models: gateway.limits.';
comment on column legacy.rate_limits.user_id is 'Whose key.';
comment on column legacy.rate_limits.api_key is 'First characters of the key.';
comment on column legacy.rate_limits.requests_per_minute is 'Requests in a minute; without a row of the key''s own the system''s default, which is for each model by itself.';
comment on column legacy.rate_limits.requests_per_hour is 'Requests in an hour.';
comment on column legacy.rate_limits.requests_per_day is 'Requests in a day.';
comment on column legacy.rate_limits.requests_per_month is 'Requests in a month.';
comment on column legacy.rate_limits.tokens_per_minute is 'Tokens in a minute; without a row of the key''s own the system''s default, which is for each model by itself.';
comment on column legacy.rate_limits.tokens_per_hour is 'Tokens in an hour.';
comment on column legacy.rate_limits.tokens_per_day is 'Tokens in a day.';
comment on column legacy.rate_limits.tokens_per_month is 'Tokens in a month.';
comment on column legacy.rate_limits.key_id is 'The key.';

create view legacy.rate_limit_usage with (security_invoker = true) as
select k.customer_id as user_id, k.prefix || '…' as api_key, m.name as model, c.per as window_type, c.window_start,
    gateway.window_end(c.per, c.window_start, o.time_zone) as window_end, c.requests as requests_count, c.tokens as tokens_count,
    c.spend_usd as cost, k.id as key_id
from gateway.limit_counters as c
join gateway.api_keys as k on k.id = c.subject_id
join gateway.customers as o on o.id = k.customer_id
left join gateway.models as m on m.id = c.model_id
where c.subject = 'key' and gateway.window_end(c.per, c.window_start, o.time_zone) > now();
create trigger read_only instead of insert or update or delete on legacy.rate_limit_usage
    for each row execute function gateway.refuse_view_edit('Counters are the engine''s; raise the limit in gateway.limits.');

comment on view legacy.rate_limit_usage is 'What each limited key has used of the windows that run. With limits, and of customers and services too: gateway.limit_usage.';
comment on column legacy.rate_limit_usage.user_id is 'Whose key.';
comment on column legacy.rate_limit_usage.api_key is 'First characters of the key.';
comment on column legacy.rate_limit_usage.model is 'The one model that is counted; empty: all.';
comment on column legacy.rate_limit_usage.window_type is 'minute, hour, day or month.';
comment on column legacy.rate_limit_usage.window_start is 'When the window began.';
comment on column legacy.rate_limit_usage.window_end is 'When the next one begins.';
comment on column legacy.rate_limit_usage.requests_count is 'Requests admitted in the window.';
comment on column legacy.rate_limit_usage.tokens_count is 'Tokens used, those of running requests at their bound.';
comment on column legacy.rate_limit_usage.cost is 'USD used, those of running requests at their hold.';
comment on column legacy.rate_limit_usage.key_id is 'The key.';

-- The row turned on its side, with the columns' own comments: a setting that is added shows here by itself.
create view legacy.system_settings with (security_invoker = true) as
select a.attname::text as key,
    case when a.attname = 'webhook_secret' and v.value is not null then '(not shown)' else v.value end as value,
    col_description(a.attrelid, a.attnum) as description
from gateway.settings as s
cross join lateral jsonb_each_text(to_jsonb(s)) as v
join pg_catalog.pg_attribute as a
    on a.attrelid = 'gateway.settings'::regclass and a.attname = v.key and a.attnum > 0 and not a.attisdropped
where v.key <> 'singleton'
order by a.attnum;
create trigger read_only instead of insert or update or delete on legacy.system_settings
    for each row execute function gateway.refuse_view_edit('Edit gateway.settings, or PATCH /admin/settings.');

comment on view legacy.system_settings is 'The settings, a row each: gateway.settings. No secrets.';
comment on column legacy.system_settings.key is 'The setting.';
comment on column legacy.system_settings.value is 'What it is; empty: not set.';
comment on column legacy.system_settings.description is 'What it does.';

-- The documents of the multi-provider back end: "Users", "API_Keys", pricing, api_usage.

create view legacy."Users" with (security_invoker = true) as
select c.id, c.username as "User_name", c.created_at from gateway.customers as c;
create trigger read_only instead of insert or update or delete on legacy."Users"
    for each row execute function gateway.refuse_view_edit('Edit gateway.customers.');

comment on view legacy."Users" is 'Who may call: gateway.customers by their user names.';
comment on column legacy."Users".id is 'The customer''s id.';
comment on column legacy."Users"."User_name" is 'What goes into the user header.';
comment on column legacy."Users".created_at is 'When the user was added.';

create view legacy."API_Keys" with (security_invoker = true) as
select k.id, k.prefix || '…' as "API_key", c.username as "User_name", k.active, k.created_at
from gateway.api_keys as k
join gateway.customers as c on c.id = k.customer_id
where k.revoked_at is null;
create trigger read_only instead of insert or update or delete on legacy."API_Keys"
    for each row execute function gateway.refuse_view_edit('Edit gateway.api_keys; make a key with POST /api/keys.');

comment on view legacy."API_Keys" is 'The keys that are not revoked, by their users'' names: gateway.api_keys.';
comment on column legacy."API_Keys".id is 'The key''s id.';
comment on column legacy."API_Keys"."API_key" is 'First characters of the key.';
comment on column legacy."API_Keys"."User_name" is 'Whose key.';
comment on column legacy."API_Keys".active is 'False: refused until switched on again.';
comment on column legacy."API_Keys".created_at is 'When it was made.';

create view legacy.pricing with (security_invoker = true) as
select p.provider, p.model, greatest(
        p.input_per_token_usd, p.output_per_token_usd,
        (select max(trim_scale(greatest((t.value ->> 'input')::numeric, (t.value ->> 'output')::numeric) * 0.000001))
         from jsonb_array_elements(p.tiers) as t)) as price_per_token,
    p.input_per_token_usd as input_price_per_token, p.output_per_token_usd as output_price_per_token, p.effective_from
from gateway.price_list as p
where p.service is null;
create trigger read_only instead of insert or update or delete on legacy.pricing
    for each row execute function gateway.refuse_view_edit('Edit gateway.prices: an edit there makes a new version.');

comment on view legacy.pricing is 'The prices in force, by the token and before the commission: gateway.prices.';
comment on column legacy.pricing.provider is 'The provider.';
comment on column legacy.pricing.model is 'The model.';
comment on column legacy.pricing.price_per_token is 'USD for a token of either kind at most: the dearer of the two, of the longest prompts where these cost more. Requests are charged by the two, each by itself.';
comment on column legacy.pricing.input_price_per_token is 'USD for an input token. Of a long prompt: gateway.price_tiers.';
comment on column legacy.pricing.output_price_per_token is 'USD for an output token. After a long prompt: gateway.price_tiers.';
comment on column legacy.pricing.effective_from is 'In force since.';

create view legacy.api_usage with (security_invoker = true) as
select r.id, k.prefix || '…' as api_key, c.username as "user", s.provider, coalesce(m.name, r.requested_model) as model,
    t.input_tokens, t.output_tokens, t.input_tokens + t.output_tokens as total_tokens, r.cost_usd as price, r.admitted_at as created_at
from gateway.requests as r
join gateway.services as s on s.id = r.service_id
left join gateway.api_keys as k on k.id = r.key_id
left join gateway.customers as c on c.id = r.customer_id
left join gateway.models as m on m.id = r.model_id
cross join lateral (
    select
        coalesce(r.input_tokens, 0) + coalesce(r.cached_input_tokens, 0) + coalesce(r.cache_write_tokens, 0)
        + coalesce(r.audio_input_tokens, 0) + coalesce(r.image_input_tokens, 0) as input_tokens,
        coalesce(r.output_tokens, 0) + coalesce(r.audio_output_tokens, 0) + coalesce(r.image_output_tokens, 0) as output_tokens
) as t
where r.state = 'settled'
order by r.admitted_at desc, r.id;
create trigger read_only instead of insert or update or delete on legacy.api_usage
    for each row execute function gateway.refuse_view_edit('A request is never edited; give money back with api.add_credits.');

comment on view legacy.api_usage is 'Every request that a provider answered, newest first. For sums use gateway.customer_spend and gateway.model_margin: they don''t read the log.';
comment on column legacy.api_usage.id is 'The request''s id.';
comment on column legacy.api_usage.api_key is 'First characters of the key that it came with.';
comment on column legacy.api_usage."user" is 'Whose key.';
comment on column legacy.api_usage.provider is 'The provider that answered.';
comment on column legacy.api_usage.model is 'The model that answered.';
comment on column legacy.api_usage.input_tokens is 'Tokens read, of all classes.';
comment on column legacy.api_usage.output_tokens is 'Tokens answered, of all classes.';
comment on column legacy.api_usage.total_tokens is 'Both.';
comment on column legacy.api_usage.price is 'What the provider takes, in USD, before the commission, as base_price of GET /api/usage.';
comment on column legacy.api_usage.created_at is 'When it was admitted.';
