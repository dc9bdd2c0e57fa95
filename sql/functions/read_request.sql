create function gateway.describe_request(p_request gateway.requests, p_show_cost boolean) returns jsonb
language plpgsql stable set search_path = ''
as $$
begin
    return jsonb_build_object(
        'id', p_request.id, 'created_at', p_request.admitted_at, 'endpoint', p_request.endpoint,
        'key_id', p_request.key_id, 'customer_id', p_request.customer_id,
        'model', coalesce((select m.name from gateway.models as m where m.id = p_request.model_id), p_request.requested_model),
        'requested_model', p_request.requested_model,
        'provider', (select s.provider from gateway.services as s where s.id = p_request.service_id),
        'state', p_request.state, 'outcome', p_request.outcome, 'status', p_request.status, 'error_code', p_request.error_code,
        'finish_reason', p_request.finish_reason, 'streamed', p_request.streamed, 'usage_estimated', p_request.usage_estimated,
        'tokens', jsonb_strip_nulls(jsonb_build_object(
            'input', p_request.input_tokens, 'cached_input', p_request.cached_input_tokens, 'cache_write', p_request.cache_write_tokens,
            'audio_input', p_request.audio_input_tokens, 'image_input', p_request.image_input_tokens, 'output', p_request.output_tokens,
            'reasoning', p_request.reasoning_tokens, 'audio_output', p_request.audio_output_tokens,
            'image_output', p_request.image_output_tokens, 'images', p_request.images,
            'cache_write_1h', p_request.cache_write_1h_tokens)),
        'cost_usd', case when p_show_cost or p_request.billing_mode = 'markup' then gateway.show_usd(p_request.cost_usd) end,
        'charge_usd', gateway.show_usd(p_request.charge_usd), 'uncollected_usd', gateway.show_usd(p_request.uncollected_usd),
        'hold_usd', case when p_request.state = 'held' then gateway.show_usd(p_request.hold_usd) end,
        'latency_ms', p_request.latency_ms, 'time_to_first_token_ms', p_request.time_to_first_token_ms);
end
$$;
comment on function gateway.describe_request(gateway.requests, boolean) is 'A request''s record, as the log shows it. At a flat price the provider''s cost is shown to admins alone.';
revoke all on function gateway.describe_request(gateway.requests, boolean) from public;

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
        select gateway.describe_request(r, p_customer_id is null)
        from gateway.requests as r
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
