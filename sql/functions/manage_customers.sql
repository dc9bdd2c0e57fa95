create function gateway.describe_customer(p_customer gateway.customers) returns jsonb
language plpgsql stable set search_path = ''
as $$
begin
    return to_jsonb(p_customer) - 'auth_user_id' || (
        select jsonb_build_object(
            'signs_in', p_customer.auth_user_id is not null,
            'credits', gateway.show_credits(a.balance_usd, s.credit_value_usd),
            'balance_usd', gateway.show_usd(a.balance_usd), 'held_usd', gateway.show_usd(a.held_usd), 'debt_usd', gateway.show_usd(a.debt_usd),
            'low_balance_usd', gateway.show_usd(p_customer.low_balance_usd),
            'active_keys', (select count(*) from gateway.api_keys as k where k.customer_id = p_customer.id and k.active))
        from gateway.accounts as a
        cross join gateway.settings as s
        where a.customer_id = p_customer.id
    );
end
$$;
comment on function gateway.describe_customer(gateway.customers) is 'A customer as an admin sees it, with its account.';
revoke all on function gateway.describe_customer(gateway.customers) from public;

-- api.list_customers: customers by id after p_after, or the one with p_id. p_query: those that have it, in any case, in their name, username,
-- email or company. p_active: those that are, or are not. Reads only.
create function api.list_customers(
    p_limit integer, p_after bigint default 0, p_id bigint default null, p_query text default null, p_active boolean default null
) returns jsonb
language plpgsql stable security definer set search_path = '' set plan_cache_mode = force_custom_plan
as $$
begin
    return (
        select coalesce(jsonb_agg(gateway.describe_customer(c) order by c.id), '[]')
        from (
            select * from gateway.customers
            where id > p_after and (p_id is null or id = p_id) and (p_active is null or active = p_active)
                and (p_query is null or strpos(lower(concat_ws(chr(10), name, username, email, company)), lower(p_query)) > 0)
            order by id
            limit p_limit
        ) as c
    );
end
$$;
revoke all on function api.list_customers(integer, bigint, bigint, text, boolean) from public;
grant execute on function api.list_customers(integer, bigint, bigint, text, boolean) to service_role;
comment on function api.list_customers(integer, bigint, bigint, text, boolean) is 'Customers, a page of them, or those that a search finds.';

-- api.update_customer: changes what p_changes names (name, username, email, company, time_zone, active, low_balance_usd), and returns the customer.
-- {"error": "unknown_customer" | "erased_customer" | "email_taken" | "username_taken" | "unknown_time_zone"}. Locks the customer.
create function api.update_customer(p_id bigint, p_changes jsonb, p_actor text default null) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_customer gateway.customers;
    v_constraint text;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    select * into v_customer from gateway.customers where id = p_id for update;
    if v_customer.id is null then
        return jsonb_build_object('error', 'unknown_customer');
    elsif v_customer.erased_at is not null then
        return jsonb_build_object('error', 'erased_customer');
    elsif p_changes ? 'time_zone' and not exists (select from pg_timezone_names where name = p_changes ->> 'time_zone') then
        return jsonb_build_object('error', 'unknown_time_zone');
    end if;
    v_customer := jsonb_populate_record(v_customer, p_changes);
    begin
        update gateway.customers
        set (name, username, email, company, time_zone, active, low_balance_usd) = (
            v_customer.name, v_customer.username, v_customer.email, v_customer.company, v_customer.time_zone, v_customer.active,
            v_customer.low_balance_usd)
        where id = p_id
        returning * into v_customer;
    exception when unique_violation then
        get stacked diagnostics v_constraint = constraint_name;
        return jsonb_build_object('error', case v_constraint when 'customers_email_key' then 'email_taken' else 'username_taken' end);
    end;
    return gateway.describe_customer(v_customer);
end
$$;
revoke all on function api.update_customer(bigint, jsonb, text) from public;
grant execute on function api.update_customer(bigint, jsonb, text) to service_role;
comment on function api.update_customer(bigint, jsonb, text) is 'Changes a customer; active false suspends it at once.';

-- api.erase_customer: forgets the person and keeps the books. Name, username, email, company and the link to Supabase Auth become nobody's,
-- here and in the audit log; so do the names of its keys, which are revoked, and the notes of its payments. Balance, entries with their
-- references, requests and sums stay; running requests settle all the same. For good, and again it changes nothing.
-- Returns the customer, or {"error": "unknown_customer"}. Locks the customer, then its account, then its keys, in the order of their ids.
create function api.erase_customer(p_id bigint, p_actor text default null) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '60s'
as $$
declare
    v_customer gateway.customers;
    v_nobody text := 'erased-' || p_id;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    select * into v_customer from gateway.customers where id = p_id for update;
    if v_customer.id is null then
        return jsonb_build_object('error', 'unknown_customer');
    elsif v_customer.erased_at is not null then
        return gateway.describe_customer(v_customer);
    end if;
    -- Whoever pays in at this moment sees that it is too late.
    perform 1 from gateway.accounts where customer_id = p_id for update;

    if exists (select from gateway.customers where username = v_nobody) then
        v_nobody := v_nobody || '-' || gen_random_uuid();
    end if;
    perform set_config('gateway.engine', 'on', true);
    perform set_config('gateway.erased_user', coalesce(v_customer.auth_user_id::text, ''), true);
    perform from gateway.api_keys where customer_id = p_id order by id for no key update;
    update gateway.api_keys set name = 'erased', active = false, revoked_at = coalesce(revoked_at, now()) where customer_id = p_id;
    update gateway.customers
    set name = v_nobody, username = v_nobody, email = null, company = null, auth_user_id = null, active = false, erased_at = now()
    where id = p_id
    returning * into v_customer;

    update gateway.audit_log
    set before = gateway.without_person(before, entity), after = gateway.without_person(after, entity)
    where (entity = 'customers' and entity_id = p_id::text)
        or (entity = 'api_keys' and entity_id in (select k.id::text from gateway.api_keys as k where k.customer_id = p_id));
    update gateway.audit_log set actor = 'user (erased)' where actor = 'user ' || nullif(current_setting('gateway.erased_user', true), '');
    update gateway.ledger_entries set note = null where customer_id = p_id and request_id is null and note is not null;
    perform set_config('gateway.erased_user', '', true);
    perform set_config('gateway.engine', 'off', true);
    return gateway.describe_customer(v_customer);
end
$$;
revoke all on function api.erase_customer(bigint, text) from public;
grant execute on function api.erase_customer(bigint, text) to service_role;
comment on function api.erase_customer(bigint, text) is 'Forgets the person and keeps the books.';
