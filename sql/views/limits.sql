-- A counter is there once something has been counted; so a window in which nothing was used shows no row.
create view gateway.limit_usage with (security_invoker = true) as
with running as (
    select c.*, z.time_zone, gateway.window_end(c.per, c.window_start, z.time_zone) as resets_at, k.customer_id as key_customer_id
    from gateway.limit_counters as c
    left join gateway.api_keys as k on c.subject = 'key' and k.id = c.subject_id
    left join gateway.customers as o on o.id = case c.subject when 'customer' then c.subject_id when 'key' then k.customer_id end
    cross join lateral (select coalesce(o.time_zone, 'UTC') as time_zone) as z
),
limited as (
    select c.*,
        coalesce(l.requests, e.requests, case when d.applies and w.requests is null then s.default_requests_per_minute end) as most_requests,
        coalesce(l.tokens, e.tokens, case when d.applies and w.tokens is null then s.default_tokens_per_minute end) as most_tokens,
        coalesce(l.spend_usd, e.spend_usd) as most_spend_usd,
        coalesce(l.warn_requests, e.warn_requests) as warn_requests,
        coalesce(l.warn_tokens, e.warn_tokens) as warn_tokens,
        coalesce(l.warn_spend_usd, e.warn_spend_usd) as warn_spend_usd
    from running as c
    cross join gateway.settings as s
    -- the subject's own row, or that of the key and the model
    left join gateway.limits as l on l.per = c.per and not l.each_model
        and (l.key_id = c.subject_id and c.subject = 'key' and coalesce(l.model_id, 0) = c.model_id
             or l.customer_id = c.subject_id and c.subject = 'customer'
             or l.service_id = c.subject_id and c.subject = 'service')
    -- else the key's row for each model, else the system's default, which gives way to what the key's rows say of the same window
    left join gateway.limits as e on e.per = c.per and e.each_model and e.key_id = c.subject_id and c.subject = 'key' and c.model_id <> 0
    left join gateway.limits as w on w.per = c.per and not w.each_model and w.model_id is null and w.key_id = c.subject_id
        and c.subject = 'key' and c.model_id <> 0
    cross join lateral (select c.subject = 'key' and c.model_id <> 0 and c.per = 'minute' as applies) as d
    where c.resets_at > now()
)
select l.subject, l.subject_id,
    case l.subject when 'key' then k.prefix || '… ' || k.name when 'customer' then c.name else s.name end as name,
    o.name as customer, m.name as model, u.metric, l.per, u.used, u.soft, u.hard,
    round(100 * u.used / nullif(coalesce(u.hard, u.soft), 0), 1) as percent,
    case when u.used >= u.hard then 'full' when u.used >= u.soft then 'over the soft mark' when u.used >= 0.8 * coalesce(u.hard, u.soft) then 'near' else 'fine' end as state,
    l.window_start, l.resets_at
from limited as l
cross join lateral (values
    ('requests', l.requests::numeric, l.warn_requests::numeric, l.most_requests::numeric),
    ('tokens', l.tokens, l.warn_tokens, l.most_tokens),
    ('spend_usd', l.spend_usd, l.warn_spend_usd, l.most_spend_usd)
) as u (metric, used, soft, hard)
left join gateway.api_keys as k on l.subject = 'key' and k.id = l.subject_id
left join gateway.customers as c on l.subject = 'customer' and c.id = l.subject_id
left join gateway.customers as o on o.id = coalesce(k.customer_id, c.id)
left join gateway.services as s on l.subject = 'service' and s.id = l.subject_id
left join gateway.models as m on m.id = l.model_id
where u.soft is not null or u.hard is not null;
create trigger read_only instead of insert or update or delete on gateway.limit_usage
    for each row execute function gateway.refuse_view_edit('Limits are in gateway.limits, the defaults in gateway.settings.');

comment on view gateway.limit_usage is 'Every limited window that runs and in which something was used: what of it, of which limits.';
comment on column gateway.limit_usage.subject is 'key, customer or service.';
comment on column gateway.limit_usage.subject_id is 'Its id.';
comment on column gateway.limit_usage.name is 'The key''s first characters and name, the customer''s or the service''s name.';
comment on column gateway.limit_usage.customer is 'Whose key, or which customer.';
comment on column gateway.limit_usage.model is 'With a key: the one model that is counted; empty: all.';
comment on column gateway.limit_usage.metric is 'requests, tokens or spend_usd.';
comment on column gateway.limit_usage.per is 'The window''s length.';
comment on column gateway.limit_usage.used is 'What was used of it, running requests at their bound.';
comment on column gateway.limit_usage.soft is 'Soft mark: beyond it requests are served with a warning.';
comment on column gateway.limit_usage.hard is 'The limit: beyond it requests are refused.';
comment on column gateway.limit_usage.percent is 'Used, in percent of the limit, or of the soft mark where there is no limit.';
comment on column gateway.limit_usage.state is 'full, over the soft mark, near (80 percent) or fine.';
comment on column gateway.limit_usage.window_start is 'When the window began.';
comment on column gateway.limit_usage.resets_at is 'When the next one begins.';

create view gateway.near_limits with (security_invoker = true) as
select * from gateway.limit_usage where state <> 'fine';
create trigger read_only instead of insert or update or delete on gateway.near_limits
    for each row execute function gateway.refuse_view_edit('Limits are in gateway.limits, the defaults in gateway.settings.');

comment on view gateway.near_limits is 'Who nears a limit: windows of which 80 percent or more are used, or whose soft mark is reached.';
comment on column gateway.near_limits.subject is 'key, customer or service.';
comment on column gateway.near_limits.subject_id is 'Its id.';
comment on column gateway.near_limits.name is 'The key''s first characters and name, the customer''s or the service''s name.';
comment on column gateway.near_limits.customer is 'Whose key, or which customer.';
comment on column gateway.near_limits.model is 'With a key: the one model that is counted; empty: all.';
comment on column gateway.near_limits.metric is 'requests, tokens or spend_usd.';
comment on column gateway.near_limits.per is 'The window''s length.';
comment on column gateway.near_limits.used is 'What was used of it, running requests at their bound.';
comment on column gateway.near_limits.soft is 'Soft mark: beyond it requests are served with a warning.';
comment on column gateway.near_limits.hard is 'The limit: beyond it requests are refused.';
comment on column gateway.near_limits.percent is 'Used, in percent of the limit, or of the soft mark where there is no limit.';
comment on column gateway.near_limits.state is 'full, over the soft mark, or near (80 percent).';
comment on column gateway.near_limits.window_start is 'When the window began.';
comment on column gateway.near_limits.resets_at is 'When the next one begins.';
