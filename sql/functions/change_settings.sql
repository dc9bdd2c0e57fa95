-- api.change_settings: changes what p_changes names, and returns all settings: amounts as exact text, and of the webhook secret (which
-- comes in sealed) only whether it is set. With '{}' it only reads. The table's constraints decide what is valid; a name that is no setting
-- is ignored here and refused by the caller. {"error": "webhook_secret_needed"} where a webhook would go out unsigned, "top_ups_do_not_fit" where the amounts
-- offered would not lie between the least and the most. Locks the settings.
create function api.change_settings(p_changes jsonb default '{}', p_actor text default null) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_names text;
    v_constraint text;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    select string_agg(quote_ident(a.attname), ', ' order by a.attnum) into v_names
    from pg_attribute as a
    where a.attrelid = 'gateway.settings'::regclass and a.attnum > 0 and not a.attisdropped and a.attname <> 'singleton'
        and p_changes ? a.attname;
    if v_names is not null then
        execute format(
            'update gateway.settings set (%1$s) = (select %1$s from jsonb_populate_record(null::gateway.settings, $1))', v_names) using p_changes;
    end if;
    return (
        select jsonb_object_agg(s.key, case
                   when a.atttypid = 'numeric'::regtype and s.value <> 'null' then to_jsonb(trim_scale((s.value #>> '{}')::numeric)::text)
                   when a.atttypid = 'numeric[]'::regtype then (select jsonb_agg(trim_scale(u::numeric)::text) from jsonb_array_elements_text(s.value) as u)
                   else s.value
               end) - array['singleton', 'webhook_secret']
               || jsonb_build_object('webhook_secret_set', bool_or(s.key = 'webhook_secret' and s.value <> 'null'))
        from gateway.settings as t
        cross join jsonb_each(to_jsonb(t)) as s
        join pg_attribute as a on a.attrelid = 'gateway.settings'::regclass and a.attname = s.key
    );
exception when check_violation then
    get stacked diagnostics v_constraint = constraint_name;
    if v_constraint = 'settings_webhook_is_signed' then
        return jsonb_build_object('error', 'webhook_secret_needed');
    elsif v_constraint in ('settings_top_up_range', 'settings_top_up_amounts') then
        return jsonb_build_object('error', 'top_ups_do_not_fit');
    end if;
    raise;
end
$$;
revoke all on function api.change_settings(jsonb, text) from public;
grant execute on function api.change_settings(jsonb, text) to service_role;
comment on function api.change_settings(jsonb, text) is 'Changes the system''s settings, or only reads them.';
