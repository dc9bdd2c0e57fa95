create table gateway.ledger_entries (
    id bigint generated always as identity primary key,
    customer_id bigint not null references gateway.accounts,
    kind text not null,
    amount_usd numeric(20, 10) not null,
    balance_after_usd numeric(20, 10) not null,
    request_id text,
    reference text,
    note text,
    actor text not null,
    created_at timestamptz not null default clock_timestamp(),
    payment_id bigint constraint ledger_entries_payment_id_fkey references gateway.payments,
    debt_change_usd numeric(20, 10),
    constraint ledger_entries_rules
        check (gateway.is_ledger_entry(kind, amount_usd, debt_change_usd, request_id, payment_id, reference, note))
);
-- A request is charged once and adjusted once: not by care but by these.
create unique index ledger_one_entry_per_request on gateway.ledger_entries (request_id, kind) where request_id is not null;
create unique index ledger_reference_key on gateway.ledger_entries (customer_id, reference) where reference is not null;
create index ledger_customer_idx on gateway.ledger_entries (customer_id, id) include (amount_usd);
-- What was paid in, without the charges, which are many.
create index ledger_paid_idx on gateway.ledger_entries (customer_id) include (amount_usd) where request_id is null;
create index ledger_payment_idx on gateway.ledger_entries (payment_id) include (amount_usd, debt_change_usd) where payment_id is not null;
create index ledger_debt_idx on gateway.ledger_entries (customer_id) include (debt_change_usd) where debt_change_usd is not null;
alter table gateway.ledger_entries enable row level security;

comment on table gateway.ledger_entries is 'The books: append-only. A balance is the sum of its entries. Written by the engine''s functions only.';
comment on column gateway.ledger_entries.id is 'Identifies the entry; later entries of one customer have larger ids.';
comment on column gateway.ledger_entries.customer_id is 'Whose account.';
comment on column gateway.ledger_entries.kind is 'credit (paid in), correction (by an admin), charge (of a request), late_settlement (of a request whose hold had expired), refund and dispute (of a payment: taken back), reinstatement (a dispute was won, or a refund failed), debt_payment (what became free went to the debt).';
comment on column gateway.ledger_entries.amount_usd is 'Positive raises the balance, negative lowers it.';
comment on column gateway.ledger_entries.balance_after_usd is 'The balance after this entry.';
comment on column gateway.ledger_entries.request_id is 'The request that it is for.';
comment on column gateway.ledger_entries.reference is 'The payer''s or admin''s reference, used once for each customer.';
comment on column gateway.ledger_entries.note is 'Free text.';
comment on column gateway.ledger_entries.actor is 'Who did it.';
comment on column gateway.ledger_entries.created_at is 'When.';
comment on column gateway.ledger_entries.payment_id is 'The payment that it is for.';
comment on column gateway.ledger_entries.debt_change_usd is 'By how much it changed what the customer owes; empty: not at all. An account''s debt is the sum of these.';
