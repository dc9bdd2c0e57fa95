create view gateway.price_list with (security_invoker = true) as
select m.name as model, o.provider, o.upstream_model, s.name as service, m.active,
    p.input as input_per_million_usd, p.cached_input as cached_input_per_million_usd, p.cache_write as cache_write_per_million_usd,
    p.output as output_per_million_usd, p.audio_input as audio_input_per_million_usd, p.image_input as image_input_per_million_usd,
    p.audio_output as audio_output_per_million_usd, p.image_output as image_output_per_million_usd,
    p.per_request as per_request_usd, p.per_image as per_image_usd,
    trim_scale(p.input * 0.000001) as input_per_token_usd, trim_scale(p.output * 0.000001) as output_per_token_usd,
    p.effective_from, n.effective_from as next_price_from, p.source, p.source_date, p.id as price_id,
    p.cache_write_1h as cache_write_1h_per_million_usd, p.tiers
from gateway.offers as o
join gateway.models as m on m.id = o.model_id
join (
    select distinct on (offer_id, service_id) *
    from gateway.prices
    where effective_from <= now()
    order by offer_id, service_id, effective_from desc
) as p on p.offer_id = o.id
left join gateway.services as s on s.id = p.service_id
left join lateral (
    select min(f.effective_from) as effective_from
    from gateway.prices as f
    where f.offer_id = p.offer_id and f.service_id is not distinct from p.service_id and f.effective_from > now()
) as n on true
order by m.name, o.provider, s.name;
create trigger read_only instead of insert or update or delete on gateway.price_list
    for each row execute function gateway.refuse_view_edit('Edit gateway.prices: an edit there makes a new version.');

comment on view gateway.price_list is 'The prices in force: what each provider takes for each model, before the commission. Of a long prompt: gateway.price_tiers.';
comment on column gateway.price_list.model is 'The model in our catalogue.';
comment on column gateway.price_list.provider is 'Who sells it.';
comment on column gateway.price_list.upstream_model is 'What the provider calls it.';
comment on column gateway.price_list.service is 'The service that alone has this price; empty: every service of the provider without one of its own.';
comment on column gateway.price_list.active is 'False: the model is hidden and refused.';
comment on column gateway.price_list.input_per_million_usd is 'USD per million input tokens.';
comment on column gateway.price_list.cached_input_per_million_usd is 'USD per million input tokens read from the provider''s cache. Empty: as input.';
comment on column gateway.price_list.cache_write_per_million_usd is 'USD per million input tokens written to the provider''s cache. Empty: as input.';
comment on column gateway.price_list.output_per_million_usd is 'USD per million output tokens, reasoning included.';
comment on column gateway.price_list.audio_input_per_million_usd is 'USD per million audio tokens read. Empty: as input.';
comment on column gateway.price_list.image_input_per_million_usd is 'USD per million image tokens read. Empty: as input.';
comment on column gateway.price_list.audio_output_per_million_usd is 'USD per million audio tokens answered. Empty: as output.';
comment on column gateway.price_list.image_output_per_million_usd is 'USD per million image tokens answered. Empty: as output.';
comment on column gateway.price_list.per_request_usd is 'USD for each request, beside its tokens.';
comment on column gateway.price_list.per_image_usd is 'USD for each image made, beside its tokens.';
comment on column gateway.price_list.input_per_token_usd is 'USD for one input token.';
comment on column gateway.price_list.output_per_token_usd is 'USD for one output token.';
comment on column gateway.price_list.effective_from is 'In force since.';
comment on column gateway.price_list.next_price_from is 'When another price follows; empty: none is written yet.';
comment on column gateway.price_list.source is 'Where the price was read.';
comment on column gateway.price_list.source_date is 'When it was read there.';
comment on column gateway.price_list.price_id is 'The version, in gateway.prices.';
comment on column gateway.price_list.cache_write_1h_per_million_usd is 'USD per million input tokens written to the provider''s cache for an hour. Empty: not offered.';
comment on column gateway.price_list.tiers is 'What a long prompt costs, where that is another price; a line each in gateway.price_tiers.';

