-- What constraints can't say. All of it holds for the operator in Studio too.

-- Statement-level, so that it costs a few microseconds a request. The flag is local to the transaction; a setting of the
-- function itself would need a superuser, and Supabase's postgres is none.
create function gateway.refuse_hand_edit() returns trigger
language plpgsql set search_path = ''
as $$
begin
    if current_setting('gateway.engine', true) is distinct from 'on' then
        raise exception 'gateway.% is written by the engine''s functions only', tg_table_name
            using errcode = 'restrict_violation', hint = 'To change a balance call api.add_credits; a charge is never edited.';
    end if;
    return null;
end
$$;
comment on function gateway.refuse_hand_edit() is 'Trigger: the books are written through the functions of schema api, never by hand.';
revoke all on function gateway.refuse_hand_edit() from public;

create function gateway.refuse_change() returns trigger
language plpgsql set search_path = ''
as $$
begin
    raise exception '% on gateway.% is refused: what was written stays', lower(tg_op), tg_table_name using errcode = 'restrict_violation';
end
$$;
comment on function gateway.refuse_change() is 'Trigger: what was written stays.';
revoke all on function gateway.refuse_change() from public;

create function gateway.refuse_delete() returns trigger
language plpgsql set search_path = ''
as $$
begin
    raise exception 'rows of gateway.% are not deleted: the books refer to them', tg_table_name
        using errcode = 'restrict_violation', hint = 'Set active to false instead.';
end
$$;
comment on function gateway.refuse_delete() is 'Trigger: rows that the books refer to are switched off, not deleted.';
revoke all on function gateway.refuse_delete() from public;

create function gateway.open_account() returns trigger
language plpgsql security definer set search_path = ''
as $$
begin
    perform set_config('gateway.engine', 'on', true);
    insert into gateway.accounts (customer_id) values (new.id);
    perform set_config('gateway.engine', 'off', true);
    return null;
end
$$;
comment on function gateway.open_account() is 'Trigger: every customer has an account, however it was added.';
revoke all on function gateway.open_account() from public;

create function gateway.version_price() returns trigger
language plpgsql security definer set search_path = ''
as $$
begin
    if old.effective_from > clock_timestamp() then
        -- not in force yet: nothing was admitted under it, and nothing in the past will have been
        new.effective_from := greatest(new.effective_from, clock_timestamp());
        return new;
    end if;
    if (new.offer_id, new.service_id) is distinct from (old.offer_id, old.service_id) then
        raise exception 'a price stays with its offer: insert a new one' using errcode = 'restrict_violation';
    end if;
    new.effective_from := case
        when new.effective_from is distinct from old.effective_from and new.effective_from > clock_timestamp() then new.effective_from
        else clock_timestamp()
    end;
    insert into gateway.prices (offer_id, service_id, effective_from, input, cached_input, cache_write, audio_input, image_input,
                                output, audio_output, image_output, per_request, per_image, source, source_date, cache_write_1h, tiers)
    values (new.offer_id, new.service_id, new.effective_from, new.input, new.cached_input, new.cache_write, new.audio_input, new.image_input,
            new.output, new.audio_output, new.image_output, new.per_request, new.per_image, new.source, new.source_date, new.cache_write_1h,
            new.tiers);
    return null;  -- the old version stays as it is
end
$$;
comment on function gateway.version_price() is 'Trigger: editing a price that is or was in force writes a new version, in force from now or from the later time given.';
revoke all on function gateway.version_price() from public;

create function gateway.refuse_price_delete() returns trigger
language plpgsql set search_path = ''
as $$
begin
    if old.effective_from <= clock_timestamp() then
        raise exception 'a price that was in force is not deleted' using errcode = 'restrict_violation';
    end if;
    return old;
end
$$;
comment on function gateway.refuse_price_delete() is 'Trigger: only a price that is not in force yet can be taken back.';
revoke all on function gateway.refuse_price_delete() from public;

create function gateway.record_audit() returns trigger
language plpgsql security definer set search_path = ''
as $$
declare
    v_old jsonb := case when tg_op <> 'INSERT' then to_jsonb(old) end;
    v_new jsonb := case when tg_op <> 'DELETE' then to_jsonb(new) end;
    v_id text := coalesce(v_new ->> 'id', v_old ->> 'id', v_old ->> 'key_id', '1');
    v_before jsonb := v_old;
    v_after jsonb := v_new;
    v_secret text;
begin
    if tg_op = 'UPDATE' then
        select coalesce(jsonb_object_agg(o.key, o.value), '{}'), coalesce(jsonb_object_agg(o.key, v_new -> o.key), '{}')
        into v_before, v_after
        from jsonb_each(v_old) as o
        where o.value is distinct from v_new -> o.key;
        if v_after = '{}' then
            return null;
        end if;
    end if;
    foreach v_secret in array array['secret_hash', 'provider_key', 'webhook_secret'] loop
        if v_before ->> v_secret is not null then
            v_before := v_before || jsonb_build_object(v_secret, '(not shown)');
        end if;
        if v_after ->> v_secret is not null then
            v_after := v_after || jsonb_build_object(v_secret, '(not shown)');
        end if;
    end loop;
    insert into gateway.audit_log (actor, action, entity, entity_id, before, after)
    values (coalesce(nullif(current_setting('gateway.actor', true), ''), session_user), lower(tg_op), tg_table_name, v_id, v_before, v_after);
    return null;
