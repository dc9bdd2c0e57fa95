-- api.list_audit: who changed what when, the newest first, before the record with the id p_before. Each of the filters may be left out:
-- the table, the row, who, and from when (inclusive) to when (exclusive). No secrets are in it. Reads only, by an index whatever the filters.
create function api.list_audit(
    p_limit integer, p_before bigint default null, p_entity text default null, p_entity_id text default null, p_actor text default null,
    p_from timestamptz default null, p_to timestamptz default null
) returns jsonb
language plpgsql stable security definer set search_path = '' set plan_cache_mode = force_custom_plan
as $$
begin
    return (
        select coalesce(jsonb_agg(to_jsonb(a) order by a.id desc), '[]')
        from (
            select * from gateway.audit_log
            where (p_before is null or id < p_before) and (p_entity is null or entity = p_entity)
                and (p_entity_id is null or entity_id = p_entity_id) and (p_actor is null or actor = p_actor)
                and (p_from is null or at >= p_from) and (p_to is null or at < p_to)
            order by id desc
            limit p_limit
        ) as a
    );
end
$$;
revoke all on function api.list_audit(integer, bigint, text, text, text, timestamptz, timestamptz) from public;
grant execute on function api.list_audit(integer, bigint, text, text, text, timestamptz, timestamptz) to service_role;
comment on function api.list_audit(integer, bigint, text, text, text, timestamptz, timestamptz) is 'Who changed what when, a page of it.';