create view gateway.price_tiers with (security_invoker = true) as
select p.model, p.provider, p.service, p.active, (t.value ->> 'above_input_tokens')::bigint as above_input_tokens,
    (t.value ->> 'input')::numeric as input_per_million_usd, (t.value ->> 'cached_input')::numeric as cached_input_per_million_usd,
    (t.value ->> 'cache_write')::numeric as cache_write_per_million_usd, (t.value ->> 'cache_write_1h')::numeric as cache_write_1h_per_million_usd,
    (t.value ->> 'output')::numeric as output_per_million_usd, (t.value ->> 'audio_input')::numeric as audio_input_per_million_usd,
    (t.value ->> 'image_input')::numeric as image_input_per_million_usd, (t.value ->> 'audio_output')::numeric as audio_output_per_million_usd,
    (t.value ->> 'image_output')::numeric as image_output_per_million_usd, p.effective_from, p.source, p.source_date, p.price_id
from gateway.price_list as p
cross join lateral jsonb_array_elements(p.tiers) as t
order by p.model, p.provider, p.service, above_input_tokens;
create trigger read_only instead of insert or update or delete on gateway.price_tiers
    for each row execute function gateway.refuse_view_edit('Edit tiers of gateway.prices: an edit there makes a new version.');

comment on view gateway.price_tiers is 'The prices in force of long prompts: from which length on, and what the whole request costs then. The rest: gateway.price_list.';
comment on column gateway.price_tiers.model is 'The model in our catalogue.';
comment on column gateway.price_tiers.provider is 'Who sells it.';
comment on column gateway.price_tiers.service is 'The service that alone has this price; empty: every service of the provider without one of its own.';
comment on column gateway.price_tiers.active is 'False: the model is hidden and refused.';
comment on column gateway.price_tiers.above_input_tokens is 'A request with more input tokens than this, cached and written ones included, costs what stands here, up to the next line''s.';
comment on column gateway.price_tiers.input_per_million_usd is 'USD per million input tokens.';
comment on column gateway.price_tiers.cached_input_per_million_usd is 'USD per million input tokens read from the provider''s cache. Empty: as input.';
comment on column gateway.price_tiers.cache_write_per_million_usd is 'USD per million input tokens written to the provider''s cache. Empty: as input.';
comment on column gateway.price_tiers.cache_write_1h_per_million_usd is 'USD per million input tokens written to the provider''s cache for an hour. Empty: not offered.';
comment on column gateway.price_tiers.output_per_million_usd is 'USD per million output tokens, reasoning included.';
comment on column gateway.price_tiers.audio_input_per_million_usd is 'USD per million audio tokens read. Empty: as input.';
comment on column gateway.price_tiers.image_input_per_million_usd is 'USD per million image tokens read. Empty: as input.';
comment on column gateway.price_tiers.audio_output_per_million_usd is 'USD per million audio tokens answered. Empty: as output.';
comment on column gateway.price_tiers.image_output_per_million_usd is 'USD per million image tokens answered. Empty: as output.';
comment on column gateway.price_tiers.effective_from is 'In force since.';
comment on column gateway.price_tiers.source is 'Where the price was read.';
comment on column gateway.price_tiers.source_date is 'When it was read there.';
comment on column gateway.price_tiers.price_id is 'The version, in gateway.prices.';

