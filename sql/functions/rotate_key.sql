-- api.rotate_key: gives a key a new secret; the old one works for p_grace_seconds more. Secrets that were retired earlier keep their own
-- end, unless p_grace_seconds is 0: that says that the secret has leaked, and every older one stops at once.
-- p_customer_id null: an admin's call, any key; else only that customer's keys, and of these none with the scope admin. p_caller_key_id: the
-- key that asks; it is handed no secret that can do more than itself. Returns the key and {"previous_prefix", "previous_expires_at"}, or
-- {"error": "unknown_key" | "revoked_key" | "admin_key" | "stopped_caller" (the key that asks was revoked a moment ago)} |
-- {"error": "exceeds_maker", "field"}. Locks both keys, in the order of their ids.
create function api.rotate_key(
    p_key_id bigint, p_customer_id bigint, p_prefix text, p_secret_hash text, p_grace_seconds bigint default 0, p_actor text default null,
    p_caller_key_id bigint default null
) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_locked gateway.api_keys;
    v_key gateway.api_keys;
    v_caller gateway.api_keys;
    v_beyond text;
    v_previous text;
    v_until timestamptz;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    for v_locked in select * from gateway.lock_keys(array[p_key_id, p_caller_key_id]) loop
        if v_locked.id = p_key_id and (p_customer_id is null or v_locked.customer_id = p_customer_id) then
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
    elsif v_key.revoked_at is not null then
        return jsonb_build_object('error', 'revoked_key');
    end if;
    if p_caller_key_id is not null then
        v_beyond := coalesce(gateway.field_beyond(v_key, v_caller), case when gateway.escapes_limits(v_key, v_caller) then 'limits' end);
        if v_beyond is not null then
            return jsonb_build_object('error', 'exceeds_maker', 'field', v_beyond);
        end if;
    end if;

    perform set_config('gateway.engine', 'on', true);
    if p_grace_seconds > 0 then
        v_until := clock_timestamp() + make_interval(secs => p_grace_seconds);
        insert into gateway.retired_secrets (secret_hash, key_id, expires_at) values (v_key.secret_hash, v_key.id, v_until);
    else
        delete from gateway.retired_secrets where key_id = v_key.id;
    end if;
    perform set_config('gateway.engine', 'off', true);
    v_previous := v_key.prefix;
    update gateway.api_keys
    set prefix = p_prefix, secret_hash = decode(p_secret_hash, 'hex')
    where id = v_key.id
    returning * into v_key;
    return gateway.describe_key(v_key) || jsonb_build_object('previous_prefix', v_previous, 'previous_expires_at', v_until);
end
$$;
revoke all on function api.rotate_key(bigint, bigint, text, text, bigint, text, bigint) from public;
grant execute on function api.rotate_key(bigint, bigint, text, text, bigint, text, bigint) to service_role;
comment on function api.rotate_key(bigint, bigint, text, text, bigint, text, bigint) is 'Gives a key a new secret; the old one works for a while.';
