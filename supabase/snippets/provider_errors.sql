-- What fails, and why. operator: our key, balance or address there; transient: it may pass; protocol: an answer that is none.
select provider, service, active, attempts_today, failures_today, failed_percent_today, failed_percent_7_days, faults_7_days, last_failure_at
from gateway.provider_errors
order by failures_today desc, failures_7_days desc;
