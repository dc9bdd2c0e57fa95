-- A person can be erased from what otherwise stays as it was written. What may change then is decided here by the rows themselves, not by
-- who asks: only of customers that are erased, and only personal data to nothing.

create function gateway.without_person(p_row jsonb, p_entity text) returns jsonb
language plpgsql immutable set search_path = ''
as $$
begin
    return coalesce((
        select jsonb_object_agg(r.key, case when r.key = any (personal.columns) and r.value <> 'null' then to_jsonb('(erased)'::text) else r.value end)
        from jsonb_each(p_row) as r
        cross join (
            select case p_entity
                when 'customers' then array['name', 'username', 'email', 'company', 'auth_user_id']
                when 'api_keys' then array['name']
            end as columns
        ) as personal
    ), p_row);
end
$$;
comment on function gateway.without_person(jsonb, text) is 'A row as the audit log keeps it, with (erased) in place of what tells the person: of customers and of api_keys.';
revoke all on function gateway.without_person(jsonb, text) from public;

create function gateway.is_erased(p_entity text, p_entity_id text) returns boolean
language plpgsql stable set search_path = ''
as $$
begin
    return exists (
        select from gateway.customers as c
        where c.erased_at is not null
            and c.id = case p_entity
                when 'customers' then p_entity_id::bigint
                when 'api_keys' then (select k.customer_id from gateway.api_keys as k where k.id = p_entity_id::bigint)
            end
    );
end
$$;
comment on function gateway.is_erased(text, text) is 'Whether a row of customers or api_keys, as the audit log names it, is of a customer that is erased.';
revoke all on function gateway.is_erased(text, text) from public;

create function gateway.guard_audit_log() returns trigger
language plpgsql set search_path = ''
as $$
declare
    v_allowed gateway.audit_log := old;
begin
    if gateway.is_erased(old.entity, old.entity_id) then
        v_allowed.before := gateway.without_person(old.before, old.entity);
        v_allowed.after := gateway.without_person(old.after, old.entity);
    end if;
    -- What the person did themselves. Set by api.erase_customer, for its own transaction.
    if old.actor = 'user ' || current_setting('gateway.erased_user', true) and new.actor = 'user (erased)' then
        v_allowed.actor := new.actor;
    end if;
    if new is distinct from v_allowed then
        raise exception 'update on gateway.audit_log is refused: what was written stays' using errcode = 'restrict_violation';
    end if;
    return new;
end
$$;
comment on function gateway.guard_audit_log() is 'Trigger: what was written stays, but for the personal data of a customer that is erased.';
revoke all on function gateway.guard_audit_log() from public;

create function gateway.guard_ledger() returns trigger
language plpgsql set search_path = ''
as $$
declare
    v_allowed gateway.ledger_entries := old;
begin
    if old.request_id is null and gateway.is_erased('customers', old.customer_id::text) then
        v_allowed.note := null;
    end if;
    if new is distinct from v_allowed then
        raise exception 'update on gateway.ledger_entries is refused: what was written stays' using errcode = 'restrict_violation';
    end if;
    return new;
end
$$;
comment on function gateway.guard_ledger() is 'Trigger: what was written stays, but for the notes of a customer that is erased.';
revoke all on function gateway.guard_ledger() from public;

create function gateway.guard_erased() returns trigger
language plpgsql set search_path = ''
as $$
begin
    if current_setting('gateway.engine', true) is distinct from 'on' then
        raise exception 'customer % is erased, or is to be, and that is not done by hand', old.id
            using errcode = 'restrict_violation', hint = 'To erase a person call api.erase_customer; it can''t be undone.';
    end if;
    return new;
end
$$;
comment on function gateway.guard_erased() is 'Trigger: a customer is erased by the function for it, whole and for good.';
revoke all on function gateway.guard_erased() from public;

create function gateway.refuse_key_of_erased() returns trigger
language plpgsql set search_path = ''
as $$
declare
    v_erased_at timestamptz;
begin
    -- Locked, so that of an erasure and a new key at once the later one sees the earlier.
    select erased_at into v_erased_at from gateway.customers where id = new.customer_id for key share;
    if v_erased_at is not null then
        raise exception 'customer % is erased', new.customer_id using errcode = 'restrict_violation';
    end if;
    return new;
end
$$;
comment on function gateway.refuse_key_of_erased() is 'Trigger: an erased customer gets no key any more.';
revoke all on function gateway.refuse_key_of_erased() from public;

create trigger guard_audit_log before update on gateway.audit_log for each row execute function gateway.guard_audit_log();
create trigger guard_ledger before update on gateway.ledger_entries for each row execute function gateway.guard_ledger();
create trigger guard_erased before insert or update on gateway.customers for each row when (new.erased_at is not null) execute function gateway.guard_erased();
create trigger guard_erased_undone before update on gateway.customers
    for each row when (old.erased_at is not null and new.erased_at is null) execute function gateway.guard_erased();
create trigger refuse_key_of_erased before insert or update of customer_id on gateway.api_keys
    for each row execute function gateway.refuse_key_of_erased();
