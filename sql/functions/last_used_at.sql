-- The newest quarter of an hour in which the key was used has at most a row for each model and service: the log is not read.
create function gateway.last_used_at(p_key_id bigint) returns timestamptz
language sql stable set search_path = ''
as $$
    select max(r.last_request_at)
    from gateway.usage_rollups as r
    where r.key_id = p_key_id
        and r.bucket = (select n.bucket from gateway.usage_rollups as n where n.key_id = p_key_id order by n.bucket desc limit 1)
$$;
comment on function gateway.last_used_at(bigint) is 'When the last of a key''s requests that have ended was admitted; null: never.';
revoke all on function gateway.last_used_at(bigint) from public;
