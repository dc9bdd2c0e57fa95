-- api.set_key_state: switches a key on or off, or revokes it for good. The key is named by id or, with p_key_id null, by p_key_hash.
-- p_customer_id null: an admin's call, any key; else only that customer's keys, and of these none with the scope admin, which only an admin
-- hands out. Returns the key, or {"error": "unknown_key" | "revoked_key" | "admin_key"}. Locks the key.
create function api.set_key_state(
    p_key_id bigint, p_customer_id bigint, p_state text, p_actor text default null, p_key_hash text default null
) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_key gateway.api_keys;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    select * into v_key from gateway.api_keys
    where id = coalesce(p_key_id, gateway.find_key(decode(p_key_hash, 'hex')))
        and (p_customer_id is null or customer_id = p_customer_id)
    for update;
    if v_key.id is null then
        return jsonb_build_object('error', 'unknown_key');
    elsif p_customer_id is not null and 'admin' = any (v_key.scopes) then
        return jsonb_build_object('error', 'admin_key');
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
revoke all on function api.set_key_state(bigint, bigint, text, text, text) from public;
grant execute on function api.set_key_state(bigint, bigint, text, text, text) to service_role;
comment on function api.set_key_state(bigint, bigint, text, text, text) is 'Sets a key active, inactive, toggled or revoked.';
