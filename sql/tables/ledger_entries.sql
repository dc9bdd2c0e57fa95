create table gateway.ledger_entries (
    id bigint generated always as identity primary key,
    customer_id bigint not null references gateway.accounts,
    kind text not null constraint ledger_entries_kind_check check (kind in (
        'credit', 'correction', 'charge', 'late_settlement', 'refund', 'dispute', 'reinstatement', 'debt_payment'
    )),
    amount_usd numeric(20, 10) not null
        constraint ledger_entries_amount_usd_check check ((amount_usd <> 0 or coalesce(debt_change_usd > 0, false)) and amount_usd <> 'NaN'),
    balance_after_usd numeric(20, 10) not null,
    request_id text,
    reference text check (length(reference) between 1 and 255),
    note text check (length(note) <= 1000),
    actor text not null,
    created_at timestamptz not null default clock_timestamp(),
    constraint ledger_request_kinds check ((request_id is not null) = (kind in ('charge', 'late_settlement'))),
    constraint ledger_credit_is_positive check (kind <> 'credit' or amount_usd > 0),
    constraint ledger_charge_is_negative check (kind <> 'charge' or amount_usd < 0),
    payment_id bigint constraint ledger_entries_payment_id_fkey references gateway.payments,
    debt_change_usd numeric(20, 10) constraint ledger_entries_debt_change_usd_check check (debt_change_usd <> 0 and debt_change_usd <> 'NaN'),
    constraint ledger_payment_kinds check (case
        when kind in ('refund', 'dispute', 'reinstatement') then payment_id is not null
        else payment_id is null or kind = 'credit'
    end),
    constraint ledger_reversal_is_negative check (kind not in ('refund', 'dispute') or amount_usd <= 0),
    constraint ledger_reinstatement_is_positive check (kind <> 'reinstatement' or amount_usd > 0),
    constraint ledger_debt_kinds check (case
        when kind in ('refund', 'dispute') then coalesce(debt_change_usd > 0, true)
        when kind = 'debt_payment' then coalesce(debt_change_usd = amount_usd and amount_usd < 0, false)
        else debt_change_usd is null
    end)
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