create view gateway.key_overview with (security_invoker = true) as
with used as (
    select p.key_id, p.requests, p.errors, p.total_tokens, p.charge_usd
    from gateway.customers as c
    join gateway.usage_periods as p on p.customer_id = c.id and p.per = 'month' and p.grouped_by = 'key'
        and p.period = date_trunc('month', now() at time zone c.time_zone)
    union all
    select r.key_id, r.requests, r.errors, r.total_tokens, r.charge_usd
    from gateway.find_live_usage(null, '-infinity', (select closed_until from gateway.usage_closing), 'infinity') as r
    join gateway.customers as c on c.id = r.customer_id
    where r.bucket >= gateway.window_start('month', now(), c.time_zone)
),
summed as (
    select key_id, sum(requests) as requests, sum(errors) as errors, sum(total_tokens) as tokens, sum(charge_usd) as charge_usd
    from used
    group by key_id
)
select k.id as key_id, k.prefix, k.name, c.name as customer,
    case
        when k.revoked_at is not null then 'revoked'
        when not k.active then 'switched off'
        when k.expires_at <= now() then 'expired'
        when not c.active then 'customer suspended'
        else 'works'
    end as state,
    k.scopes,
    case when k.allowed_models is not null then array(select m.name from gateway.models as m where m.id = any (k.allowed_models) order by m.name) end as allowed_models,
    case when k.allowed_services is not null then array(select s.name from gateway.services as s where s.id = any (k.allowed_services) order by s.name) end as allowed_services,
    (
        select string_agg(concat_ws(' ',
            concat_ws(', ', l.requests || ' requests', l.tokens || ' tokens', trim_scale(l.spend_usd) || ' USD'), 'a ' || l.per,
            case when l.each_model then 'and model' else 'of ' || m.name end), '; ' order by l.id)
        from gateway.limits as l
        left join gateway.models as m on m.id = l.model_id
        where l.key_id = k.id and num_nonnulls(l.requests, l.tokens, l.spend_usd) > 0
    ) as limits,
    k.expires_at, k.created_at, gateway.last_used_at(k.id) as last_used_at,
    coalesce(u.requests, 0)::bigint as requests_this_month,
    coalesce(u.errors, 0)::bigint as errors_this_month,
    coalesce(u.tokens, 0)::bigint as tokens_this_month,
    coalesce(u.charge_usd, 0) as spend_this_month_usd,
    k.customer_id
from gateway.api_keys as k
left join gateway.customers as c on c.id = k.customer_id
left join summed as u on u.key_id = k.id;
create trigger read_only instead of insert or update or delete on gateway.key_overview
    for each row execute function gateway.refuse_view_edit('Edit gateway.api_keys, and gateway.limits.');

comment on view gateway.key_overview is 'Every key: whose, whether it works, what it may do, and what it used this month in its customer''s time zone.';
comment on column gateway.key_overview.key_id is 'The key.';
comment on column gateway.key_overview.prefix is 'Its first characters.';
comment on column gateway.key_overview.name is 'What its owner calls it.';
comment on column gateway.key_overview.customer is 'Who pays; empty for an operator''s key.';
comment on column gateway.key_overview.state is 'works, switched off, expired, revoked (for good) or customer suspended.';
comment on column gateway.key_overview.scopes is 'What it may do: chat, usage (its customer''s log), keys, billing, admin.';
comment on column gateway.key_overview.allowed_models is 'The models that it may use; empty: all.';
comment on column gateway.key_overview.allowed_services is 'The services that it may be routed to; empty: all.';
comment on column gateway.key_overview.limits is 'Its own limits in words; what its customer and the settings say holds beside them.';
comment on column gateway.key_overview.expires_at is 'Refused from here on; empty: never.';
comment on column gateway.key_overview.created_at is 'When it was made.';
comment on column gateway.key_overview.last_used_at is 'When the last of its requests that have ended was admitted.';
comment on column gateway.key_overview.requests_this_month is 'Requests that have ended, this month.';
comment on column gateway.key_overview.errors_this_month is 'Of these, those that failed or expired.';
comment on column gateway.key_overview.tokens_this_month is 'Tokens of all classes, this month.';
comment on column gateway.key_overview.spend_this_month_usd is 'Charged this month.';
comment on column gateway.key_overview.customer_id is 'Who pays: the id.';
