-- Nobody reads or writes a table but its owner: the functions of schema api run as that, and so does Studio. Row level security alone says
-- so too, by having no policy; a restrictive one that never holds stays true when somebody adds a permissive one, and costs nothing.
create policy nobody on gateway.settings as restrictive to public using (false);
create policy nobody on gateway.customers as restrictive to public using (false);
create policy nobody on gateway.accounts as restrictive to public using (false);
create policy nobody on gateway.models as restrictive to public using (false);
create policy nobody on gateway.offers as restrictive to public using (false);
create policy nobody on gateway.services as restrictive to public using (false);
create policy nobody on gateway.routes as restrictive to public using (false);
create policy nobody on gateway.prices as restrictive to public using (false);
create policy nobody on gateway.api_keys as restrictive to public using (false);
create policy nobody on gateway.retired_secrets as restrictive to public using (false);
create policy nobody on gateway.limits as restrictive to public using (false);
create policy nobody on gateway.limit_counters as restrictive to public using (false);
create policy nobody on gateway.limit_crossings as restrictive to public using (false);
create policy nobody on gateway.turned_windows as restrictive to public using (false);
create policy nobody on gateway.requests as restrictive to public using (false);
create policy nobody on gateway.requests_default as restrictive to public using (false);
create policy nobody on gateway.idempotency_keys as restrictive to public using (false);
create policy nobody on gateway.ledger_entries as restrictive to public using (false);
create policy nobody on gateway.usage_rollups as restrictive to public using (false);
create policy nobody on gateway.usage_periods as restrictive to public using (false);
create policy nobody on gateway.key_days as restrictive to public using (false);
create policy nobody on gateway.usage_closing as restrictive to public using (false);
create policy nobody on gateway.refusal_rollups as restrictive to public using (false);
create policy nobody on gateway.audit_log as restrictive to public using (false);
create policy nobody on gateway.events as restrictive to public using (false);
create policy nobody on gateway.event_deliveries as restrictive to public using (false);
