-- api.read_billing: what a customer sees before it tops up. {"customer_id", "email", "erased", "balance_usd", "held_usd", "debt_usd",
-- "amounts_usd", "minimum_usd", "maximum_usd"}, or null where there is no such customer. Reads only.
create function api.read_billing(p_customer_id bigint) returns jsonb
language plpgsql stable security definer set search_path = ''
as $$
begin
    return (
        select jsonb_build_object(
            'customer_id', c.id, 'email', c.email, 'erased', c.erased_at is not null,
            'balance_usd', gateway.show_usd(a.balance_usd), 'held_usd', gateway.show_usd(a.held_usd), 'debt_usd', gateway.show_usd(a.debt_usd),
            'amounts_usd', (select jsonb_agg(gateway.show_usd(u) order by u) from unnest(s.top_up_amounts_usd) as u),
            'minimum_usd', gateway.show_usd(s.top_up_minimum_usd), 'maximum_usd', gateway.show_usd(s.top_up_maximum_usd))
        from gateway.customers as c
        join gateway.accounts as a on a.customer_id = c.id
        cross join gateway.settings as s
        where c.id = p_customer_id
    );
end
$$;
revoke all on function api.read_billing(bigint) from public;
grant execute on function api.read_billing(bigint) to service_role;
comment on function api.read_billing(bigint) is 'A customer''s account, and what a top-up may be.';

-- api.list_payments: payments, the newest first, with ids below p_before. p_customer_id null: everybody's, with Stripe's ids, and those that
-- were paid for nobody we know. Reads only.
create function api.list_payments(p_limit integer, p_before bigint default null, p_customer_id bigint default null, p_admin boolean default false)
returns jsonb
language plpgsql stable security definer set search_path = '' set plan_cache_mode = force_custom_plan
as $$
begin
    return (
        select coalesce(jsonb_agg(gateway.describe_payment(p, p_admin) order by p.id desc), '[]')
        from (
            select * from gateway.payments
            where (p_before is null or id < p_before)
                and case when p_customer_id is null then customer_id is not null or paid_minor is not null else customer_id = p_customer_id end
            order by id desc
            limit p_limit
        ) as p
    );
end
$$;
revoke all on function api.list_payments(integer, bigint, bigint, boolean) from public;
grant execute on function api.list_payments(integer, bigint, bigint, boolean) to service_role;
comment on function api.list_payments(integer, bigint, bigint, boolean) is 'Payments, a page of them, the newest first.';
