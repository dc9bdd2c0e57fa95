-- gateway.record_refusal: counts a refusal, and logs the first and then every hundredth of a quarter of an hour, so that
-- neither an empty balance nor a runaway client fills the log.
create function gateway.record_refusal(
    p_request_id text, p_customer_id bigint, p_key_id bigint, p_requested_model text, p_endpoint text, p_streamed boolean, p_code text
) returns void
language plpgsql set search_path = ''
as $$
declare
    v_count bigint;
begin
    insert into gateway.refusal_rollups as r (bucket, customer_id, key_id, code, refusals)
    values (gateway.rollup_bucket(now()), p_customer_id, p_key_id, p_code, 1)
    on conflict (customer_id, bucket, key_id, code) do update set refusals = r.refusals + 1
    returning refusals into v_count;
    if v_count % 100 = 1 then
        insert into gateway.requests (id, admitted_at, customer_id, key_id, requested_model, endpoint, streamed, state, hold_usd, lease_until,
                                      input_tokens_bound, output_tokens_bound, billing_mode, commission_percent, flat_usd_per_1k_tokens,
                                      routes, counted, error_code)
        select p_request_id, now(), p_customer_id, p_key_id, p_requested_model, p_endpoint, p_streamed, 'refused', 0, now(),
            0, 0, s.billing_mode, s.commission_percent, s.flat_usd_per_1k_tokens, '[]', '{}', p_code
        from gateway.settings as s
        on conflict do nothing;
    end if;
end
$$;
comment on function gateway.record_refusal(text, bigint, bigint, text, text, boolean, text) is 'Counts a refused request; logs a sample.';
revoke all on function gateway.record_refusal(text, bigint, bigint, text, text, boolean, text) from public;
