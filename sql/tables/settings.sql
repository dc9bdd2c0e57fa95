create table gateway.settings (
    singleton boolean primary key default true check (singleton),
    commission_percent numeric(9, 6) not null default 5 check (commission_percent between 0 and 1000),
    billing_mode text not null default 'markup' check (billing_mode in ('markup', 'flat')),
    flat_usd_per_1k_tokens numeric(20, 10) not null default 0.02 check (flat_usd_per_1k_tokens >= 0),
    credit_value_usd numeric(20, 10) not null default 0.00002 check (credit_value_usd > 0),
    default_max_output_tokens bigint not null default 8192 check (default_max_output_tokens between 16 and 10000000),
    default_requests_per_minute bigint default 60 check (default_requests_per_minute > 0),
    default_tokens_per_minute bigint check (default_tokens_per_minute > 0),
    expired_hold_policy text not null default 'release' check (expired_hold_policy in ('release', 'charge')),
    constraint settings_are_numbers check ('NaN' <> all (array[flat_usd_per_1k_tokens, credit_value_usd]))
);
insert into gateway.settings default values;
alter table gateway.settings enable row level security;

comment on table gateway.settings is 'The system''s settings: exactly one row.';
comment on column gateway.settings.singleton is 'Always true: there is one row.';
comment on column gateway.settings.commission_percent is 'Markup mode: what is added to the provider''s cost, in percent. Requests already admitted keep the one they were admitted under.';
comment on column gateway.settings.billing_mode is 'markup: cost of each token class times (1 + commission). flat: all tokens at one price; what is not a token is marked up.';
comment on column gateway.settings.flat_usd_per_1k_tokens is 'Flat mode: USD per 1,000 tokens of any class.';
comment on column gateway.settings.credit_value_usd is 'What one credit is worth, in USD. Credits are a way of showing USD: the books are in USD.';
comment on column gateway.settings.default_max_output_tokens is 'Output bound of a call whose client named none, where the model, the balance and the limits allow as much.';
comment on column gateway.settings.default_requests_per_minute is 'Requests per minute for each key and model where no limit of the key says otherwise; empty: none.';
comment on column gateway.settings.default_tokens_per_minute is 'Tokens per minute for each key and model where no limit of the key says otherwise; empty: none.';
comment on column gateway.settings.expired_hold_policy is 'What a hold costs that nobody settled: release (nothing; the operator''s loss) or charge (the whole hold).';
