-- Let a customer spend at most 5 USD a day, over all its keys, and warn from 4 USD on. Put in the address. Takes effect with the next request;
-- what was used before the limit was set is not known.
insert into gateway.limits (customer_id, per, spend_usd, warn_spend_usd)
select id, 'day', 5, 4 from gateway.customers where lower(email) = lower('ada@example.com')
on conflict (key_id, customer_id, service_id, model_id, each_model, per)
do update set spend_usd = excluded.spend_usd, warn_spend_usd = excluded.warn_spend_usd
returning *;
