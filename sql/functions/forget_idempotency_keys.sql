-- api.forget_idempotency_keys: deletes the Idempotency-Keys that are older than a day, at most p_limit, the oldest first; returns how many.
-- An old one is taken over by the next request with it anyway: this only keeps the table small. For the maintenance function.
create function api.forget_idempotency_keys(p_limit integer default 10000) returns integer
language plpgsql security definer set search_path = ''
as $$
declare
    v_count integer;
begin
    delete from gateway.idempotency_keys
    where ctid = any (array(
        select ctid from gateway.idempotency_keys
        where created_at < now() - interval '24 hours'
        order by created_at
        limit p_limit
        for update skip locked
    ));
    get diagnostics v_count = row_count;
    return v_count;
end
$$;
revoke all on function api.forget_idempotency_keys(integer) from public;
grant execute on function api.forget_idempotency_keys(integer) to service_role;
comment on function api.forget_idempotency_keys(integer) is 'Deletes Idempotency-Keys that are older than a day.';
