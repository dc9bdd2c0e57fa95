-- The whole database, in the order in which it is built. Read this first; edit the files it names; then write the
-- migration. `make test` builds one database from here and one from supabase/migrations and fails on any difference.
-- It needs plain PostgreSQL 15 or later, the roles anon, authenticated and service_role (Supabase has them), no extension.

\ir schemas.sql
\ir functions/row_rules.sql

\ir tables/settings.sql
\ir tables/customers.sql
\ir tables/accounts.sql
\ir tables/models.sql
\ir tables/services.sql
\ir tables/service_health.sql
\ir tables/prices.sql
\ir tables/api_keys.sql
\ir tables/retired_secrets.sql
\ir tables/limits.sql
\ir tables/limit_counters.sql
\ir tables/limit_crossings.sql
\ir tables/requests.sql
\ir tables/provider_costs.sql
\ir tables/idempotency_keys.sql
\ir tables/payments.sql
\ir tables/ledger_entries.sql
\ir tables/ledger_checkpoints.sql
\ir tables/statements.sql
\ir tables/usage_rollups.sql
\ir tables/usage_periods.sql
\ir tables/refusal_rollups.sql
\ir tables/audit_log.sql
\ir tables/events.sql

\ir functions/money.sql
\ir functions/windows.sql
\ir functions/guards.sql
\ir functions/erasure.sql
\ir functions/create_request_partitions.sql

\ir functions/raise_event.sql
\ir functions/raise_money_events.sql
\ir functions/record_health.sql
\ir functions/record_crossings.sql
\ir functions/correct_counters.sql
\ir functions/record_refusal.sql
\ir functions/resolve_candidates.sql
\ir functions/admit_request.sql
\ir functions/time_bins.sql
\ir functions/add_to_rollup.sql
\ir functions/settle_request.sql
\ir functions/expire_holds.sql
\ir functions/forget_idempotency_keys.sql
\ir functions/check_ledger.sql
\ir functions/watch_ledger.sql
\ir functions/close_ledger.sql
\ir functions/drop_request_partitions.sql
\ir functions/close_usage.sql
\ir functions/compare_provider_costs.sql
\ir functions/read_usage.sql
\ir functions/read_admin_monitor.sql
\ir functions/list_top_customers.sql
\ir functions/read_service_health.sql

\ir functions/authenticate_key.sql
\ir functions/authenticate_user.sql
\ir functions/create_customer.sql
\ir functions/manage_customers.sql
\ir functions/set_limits.sql
\ir functions/last_used_at.sql
\ir functions/key_bounds.sql
\ir functions/create_key.sql
\ir functions/set_key_state.sql
\ir functions/rotate_key.sql
\ir functions/update_key.sql
\ir functions/forget_retired_secrets.sql
\ir functions/list_keys.sql
\ir functions/book_payments.sql
\ir functions/add_credits.sql
\ir functions/create_user.sql
\ir functions/record_payment_event.sql
\ir functions/read_billing.sql
\ir functions/read_statement.sql
\ir functions/read_balances.sql
\ir functions/manage_prices.sql
\ir functions/import_prices.sql
\ir functions/manage_services.sql
\ir functions/manage_models.sql
\ir functions/change_settings.sql
\ir functions/list_audit.sql
\ir functions/list_models.sql
\ir functions/read_request.sql
\ir functions/list_requests.sql
\ir functions/read_limits.sql
\ir functions/read_credits.sql
\ir functions/read_time_series.sql
\ir functions/list_crossings.sql
\ir functions/deliver_events.sql
\ir functions/publish_events.sql
\ir functions/manage_events.sql
\ir functions/forget_events.sql
\ir functions/check_health.sql

\ir views/usage.sql
\ir views/limits.sql
\ir views/log.sql
\ir views/catalogue.sql
\ir views/legacy.sql

\ir policies.sql
