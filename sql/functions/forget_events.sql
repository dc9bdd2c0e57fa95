-- api.forget_events: deletes events of more than 90 days with their deliveries, crossings of more than 400 days (longer than any window), and
-- turned windows of more than a day, whose requests have ended; of each at most p_limit, the oldest first. Returns how many rows.
-- This only keeps the tables small. For the maintenance function.
create function api.forget_events(p_limit integer default 10000) returns integer
language plpgsql security definer set search_path = ''
as $$
declare
    v_events integer;
    v_crossings integer;
    v_windows integer;
begin
    delete from gateway.events
    where id = any (array(
        select id from gateway.events where at < now() - interval '90 days' order by at limit p_limit for update skip locked));
    get diagnostics v_events = row_count;
    delete from gateway.limit_crossings
    where ctid = any (array(
        select ctid from gateway.limit_crossings where at < now() - interval '400 days' order by at limit p_limit for update skip locked));
    get diagnostics v_crossings = row_count;
    delete from gateway.turned_windows
    where ctid = any (array(
        select ctid from gateway.turned_windows where turned_at < now() - interval '1 day' order by turned_at limit p_limit for update skip locked));
    get diagnostics v_windows = row_count;
    return v_events + v_crossings + v_windows;
end
$$;
revoke all on function api.forget_events(integer) from public;
grant execute on function api.forget_events(integer) to service_role;
comment on function api.forget_events(integer) is 'Deletes old events, crossings and turned windows.';
