create table gateway.ledger_months (
    month date primary key constraint ledger_months_begin check (extract(day from month) = 1),
    closed_at timestamptz not null default clock_timestamp(),
    log_dropped_at timestamptz,
    booked_requests bigint,
    collected_usd numeric(24, 10),
    constraint ledger_months_dropped_are_counted
        check (num_nonnulls(log_dropped_at, booked_requests, collected_usd) in (0, 3))
);
alter table gateway.ledger_months enable row level security;

comment on table gateway.ledger_months is 'The months (UTC) whose books are closed: they agreed, and were summed up into ledger_checkpoints. Every month up to the last one here is. Written by the engine''s functions only.';
comment on column gateway.ledger_months.month is 'Its first day.';
comment on column gateway.ledger_months.closed_at is 'When it was closed.';
comment on column gateway.ledger_months.log_dropped_at is 'When the month''s part of the request log was dropped, by the setting log_retention_months; empty: it is there.';
comment on column gateway.ledger_months.booked_requests is 'How many requests of the dropped log had money taken for them.';
comment on column gateway.ledger_months.collected_usd is 'What was taken for them: the entries that name a request which is not in the log any more come to this.';

create table gateway.ledger_checkpoints (
    customer_id bigint not null references gateway.accounts,
    month date not null,
    through_entry_id bigint not null,
    entries bigint not null check (entries > 0),
    balance_usd numeric(20, 10) not null,
    primary key (customer_id, month)
);
alter table gateway.ledger_checkpoints enable row level security;

comment on table gateway.ledger_checkpoints is 'A customer''s balance at the end of each month in which it had entries, so that a check of the books costs the same however long they are. Written by the engine''s functions only.';
comment on column gateway.ledger_checkpoints.customer_id is 'Whose account.';
comment on column gateway.ledger_checkpoints.month is 'The first day of the month (UTC).';
comment on column gateway.ledger_checkpoints.through_entry_id is 'The last of the customer''s entries that is in it. A customer''s entries are numbered under the lock of its account, so that none with a smaller number can turn up later.';
comment on column gateway.ledger_checkpoints.entries is 'How many entries came since the checkpoint before.';
comment on column gateway.ledger_checkpoints.balance_usd is 'Sum of the customer''s entries so far.';
