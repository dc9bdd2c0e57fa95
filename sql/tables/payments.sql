-- What Stripe has told of a payment: facts that only ever grow, so that the order of the telling makes no difference; and what was booked of it.
create table gateway.payments (
    id bigint generated always as identity primary key,
    payment_intent text not null constraint payments_payment_intent_key unique
        constraint payments_payment_intent_check check (length(payment_intent) between 1 and 255),
    checkout_session text constraint payments_checkout_session_check check (length(checkout_session) between 1 and 255),
    customer_id bigint constraint payments_customer_id_fkey references gateway.accounts,
    livemode boolean not null,
    currency text constraint payments_currency_check check (currency ~ '^[a-z]{3}$'),
    asked_usd numeric(20, 10),
    paid_minor bigint constraint payments_paid_minor_check check (paid_minor >= 0),
    refunded_minor bigint constraint payments_refunded_minor_check check (refunded_minor >= 0),
    paid_at timestamptz,
    failed_at timestamptz,
    credited_usd numeric(20, 10) not null default 0,
    refunded_usd numeric(20, 10) not null default 0,
    disputed_usd numeric(20, 10) not null default 0,
    created_at timestamptz not null default clock_timestamp(),
    constraint payments_are_numbers check ('NaN' <> all (array[credited_usd, refunded_usd, disputed_usd])),
    constraint payments_not_negative check (least(credited_usd, refunded_usd, disputed_usd) >= 0),
    constraint payments_reversed_was_credited check (refunded_usd + disputed_usd <= credited_usd),
    constraint payments_credited_was_paid
        check (credited_usd = 0 or (credited_usd = paid_minor * 0.01 and currency = 'usd' and customer_id is not null))
);
create index payments_customer_idx on gateway.payments (customer_id, id);
alter table gateway.payments enable row level security;

comment on table gateway.payments is 'Payments by Stripe: what was told of each, and what of it is in the books. Written by api.record_payment_event alone. Foreign ones, of which only a refund or dispute was told, have no customer and nothing paid.';
comment on column gateway.payments.id is 'Identifies the payment in the API.';
comment on column gateway.payments.payment_intent is 'Stripe''s id of it (pi_…).';
comment on column gateway.payments.checkout_session is 'Stripe''s id of the page that it was paid on (cs_…).';
comment on column gateway.payments.customer_id is 'Who pays in; empty: not known, or no customer of ours.';
comment on column gateway.payments.livemode is 'Whether the money is real: false in Stripe''s test mode.';
comment on column gateway.payments.currency is 'What it was paid in. Only usd is credited.';
comment on column gateway.payments.asked_usd is 'What was to be paid.';
comment on column gateway.payments.paid_minor is 'What was paid, as Stripe counts: in the currency''s smallest unit; empty: not paid (yet).';
comment on column gateway.payments.refunded_minor is 'The most that Stripe told of as refunded in all, in the smallest unit. What of it is not in payment_refunds counts, too.';
comment on column gateway.payments.paid_at is 'When it was paid, by Stripe''s clock.';
comment on column gateway.payments.failed_at is 'When it failed, where it was of a kind that is paid later.';
comment on column gateway.payments.credited_usd is 'What was credited in the books, once.';
comment on column gateway.payments.refunded_usd is 'What the books have taken back for refunds.';
comment on column gateway.payments.disputed_usd is 'What the books have taken back for disputes that are open or lost.';
comment on column gateway.payments.created_at is 'When it was first heard of.';

create table gateway.payment_refunds (
    id text primary key constraint payment_refunds_id_check check (length(id) between 1 and 255),
    payment_id bigint not null constraint payment_refunds_payment_id_fkey references gateway.payments,
    amount_minor bigint not null constraint payment_refunds_amount_minor_check check (amount_minor >= 0),
    failed boolean not null
);
create index payment_refunds_payment_idx on gateway.payment_refunds (payment_id);
alter table gateway.payment_refunds enable row level security;

comment on table gateway.payment_refunds is 'The refunds of a payment that were told of one by one. Written by api.record_payment_event alone.';
comment on column gateway.payment_refunds.id is 'Stripe''s id of it (re_…).';
comment on column gateway.payment_refunds.payment_id is 'Of which payment.';
comment on column gateway.payment_refunds.amount_minor is 'How much, in the currency''s smallest unit.';
comment on column gateway.payment_refunds.failed is 'Whether it failed or was cancelled, for good: the money came back.';

create table gateway.payment_disputes (
    id text primary key constraint payment_disputes_id_check check (length(id) between 1 and 255),
    payment_id bigint not null constraint payment_disputes_payment_id_fkey references gateway.payments,
    amount_minor bigint not null constraint payment_disputes_amount_minor_check check (amount_minor >= 0),
    withdrawn_at timestamptz,
    returned_at timestamptz
);
create index payment_disputes_payment_idx on gateway.payment_disputes (payment_id);
alter table gateway.payment_disputes enable row level security;

comment on table gateway.payment_disputes is 'The disputes of a payment. Written by api.record_payment_event alone.';
comment on column gateway.payment_disputes.id is 'Stripe''s id of it (dp_…, du_…).';
comment on column gateway.payment_disputes.payment_id is 'Of which payment.';
comment on column gateway.payment_disputes.amount_minor is 'How much, in the currency''s smallest unit.';
comment on column gateway.payment_disputes.withdrawn_at is 'When an event last told that the money is taken from us, by Stripe''s clock: not by an inquiry or an appeal alone.';
comment on column gateway.payment_disputes.returned_at is 'When an event last told that it is given back: the dispute was won. It counts unless it was taken later: a dispute that was won may be lost on appeal.';

create table gateway.payment_events (
    id text primary key constraint payment_events_id_check check (length(id) between 1 and 255),
    kind text not null,
    payment_id bigint not null constraint payment_events_payment_id_fkey references gateway.payments,
    created_at timestamptz not null,
    received_at timestamptz not null default clock_timestamp()
);
create index payment_events_payment_idx on gateway.payment_events (payment_id);
alter table gateway.payment_events enable row level security;

comment on table gateway.payment_events is 'The events of Stripe''s that were taken in, each once. Written by api.record_payment_event alone.';
comment on column gateway.payment_events.id is 'Stripe''s id of it (evt_…).';
comment on column gateway.payment_events.kind is 'Stripe''s type of it, such as checkout.session.completed.';
comment on column gateway.payment_events.payment_id is 'Which payment it tells of.';
comment on column gateway.payment_events.created_at is 'When it happened, by Stripe''s clock.';
comment on column gateway.payment_events.received_at is 'When it was taken in.';
