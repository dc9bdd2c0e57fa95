-- api.create_user: a customer, its first key, its first credits and its limits, all or nothing.
-- {"customer_id", "key_id", "credits"}, or the {"error"} of the part that was refused; then nothing was made.
create function api.create_user(
    p_name text, p_prefix text, p_secret_hash text, p_email text default null, p_company text default null,
    p_credits numeric default null, p_rate_limits jsonb default null, p_actor text default null
) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_customer jsonb := api.create_customer(p_name, p_email, p_company, null, p_actor);
    v_key jsonb;
    v_paid jsonb;
begin
    if v_customer ? 'error' then
        return v_customer;
    end if;
    v_key := api.create_key((v_customer ->> 'id')::bigint, 'default', p_prefix, p_secret_hash, '{chat,usage,keys,billing}', p_actor => p_actor);
    if p_credits > 0 then
        v_paid := api.add_credits(p_customer_id => (v_customer ->> 'id')::bigint, p_credits => p_credits, p_note => 'first credits', p_actor => p_actor);
        if v_paid ? 'error' then
            raise exception 'credits refused: %', v_paid ->> 'error' using errcode = 'invalid_parameter_value';
        end if;
    end if;
    if p_rate_limits is not null then
        perform api.set_limits(p_key_id => (v_key ->> 'id')::bigint, p_rate_limits => p_rate_limits, p_actor => p_actor);
    end if;
    return jsonb_build_object('customer_id', v_customer -> 'id', 'key_id', v_key -> 'id', 'credits', coalesce(v_paid -> 'credits_after', '0'));
end
$$;
revoke all on function api.create_user(text, text, text, text, text, numeric, jsonb, text) from public;
grant execute on function api.create_user(text, text, text, text, text, numeric, jsonb, text) to service_role;
comment on function api.create_user(text, text, text, text, text, numeric, jsonb, text) is 'A customer, its first key, its first credits and limits, all or nothing.';
