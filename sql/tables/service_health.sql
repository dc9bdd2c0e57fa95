-- What fails, and nothing of what answers: while all is well this table is empty, and who looks into it pays for an empty index.
-- No foreign keys: a settlement must not wait for an admin who is changing a service.
create table gateway.service_health (
    service_id bigint not null,
    route_id bigint not null default 0,
    failures integer not null constraint service_health_failures_check check (failures >= 0),
    failing_since timestamptz not null,
    last_failure_at timestamptz not null,
    last_status integer,
    last_fault text not null constraint service_health_last_fault_check check (last_fault in ('transient', 'operator', 'protocol')),
    set_asides integer not null default 0 constraint service_health_set_asides_check check (set_asides >= 0),
    set_aside_until timestamptz,
    probing_until timestamptz,
    constraint service_health_pkey primary key (service_id, route_id),
    constraint service_health_set_aside_ends check (set_asides = 0 or set_aside_until is not null)
);
alter table gateway.service_health enable row level security;

comment on table gateway.service_health is 'The services that fail just now. The first call that succeeds deletes the row; to take a service back at once, delete it by hand.';
comment on column gateway.service_health.service_id is 'The service.';
comment on column gateway.service_health.route_id is 'The one route that fails (its model is unknown there, or is rate limited); 0: the service as a whole.';
comment on column gateway.service_health.failures is 'Requests in a row for which it failed. A rate limit that says when it ends is none.';
comment on column gateway.service_health.failing_since is 'When the first of them did.';
comment on column gateway.service_health.last_failure_at is 'When the last of them did.';
comment on column gateway.service_health.last_status is 'HTTP status of the last one; empty: there was no answer.';
comment on column gateway.service_health.last_fault is 'Whose fault the last one was: transient (may pass), operator (key, credit or address), protocol (an answer that is none).';
comment on column gateway.service_health.set_asides is 'How often it was set aside since failing_since; each time for twice as long, up to ten minutes.';
comment on column gateway.service_health.set_aside_until is 'Until then it is tried last. Then one request probes it.';
comment on column gateway.service_health.probing_until is 'Until then a request probes it, and others still try it last.';
