-- Prices of the last 30 days and those to come, each beside the one before it.
select v.effective_from, v.effective_from > now() as is_to_come, v.model, v.provider, v.service, v.input, v.input_before, v.output, v.output_before,
    round(100 * (v.output / nullif(v.output_before, 0) - 1), 1) as output_change_percent, v.tiers, v.tiers_before, v.source
from (
    select p.effective_from, m.name as model, o.provider, s.name as service, p.input, p.output, p.tiers, p.source,
        lag(p.input) over version as input_before, lag(p.output) over version as output_before, lag(p.tiers) over version as tiers_before
    from gateway.prices as p
    join gateway.offers as o on o.id = p.offer_id
    join gateway.models as m on m.id = o.model_id
    left join gateway.services as s on s.id = p.service_id
    window version as (partition by p.offer_id, p.service_id order by p.effective_from)
) as v
where v.effective_from > now() - interval '30 days'
order by v.effective_from desc, v.model
limit 500;
