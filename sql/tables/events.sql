-- The outbox: what happened that an operator wants to hear of, and how far the telling has come.
create table gateway.events (
    id uuid primary key default gen_random_uuid(),
    at timestamptz not null default clock_timestamp(),
    kind text not null check (kind ~ '^[a-z_]+(\.[a-z_]+)+$'),
    customer_id bigint,
    subject text not null,
    data jsonb not null check (jsonb_typeof(data) = 'object'),
    dedupe_key text constraint events_dedupe_key unique
);
create index events_at_idx on gateway.events (at);
alter table gateway.events enable row level security;

comment on table gateway.events is 'What happened that an operator wants to hear of. Ids and figures only: nothing of a person, no secret, no content. Kept for 90 days.';
comment on column gateway.events.id is 'Identifies the event; its webhook-id is evt_ and these hexadecimal digits.';
comment on column gateway.events.at is 'When it happened.';
comment on column gateway.events.kind is 'What happened, such as limit.soft_crossed.';
comment on column gateway.events.customer_id is 'Whom it is about, where it is about a customer.';
comment on column gateway.events.subject is 'What it is about, such as key:12.';
comment on column gateway.events.data is 'The particulars, as the webhook is sent them.';
comment on column gateway.events.dedupe_key is 'A second event with it is not written; empty: every one is.';

create table gateway.event_deliveries (
    event_id uuid primary key references gateway.events on delete cascade,
    attempts integer not null default 0 check (attempts >= 0),
    next_attempt_at timestamptz default clock_timestamp(),
    claimed_until timestamptz,
    delivered_at timestamptz,
    last_status integer,
    last_error text,
    constraint event_deliveries_end check (delivered_at is null or next_attempt_at is null)
);
create index event_deliveries_due_idx on gateway.event_deliveries (next_attempt_at) where next_attempt_at is not null;
create index event_deliveries_delivered_idx on gateway.event_deliveries (delivered_at) where delivered_at is not null;
create index event_deliveries_given_up_idx on gateway.event_deliveries (event_id) where delivered_at is null and next_attempt_at is null;
alter table gateway.event_deliveries enable row level security;

comment on table gateway.event_deliveries is 'The sending of an event to the webhook; events that came while no webhook was set have none. To send one again, set next_attempt_at to now() and delivered_at to null.';
comment on column gateway.event_deliveries.event_id is 'The event.';
comment on column gateway.event_deliveries.attempts is 'How often it was sent, or was about to be.';
comment on column gateway.event_deliveries.next_attempt_at is 'When it is due; empty: it was delivered, or given up.';
comment on column gateway.event_deliveries.claimed_until is 'Until then a maintainer is at it, and no other takes it.';
comment on column gateway.event_deliveries.delivered_at is 'When the receiver took it (answered 2xx).';
comment on column gateway.event_deliveries.last_status is 'HTTP status of the last attempt; empty: there was no answer.';
comment on column gateway.event_deliveries.last_error is 'What was wrong with the last attempt.';

create table gateway.topic_deliveries (
    event_id uuid primary key constraint topic_deliveries_event_id_fkey references gateway.events on delete cascade,
    attempts integer not null default 0 constraint topic_deliveries_attempts_check check (attempts >= 0),
    next_attempt_at timestamptz default clock_timestamp(),
    claimed_until timestamptz,
    delivered_at timestamptz,
    last_status integer,
    last_error text,
    constraint topic_deliveries_end check (delivered_at is null or next_attempt_at is null)
);
create index topic_deliveries_due_idx on gateway.topic_deliveries (next_attempt_at) where next_attempt_at is not null;
create index topic_deliveries_delivered_idx on gateway.topic_deliveries (delivered_at) where delivered_at is not null;
create index topic_deliveries_given_up_idx on gateway.topic_deliveries (event_id) where delivered_at is null and next_attempt_at is null;
alter table gateway.topic_deliveries enable row level security;

comment on table gateway.topic_deliveries is 'The publishing of an event to the SNS topic, as event_deliveries has it of the webhook: the one does not wait for the other.';
comment on column gateway.topic_deliveries.event_id is 'The event.';
comment on column gateway.topic_deliveries.attempts is 'How often it was published, or was about to be.';
comment on column gateway.topic_deliveries.next_attempt_at is 'When it is due; empty: it was delivered, or given up.';
comment on column gateway.topic_deliveries.claimed_until is 'Until then a maintainer is at it, and no other takes it.';
comment on column gateway.topic_deliveries.delivered_at is 'When the topic took it.';
comment on column gateway.topic_deliveries.last_status is 'HTTP status of the last attempt; empty: there was no answer.';
comment on column gateway.topic_deliveries.last_error is 'What was wrong with the last attempt.';

create table gateway.maintenance_state (
    singleton boolean primary key default true constraint maintenance_state_singleton_check check (singleton),
    alert_topic_arn text,
    ledger_checked_at timestamptz,
    ledger_finding jsonb,
    ledger_found_at timestamptz,
    constraint maintenance_state_finding_has_time check ((ledger_finding is null) = (ledger_found_at is null))
);
insert into gateway.maintenance_state default values;
alter table gateway.maintenance_state enable row level security;

comment on table gateway.maintenance_state is 'What the maintenance function knows from one run to the next: exactly one row.';
comment on column gateway.maintenance_state.singleton is 'Always true: there is one row.';
comment on column gateway.maintenance_state.alert_topic_arn is 'The SNS topic that events are published to, as the function''s environment names it; empty: none.';
comment on column gateway.maintenance_state.ledger_checked_at is 'When the scheduled check of the books was last begun.';
comment on column gateway.maintenance_state.ledger_finding is 'What it found to differ and told of by ledger.mismatch; empty: the books agreed.';
comment on column gateway.maintenance_state.ledger_found_at is 'Since when they have not agreed.';
