create table gateway.statements (
    customer_id bigint not null constraint statements_customer_id_fkey references gateway.accounts,
    month date not null constraint statements_month_check check (extract(day from month) = 1),
    time_zone text not null,
    starts_at timestamptz not null,
    ends_at timestamptz not null,
    after_entry_id bigint not null,
    through_entry_id bigint not null,
    document jsonb not null constraint statements_document_check check (jsonb_typeof(document) = 'object'),
    closed_at timestamptz not null default clock_timestamp(),
    primary key (customer_id, month),
    constraint statements_go_on check (through_entry_id >= after_entry_id)
);
alter table gateway.statements enable row level security;

comment on table gateway.statements is 'The statements of months that are over, as they were first given out: they stay. Each goes on from the entry with which the one before ended, whatever became of the customer''s time zone. Written by api.read_statement alone.';
comment on column gateway.statements.customer_id is 'Whose.';
comment on column gateway.statements.month is 'The first day of the month.';
comment on column gateway.statements.time_zone is 'The customer''s time zone when it was closed: the month begins and ends by it.';
comment on column gateway.statements.starts_at is 'When the month began.';
comment on column gateway.statements.ends_at is 'When it ended; that moment is not in it.';
comment on column gateway.statements.after_entry_id is 'The customer''s entries after this one are in it; 0: from the first.';
comment on column gateway.statements.through_entry_id is 'Its last entry: none of the customer''s between this one and the next month''s first is left out.';
comment on column gateway.statements.document is 'The statement.';
comment on column gateway.statements.closed_at is 'When it was closed.';
