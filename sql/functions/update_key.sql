-- api.update_key: changes what p_changes names: name, scopes, allowed_models (ids or names; null: all), allowed_services, expires_at (null:
-- never), limits, model_limits, warn, warn_percent (as api.create_key takes them; null removes a limit).
-- p_customer_id null: an admin's call, any key; else only that customer's keys, and of these none with the scope admin. p_caller_key_id: the
-- key that asks: each new value lies within its own, so that no key raises itself or another; null for the customer in person. "All" and
-- "never" mean no more than what the key that asks has. Returns the key, or {"error": "unknown_key" | "revoked_key" | "admin_key" |
-- "stopped_caller" (the key that asks was revoked a moment ago) | "unknown_model" | "unknown_service" | "scopes_of_nobody"} |
-- {"error": "exceeds_maker", "field"}; then nothing was changed.
-- Locks both keys, in the order of their ids.
create function api.update_key(
    p_key_id bigint, p_customer_id bigint, p_changes jsonb, p_actor text default null, p_caller_key_id bigint default null
) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_locked gateway.api_keys;
    v_key gateway.api_keys;
    v_caller gateway.api_keys;
    v_asked gateway.api_keys;
    v_unknown_model jsonb;
    v_refusal jsonb;
    v_field text;
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

    -- compared with the caller is only what is asked for: the rest is taken to be the caller's own
    v_asked := v_caller;
    if p_changes ? 'name' then
        v_key.name := p_changes ->> 'name';
    end if;
    if p_changes ? 'scopes' then
        v_key.scopes := array(select distinct s from jsonb_array_elements_text(p_changes -> 'scopes') as s);
        v_asked.scopes := v_key.scopes;
        if p_customer_id is not null and 'admin' = any (v_key.scopes) then
            return jsonb_build_object('error', 'exceeds_maker', 'field', 'scopes');
        elsif v_key.customer_id is null and v_key.scopes <> '{admin}' then
            return jsonb_build_object('error', 'scopes_of_nobody');
        end if;
    end if;
    if p_changes ? 'allowed_models' then
        v_key.allowed_models := v_caller.allowed_models;
        if p_changes -> 'allowed_models' <> 'null' then
            select m.ids, m.unknown into v_key.allowed_models, v_unknown_model from gateway.resolve_models(p_changes -> 'allowed_models') as m;
        end if;
        v_asked.allowed_models := v_key.allowed_models;
    end if;
    if p_changes ? 'allowed_services' then
        v_key.allowed_services := v_caller.allowed_services;
        if p_changes -> 'allowed_services' <> 'null' then
            v_key.allowed_services := array(select distinct s::bigint from jsonb_array_elements_text(p_changes -> 'allowed_services') as s);
        end if;
        v_asked.allowed_services := v_key.allowed_services;
    end if;
    if p_changes ? 'expires_at' then
        v_key.expires_at := coalesce((p_changes ->> 'expires_at')::timestamptz, v_caller.expires_at);
        v_asked.expires_at := v_key.expires_at;
    end if;
    if p_caller_key_id is not null then
        v_field := gateway.field_beyond(v_asked, v_caller);
        if v_field is not null then
            return jsonb_build_object('error', 'exceeds_maker', 'field', v_field);
        end if;
    end if;
    if v_unknown_model is not null then
        return jsonb_build_object('error', 'unknown_model', 'field', 'allowed_models', 'name', v_unknown_model);
    elsif p_changes ? 'allowed_services' and gateway.unknown_service(v_key.allowed_services) is not null then
        return jsonb_build_object('error', 'unknown_service', 'id', gateway.unknown_service(v_key.allowed_services));
    end if;

    v_refusal := gateway.set_key_limits(
        p_key_id, case when p_caller_key_id is not null then v_caller.maker_key_ids || v_caller.id when p_customer_id is not null then '{}'::bigint[] end,
        p_changes -> 'limits', p_changes -> 'model_limits', p_changes -> 'warn', (p_changes ->> 'warn_percent')::numeric, p_actor);
    if v_refusal is not null then
        return v_refusal;
    end if;
    update gateway.api_keys
    set (name, scopes, allowed_models, allowed_services, expires_at)
        = (v_key.name, v_key.scopes, v_key.allowed_models, v_key.allowed_services, v_key.expires_at)
    where id = v_key.id
    returning * into v_key;
    return gateway.describe_key(v_key);
end
$$;
revoke all on function api.update_key(bigint, bigint, jsonb, text, bigint) from public;
grant execute on function api.update_key(bigint, bigint, jsonb, text, bigint) to service_role;
comment on function api.update_key(bigint, bigint, jsonb, text, bigint) is 'Changes a key''s name, scopes, models, services, expiry and limits.';
