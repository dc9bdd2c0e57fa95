-- api.list_keys: keys by id after p_after, or the one with p_id, without their secrets. p_customer_id null: an admin's call, all keys; else
-- only that customer's. p_active: only those that are switched on, or off. Reads only.
create function api.list_keys(
    p_limit integer, p_after bigint default 0, p_customer_id bigint default null, p_id bigint default null, p_active boolean default null
) returns jsonb
language sql stable security definer set search_path = ''
as $$
    select coalesce(jsonb_agg(gateway.describe_key(k) order by k.id), '[]')
    from (
        select * from gateway.api_keys
        where id > p_after and (p_id is null or id = p_id) and (p_customer_id is null or customer_id = p_customer_id)
            and (p_active is null or active = p_active)
        order by id
        limit p_limit
    ) as k
$$;
revoke all on function api.list_keys(integer, bigint, bigint, bigint, boolean) from public;
grant execute on function api.list_keys(integer, bigint, bigint, bigint, boolean) to service_role;
comment on function api.list_keys(integer, bigint, bigint, bigint, boolean) is 'Keys without their secrets, a page of them.';
