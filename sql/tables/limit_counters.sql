-- Written by every admission and settlement of a limited subject: no index but the key, so that updates stay HOT.
create table gateway.limit_counters (
    subject text not null,
    subject_id bigint not null,
    model_id bigint not null default 0,
    per text not null,
    window_start timestamptz not null,
    requests bigint not null default 0,
    tokens bigint not null default 0,
    spend_usd numeric(20, 10) not null default 0,
    marked boolean not null default false,
    primary key (subject, subject_id, model_id, per),
    constraint limit_counters_rules check (gateway.is_counter(subject, per, requests, tokens, spend_usd))
) with (fillfactor = 50);
alter table gateway.limit_counters enable row level security;

comment on table gateway.limit_counters is 'What was used of each limited window. A window of the past is not reset by a job: the first request of the next one starts it.';
comment on column gateway.limit_counters.subject is 'key, customer or service.';
comment on column gateway.limit_counters.subject_id is 'Its id.';
comment on column gateway.limit_counters.model_id is 'With a key: the one model that is counted; 0: all.';
comment on column gateway.limit_counters.per is 'The window''s length.';
comment on column gateway.limit_counters.window_start is 'Start of the window that the figures are of.';
comment on column gateway.limit_counters.requests is 'Requests admitted in the window.';
comment on column gateway.limit_counters.tokens is 'Tokens used in the window; those of running requests at their bound.';
comment on column gateway.limit_counters.spend_usd is 'USD used in the window; those of running requests at their hold.';
comment on column gateway.limit_counters.marked is 'Whether requests have reserved beyond a soft mark of the window: their settlements look whether what is really used is beyond it, too.';

-- What one request has counted where, so that its settlement corrects the windows that admitted it and no other.
create type gateway.counted as (
    subject text,
    subject_id bigint,
    model_id bigint,
    per text,
    window_start timestamptz,
    requests bigint,
    tokens bigint,
    spend_usd numeric
);
comment on type gateway.counted is 'What a request added to a counter (or, as a correction, is to add).';
