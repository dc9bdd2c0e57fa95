-- api.create_request_partitions: makes the request log's monthly partitions from this month to p_months ahead, and of earlier months where
-- the default partition has requests of them.
-- Returns the names of those that it made. Locks the default partition, and so the log, only when it makes one; one maker or dropper at a
-- time. For maintenance.
-- The default partition is a safety net, so that a missed job never refuses a request; its rows move out here.
create function api.create_request_partitions(p_months integer default 3) returns text[]
language plpgsql security definer set search_path = ''
as $$
declare
    v_month date;
    v_name text;
    v_from timestamptz;
    v_to timestamptz;
    v_made text[] := '{}'::text[];
begin
    perform set_config('gateway.engine', 'on', true);
    -- First of all: who had read the default partition before could wait for another maker that waits for that very lock.
    lock table only gateway.requests in share update exclusive mode;
    foreach v_month in array array(
        select date_trunc('month', now() at time zone 'UTC') + make_interval(months => i) from generate_series(0, p_months) as i
        union
        select date_trunc('month', admitted_at at time zone 'UTC') from gateway.requests_default
        order by 1
    ) loop
        v_name := 'requests_' || to_char(v_month, 'YYYY_MM');
        v_from := v_month::timestamp at time zone 'UTC';
        v_to := (v_month + interval '1 month') at time zone 'UTC';
        if to_regclass('gateway.' || v_name) is null then
            -- Nothing enters the default partition while it is emptied.
            lock table gateway.requests_default in access exclusive mode;
            execute format('create table gateway.%I (like gateway.requests including defaults including constraints)', v_name);
            execute format('alter table gateway.%I enable row level security', v_name);
            execute format('create policy nobody on gateway.%I as restrictive to public using (false)', v_name);
            execute format('comment on table gateway.%I is %L', v_name, 'Requests of ' || to_char(v_month, 'YYYY-MM') || ' (UTC): a partition of gateway.requests.');
            execute format('with moved as (delete from gateway.requests_default where admitted_at >= %L and admitted_at < %L returning *) '
                           'insert into gateway.%I select * from moved', v_from, v_to, v_name);
            execute format('alter table gateway.requests attach partition gateway.%I for values from (%L) to (%L)', v_name, v_from, v_to);
            execute format('create trigger refuse_hand_edit before insert or update or delete or truncate on gateway.%I '
                           'for each statement execute function gateway.refuse_hand_edit()', v_name);
            v_made := v_made || v_name;
        end if;
    end loop;
    perform set_config('gateway.engine', 'off', true);
    return v_made;
end
$$;
revoke all on function api.create_request_partitions(integer) from public;
grant execute on function api.create_request_partitions(integer) to service_role;
comment on function api.create_request_partitions(integer) is 'Makes the request log''s monthly partitions ahead; returns the names of the new ones.';

create table gateway.requests_default partition of gateway.requests default;
alter table gateway.requests_default enable row level security;
comment on table gateway.requests_default is 'Requests of months whose partition was not made in time; normally empty.';
create trigger refuse_hand_edit before insert or update or delete or truncate on gateway.requests_default
    for each statement execute function gateway.refuse_hand_edit();

select api.create_request_partitions(3);
