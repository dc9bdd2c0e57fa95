-- What each model brings this month, the largest loss first.
select model, requests, errors, tokens, cost_usd, charge_usd, uncollected_usd, margin_usd, margin_percent
from gateway.model_margin
order by margin_usd;
