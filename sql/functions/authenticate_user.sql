-- api.authenticate_user: who a person is that Supabase Auth has vouched for by an access token: {"customer_id", "username"}, both null for an
-- admin without a customer, or {"error": "unknown_user" (deleted or banned since) | "customer_suspended" | "no_customer" | "may_link"}.
--
-- A person without a customer may be given one, by the setting auth_sign_up: the customer with the same address ('link'), or else a new one
-- ('create'). Only by an address that Supabase Auth has confirmed, which no token proves: it is read from auth.users, so that it costs no call.
-- "may_link" says that this is so; then p_link does it, once the caller has made sure that the project's sign-up does confirm addresses. A
-- customer that is linked stays with its person. Race-free: a link is one guarded update, and the unique indexes decide between new rows.
-- Where there is no auth.users (a database apart from Supabase's) nobody is linked but by hand.
create function api.authenticate_user(p_user_id uuid, p_is_admin boolean default false, p_link boolean default false) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_address text;
    v_customer gateway.customers;
    v_sign_up text;
begin
    if to_regclass('auth.users') is not null then
        declare
            v_user jsonb;
        begin
            execute 'select to_jsonb(u) from auth.users as u where u.id = $1' into v_user using p_user_id;
            if v_user is null or v_user ->> 'deleted_at' is not null or (v_user ->> 'banned_until')::timestamptz > now() then
                return jsonb_build_object('error', 'unknown_user');
            end if;
            -- a single sign-on's addresses are its provider's word, not Supabase's
            if v_user ->> 'email_confirmed_at' is not null and (v_user ->> 'is_sso_user')::boolean is not true
                and (v_user ->> 'is_anonymous')::boolean is not true then
                v_address := nullif(v_user ->> 'email', '');
            end if;
        end;
    end if;

    select * into v_customer from gateway.customers where auth_user_id = p_user_id;
    if v_customer.id is null and p_is_admin then
        return jsonb_build_object('customer_id', null, 'username', null);
    elsif v_customer.id is null then
        select auth_sign_up into v_sign_up from gateway.settings;
        if v_address is null or v_sign_up = 'off'
            or (v_sign_up = 'link' and not exists (
                select from gateway.customers where lower(email) = lower(v_address) and auth_user_id is null))
            or exists (select from gateway.customers where lower(email) = lower(v_address) and auth_user_id is not null) then
            return jsonb_build_object('error', 'no_customer');
        elsif not p_link then
            return jsonb_build_object('error', 'may_link');
        end if;
        perform set_config('gateway.actor', 'user ' || p_user_id, true);
        update gateway.customers set auth_user_id = p_user_id
        where lower(email) = lower(v_address) and auth_user_id is null
            and not exists (select from gateway.customers where auth_user_id = p_user_id)
        returning * into v_customer;
        if v_customer.id is null and v_sign_up = 'create' then
            insert into gateway.customers (name, username, email, auth_user_id)
            values (left(v_address, 200), case
                when exists (select from gateway.customers where username = v_address) then 'customer-' || gen_random_uuid()
                else v_address
            end, v_address, p_user_id)
            on conflict do nothing
            returning * into v_customer;
        end if;
        if v_customer.id is null then  -- another request of this person's was first, or another person
            select * into v_customer from gateway.customers where auth_user_id = p_user_id;
        end if;
        if v_customer.id is null then
            return jsonb_build_object('error', 'no_customer');
        end if;
    end if;
    if not v_customer.active then
        return jsonb_build_object('error', 'customer_suspended');
    end if;
    return jsonb_build_object('customer_id', v_customer.id, 'username', v_customer.username);
end
$$;
revoke all on function api.authenticate_user(uuid, boolean, boolean) from public;
grant execute on function api.authenticate_user(uuid, boolean, boolean) to service_role;
comment on function api.authenticate_user(uuid, boolean, boolean) is 'Who a person of Supabase Auth is, and, at first sight, links or makes its customer.';
