-- api.read_request: one request's record, of one customer and, where p_key_id is given, of one key of it; p_customer_id null: an admin's
-- call. The id carries its time (its first 12 hexadecimal digits after req_ are milliseconds), so that one partition is read.
-- Null where there is none. In flat mode the provider's cost is not shown to customers. Reads only.
create function api.read_request(p_request_id text, p_customer_id bigint default null, p_key_id bigint default null) returns jsonb
language plpgsql stable security definer set search_path = ''
as $$
declare
    v_made_at timestamptz;
begin
    if p_request_id is null or p_request_id !~ '^req_[0-9a-f]{32}$' then
        return null;
    end if;
    v_made_at := to_timestamp(('x' || lpad(substr(p_request_id, 5, 12), 16, '0'))::bit(64)::bigint / 1000.0);
    return (
        select jsonb_build_object(
            'id', r.id, 'created_at', r.admitted_at, 'endpoint', r.endpoint, 'key_id', r.key_id, 'customer_id', r.customer_id,
            'model', coalesce(m.name, r.requested_model), 'requested_model', r.requested_model, 'provider', s.provider,
            'state', r.state, 'outcome', r.outcome, 'status', r.status, 'error_code', r.error_code, 'finish_reason', r.finish_reason,
            'streamed', r.streamed, 'usage_estimated', r.usage_estimated,
            'tokens', jsonb_strip_nulls(jsonb_build_object(
                'input', r.input_tokens, 'cached_input', r.cached_input_tokens, 'cache_write', r.cache_write_tokens,
                'audio_input', r.audio_input_tokens, 'image_input', r.image_input_tokens, 'output', r.output_tokens,
                'reasoning', r.reasoning_tokens, 'audio_output', r.audio_output_tokens, 'image_output', r.image_output_tokens,
                'images', r.images)),
            'cost_usd', case when r.billing_mode = 'markup' or p_customer_id is null then gateway.show_usd(r.cost_usd) end,
            'charge_usd', gateway.show_usd(r.charge_usd), 'uncollected_usd', gateway.show_usd(r.uncollected_usd),
            'hold_usd', case when r.state = 'held' then gateway.show_usd(r.hold_usd) end,
            'latency_ms', r.latency_ms, 'time_to_first_token_ms', r.time_to_first_token_ms)
        from gateway.requests as r
        left join gateway.models as m on m.id = r.model_id
        left join gateway.services as s on s.id = r.service_id
        where r.id = p_request_id
            and r.admitted_at between v_made_at - interval '1 day' and v_made_at + interval '1 day'
            and (p_customer_id is null or r.customer_id = p_customer_id)
            and (p_key_id is null or r.key_id = p_key_id)
    );
end
$$;
revoke all on function api.read_request(text, bigint, bigint) from public;
grant execute on function api.read_request(text, bigint, bigint) to service_role;
comment on function api.read_request(text, bigint, bigint) is 'One request''s record.';
