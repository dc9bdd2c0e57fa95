-- The least that taking money twice could cost: two bare updates, each a transaction of its own.
\set customer random(1, :customers)
update bare.accounts set balance_usd = balance_usd - 0.0000000001 where customer_id = :customer::bigint;
update bare.accounts set balance_usd = balance_usd - 0.0000000001 where customer_id = :customer::bigint;
