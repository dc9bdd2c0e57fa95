-- api.list_events: what happened, the newest first, after the event p_before in this order, with how far the telling has come:
-- [{"id", "type", "created_at", "customer_id", "subject", "data", "state": unsent (no webhook was set when it came) | waiting | delivered |
-- given_up, "attempts", "next_attempt_at", "delivered_at", "last_status", "last_error", "topic_state": the same of the SNS topic}]. p_state, p_kind: of these alone. Empty where
-- p_before is gone. Reads only.
create function api.list_events(
    p_limit integer, p_before uuid default null, p_state text default null, p_kind text default null
) returns jsonb
language plpgsql stable security definer set search_path = '' set plan_cache_mode = force_custom_plan
as $$
declare
    v_before gateway.events;
begin
    if p_before is not null then
        select * into v_before from gateway.events where id = p_before;
        if not found then
            return '[]'::jsonb;
        end if;
    end if;
    return (
        select coalesce(jsonb_agg(jsonb_build_object(
            'id', gateway.show_event_id(s.id), 'type', s.kind, 'created_at', s.at, 'customer_id', s.customer_id, 'subject', s.subject,
            'data', s.data, 'state', s.state, 'attempts', coalesce(s.attempts, 0), 'next_attempt_at', s.next_attempt_at,
            'delivered_at', s.delivered_at, 'last_status', s.last_status, 'last_error', s.last_error, 'topic_state', s.topic_state
        ) order by s.at desc, s.id desc), '[]')
        from (
            select e.id, e.kind, e.at, e.customer_id, e.subject, e.data, t.state, d.attempts, d.next_attempt_at, d.delivered_at,
                d.last_status, d.last_error, t.topic_state
            from gateway.events as e
            left join gateway.event_deliveries as d on d.event_id = e.id
            left join gateway.topic_deliveries as p on p.event_id = e.id
            cross join lateral (
                select
                    case
                        when d.event_id is null then 'unsent'
                        when d.delivered_at is not null then 'delivered'
                        when d.next_attempt_at is not null then 'waiting'
                        else 'given_up'
                    end as state,
                    case
                        when p.event_id is null then 'unsent'
                        when p.delivered_at is not null then 'delivered'
                        when p.next_attempt_at is not null then 'waiting'
                        else 'given_up'
                    end as topic_state
            ) as t
            where (p_before is null or (e.at, e.id) < (v_before.at, v_before.id))
                and (p_kind is null or e.kind = p_kind) and (p_state is null or t.state = p_state)
            order by e.at desc, e.id desc
            limit p_limit
        ) as s
    );
end
$$;
revoke all on function api.list_events(integer, uuid, text, text) from public;
grant execute on function api.list_events(integer, uuid, text, text) to service_role;
comment on function api.list_events(integer, uuid, text, text) is 'What happened, the newest first, and whether the webhook has been told.';

-- api.resend_event: puts an event in line for the webhook once more, whatever became of it, and for the SNS topic where that was given up.
-- {"id", "state": waiting}, or {"error": unknown_event | webhook_not_set: there is nobody to send it to}. One that was given up has one
-- attempt more. What is being sent just now is left at it. Locks the deliveries.
create function api.resend_event(p_event_id uuid) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_topic boolean;
begin
    perform from gateway.events where id = p_event_id for key share;
    if not found then
        return jsonb_build_object('error', 'unknown_event');
    end if;
    update gateway.topic_deliveries
    set next_attempt_at = clock_timestamp()
    where event_id = p_event_id and delivered_at is null and next_attempt_at is null
        and exists (select from gateway.maintenance_state where alert_topic_arn is not null);
    v_topic := found;
    insert into gateway.event_deliveries as d (event_id)
    select p_event_id from gateway.settings where webhook_url is not null
    on conflict (event_id) do update set next_attempt_at = clock_timestamp(), delivered_at = null;
    if not found and not v_topic then
        return jsonb_build_object('error', 'webhook_not_set');
    end if;
    return jsonb_build_object('id', gateway.show_event_id(p_event_id), 'state', 'waiting');
end
$$;
revoke all on function api.resend_event(uuid) from public;
grant execute on function api.resend_event(uuid) to service_role;
comment on function api.resend_event(uuid) is 'Puts an event in line for the webhook once more, and for the topic where that was given up.';
