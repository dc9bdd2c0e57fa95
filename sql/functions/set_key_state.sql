-- api.set_key_state: switches a key on or off, or revokes it for good. The key is named by id or, with p_key_id null, by p_key_hash.
-- p_customer_id null: an admin's call, any key; else only that customer's keys, and of these none with the scope admin, which only an admin
-- hands out. p_caller_key_id: the key that asks; it switches no key on that can do more than itself: whoever holds it may hold the other's
-- secret, for which that was switched off. Returns the key, or {"error": "unknown_key" | "revoked_key" | "admin_key" | "stopped_caller" (the key
-- that asks was revoked a moment ago)} | {"error": "exceeds_maker", "field"}. Locks both keys, in the order of their ids.
create function api.set_key_state(
    p_key_id bigint, p_customer_id bigint, p_state text, p_actor text default null, p_key_hash text default null,
    p_caller_key_id bigint default null
) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_key_id bigint := coalesce(p_key_id, gateway.find_key(decode(p_key_hash, 'hex')));
    v_locked gateway.api_keys;
    v_key gateway.api_keys;
    v_caller gateway.api_keys;
    v_beyond text;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    for v_locked in select * from gateway.lock_keys(array[v_key_id, p_caller_key_id]) loop
        if v_locked.id = v_key_id and (p_customer_id is null or v_locked.customer_id = p_customer_id) then
            v_key := v_locked;
        end if;
        if v_locked.id = p_caller_key_id then
            v_caller := v_locked;
        end if;
    end loop;
    if p_caller_key_id is not null and gateway.is_stopped(v_caller) then
        return jsonb_build_object('error', 'stopped_caller');
    elsif v_key.id is null then
        return jsonb_build_object('error', 'unknown_key');
    elsif p_customer_id is not null and 'admin' = any (v_key.scopes) then
        return jsonb_build_object('error', 'admin_key');
    elsif v_key.revoked_at is not null and p_state <> 'revoked' then
        return jsonb_build_object('error', 'revoked_key');
    end if;
    if p_caller_key_id is not null and not v_key.active and p_state in ('active', 'toggled') then
        v_beyond := coalesce(gateway.field_beyond(v_key, v_caller), case when gateway.escapes_limits(v_key, v_caller) then 'limits' end);
        if v_beyond is not null then
            return jsonb_build_object('error', 'exceeds_maker', 'field', v_beyond);
        end if;
    end if;
    update gateway.api_keys
    set active = case p_state when 'active' then true when 'toggled' then not active else false end,
        revoked_at = case when p_state = 'revoked' then coalesce(revoked_at, now()) end
    where id = v_key.id
    returning * into v_key;
    return gateway.describe_key(v_key);
end
$$;
revoke all on function api.set_key_state(bigint, bigint, text, text, text, bigint) from public;
grant execute on function api.set_key_state(bigint, bigint, text, text, text, bigint) to service_role;
comment on function api.set_key_state(bigint, bigint, text, text, text, bigint) is 'Sets a key active, inactive, toggled or revoked.';
