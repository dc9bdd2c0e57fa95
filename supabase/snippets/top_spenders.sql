-- Who spends the most this month, what is left, and who is about to run dry.
select customer_id, name, email, spend_today_usd, spend_this_month_usd, spend_usd, margin_this_month_usd, free_usd,
    -- at this month's pace
    round(free_usd / nullif(spend_this_month_usd / extract(day from now())::integer, 0), 1) as days_left
from gateway.customer_spend
order by spend_this_month_usd desc, spend_usd desc
limit 20;
