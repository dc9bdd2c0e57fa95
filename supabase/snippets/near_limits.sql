-- Who nears a limit, the fullest window first.
select subject, name, customer, model, metric, per, used, soft, hard, percent, state, resets_at
from gateway.near_limits
order by percent desc nulls last, resets_at;
