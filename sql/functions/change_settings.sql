-- api.change_settings: changes what p_changes names, and returns all settings. With '{}' it only reads. The table's constraints decide
-- what is valid; a name that is no setting is ignored here and refused by the caller.
create function api.change_settings(p_changes jsonb default '{}', p_actor text default null) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_settings gateway.settings;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    select * into v_settings from gateway.settings for update;
    v_settings := jsonb_populate_record(v_settings, p_changes - 'singleton');
    update gateway.settings
    set (commission_percent, billing_mode, flat_usd_per_1k_tokens, credit_value_usd, default_max_output_tokens,
         default_requests_per_minute, default_tokens_per_minute, expired_hold_policy) = (
        v_settings.commission_percent, v_settings.billing_mode, v_settings.flat_usd_per_1k_tokens, v_settings.credit_value_usd,
        v_settings.default_max_output_tokens, v_settings.default_requests_per_minute, v_settings.default_tokens_per_minute,
        v_settings.expired_hold_policy)
    where p_changes <> '{}';
    return to_jsonb(v_settings) - 'singleton' || jsonb_build_object(
        'commission_percent', trim_scale(v_settings.commission_percent)::text,
        'flat_usd_per_1k_tokens', gateway.show_usd(v_settings.flat_usd_per_1k_tokens),
        'credit_value_usd', gateway.show_usd(v_settings.credit_value_usd));
end
$$;
revoke all on function api.change_settings(jsonb, text) from public;
grant execute on function api.change_settings(jsonb, text) to service_role;
comment on function api.change_settings(jsonb, text) is 'Changes the system''s settings, or only reads them.';
