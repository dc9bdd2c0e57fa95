-- The outbox, as those who empty it see it. What is claimed is sent at least once: where a maintainer dies between the sending and
-- api.finish_delivery, its claim runs out and another sends the event again, under the same id.

create function gateway.show_event_id(p_id uuid) returns text
language plpgsql immutable parallel safe set search_path = ''
as $$
begin
    return 'evt_' || replace(p_id::text, '-', '');
end
$$;
comment on function gateway.show_event_id(uuid) is 'An event''s id as receivers see it.';
revoke all on function gateway.show_event_id(uuid) from public;

-- api.read_webhook: {"url", "secret": sealed}, each null where it is not set. For the operator's test of it.
create function api.read_webhook() returns jsonb
language plpgsql stable security definer set search_path = ''
as $$
begin
    return (select jsonb_build_object('url', s.webhook_url, 'secret', s.webhook_secret) from gateway.settings as s);
end
$$;
revoke all on function api.read_webhook() from public;
grant execute on function api.read_webhook() to service_role;
comment on function api.read_webhook() is 'Where events are sent, and the sealed secret that they are signed with.';

-- api.claim_deliveries: takes at most p_limit deliveries that are due, the longest due first, for p_lease_seconds: no other is given them
-- before. {"url", "secret": sealed, "deliveries": [{"event_id", "attempt", "id", "type", "created_at", "data"}]}; none, and no url, where no
-- webhook is set. attempt is the claim's number, for api.finish_delivery. Skips what is being claimed. For the maintenance function.
create function api.claim_deliveries(p_limit integer, p_lease_seconds integer) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_now timestamptz := clock_timestamp();
    v_settings gateway.settings;
    v_claimed jsonb;
begin
    select * into v_settings from gateway.settings;
    if v_settings.webhook_url is null then
        return jsonb_build_object('url', null, 'secret', null, 'deliveries', '[]'::jsonb);
    end if;
    with due as (
        select event_id from gateway.event_deliveries
        where next_attempt_at <= v_now and (claimed_until is null or claimed_until <= v_now)
        order by next_attempt_at
        limit p_limit
        for update skip locked
    ),
    claimed as (
        update gateway.event_deliveries as d
        set attempts = d.attempts + 1, claimed_until = v_now + make_interval(secs => p_lease_seconds)
        from due
        where d.event_id = due.event_id
        returning d.event_id, d.attempts
    )
    select coalesce(jsonb_agg(jsonb_build_object(
        'event_id', e.id, 'attempt', c.attempts, 'id', gateway.show_event_id(e.id), 'type', e.kind, 'created_at', e.at, 'data', e.data
    ) order by e.at), '[]')
    into v_claimed
    from claimed as c
    join gateway.events as e on e.id = c.event_id;
    return jsonb_build_object('url', v_settings.webhook_url, 'secret', v_settings.webhook_secret, 'deliveries', v_claimed);
end
$$;
revoke all on function api.claim_deliveries(integer, integer) from public;
grant execute on function api.claim_deliveries(integer, integer) to service_role;
comment on function api.claim_deliveries(integer, integer) is 'Takes events that are due for sending; nobody else gets them while the lease runs.';

-- gateway.next_attempt_at: when an event is sent again of which p_attempts have failed; null: it is given up.
create function gateway.next_attempt_at(p_attempts integer, p_at timestamptz) returns timestamptz
language plpgsql volatile set search_path = ''
as $$
declare
    c_most_attempts constant integer := 20;
begin
    return case
        when p_attempts < c_most_attempts
            then p_at + least(interval '1 minute' * power(2, p_attempts - 1), interval '6 hours') * (1 - 0.1 * random())
    end;
end
$$;
comment on function gateway.next_attempt_at(integer, timestamptz) is 'When an event is sent again that could not be delivered.';
revoke all on function gateway.next_attempt_at(integer, timestamptz) from public;

-- api.finish_delivery: what came of a claim. {"state": delivered | waiting | given_up | stale, "next_attempt_at"}.
-- An attempt that failed is made again after a minute, two, four … six hours, each shortened by up to a tenth at random, so that what failed
-- together does not come back together; after the twentieth, some three days on, it is given up, and stays to be seen.
-- stale: the lease has run out and another has claimed it since, who will say what came of it. But what was delivered is delivered.
create function api.finish_delivery(p_event_id uuid, p_attempt integer, p_delivered boolean, p_status integer, p_error text) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_now timestamptz := clock_timestamp();
    v_delivery gateway.event_deliveries;
begin
    update gateway.event_deliveries
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
revoke all on function api.finish_delivery(uuid, integer, boolean, integer, text) from public;
grant execute on function api.finish_delivery(uuid, integer, boolean, integer, text) to service_role;
comment on function api.finish_delivery(uuid, integer, boolean, integer, text) is 'Writes what came of sending an event: delivered, to be tried again, or given up.';

-- api.read_deliveries: how the webhook is doing. {"webhook_set", "waiting": deliveries that are not made yet, "waiting_since": of the oldest,
-- "given_up", "last_delivered_at", "undelivered": [the newest p_limit that are waiting after a failure or given up: {"id", "type",
-- "created_at", "attempts", "next_attempt_at", "last_status", "last_error"}], "topic": the same of the SNS topic, with "topic_set" for
-- "webhook_set"}. Reads only.
create function api.read_deliveries(p_limit integer default 20) returns jsonb
language plpgsql stable security definer set search_path = ''
as $$
begin
    return jsonb_build_object(
        'webhook_set', (select s.webhook_url is not null from gateway.settings as s),
        'given_up', (select count(*) from gateway.event_deliveries where delivered_at is null and next_attempt_at is null),
        'last_delivered_at', (select max(delivered_at) from gateway.event_deliveries where delivered_at is not null),
        'undelivered', (
            select coalesce(jsonb_agg(jsonb_build_object(
                'id', gateway.show_event_id(u.id), 'type', u.kind, 'created_at', u.at, 'attempts', u.attempts,
                'next_attempt_at', u.next_attempt_at, 'last_status', u.last_status, 'last_error', u.last_error
            ) order by u.at desc), '[]')
            from (
                select e.id, e.kind, e.at, d.attempts, d.next_attempt_at, d.last_status, d.last_error
                from gateway.event_deliveries as d
                join gateway.events as e on e.id = d.event_id
                where d.next_attempt_at is not null and d.attempts > 0
                union all
                select e.id, e.kind, e.at, d.attempts, d.next_attempt_at, d.last_status, d.last_error
                from gateway.event_deliveries as d
                join gateway.events as e on e.id = d.event_id
                where d.delivered_at is null and d.next_attempt_at is null
                order by 3 desc
                limit p_limit
            ) as u
        )
    ) || (
        select jsonb_build_object('waiting', count(*), 'waiting_since', min(e.at))
        from gateway.event_deliveries as d
        join gateway.events as e on e.id = d.event_id
        where d.next_attempt_at is not null
    ) || jsonb_build_object('topic', gateway.read_topic_deliveries(p_limit));
end
$$;
revoke all on function api.read_deliveries(integer) from public;
grant execute on function api.read_deliveries(integer) to service_role;
comment on function api.read_deliveries(integer) is 'How the webhook is doing: what waits, what failed, what was given up.';
