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
    constraint settings_are_numbers check ('NaN' <> all (array[flat_usd_per_1k_tokens, credit_value_usd])),
    auth_sign_up text not null default 'link' constraint settings_auth_sign_up_check check (auth_sign_up in ('off', 'link', 'create')),
    webhook_url text constraint settings_webhook_url_check check (webhook_url ~ '^https?://[^/@]+(/|$)' and length(webhook_url) <= 2000),
    webhook_secret text constraint settings_webhook_secret_check check (webhook_secret ~ '^v[0-9]+\.'),
    log_retention_months integer constraint settings_log_retention_months_check check (log_retention_months between 2 and 1200),
    usage_detail_days integer default 93 constraint settings_usage_detail_days_check check (usage_detail_days between 35 and 36600),
    constraint settings_webhook_is_signed check (webhook_url is null or webhook_secret is not null),
    unsupported_parameters text not null default 'refuse' constraint settings_unsupported_parameters_check check (unsupported_parameters in ('refuse', 'drop')),
    top_up_amounts_usd numeric(20, 10)[] not null default '{10,25,50,100}',
    top_up_minimum_usd numeric(20, 10) not null default 5,
    top_up_maximum_usd numeric(20, 10) not null default 1000,
    constraint settings_top_up_range check (
        top_up_minimum_usd between 0.5 and top_up_maximum_usd and top_up_maximum_usd <= 999999.99
        and top_up_minimum_usd = round(top_up_minimum_usd, 2) and top_up_maximum_usd = round(top_up_maximum_usd, 2)
    ),
    constraint settings_top_up_amounts check (
        array_ndims(top_up_amounts_usd) = 1 and cardinality(top_up_amounts_usd) between 1 and 12
        and array_position(top_up_amounts_usd, null) is null and top_up_amounts_usd = top_up_amounts_usd::numeric(20, 2)[]
        and top_up_minimum_usd <= all (top_up_amounts_usd) and top_up_maximum_usd >= all (top_up_amounts_usd)
    ),
    low_balance_usd numeric(20, 10) default 1 constraint settings_low_balance_usd_check check (low_balance_usd between 0 and 9999999999)
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
comment on column gateway.settings.auth_sign_up is 'What a Supabase Auth token does whose person is no customer yet: off (refused), link (to the customer with its confirmed address), create (a customer, where none has the address).';
comment on column gateway.settings.webhook_url is 'Where events are sent; empty: nowhere.';
comment on column gateway.settings.webhook_secret is 'What events are signed with, AES-256-GCM under a master key that this database never sees. Never plain text: the check refuses it.';
comment on column gateway.settings.log_retention_months is 'Whole months of the request log that are kept beside the current one; empty: all, for ever. The books, checkpoints and sums of older months stay.';
comment on column gateway.settings.usage_detail_days is 'For how many days usage is kept by the quarter of an hour, for charts by the hour; empty: for ever. By day and month it is kept for ever.';
comment on column gateway.settings.unsupported_parameters is 'What becomes of a parameter that a provider can''t be told: refuse (422, naming it) or drop (left out, and named in x-gateway-dropped-parameters).';
comment on column gateway.settings.top_up_amounts_usd is 'The amounts that are offered for a top-up, in whole cents; any other one between the least and the most is taken, too.';
comment on column gateway.settings.top_up_minimum_usd is 'The least that a top-up may be. Stripe takes no less than 0.50 USD.';
comment on column gateway.settings.top_up_maximum_usd is 'The most that a top-up may be. Stripe takes no more than 999999.99 USD.';
comment on column gateway.settings.low_balance_usd is 'The balance below which balance.low tells of a customer, unless the customer has a mark of its own; empty or 0: it tells of none.';
