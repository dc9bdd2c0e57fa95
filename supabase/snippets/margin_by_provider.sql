-- What each provider brings this month.
select provider, service, requests, tokens, cost_usd, charge_usd, margin_usd, margin_percent
from gateway.provider_margin
order by cost_usd desc;