end
$$;
comment on function gateway.record_audit() is 'Trigger: writes the change to audit_log; of secrets only that they changed.';
revoke all on function gateway.record_audit() from public;

create trigger refuse_hand_edit before insert or update or delete or truncate on gateway.accounts
    for each statement execute function gateway.refuse_hand_edit();
create trigger refuse_hand_edit before insert on gateway.ledger_entries
    for each statement execute function gateway.refuse_hand_edit();
create trigger refuse_change before delete or truncate on gateway.ledger_entries
    for each statement execute function gateway.refuse_change();
create trigger refuse_hand_edit before insert or update or delete or truncate on gateway.ledger_months
    for each statement execute function gateway.refuse_hand_edit();
create trigger refuse_hand_edit before insert or update or delete or truncate on gateway.ledger_checkpoints
    for each statement execute function gateway.refuse_hand_edit();
create trigger refuse_hand_edit before insert or update or delete or truncate on gateway.requests
    for each statement execute function gateway.refuse_hand_edit();
create trigger refuse_hand_edit before insert or update or delete or truncate on gateway.usage_rollups
    for each statement execute function gateway.refuse_hand_edit();
create trigger refuse_hand_edit before insert or update or truncate on gateway.idempotency_keys
    for each statement execute function gateway.refuse_hand_edit();
create trigger refuse_hand_edit before insert or update or truncate on gateway.retired_secrets
    for each statement execute function gateway.refuse_hand_edit();
create trigger refuse_hand_edit before insert or update or delete or truncate on gateway.exhausted_accounts
    for each statement execute function gateway.refuse_hand_edit();
create trigger refuse_hand_edit before insert or update or delete or truncate on gateway.maintenance_state
    for each statement execute function gateway.refuse_hand_edit();
create trigger refuse_change before update or truncate on gateway.events
    for each statement execute function gateway.refuse_change();
create trigger refuse_change before update or truncate on gateway.limit_crossings
    for each statement execute function gateway.refuse_change();
-- Written by triggers alone: no hand adds what nobody did.
create trigger refuse_hand_edit before insert on gateway.audit_log
    for each statement when (pg_trigger_depth() = 0) execute function gateway.refuse_hand_edit();
create trigger refuse_change before delete or truncate on gateway.audit_log
    for each statement execute function gateway.refuse_change();

create trigger refuse_delete before delete or truncate on gateway.settings for each statement execute function gateway.refuse_delete();
create trigger refuse_delete before delete or truncate on gateway.customers for each statement execute function gateway.refuse_delete();
create trigger refuse_delete before delete or truncate on gateway.api_keys for each statement execute function gateway.refuse_delete();
create trigger refuse_delete before delete or truncate on gateway.services for each statement execute function gateway.refuse_delete();
create trigger refuse_delete before delete or truncate on gateway.models for each statement execute function gateway.refuse_delete();
create trigger refuse_delete before delete or truncate on gateway.offers for each statement execute function gateway.refuse_delete();
create trigger refuse_truncate before truncate on gateway.prices for each statement execute function gateway.refuse_change();
-- A truncation would pass the audit log by.
create trigger refuse_truncate before truncate on gateway.limits for each statement execute function gateway.refuse_change();
create trigger refuse_truncate before truncate on gateway.routes for each statement execute function gateway.refuse_change();
create trigger refuse_price_delete before delete on gateway.prices for each row execute function gateway.refuse_price_delete();

create trigger open_account after insert on gateway.customers for each row execute function gateway.open_account();
create trigger version_price before update on gateway.prices for each row execute function gateway.version_price();

create trigger record_audit after insert or update or delete on gateway.settings for each row execute function gateway.record_audit();
create trigger record_audit after insert or update or delete on gateway.customers for each row execute function gateway.record_audit();
create trigger record_audit after insert or update or delete on gateway.api_keys for each row execute function gateway.record_audit();
create trigger record_audit after insert or update or delete on gateway.services for each row execute function gateway.record_audit();
create trigger record_audit after insert or update or delete on gateway.routes for each row execute function gateway.record_audit();
create trigger record_audit after insert or update or delete on gateway.models for each row execute function gateway.record_audit();
create trigger record_audit after insert or update or delete on gateway.offers for each row execute function gateway.record_audit();
create trigger record_audit after insert or update or delete on gateway.prices for each row execute function gateway.record_audit();
create trigger record_audit after insert or update or delete on gateway.limits for each row execute function gateway.record_audit();
-- A secret that still worked and that a hand has ended, by the key's id; those whose time is over are forgotten in silence.
create trigger record_audit after delete on gateway.retired_secrets for each row
    when (old.expires_at > now() and current_setting('gateway.engine', true) is distinct from 'on')
    execute function gateway.record_audit();
