-- What went beyond a soft mark. No foreign keys: a crossing is written while the counters and the account are locked, and must wait for nobody.
create table gateway.limit_crossings (
    subject text not null check (subject in ('key', 'customer', 'service')),
    subject_id bigint not null,
    model_id bigint not null default 0,
    per text not null check (per in ('minute', 'hour', 'day', 'month')),
    window_start timestamptz not null,
    metric text not null check (metric in ('requests', 'tokens', 'spend_usd')),
    mark numeric(30, 10) not null check (mark >= 0),
    used numeric(30, 10) not null,
    customer_id bigint,
    at timestamptz not null default clock_timestamp(),
    primary key (subject, subject_id, model_id, per, window_start, metric),
    constraint limit_crossings_are_beyond check (used > mark),
    constraint limit_crossings_customer check (subject <> 'service' or customer_id is null)
);
create index limit_crossings_at_idx on gateway.limit_crossings (at);
create index limit_crossings_customer_idx on gateway.limit_crossings (customer_id, at) where customer_id is not null;
alter table gateway.limit_crossings enable row level security;

comment on table gateway.limit_crossings is 'Soft marks that were crossed, by what was really used: once for each window. Written by the engine''s functions.';
comment on column gateway.limit_crossings.subject is 'key, customer or service.';
comment on column gateway.limit_crossings.subject_id is 'Its id.';
comment on column gateway.limit_crossings.model_id is 'With a key: the one model whose use crossed its mark; 0: all together.';
comment on column gateway.limit_crossings.per is 'The window''s length.';
comment on column gateway.limit_crossings.window_start is 'Start of the window.';
comment on column gateway.limit_crossings.metric is 'requests, tokens or spend_usd.';
comment on column gateway.limit_crossings.mark is 'The soft mark, as it was then.';
comment on column gateway.limit_crossings.used is 'What was used when the crossing was seen; running requests are not in it.';
comment on column gateway.limit_crossings.customer_id is 'The customer, or the key''s; empty for a service, which is the operator''s affair.';
comment on column gateway.limit_crossings.at is 'When it was seen: for requests at the admission, else when the request that crossed was settled.';

create table gateway.turned_windows (
    subject text not null check (subject in ('key', 'customer', 'service')),
    subject_id bigint not null,
    model_id bigint not null,
    per text not null check (per in ('minute', 'hour', 'day', 'month')),
    window_start timestamptz not null,
    requests bigint not null check (requests >= 0),
    tokens bigint not null check (tokens >= 0),
    spend_usd numeric(20, 10) not null check (spend_usd >= 0),
    turned_at timestamptz not null default clock_timestamp(),
    primary key (subject, subject_id, model_id, per, window_start)
);
create index turned_windows_turned_idx on gateway.turned_windows (turned_at);
alter table gateway.turned_windows enable row level security;

comment on table gateway.turned_windows is 'Counters of windows that passed while they were marked: what still ran then may yet carry them beyond a soft mark. Kept for a day.';
comment on column gateway.turned_windows.subject is 'As in limit_counters.';
comment on column gateway.turned_windows.subject_id is 'As in limit_counters.';
comment on column gateway.turned_windows.model_id is 'As in limit_counters.';
comment on column gateway.turned_windows.per is 'As in limit_counters.';
comment on column gateway.turned_windows.window_start is 'Start of the window that has passed.';
comment on column gateway.turned_windows.requests is 'Requests admitted in the window.';
comment on column gateway.turned_windows.tokens is 'Tokens used in the window; those of requests that still run at their bound.';
comment on column gateway.turned_windows.spend_usd is 'USD used in the window; those of requests that still run at their hold.';
comment on column gateway.turned_windows.turned_at is 'When the first request of a newer window came.';
