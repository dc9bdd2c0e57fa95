-- api.forget_retired_secrets: deletes the replaced secrets whose grace is over, at most p_limit, the oldest first; returns how many. They
-- are refused anyway: this only keeps the table small. For the maintenance function.
create function api.forget_retired_secrets(p_limit integer default 10000) returns integer
language plpgsql security definer set search_path = ''
as $$
declare
    v_count integer;
begin
    delete from gateway.retired_secrets
    where secret_hash = any (array(
        select secret_hash from gateway.retired_secrets
        where expires_at <= now()
        order by expires_at
        limit p_limit
        for update skip locked
    ));
    get diagnostics v_count = row_count;
    return v_count;
end
$$;
revoke all on function api.forget_retired_secrets(integer) from public;
grant execute on function api.forget_retired_secrets(integer) to service_role;
comment on function api.forget_retired_secrets(integer) is 'Deletes replaced secrets whose grace is over.';
