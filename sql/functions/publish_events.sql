-- The outbox of the SNS topic, as deliver_events.sql has the webhook's: each is claimed, sent and written down by itself.

-- api.claim_topic_deliveries: takes at most p_limit events that are due for the topic, for p_lease_seconds, as api.claim_deliveries does:
-- {"deliveries": [{"event_id", "attempt", "id", "type", "created_at", "subject", "data"}]}. p_topic_arn: the topic of the caller's environment;
-- null: it has none. From when one is first named here events are put in line for it, those from before are not; taken away, what waits stays.
-- For the maintenance function.
create function api.claim_topic_deliveries(p_topic_arn text, p_limit integer, p_lease_seconds integer) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_now timestamptz := clock_timestamp();
    v_claimed jsonb;
begin
    perform set_config('gateway.engine', 'on', true);
    update gateway.maintenance_state set alert_topic_arn = p_topic_arn where alert_topic_arn is distinct from p_topic_arn;
    perform set_config('gateway.engine', 'off', true);
    if p_topic_arn is null then
        return jsonb_build_object('deliveries', '[]'::jsonb);
    end if;
    with due as (
        select event_id from gateway.topic_deliveries
        where next_attempt_at <= v_now and (claimed_until is null or claimed_until <= v_now)
        order by next_attempt_at
        limit p_limit
        for update skip locked
    ),
    claimed as (
        update gateway.topic_deliveries as d
        set attempts = d.attempts + 1, claimed_until = v_now + make_interval(secs => p_lease_seconds)
        from due
        where d.event_id = due.event_id
        returning d.event_id, d.attempts
    )
    select coalesce(jsonb_agg(jsonb_build_object(
        'event_id', e.id, 'attempt', c.attempts, 'id', gateway.show_event_id(e.id), 'type', e.kind, 'created_at', e.at,
        'subject', e.subject, 'data', e.data
    ) order by e.at), '[]')
    into v_claimed
    from claimed as c
    join gateway.events as e on e.id = c.event_id;
    return jsonb_build_object('deliveries', v_claimed);
end
$$;
revoke all on function api.claim_topic_deliveries(text, integer, integer) from public;
grant execute on function api.claim_topic_deliveries(text, integer, integer) to service_role;
comment on function api.claim_topic_deliveries(text, integer, integer) is 'Takes events that are due for the SNS topic; nobody else gets them while the lease runs.';

-- api.finish_topic_delivery: what came of a claim, as api.finish_delivery.
create function api.finish_topic_delivery(p_event_id uuid, p_attempt integer, p_delivered boolean, p_status integer, p_error text) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_now timestamptz := clock_timestamp();
    v_delivery gateway.topic_deliveries;
begin
    update gateway.topic_deliveries
    set delivered_at = case when p_delivered then v_now end,
        next_attempt_at = case when not p_delivered then gateway.next_attempt_at(attempts, v_now) end,
        claimed_until = null,
        last_status = p_status,
        last_error = left(p_error, 300)
    where event_id = p_event_id and delivered_at is null and (p_delivered or (attempts = p_attempt and next_attempt_at is not null))
    returning * into v_delivery;
    return jsonb_build_object(
        'state', case
            when not found then 'stale'
            when v_delivery.delivered_at is not null then 'delivered'
            when v_delivery.next_attempt_at is not null then 'waiting'
            else 'given_up'
        end,
        'next_attempt_at', v_delivery.next_attempt_at);
end
$$;
revoke all on function api.finish_topic_delivery(uuid, integer, boolean, integer, text) from public;
grant execute on function api.finish_topic_delivery(uuid, integer, boolean, integer, text) to service_role;
comment on function api.finish_topic_delivery(uuid, integer, boolean, integer, text) is 'Writes what came of publishing an event: delivered, to be tried again, or given up.';

create function gateway.read_topic_deliveries(p_limit integer) returns jsonb
language plpgsql stable set search_path = ''
as $$
begin
    return (
        select jsonb_build_object(
            'topic_set', (select s.alert_topic_arn is not null from gateway.maintenance_state as s),
            'given_up', count(*) filter (where d.next_attempt_at is null),
            'last_delivered_at', (select max(delivered_at) from gateway.topic_deliveries where delivered_at is not null),
            'waiting', count(d.next_attempt_at),
            'waiting_since', min(e.at) filter (where d.next_attempt_at is not null),
            'undelivered', coalesce((
                select jsonb_agg(jsonb_build_object(
                    'id', gateway.show_event_id(u.id), 'type', u.kind, 'created_at', u.at, 'attempts', u.attempts,
                    'next_attempt_at', u.next_attempt_at, 'last_status', u.last_status, 'last_error', u.last_error
                ) order by u.at desc)
                from (
                    select n.id, n.kind, n.at, t.attempts, t.next_attempt_at, t.last_status, t.last_error
                    from gateway.topic_deliveries as t
                    join gateway.events as n on n.id = t.event_id
                    where t.delivered_at is null and t.attempts > 0
                    order by n.at desc
                    limit p_limit
                ) as u
            ), '[]'))
        from gateway.topic_deliveries as d
        join gateway.events as e on e.id = d.event_id
        where d.delivered_at is null
    );
end
$$;
comment on function gateway.read_topic_deliveries(integer) is 'How the publishing to the SNS topic is doing.';
revoke all on function gateway.read_topic_deliveries(integer) from public;
