-- api.check_health: answers, so that the database is there and its schema is ours. Reads only.
create function api.check_health() returns jsonb
language sql stable security definer set search_path = ''
as $$ select jsonb_build_object('database', 'ok', 'postgres', current_setting('server_version')) $$;
revoke all on function api.check_health() from public;
grant execute on function api.check_health() to service_role;
comment on function api.check_health() is 'Answers when the database is there.';
