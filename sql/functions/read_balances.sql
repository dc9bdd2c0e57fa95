-- api.read_balance: one customer's account. {"customer_id", "credits", "balance_usd", "held_usd", "debt_usd"}. Reads only.
create function api.read_balance(p_customer_id bigint) returns jsonb
language sql stable security definer set search_path = ''
as $$
    select jsonb_build_object(
        'customer_id', a.customer_id, 'credits', gateway.show_credits(a.balance_usd, s.credit_value_usd),
        'balance_usd', gateway.show_usd(a.balance_usd), 'held_usd', gateway.show_usd(a.held_usd), 'debt_usd', gateway.show_usd(a.debt_usd))
    from gateway.accounts as a
    cross join gateway.settings as s
    where a.customer_id = p_customer_id
$$;
revoke all on function api.read_balance(bigint) from public;
grant execute on function api.read_balance(bigint) to service_role;
comment on function api.read_balance(bigint) is 'One customer''s balance and what is held of it.';

-- api.list_balances: every customer's account with its keys, by id after p_after. Reads only.
create function api.list_balances(p_limit integer, p_after bigint default 0) returns jsonb
language sql stable security definer set search_path = ''
as $$
    select coalesce(jsonb_agg(jsonb_build_object(
        'user_id', c.id, 'name', c.name, 'email', c.email,
        'credits', gateway.show_credits(a.balance_usd, s.credit_value_usd),
        'balance_usd', gateway.show_usd(a.balance_usd), 'held_usd', gateway.show_usd(a.held_usd), 'debt_usd', gateway.show_usd(a.debt_usd),
        'api_keys', coalesce((
            select jsonb_agg(jsonb_build_object('id', k.id, 'prefix', k.prefix, 'active', k.active) order by k.id)
            from gateway.api_keys as k
            where k.customer_id = c.id
        ), '[]')
    ) order by c.id), '[]')
    from (select * from gateway.customers where id > p_after order by id limit p_limit) as c
    join gateway.accounts as a on a.customer_id = c.id
    cross join gateway.settings as s
$$;
revoke all on function api.list_balances(integer, bigint) from public;
grant execute on function api.list_balances(integer, bigint) to service_role;
comment on function api.list_balances(integer, bigint) is 'Customers'' balances and keys, a page of them.';

-- api.find_customer: a customer by email or username. Its id, or null. Reads only.
create function api.find_customer(p_email text default null, p_username text default null) returns bigint
language sql stable security definer set search_path = ''
as $$
    select id from gateway.customers where lower(email) = lower(p_email) or username = p_username limit 1
$$;
revoke all on function api.find_customer(text, text) from public;
grant execute on function api.find_customer(text, text) to service_role;
comment on function api.find_customer(text, text) is 'A customer''s id by email or username.';
