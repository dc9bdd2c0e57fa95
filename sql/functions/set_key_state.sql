-- api.set_key_state: switches a key on or off, or revokes it for good. p_customer_id null: an admin's call, any key; else only that
-- customer's keys. Returns the key, or {"error": "unknown_key" | "revoked_key"}.
create function api.set_key_state(p_key_id bigint, p_customer_id bigint, p_state text, p_actor text default null) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_key gateway.api_keys;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    select * into v_key from gateway.api_keys
    where id = p_key_id and (p_customer_id is null or customer_id = p_customer_id)
    for update;
    if v_key.id is null then
        return jsonb_build_object('error', 'unknown_key');
    elsif v_key.revoked_at is not null and p_state <> 'revoked' then
        return jsonb_build_object('error', 'revoked_key');
    end if;
    update gateway.api_keys
    set active = case p_state when 'active' then true when 'toggled' then not active else false end,
        revoked_at = case when p_state = 'revoked' then coalesce(revoked_at, now()) end
    where id = v_key.id
    returning * into v_key;
    return gateway.describe_key(v_key);
end
$$;
revoke all on function api.set_key_state(bigint, bigint, text, text) from public;
grant execute on function api.set_key_state(bigint, bigint, text, text) to service_role;
comment on function api.set_key_state(bigint, bigint, text, text) is 'Sets a key active, inactive, toggled or revoked.';
