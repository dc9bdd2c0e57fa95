create function gateway.last_used_at(p_key_id bigint) returns timestamptz
language plpgsql stable set search_path = ''
as $$
begin
    -- the months that are closed, and what has come since: neither the log nor the key's whole past is read
    return (
        select greatest(
            (
                select max(p.last_request_at)
                from gateway.usage_periods as p
                where p.customer_id = k.customer_id and p.per = 'month' and p.grouped_by = 'key' and p.key_id = k.id
            ),
            (
                select max(r.last_request_at)
                from gateway.usage_rollups as r
                where r.customer_id = k.customer_id and r.key_id = k.id and r.bucket >= (select c.closed_until from gateway.usage_closing as c)
            ),
            (select max(l.last_request_at) from gateway.usage_rollups as l where l.customer_id = k.customer_id and l.key_id = k.id and l.late)
        )
        from gateway.api_keys as k
        where k.id = p_key_id
    );
end
$$;
comment on function gateway.last_used_at(bigint) is 'When the last of a key''s requests that have ended was admitted; null: never.';
revoke all on function gateway.last_used_at(bigint) from public;
