-- Apart from customers, because this row is written twice a request and that one is read by people.
create table gateway.accounts (
    customer_id bigint primary key references gateway.customers,
    balance_usd numeric(20, 10) not null default 0,
    held_usd numeric(20, 10) not null default 0,
    constraint accounts_holds_are_covered check (balance_usd - held_usd >= 0),
    debt_usd numeric(20, 10) not null default 0,
    low_mark_usd numeric(20, 10),
    constraint accounts_rules check (gateway.is_account(balance_usd, held_usd, debt_usd))
) with (fillfactor = 50);
alter table gateway.accounts enable row level security;

comment on table gateway.accounts is 'A customer''s prepaid money. Written by the engine''s functions only: use add_credits to change a balance.';
comment on column gateway.accounts.customer_id is 'Whose account.';
comment on column gateway.accounts.balance_usd is 'Sum of the customer''s ledger entries, in USD; what is held is still in it.';
comment on column gateway.accounts.held_usd is 'Sum of the holds of the customer''s running requests, in USD.';
comment on column gateway.accounts.debt_usd is 'What a refund or dispute took back beyond what was free: it is paid first by whatever becomes free, and until then no request is admitted.';
comment on column gateway.accounts.low_mark_usd is 'The balance below which balance.low is raised, as the last admission found it in the customer or the settings: the settlement has it at hand.';
comment on constraint accounts_holds_are_covered on gateway.accounts is 'The hard cap: no call is admitted whose whole bound is not covered by free money.';
comment on constraint accounts_rules on gateway.accounts is 'Amounts are numbers, none is negative, and whoever owes has nothing free: what is paid in or released goes to the debt in the same statement.';

create table gateway.exhausted_accounts (
    customer_id bigint primary key constraint exhausted_accounts_customer_id_fkey references gateway.accounts,
    since timestamptz not null default clock_timestamp()
);
alter table gateway.exhausted_accounts enable row level security;

comment on table gateway.exhausted_accounts is 'Customers whose calls have been refused for want of money since they last paid in: balance.exhausted was raised of them, and is not again before they do.';
comment on column gateway.exhausted_accounts.customer_id is 'Whose account.';
comment on column gateway.exhausted_accounts.since is 'When the first was refused.';
