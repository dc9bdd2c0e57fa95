-- What holds money now. Orphaned holds that stay mean that maintenance is not running.
select orphaned, count(*) as requests, sum(hold_usd) as held_usd, max(age) as oldest
from gateway.holds_outstanding
group by orphaned
order by orphaned desc;

select * from gateway.holds_outstanding limit 100;
