-- The slowest requests of the last day, and how long the first token took.
select at, request_id, customer, model, service, streamed, latency_ms, time_to_first_token_ms, output_tokens,
    round(1000.0 * output_tokens / nullif(latency_ms - coalesce(time_to_first_token_ms, 0), 0), 1) as tokens_per_second
from gateway.request_log
where at > now() - interval '1 day' and latency_ms is not null
order by latency_ms desc
limit 50;
