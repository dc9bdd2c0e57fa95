-- gateway.raise_event: writes an event, and puts it in line for the webhook and the SNS topic, where they are set. Returns its id; null where one with
-- p_dedupe_key is there already. In the transaction of what it tells of: both are there, or neither.
-- For whoever writes the kind: to be called last, as a second one with the same p_dedupe_key waits for the first to commit.
create function gateway.raise_event(
    p_kind text, p_subject text, p_data jsonb, p_dedupe_key text default null, p_customer_id bigint default null
) returns uuid
language plpgsql set search_path = ''
as $$
declare
    v_id uuid;
begin
    insert into gateway.events (kind, subject, data, dedupe_key, customer_id)
    values (p_kind, p_subject, p_data, p_dedupe_key, p_customer_id)
    on conflict (dedupe_key) do nothing
    returning id into v_id;
    if v_id is not null then
        insert into gateway.event_deliveries (event_id)
        select v_id from gateway.settings where webhook_url is not null;
        insert into gateway.topic_deliveries (event_id)
        select v_id from gateway.maintenance_state where alert_topic_arn is not null;
    end if;
    return v_id;
end
$$;
comment on function gateway.raise_event(text, text, jsonb, text, bigint) is 'Writes an event, once for each dedupe key, and puts it in line for the webhook and the topic.';
revoke all on function gateway.raise_event(text, text, jsonb, text, bigint) from public;
