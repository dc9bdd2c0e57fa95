-- api.create_customer: adds a customer with an empty account. {"id", "name", "username", "email", "company", "created_at"}, or
-- {"error": "email_taken" | "username_taken"}. Race-free: the unique indexes decide.
create function api.create_customer(
    p_name text, p_email text default null, p_company text default null, p_username text default null, p_actor text default null
) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_customer gateway.customers;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    insert into gateway.customers (name, email, company, username)
    values (p_name, p_email, p_company, coalesce(p_username, p_email, 'customer-' || gen_random_uuid()))
    on conflict do nothing
    returning * into v_customer;
    if v_customer.id is null then
        return jsonb_build_object('error', case
            when exists (select from gateway.customers where lower(email) = lower(p_email)) then 'email_taken'
            else 'username_taken'
        end);
    end if;
    return to_jsonb(v_customer);
end
$$;
revoke all on function api.create_customer(text, text, text, text, text) from public;
grant execute on function api.create_customer(text, text, text, text, text) to service_role;
comment on function api.create_customer(text, text, text, text, text) is 'Adds a customer.';
