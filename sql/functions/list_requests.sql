create function gateway.read_moment(p_text text, p_time_zone text, p_end_of_day boolean) returns timestamptz
language plpgsql stable set search_path = ''
as $$
begin
    if p_text !~ '^\d{4}-\d\d-\d\d$' then
        return p_text::timestamptz;
    end if;
    return gateway.first_moment(p_text::date + case when p_end_of_day then 1 else 0 end, p_time_zone);
end
$$;
comment on function gateway.read_moment(text, text, boolean) is 'A moment as clients name it: a time, or a day in a zone, which stands for its first moment or for the one after its last.';
revoke all on function gateway.read_moment(text, text, boolean) from public;

-- api.list_requests: the log, the newest first. {"data": [records], "next": {"at", "id"} | null}; next goes into the following call as
-- p_before_at and p_before_id.
--
-- p_customer_id null: of all customers; p_show_cost: an admin's call. p_from (included) and p_to (left out) are times, or days in the customer's
-- time zone, each of them included. p_status: succeeded | failed | cancelled | cut | refused | expired | running; p_errors: what the usage
-- figures count as errors. {"error": "unknown_customer" | "unknown_key"}; a key has to be the customer's.
--
-- Costs the same however long the log is: a range of (customer, time), or of time, is read from its newest end, and at most 10,000 rows of it.
-- Where a filter finds less among them than a page holds, the page is short, and next says where to go on.
-- Planned for its very arguments: a general plan could not tell one customer's index from the whole log's, nor prune partitions.
-- Reads only.
create function api.list_requests(
    p_limit integer, p_customer_id bigint default null, p_show_cost boolean default false,
    p_before_at timestamptz default null, p_before_id text default null,
    p_from text default null, p_to text default null, p_model text default null, p_status text default null,
    p_key_id bigint default null, p_provider text default null, p_errors boolean default false
) returns jsonb
language plpgsql stable security definer set search_path = '' set plan_cache_mode = force_custom_plan
as $$
declare
    c_most_read constant integer := 10000;
    v_time_zone text := 'UTC';
    v_from timestamptz;
    v_to timestamptz;
    v_model_id bigint;
    v_service_ids bigint[];
    v_rows gateway.requests[];
    v_last_at timestamptz;
    v_last_id text;
begin
    if p_customer_id is not null then
        select c.time_zone into v_time_zone from gateway.customers as c where c.id = p_customer_id;
        if not found then
            return jsonb_build_object('error', 'unknown_customer');
        end if;
    end if;
    if p_key_id is not null and not exists (
        select from gateway.api_keys as k where k.id = p_key_id and (p_customer_id is null or k.customer_id = p_customer_id)
    ) then
        return jsonb_build_object('error', 'unknown_key');
    end if;
    v_from := coalesce(gateway.read_moment(p_from, v_time_zone, false), '-infinity');
    v_to := coalesce(gateway.read_moment(p_to, v_time_zone, true), 'infinity');
    if p_model is not null then
        select m.id into v_model_id from gateway.models as m where m.name = p_model;
    end if;
    if p_provider is not null then
        v_service_ids := array(select s.id from gateway.services as s where s.provider = p_provider);
    end if;

    v_rows := array(
        select q.request
        from (
            select r as request, r.admitted_at, r.id, r.key_id, r.model_id, r.requested_model, r.service_id, r.state, r.outcome
            from gateway.requests as r
            where (p_customer_id is null or r.customer_id = p_customer_id)
                and r.admitted_at >= v_from and r.admitted_at < v_to
                and r.admitted_at <= coalesce(p_before_at, 'infinity')
                and (p_before_at is null or r.admitted_at < p_before_at or r.id < p_before_id)
            order by r.admitted_at desc, r.id desc
            limit c_most_read
        ) as q
        where (p_key_id is null or q.key_id = p_key_id)
            and (p_model is null or q.model_id = v_model_id or q.requested_model = p_model)
            and (p_provider is null or q.service_id = any (v_service_ids))
            and (not p_errors or q.state = 'expired' or q.outcome = 'failed')
            and (p_status is null or p_status = case q.state when 'held' then 'running' when 'settled' then q.outcome else q.state end)
        order by q.admitted_at desc, q.id desc
        limit p_limit + 1
    );
    if cardinality(v_rows) > p_limit then
        v_last_at := v_rows[p_limit].admitted_at;
        v_last_id := v_rows[p_limit].id;
    elsif num_nonnulls(p_key_id, p_model, p_provider, p_status) > 0 or p_errors then
        select r.admitted_at, r.id into v_last_at, v_last_id
        from gateway.requests as r
        where (p_customer_id is null or r.customer_id = p_customer_id)
            and r.admitted_at >= v_from and r.admitted_at < v_to
            and r.admitted_at <= coalesce(p_before_at, 'infinity')
            and (p_before_at is null or r.admitted_at < p_before_at or r.id < p_before_id)
        order by r.admitted_at desc, r.id desc
        offset c_most_read - 1
        limit 1;
    end if;
    return jsonb_build_object(
        'data', coalesce((
            select jsonb_agg(gateway.describe_request(v_rows[n], p_show_cost) order by n)
            from generate_series(1, least(cardinality(v_rows), p_limit)) as n
        ), '[]'),
        'next', case when v_last_id is not null then jsonb_build_object('at', v_last_at, 'id', v_last_id) end);
end
$$;
revoke all on function api.list_requests(integer, bigint, boolean, timestamptz, text, text, text, text, text, bigint, text, boolean) from public;
grant execute on function api.list_requests(integer, bigint, boolean, timestamptz, text, text, text, text, text, bigint, text, boolean) to service_role;
comment on function api.list_requests(integer, bigint, boolean, timestamptz, text, text, text, text, text, bigint, text, boolean) is 'The request log, newest first, a page of it.';
