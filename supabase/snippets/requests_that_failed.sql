-- The last requests that were not answered well, with what the client was told.
select at, request_id, customer, key_prefix, model, provider, status, http_status, error_code, failed_routes, latency_ms
from gateway.request_log
where status in ('failed', 'cut', 'expired')
order by at desc
limit 100;
