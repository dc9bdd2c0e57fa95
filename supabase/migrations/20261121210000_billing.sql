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

alter table gateway.accounts
    add column debt_usd numeric(20, 10) not null default 0,
    add constraint accounts_debt_not_negative check (debt_usd >= 0 and debt_usd <> 'NaN'),
    add constraint accounts_debt_takes_what_is_free check (debt_usd = 0 or balance_usd = held_usd);

alter table gateway.ledger_entries
    drop constraint ledger_entries_kind_check,
    drop constraint ledger_entries_amount_usd_check,
    add column payment_id bigint constraint ledger_entries_payment_id_fkey references gateway.payments,
    add column debt_change_usd numeric(20, 10)
        constraint ledger_entries_debt_change_usd_check check (debt_change_usd <> 0 and debt_change_usd <> 'NaN'),
    add constraint ledger_entries_kind_check check (kind in (
        'credit', 'correction', 'charge', 'late_settlement', 'refund', 'dispute', 'reinstatement', 'debt_payment'
    )),
    add constraint ledger_entries_amount_usd_check check ((amount_usd <> 0 or coalesce(debt_change_usd > 0, false)) and amount_usd <> 'NaN'),
    add constraint ledger_payment_kinds check (case
        when kind in ('refund', 'dispute', 'reinstatement') then payment_id is not null
        else payment_id is null or kind = 'credit'
    end),
    add constraint ledger_reversal_is_negative check (kind not in ('refund', 'dispute') or amount_usd <= 0),
    add constraint ledger_reinstatement_is_positive check (kind <> 'reinstatement' or amount_usd > 0),
    add constraint ledger_debt_kinds check (case
        when kind in ('refund', 'dispute') then coalesce(debt_change_usd > 0, true)
        when kind = 'debt_payment' then coalesce(debt_change_usd = amount_usd and amount_usd < 0, false)
        else debt_change_usd is null
    end);

create index ledger_payment_idx on gateway.ledger_entries (payment_id) include (amount_usd, debt_change_usd) where payment_id is not null;

create index ledger_debt_idx on gateway.ledger_entries (customer_id) include (debt_change_usd) where debt_change_usd is not null;

alter table gateway.settings
    add column top_up_amounts_usd numeric(20, 10)[] not null default '{10,25,50,100}',
    add column top_up_minimum_usd numeric(20, 10) not null default 5,
    add column top_up_maximum_usd numeric(20, 10) not null default 1000,
    add constraint settings_top_up_range check (
        top_up_minimum_usd between 0.5 and top_up_maximum_usd and top_up_maximum_usd <= 999999.99
        and top_up_minimum_usd = round(top_up_minimum_usd, 2) and top_up_maximum_usd = round(top_up_maximum_usd, 2)
    ),
    add constraint settings_top_up_amounts check (
        array_ndims(top_up_amounts_usd) = 1 and cardinality(top_up_amounts_usd) between 1 and 12
        and array_position(top_up_amounts_usd, null) is null and top_up_amounts_usd = top_up_amounts_usd::numeric(20, 2)[]
        and top_up_minimum_usd <= all (top_up_amounts_usd) and top_up_maximum_usd >= all (top_up_amounts_usd)
    );

-- For the constraint of the table below. p_rates: the version's own prices of c_classes, in that order; a tier has the same classes, or
-- a price that was forgotten would be taken for its base class's.
create function gateway.are_price_tiers(p_tiers jsonb, p_rates numeric[]) returns boolean
language plpgsql immutable set search_path = ''
as $$
declare
    c_classes constant text[] := array[
        'input', 'cached_input', 'cache_write', 'cache_write_1h', 'audio_input', 'image_input', 'output', 'audio_output', 'image_output'];
    v_tier jsonb;
    v_entry record;
    v_above numeric := 0;
begin
    if jsonb_typeof(p_tiers) <> 'array' then
        return false;
    elsif jsonb_array_length(p_tiers) not between 1 and 16 then
        return false;
    end if;
    for v_tier in select value from jsonb_array_elements(p_tiers) loop
        if jsonb_typeof(v_tier) <> 'object' then
            return false;
        elsif not v_tier ? 'above_input_tokens' then
            return false;
        end if;
        for v_entry in select key, value from jsonb_each(v_tier) loop
            if jsonb_typeof(v_entry.value) <> 'number' then
                return false;
            elsif v_entry.key = 'above_input_tokens' then
                continue;
            elsif p_rates[array_position(c_classes, v_entry.key)] is null
                or v_entry.value::numeric not between 0 and 9999999999.9999999999
                or v_entry.value::numeric <> round(v_entry.value::numeric, 10)
            then
                return false;
            end if;
        end loop;
        if exists (
            select from unnest(c_classes, p_rates) as c (name, rate) where c.rate is not null and not v_tier ? c.name
        ) then
            return false;
        end if;
        -- ascending, so that no two begin at the same length
        if (v_tier -> 'above_input_tokens')::numeric not between v_above + 1 and 1000000000000
            or v_tier ->> 'above_input_tokens' !~ '^[0-9]+$'  -- nor 1000.0, which is read as a whole number where it counts
        then
            return false;
        end if;
        v_above := (v_tier -> 'above_input_tokens')::numeric;
    end loop;
    return true;
end
$$;

comment on function gateway.are_price_tiers(jsonb, numeric[]) is 'Whether these are tiers of a price: numbers only, ascending, each with the classes of the price and no other.';

revoke all on function gateway.are_price_tiers(jsonb, numeric[]) from public;

alter table gateway.prices add column tiers jsonb constraint prices_tiers_check check (tiers is null or gateway.are_price_tiers(tiers, array[
    input, cached_input, cache_write, cache_write_1h, audio_input, image_input, output, audio_output, image_output]));

alter type gateway.price_line add attribute tiers jsonb;

alter table gateway.settings
    add column low_balance_usd numeric(20, 10) default 1 constraint settings_low_balance_usd_check check (low_balance_usd between 0 and 9999999999);

alter table gateway.customers
    add column low_balance_usd numeric(20, 10) constraint customers_low_balance_usd_check check (low_balance_usd between 0 and 9999999999);

alter table gateway.accounts add column low_mark_usd numeric(20, 10);

comment on column gateway.settings.top_up_amounts_usd is 'The amounts that are offered for a top-up, in whole cents; any other one between the least and the most is taken, too.';

comment on column gateway.settings.top_up_minimum_usd is 'The least that a top-up may be. Stripe takes no less than 0.50 USD.';

comment on column gateway.settings.top_up_maximum_usd is 'The most that a top-up may be. Stripe takes no more than 999999.99 USD.';

comment on column gateway.settings.low_balance_usd is 'The balance below which balance.low tells of a customer, unless the customer has a mark of its own; empty or 0: it tells of none.';

comment on column gateway.customers.low_balance_usd is 'The balance below which balance.low tells of this customer; empty: as the settings have it; 0: never.';

comment on column gateway.accounts.debt_usd is 'What a refund or dispute took back beyond what was free: it is paid first by whatever becomes free, and until then no request is admitted.';

comment on column gateway.accounts.low_mark_usd is 'The balance below which balance.low is raised, as the last admission found it in the customer or the settings: the settlement has it at hand.';

comment on constraint accounts_debt_takes_what_is_free on gateway.accounts is 'Whoever owes has nothing free: what is paid in or released goes to the debt in the same statement.';

create table gateway.exhausted_accounts (
    customer_id bigint primary key constraint exhausted_accounts_customer_id_fkey references gateway.accounts,
    since timestamptz not null default clock_timestamp()
);

alter table gateway.exhausted_accounts enable row level security;

comment on table gateway.exhausted_accounts is 'Customers whose calls have been refused for want of money since they last paid in: balance.exhausted was raised of them, and is not again before they do.';

comment on column gateway.exhausted_accounts.customer_id is 'Whose account.';

comment on column gateway.exhausted_accounts.since is 'When the first was refused.';

comment on column gateway.prices.tiers is 'Dearer rates for long prompts, ascending: [{"above_input_tokens": 200000, "input": 2.5, "output": 15, …}, …], numbers, each with every class that the price itself has. A request with more input tokens than that, cached and written ones included, costs the tier''s rates from its first token on; per_request and per_image stay. Empty: one price for any length.';

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

comment on column gateway.ledger_entries.kind is 'credit (paid in), correction (by an admin), charge (of a request), late_settlement (of a request whose hold had expired), refund and dispute (of a payment: taken back), reinstatement (a dispute was won, or a refund failed), debt_payment (what became free went to the debt).';

comment on column gateway.ledger_entries.payment_id is 'The payment that it is for.';

comment on column gateway.ledger_entries.debt_change_usd is 'By how much it changed what the customer owes; empty: not at all. An account''s debt is the sum of these.';

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

create function gateway.input_tokens(p_usage jsonb) returns bigint
language plpgsql immutable parallel safe set search_path = ''
as $$
begin
    return coalesce((p_usage ->> 'input')::bigint, 0) + coalesce((p_usage ->> 'cached_input')::bigint, 0)
        + coalesce((p_usage ->> 'cache_write')::bigint, 0) + coalesce((p_usage ->> 'audio_input')::bigint, 0)
        + coalesce((p_usage ->> 'image_input')::bigint, 0);
end
$$;

comment on function gateway.input_tokens(jsonb) is 'Tokens of all the disjoint input classes: what the threshold of a price tier is compared with.';

revoke all on function gateway.input_tokens(jsonb) from public;

create function gateway.tier_of_prices(p_prices jsonb, p_input_tokens bigint) returns jsonb
language plpgsql immutable parallel safe set search_path = ''
as $$
declare
    v_rates jsonb := p_prices;
    v_tier jsonb;
begin
    for v_tier in select value from jsonb_array_elements(p_prices -> 'tiers') with ordinality order by ordinality loop
        exit when p_input_tokens <= (v_tier ->> 'above_input_tokens')::bigint;
        v_rates := v_tier;
    end loop;
    return v_rates;
end
$$;

comment on function gateway.tier_of_prices(jsonb, bigint) is 'The rates of a whole request with so many input tokens: those of the last tier that it is above, or the price''s own.';

revoke all on function gateway.tier_of_prices(jsonb, bigint) from public;

create or replace function gateway.tokens_cost_usd(p_prices jsonb, p_usage jsonb) returns numeric
language plpgsql immutable parallel safe set search_path = ''
as $$
declare
    v_rates constant jsonb := case when p_prices ? 'tiers' then gateway.tier_of_prices(p_prices, gateway.input_tokens(p_usage)) else p_prices end;
    v_input constant numeric := (v_rates ->> 'input')::numeric;
    v_output constant numeric := (v_rates ->> 'output')::numeric;
    v_cache_write constant numeric := coalesce((v_rates ->> 'cache_write')::numeric, v_input);
begin
    return (
        coalesce((p_usage ->> 'input')::bigint, 0) * v_input
        + coalesce((p_usage ->> 'cached_input')::bigint, 0) * coalesce((v_rates ->> 'cached_input')::numeric, v_input)
        + coalesce((p_usage ->> 'cache_write')::bigint, 0) * v_cache_write
        -- a part of what was written, dearer by the difference
        + least(coalesce((p_usage ->> 'cache_write_1h')::bigint, 0), coalesce((p_usage ->> 'cache_write')::bigint, 0))
            * (coalesce((v_rates ->> 'cache_write_1h')::numeric, v_cache_write) - v_cache_write)
        + coalesce((p_usage ->> 'audio_input')::bigint, 0) * coalesce((v_rates ->> 'audio_input')::numeric, v_input)
        + coalesce((p_usage ->> 'image_input')::bigint, 0) * coalesce((v_rates ->> 'image_input')::numeric, v_input)
        + coalesce((p_usage ->> 'output')::bigint, 0) * v_output
        + coalesce((p_usage ->> 'audio_output')::bigint, 0) * coalesce((v_rates ->> 'audio_output')::numeric, v_output)
        + coalesce((p_usage ->> 'image_output')::bigint, 0) * coalesce((v_rates ->> 'image_output')::numeric, v_output)
    ) * 0.000001;
end
$$;

comment on function gateway.tokens_cost_usd(jsonb, jsonb) is 'Exact cost of the tokens of each class at pinned prices (USD per million), of the tier that the whole input falls in. A class without a price of its own costs what its base class costs.';

create or replace function gateway.version_price() returns trigger
language plpgsql security definer set search_path = ''
as $$
begin
    if old.effective_from > clock_timestamp() then
        -- not in force yet: nothing was admitted under it, and nothing in the past will have been
        new.effective_from := greatest(new.effective_from, clock_timestamp());
        return new;
    end if;
    if (new.offer_id, new.service_id) is distinct from (old.offer_id, old.service_id) then
        raise exception 'a price stays with its offer: insert a new one' using errcode = 'restrict_violation';
    end if;
    new.effective_from := case
        when new.effective_from is distinct from old.effective_from and new.effective_from > clock_timestamp() then new.effective_from
        else clock_timestamp()
    end;
    insert into gateway.prices (offer_id, service_id, effective_from, input, cached_input, cache_write, audio_input, image_input,
                                output, audio_output, image_output, per_request, per_image, source, source_date, cache_write_1h, tiers)
    values (new.offer_id, new.service_id, new.effective_from, new.input, new.cached_input, new.cache_write, new.audio_input, new.image_input,
            new.output, new.audio_output, new.image_output, new.per_request, new.per_image, new.source, new.source_date, new.cache_write_1h,
            new.tiers);
    return null;  -- the old version stays as it is
end
$$;

create trigger refuse_hand_edit before insert or update or delete or truncate on gateway.exhausted_accounts
    for each statement execute function gateway.refuse_hand_edit();

create trigger refuse_hand_edit before insert or update or delete or truncate on gateway.maintenance_state
    for each statement execute function gateway.refuse_hand_edit();

-- api.create_request_partitions: makes the request log's monthly partitions from this month to p_months ahead, and of earlier months where
-- the default partition has requests of them.
-- Returns the names of those that it made. Locks the default partition, and so the log, only when it makes one; one maker or dropper at a
-- time. For maintenance.
-- The default partition is a safety net, so that a missed job never refuses a request; its rows move out here.
create or replace function api.create_request_partitions(p_months integer default 3) returns text[]
language plpgsql security definer set search_path = ''
as $$
declare
    v_month date;
    v_name text;
    v_from timestamptz;
    v_to timestamptz;
    v_made text[] := '{}'::text[];
begin
    perform set_config('gateway.engine', 'on', true);
    -- First of all: who had read the default partition before could wait for another maker that waits for that very lock.
    lock table only gateway.requests in share update exclusive mode;
    foreach v_month in array array(
        select date_trunc('month', now() at time zone 'UTC') + make_interval(months => i) from generate_series(0, p_months) as i
        union
        select date_trunc('month', admitted_at at time zone 'UTC') from gateway.requests_default
        order by 1
    ) loop
        v_name := 'requests_' || to_char(v_month, 'YYYY_MM');
        v_from := v_month::timestamp at time zone 'UTC';
        v_to := (v_month + interval '1 month') at time zone 'UTC';
        if to_regclass('gateway.' || v_name) is null then
            -- Nothing enters the default partition while it is emptied.
            lock table gateway.requests_default in access exclusive mode;
            execute format('create table gateway.%I (like gateway.requests including defaults including constraints)', v_name);
            execute format('alter table gateway.%I enable row level security', v_name);
            execute format('create policy nobody on gateway.%I as restrictive to public using (false)', v_name);
            execute format('comment on table gateway.%I is %L', v_name, 'Requests of ' || to_char(v_month, 'YYYY-MM') || ' (UTC): a partition of gateway.requests.');
            execute format('with moved as (delete from gateway.requests_default where admitted_at >= %L and admitted_at < %L returning *) '
                           'insert into gateway.%I select * from moved', v_from, v_to, v_name);
            execute format('alter table gateway.requests attach partition gateway.%I for values from (%L) to (%L)', v_name, v_from, v_to);
            execute format('create trigger refuse_hand_edit before insert or update or delete or truncate on gateway.%I '
                           'for each statement execute function gateway.refuse_hand_edit()', v_name);
            v_made := v_made || v_name;
        end if;
    end loop;
    perform set_config('gateway.engine', 'off', true);
    return v_made;
end
$$;

-- gateway.raise_event: writes an event, and puts it in line for the webhook and the SNS topic, where they are set. Returns its id; null where one with
-- p_dedupe_key is there already. In the transaction of what it tells of: both are there, or neither.
-- For whoever writes the kind: to be called last, as a second one with the same p_dedupe_key waits for the first to commit.
create or replace function gateway.raise_event(
    p_kind text, p_subject text, p_data jsonb, p_dedupe_key text default null, p_customer_id bigint default null
) returns uuid
language plpgsql set search_path = ''
as $$
declare
    v_id uuid;
begin
    insert into gateway.events (kind, subject, data, dedupe_key, customer_id)
    values (p_kind, p_subject, p_data, p_dedupe_key, p_customer_id)
    on conflict (dedupe_key) do nothing
    returning id into v_id;
    if v_id is not null then
        insert into gateway.event_deliveries (event_id)
        select v_id from gateway.settings where webhook_url is not null;
        insert into gateway.topic_deliveries (event_id)
        select v_id from gateway.maintenance_state where alert_topic_arn is not null;
    end if;
    return v_id;
end
$$;

comment on function gateway.raise_event(text, text, jsonb, text, bigint) is 'Writes an event, once for each dedupe key, and puts it in line for the webhook and the topic.';

-- What an operator is told of customers' money. Each in the transaction that books it, under the lock of the account: so that a crossing is
-- found once, by the booking that makes it, however many settle at the same time. Nobody pays for it but whoever has something to tell.

-- gateway.record_balance: raises balance.low where a booking took the balance from p_before_usd, at the mark or above it, to below. What brings
-- it back to the mark arms it again. A mark that is set above a balance tells nothing: nothing has crossed it.
create function gateway.record_balance(p_customer_id bigint, p_before_usd numeric) returns void
language plpgsql set search_path = ''
as $$
declare
    v_account gateway.accounts;
begin
    select * into v_account from gateway.accounts where customer_id = p_customer_id;
    if p_before_usd >= v_account.low_mark_usd and v_account.balance_usd < v_account.low_mark_usd then
        perform gateway.raise_event('balance.low', 'customer:' || p_customer_id, jsonb_build_object(
            'customer_id', p_customer_id, 'balance_usd', gateway.show_usd(v_account.balance_usd), 'held_usd', gateway.show_usd(v_account.held_usd),
            'low_balance_usd', gateway.show_usd(v_account.low_mark_usd)
        ), null, p_customer_id);
    end if;
end
$$;

comment on function gateway.record_balance(bigint, numeric) is 'Tells of a balance that has just fallen below its mark.';

revoke all on function gateway.record_balance(bigint, numeric) from public;

-- gateway.record_exhaustion: raises balance.exhausted where an admission is refused for want of money, the first time since the customer has
-- last paid in. p_refusal: as the client is told it.
create function gateway.record_exhaustion(p_account gateway.accounts, p_refusal jsonb) returns void
language plpgsql set search_path = ''
as $$
begin
    insert into gateway.exhausted_accounts (customer_id) values (p_account.customer_id) on conflict do nothing;
    if found then
        perform gateway.raise_event('balance.exhausted', 'customer:' || p_account.customer_id, jsonb_build_object(
            'customer_id', p_account.customer_id, 'balance_usd', gateway.show_usd(p_account.balance_usd),
            'held_usd', gateway.show_usd(p_account.held_usd), 'debt_usd', gateway.show_usd(p_account.debt_usd),
            'needed_usd', p_refusal -> 'needed_usd'
        ), null, p_account.customer_id);
    end if;
end
$$;

comment on function gateway.record_exhaustion(gateway.accounts, jsonb) is 'Tells of a customer whose calls are refused for want of money, once until it pays in.';

revoke all on function gateway.record_exhaustion(gateway.accounts, jsonb) from public;

-- gateway.record_uncollected: raises request.uncollected of a settled request, once as a request is settled once. p_late: its hold had expired.
create function gateway.record_uncollected(p_request gateway.requests, p_late boolean) returns void
language plpgsql set search_path = ''
as $$
begin
    perform gateway.raise_event('request.uncollected', 'request:' || p_request.id, jsonb_build_object(
        'request_id', p_request.id, 'customer_id', p_request.customer_id, 'key_id', p_request.key_id,
        'model', (select m.name from gateway.models as m where m.id = p_request.model_id), 'service_id', p_request.service_id,
        'hold_usd', gateway.show_usd(p_request.hold_usd), 'cost_usd', gateway.show_usd(p_request.cost_usd),
        'charge_usd', gateway.show_usd(p_request.charge_usd), 'collected_usd', gateway.show_usd(p_request.collected_usd),
        'uncollected_usd', gateway.show_usd(p_request.uncollected_usd), 'late', p_late
    ), null, p_request.customer_id);
end
$$;

comment on function gateway.record_uncollected(gateway.requests, boolean) is 'Tells of a charge that the balance could not give.';

revoke all on function gateway.record_uncollected(gateway.requests, boolean) from public;

-- gateway.correct_counters: adds (possibly negative) amounts to the counters of the windows that admitted a request.
-- A window that has passed is left alone, unless it was kept for its soft marks: its counter counts another one by now. Locks the counters in
-- key order, which is the order of every function here, so that no two wait for each other in a circle.
-- Where a soft mark may have been crossed it looks closer (record_crossings.sql): the counter is marked, or a request used more than its bound.
create or replace function gateway.correct_counters(p_corrections gateway.counted[]) returns void
language plpgsql set search_path = ''
as $$
declare
    v_correction gateway.counted;
    v_counter gateway.limit_counters;
    v_near boolean := false;
begin
    -- One look by the primary key for each, as in gateway.lock_counters.
    for v_correction in
        select * from unnest(p_corrections) as x order by x.subject, x.subject_id, x.model_id, x.per
    loop
        select * into v_counter from gateway.limit_counters as c
        where c.subject = v_correction.subject and c.subject_id = v_correction.subject_id and c.model_id = v_correction.model_id
            and c.per = v_correction.per
        for update;
        if v_counter.window_start = v_correction.window_start then
            v_near := v_near or v_counter.marked or v_correction.tokens > 0 or v_correction.spend_usd > 0;
            -- greatest(): an operator may have set a counter back by hand, and a settlement must not fail for it.
            if v_correction.requests <> 0 or v_correction.tokens <> 0 or v_correction.spend_usd <> 0 then
                update gateway.limit_counters as c
                set requests = greatest(c.requests + v_correction.requests, 0),
                    tokens = greatest(c.tokens + v_correction.tokens, 0),
                    spend_usd = greatest(c.spend_usd + v_correction.spend_usd, 0)
                where c.subject = v_correction.subject and c.subject_id = v_correction.subject_id and c.model_id = v_correction.model_id
                    and c.per = v_correction.per;
            end if;
        elsif v_counter.window_start > v_correction.window_start then
            update gateway.turned_windows as t
            set requests = greatest(t.requests + v_correction.requests, 0),
                tokens = greatest(t.tokens + v_correction.tokens, 0),
                spend_usd = greatest(t.spend_usd + v_correction.spend_usd, 0)
            where t.subject = v_correction.subject and t.subject_id = v_correction.subject_id and t.model_id = v_correction.model_id
                and t.per = v_correction.per and t.window_start = v_correction.window_start;
            v_near := v_near or found;
        end if;
    end loop;
    if v_near then
        perform gateway.record_crossings(p_corrections);
    end if;
end
$$;

comment on type gateway.candidate is 'A route that a request might take, with its pinned prices and what it may cost. Rates are USD per token at the dearest class that can occur, those of a short prompt until gateway.reach_tiers has seen its bound.';

-- gateway.resolve_candidates: the routes that a request for these models might take, in the order in which to try them: by the
-- client's order of models, then priority, then at random by weight; services that are set aside (record_health.sql) come last, of these
-- first the one whose last failure is the longest ago. probe_due: the time aside is over, and somebody has to try. A model that has no usable route gives one row without a
-- route; a route without a price in force gives one without prices. Reads only. PL/pgSQL, here and below on the chat path, because it
-- keeps its plans: a SQL function with a search_path of its own is planned anew at every call.
create or replace function gateway.resolve_candidates(
    p_models text[], p_model_id bigint, p_provider text, p_allowed_services bigint[], p_media_input boolean, p_media_output boolean
) returns setof gateway.candidate
language plpgsql stable set search_path = ''
as $$
begin
    return query
    with wanted as (
        select w.name, w.position from unnest(p_models) with ordinality as w (name, position)
    ),
    resolved as (
        -- the whole string, or the id
        select w.position, m.id, p_provider as provider
        from wanted as w
        join gateway.models as m on m.name = w.name and m.active
        union all
        select 0, m.id, p_provider from gateway.models as m where m.id = p_model_id and m.active
        union all
        -- only then provider/model, and under a named provider the provider's own name of the model; ours goes before it
        select n.position, o.model_id, n.provider
        from (
            select w.position, coalesce(p_provider, split_part(w.name, '/', 1)) as provider,
                case when p_provider is null then substr(w.name, strpos(w.name, '/') + 1) else w.name end as name
            from wanted as w
            -- a name of the catalogue that nobody serves here, such as OpenRouter's openai/gpt-4o, does not hide openai's gpt-4o
            where (p_provider is not null or strpos(w.name, '/') > 1)
                and not exists (
                    select
                    from gateway.models as whole
                    join gateway.offers as sold on sold.model_id = whole.id
                    join gateway.routes as way on way.offer_id = sold.id and way.active
                    join gateway.services as seller on seller.id = way.service_id and seller.active
                    where whole.name = w.name and whole.active
                        and (p_provider is null or sold.provider = p_provider)
                        and (p_allowed_services is null or seller.id = any (p_allowed_services))
                )
        ) as n
        cross join lateral (
            select found.model_id
            from (
                select o.model_id, 1 as rank
                from gateway.models as m
                join gateway.offers as o on o.model_id = m.id and o.provider = n.provider
                where m.name = n.name and m.active
                union all
                select o.model_id, 2
                from gateway.offers as o
                join gateway.models as m on m.id = o.model_id and m.active
                where o.provider = n.provider and o.upstream_model = n.name
            ) as found
            order by found.rank, found.model_id
            limit 1
        ) as o
    )
    select
        m.id, m.name, m.context_length, m.max_output_tokens,
        r.id, s.id, s.name, s.provider, s.base_url, s.provider_key, o.upstream_model,
        p.prices,
        case
            when p_media_input then greatest(p.input, p.cached_input, p.cache_write, p.audio_input, p.image_input)
            else greatest(p.input, p.cached_input, p.cache_write)
        end * 0.000001,
        case when p_media_output then greatest(p.output, p.audio_output, p.image_output) else p.output end * 0.000001,
        p.per_request,
        null::bigint, null::bigint, null::numeric, null::numeric,
        m.output_modalities,
        coalesce(not h.is_aside and h.was_aside, false)
    from (select distinct on (id) position, id, provider from resolved order by id, position) as wanted_model
    join gateway.models as m on m.id = wanted_model.id
    left join (
        gateway.offers as o
        join gateway.routes as r on r.offer_id = o.id and r.active
        join gateway.services as s on s.id = r.service_id and s.active
    ) on o.model_id = m.id
        and (wanted_model.provider is null or o.provider = wanted_model.provider)
        and (p_allowed_services is null or s.id = any (p_allowed_services))
    left join lateral (
        select v.input, v.cached_input, v.cache_write, v.audio_input, v.image_input, v.output, v.audio_output, v.image_output,
            coalesce(v.per_request, 0) as per_request,
            jsonb_strip_nulls(jsonb_build_object(
                'input', v.input, 'cached_input', v.cached_input, 'cache_write', v.cache_write, 'audio_input', v.audio_input,
                'image_input', v.image_input, 'output', v.output, 'audio_output', v.audio_output, 'image_output', v.image_output,
                'per_request', v.per_request, 'per_image', v.per_image, 'cache_write_1h', v.cache_write_1h,
                'tiers', v.tiers)) as prices
        from gateway.prices as v
        where v.offer_id = o.id and (v.service_id = s.id or v.service_id is null) and v.effective_from <= clock_timestamp()
        order by v.service_id is null, v.effective_from desc
        limit 1
    ) as p on true
    left join lateral (
        select bool_or(coalesce(greatest(x.set_aside_until, x.probing_until) > clock_timestamp(), false)) as is_aside,
            bool_or(x.set_asides > 0) as was_aside, max(x.last_failure_at) as last_failure_at
        from gateway.service_health as x
        where x.service_id = s.id and x.route_id in (0, r.id)
    ) as h on true
    order by coalesce(h.is_aside, false), case when h.is_aside then h.last_failure_at end, wanted_model.position, coalesce(r.priority, s.priority), -ln(1 - random()) / r.weight;
end
$$;

-- gateway.reach_tiers: the candidate, whose input bound is known, at the dearest rates of each kind that any length of input up to the bound
-- may be settled at. Only for one whose prices have tiers: others don't pay for the call.
create function gateway.reach_tiers(p_candidate gateway.candidate, p_media_input boolean, p_media_output boolean, p_cache_write_1h boolean)
returns gateway.candidate
language plpgsql immutable set search_path = ''
as $$
declare
    v_tier jsonb;
begin
    for v_tier in
        select value from jsonb_array_elements(p_candidate.prices -> 'tiers')
        where (value ->> 'above_input_tokens')::bigint < p_candidate.input_bound
    loop
        p_candidate.input_rate := greatest(
            p_candidate.input_rate,
            greatest(
                (v_tier ->> 'input')::numeric, (v_tier ->> 'cached_input')::numeric, (v_tier ->> 'cache_write')::numeric,
                case when p_media_input then greatest((v_tier ->> 'audio_input')::numeric, (v_tier ->> 'image_input')::numeric) end,
                case when p_cache_write_1h then (v_tier ->> 'cache_write_1h')::numeric end
            ) * 0.000001);
        p_candidate.output_rate := greatest(
            p_candidate.output_rate,
            greatest(
                (v_tier ->> 'output')::numeric,
                case when p_media_output then greatest((v_tier ->> 'audio_output')::numeric, (v_tier ->> 'image_output')::numeric) end
            ) * 0.000001);
    end loop;
    return p_candidate;
end
$$;

comment on function gateway.reach_tiers(gateway.candidate, boolean, boolean, boolean) is 'A candidate at the dearest rates that its input bound can reach over the tiers of its prices.';

revoke all on function gateway.reach_tiers(gateway.candidate, boolean, boolean, boolean) from public;

create or replace function gateway.applicable_limits(
    p_key_id bigint, p_customer_id bigint, p_model_ids bigint[], p_service_ids bigint[], p_time_zone text, p_at timestamptz,
    p_maker_key_ids bigint[]
) returns gateway.limit_state[]
language plpgsql stable set search_path = ''
as $$
declare
    v_limits gateway.limit_state[];
begin
    v_limits := (
        with settings as (
            select default_requests_per_minute, default_tokens_per_minute from gateway.settings
        ),
        of_key as (
            select * from gateway.limits where key_id = p_key_id
        ),
        found as (
            select 'key' as subject, p_key_id as subject_id, 0::bigint as model_id, l.per,
                l.requests, l.tokens, l.spend_usd, l.warn_requests, l.warn_tokens, l.warn_spend_usd
            from of_key as l
            where l.model_id is null and not l.each_model
            union all
            -- for each model by itself: the row that names it, then the key's row for each model, then the system's default, which
            -- gives way to whatever the key's own rows say of the same window
            select 'key', p_key_id, m.id, w.per,
                coalesce(x.requests, e.requests, case when w.per = 'minute' and k.requests is null then s.default_requests_per_minute end),
                coalesce(x.tokens, e.tokens, case when w.per = 'minute' and k.tokens is null then s.default_tokens_per_minute end),
                coalesce(x.spend_usd, e.spend_usd),
                coalesce(x.warn_requests, e.warn_requests), coalesce(x.warn_tokens, e.warn_tokens), coalesce(x.warn_spend_usd, e.warn_spend_usd)
            from settings as s
            cross join unnest(p_model_ids) as m (id)
            cross join (values ('minute'), ('hour'), ('day'), ('month')) as w (per)
            left join of_key as x on x.model_id = m.id and x.per = w.per
            left join of_key as e on e.each_model and e.per = w.per
            left join of_key as k on k.model_id is null and not k.each_model and k.per = w.per
            union all
            select 'customer', p_customer_id, 0, l.per, l.requests, l.tokens, l.spend_usd, l.warn_requests, l.warn_tokens, l.warn_spend_usd
            from gateway.limits as l
            where l.customer_id = p_customer_id
            union all
            select 'service', l.service_id, 0, l.per, l.requests, l.tokens, l.spend_usd, l.warn_requests, l.warn_tokens, l.warn_spend_usd
            from gateway.limits as l
            where l.service_id = any (p_service_ids)
        )
        select coalesce(array_agg(
            (subject, subject_id, model_id, per, window_start,
             gateway.window_end(per, window_start, time_zone),
             requests, tokens, spend_usd, warn_requests, warn_tokens, warn_spend_usd, 0, 0, 0)::gateway.limit_state
            order by subject, subject_id, model_id, per
        ), '{}')
        from (
            select f.*, z.time_zone, gateway.window_start(f.per, p_at, z.time_zone) as window_start
            from found as f
            cross join lateral (select case when f.subject = 'service' then 'UTC' else p_time_zone end as time_zone) as z
            where num_nonnulls(f.requests, f.tokens, f.spend_usd, f.warn_requests, f.warn_tokens, f.warn_spend_usd) > 0
        ) as windowed
    );
    if cardinality(p_maker_key_ids) > 0 then
        v_limits := array(
            select l
            from unnest(gateway.limits_of_makers(p_maker_key_ids, p_model_ids, p_time_zone, p_at) || v_limits) as l
            order by l.subject, l.subject_id, l.model_id, l.per
        );
    end if;
    return v_limits;
end
$$;

comment on function gateway.applicable_limits(bigint, bigint, bigint[], bigint[], text, timestamptz, bigint[]) is 'The limits that a request of a key falls under, those of the keys that made it included, in key order. Usage is not filled in.';

-- One look by the primary key for each: a join of the table with the array is planned once for any length, and then reads the whole table
-- (a quarter of all CPU at 770 counters, measured).
create or replace function gateway.lock_counters(p_limits gateway.limit_state[]) returns gateway.limit_state[]
language plpgsql set search_path = ''
as $$
declare
    v_limit gateway.limit_state;
    v_counter gateway.limit_counters;
begin
    for v_at in 1 .. cardinality(p_limits) loop
        v_limit := p_limits[v_at];
        loop
            select * into v_counter from gateway.limit_counters as c
            where c.subject = v_limit.subject and c.subject_id = v_limit.subject_id and c.model_id = v_limit.model_id and c.per = v_limit.per
            for update;
            exit when found;
            -- made, and so locked, in its turn: whoever makes the same one waits as for a lock
            insert into gateway.limit_counters (subject, subject_id, model_id, per, window_start)
            values (v_limit.subject, v_limit.subject_id, v_limit.model_id, v_limit.per, v_limit.window_start)
            on conflict do nothing;
        end loop;
        -- A request that waited for the lock over the turn of a window joins the newer one, never an older one.
        if v_counter.window_start > v_limit.window_start then
            v_limit.window_end := v_counter.window_start + (v_limit.window_end - v_limit.window_start);
            v_limit.window_start := v_counter.window_start;
        end if;
        if v_counter.window_start = v_limit.window_start then
            v_limit.used_requests := v_counter.requests;
            v_limit.used_tokens := v_counter.tokens;
            v_limit.used_spend_usd := v_counter.spend_usd;
        end if;
        p_limits[v_at] := v_limit;
    end loop;
    return p_limits;
end
$$;

comment on function gateway.lock_counters(gateway.limit_state[]) is 'Locks the counters of these limits, which are to be in key order, and fills in what is used of each window.';

-- api.admit_request: decides, in one transaction, whether a request may go to a provider, and holds its whole upper bound.
--
-- Returns a row either way. {"admitted": true, "request_id", "admitted_at", …, "max_output_tokens", "candidates": [the routes to
-- try, in order, with the sealed provider keys]}, or {"admitted": false, "refusal": code, …}. A refusal consumes nothing.
--
-- The hold: for each candidate, input bound × its dearest input price + output bound × its dearest output price + what is fixed,
-- with the commission (or at the flat price), rounded up; of the candidates the dearest. Tiers of a price count as far as the input bound
-- reaches. The input bound is p_input_tokens_bound or,
-- where that is null, the model's context length. The output bound is p_max_output_tokens × p_choices or, where the client named
-- none, what the model, the setting, the balance and the limits allow; below 16 the request is refused. Input that holds media
-- counts at the media classes' prices: p_media_input says so; null says that what has no p_input_tokens_bound holds media.
--
-- p_output: what the request is for, as models' output_modalities name it (text, image, embedding); a model that does not give it is
-- refused. p_output_bounds, where the provider can't be told a bound: provider -> the most that one choice takes, cut to the model's
-- max_output_tokens; providers that are not in it are not asked. A model whose output costs nothing by the token is held for without.
--
-- p_cache_write_1h: whether the request may write to a provider's cache for an hour, which is dearer; routes without a price for that are
-- not taken.
--
-- Locks, in this order: the idempotency key, the limit counters (in key order), the account; where a service is to be probed, its health, for
-- which nobody waits. Everything else is only read.
-- Generic plans: through PostgREST the planner otherwise plans anew at each call, which took 1.5 ms of the 3.4 (measured).
create or replace function api.admit_request(
    p_key_hash text,
    p_request_id text,
    p_models text[],
    p_endpoint text,
    p_lease_seconds integer,
    p_input_tokens_bound bigint default null,
    p_max_output_tokens bigint default null,
    p_choices integer default 1,
    p_streamed boolean default false,
    p_model_id bigint default null,
    p_provider text default null,
    p_username text default null,
    p_media_output boolean default false,
    p_idempotency_key text default null,
    p_body_hash text default null,
    p_output text default 'text',
    p_media_input boolean default null,
    p_output_bounds jsonb default null,
    p_cache_write_1h boolean default false
) returns jsonb
language plpgsql security definer set search_path = '' set plan_cache_mode = force_generic_plan
as $$
declare
    c_least_output constant bigint := 16;
    c_most_tokens constant bigint := 1000000000000;  -- beyond any model and any balance, and far from overflow
    v_at timestamptz := clock_timestamp();
    v_key record;
    v_settings gateway.settings;
    v_requested text := left(coalesce(p_models[1], p_model_id::text, ''), 300);
    v_commission numeric;
    v_found boolean := false;
    v_allowed boolean := false;
    v_fit boolean := false;
    v_gives text[];
    v_routed boolean := false;
    v_candidate gateway.candidate;
    v_resolved gateway.candidate[] := '{}'::gateway.candidate[];
    v_candidates gateway.candidate[] := '{}'::gateway.candidate[];
    v_idempotency gateway.idempotency_keys;
    v_idempotency_is_new boolean := false;
    v_limits gateway.limit_state[];
    v_limit gateway.limit_state;
    v_account gateway.accounts;
    v_free numeric;
    v_rate_in numeric;
    v_rate_out numeric;
    v_fixed numeric;
    v_bound bigint;
    v_least bigint;
    v_tokens bigint;
    v_requests_left bigint;
    v_tokens_left bigint;
    v_spend_left numeric;
    v_cost_left numeric;
    v_reason jsonb;
    v_refusal jsonb;
    v_hold numeric := 0;
    v_counted gateway.counted[] := '{}'::gateway.counted[];
    v_count gateway.counted;
    v_fresh boolean := false;
    v_beyond boolean;
    v_warnings text[];
begin
    -- In SQL an absent bound passes every comparison: it has to be refused here or it would hold nothing.
    if p_choices is null or p_choices < 1 or p_max_output_tokens < 0 or p_input_tokens_bound < 0 or p_lease_seconds is null
        or p_output is null
    then
        raise exception 'choices, tokens and lease are to be numbers, not negative ones' using errcode = 'invalid_parameter_value';
    end if;
    if p_max_output_tokens > c_most_tokens / p_choices then
        p_max_output_tokens := c_most_tokens / p_choices;
    end if;
    if p_input_tokens_bound > c_most_tokens then
        p_input_tokens_bound := c_most_tokens;
    end if;

    select k.id, k.customer_id, k.prefix, k.scopes, k.allowed_models, k.allowed_services, k.active, k.expires_at, k.maker_key_ids,
        c.active as customer_active, c.username, c.time_zone, c.low_balance_usd
    into v_key
    from gateway.api_keys as k
    left join gateway.customers as c on c.id = k.customer_id
    where k.secret_hash = decode(p_key_hash, 'hex');
    if v_key.id is null then  -- a secret that was replaced, in its grace
        select k.id, k.customer_id, k.prefix, k.scopes, k.allowed_models, k.allowed_services, k.active, k.expires_at, k.maker_key_ids,
            c.active as customer_active, c.username, c.time_zone, c.low_balance_usd
        into v_key
        from gateway.retired_secrets as r
        join gateway.api_keys as k on k.id = r.key_id
        left join gateway.customers as c on c.id = k.customer_id
        where r.secret_hash = decode(p_key_hash, 'hex') and r.expires_at > v_at;
    end if;

    <<admission>>
    begin
        if v_key.id is null then
            return jsonb_build_object('admitted', false, 'refusal', 'unknown_key');
        elsif v_key.active is not true then
            v_refusal := jsonb_build_object('refusal', 'inactive_key');
            exit admission;
        elsif v_key.expires_at <= v_at then
            v_refusal := jsonb_build_object('refusal', 'expired_key');
            exit admission;
        elsif v_key.customer_id is null or not 'chat' = any (v_key.scopes) then
            v_refusal := jsonb_build_object('refusal', 'scope_missing', 'scope', 'chat');
            exit admission;
        elsif p_username is not null and p_username is distinct from v_key.username then
            v_refusal := jsonb_build_object('refusal', 'wrong_user');
            exit admission;
        elsif not v_key.customer_active then
            v_refusal := jsonb_build_object('refusal', 'customer_suspended');
            exit admission;
        end if;

        select * into v_settings from gateway.settings;
        v_commission := 1 + v_settings.commission_percent * 0.01;

        for v_candidate in
            select * from gateway.resolve_candidates(p_models, p_model_id, p_provider, v_key.allowed_services,
                                                     coalesce(p_media_input, p_input_tokens_bound is null), p_media_output)
        loop
            v_found := true;
            continue when v_key.allowed_models is not null and not v_candidate.model_id = any (v_key.allowed_models);
            v_allowed := true;
            if not p_output = any (v_candidate.output_modalities) then
                v_gives := coalesce(v_gives, v_candidate.output_modalities);
                continue;
            end if;
            v_fit := true;
            continue when v_candidate.route_id is null or not p_output_bounds ? v_candidate.provider;
            v_routed := true;
            continue when v_candidate.prices is null;
            if p_cache_write_1h then
                if not v_candidate.prices ? 'cache_write_1h' then
                    v_reason := coalesce(v_reason, jsonb_build_object('refusal', 'cache_write_1h_not_priced', 'model', v_candidate.model_name));
                    continue;
                end if;
                v_candidate.input_rate := greatest(v_candidate.input_rate, (v_candidate.prices ->> 'cache_write_1h')::numeric * 0.000001);
            end if;
            -- several texts to embed, and several images, are each read in a context of its own
            v_candidate.input_bound := case
                when p_output = 'text' or p_input_tokens_bound is null then least(p_input_tokens_bound, v_candidate.context_length)
                else p_input_tokens_bound
            end;
            if v_candidate.input_bound is null then
                v_reason := coalesce(v_reason, jsonb_build_object('refusal', 'input_unbounded', 'model', v_candidate.model_name));
                continue;
            end if;
            if v_candidate.prices ? 'tiers' then
                v_candidate := gateway.reach_tiers(
                    v_candidate, coalesce(p_media_input, p_input_tokens_bound is null), p_media_output, p_cache_write_1h);
            end if;
            v_resolved := v_resolved || v_candidate;
        end loop;
        if cardinality(v_resolved) = 0 then
            v_refusal := case
                when not v_found then jsonb_build_object('refusal', 'model_not_found')
                when not v_allowed then jsonb_build_object('refusal', 'model_not_allowed')
                when not v_fit then jsonb_build_object('refusal', 'model_wrong_output', 'output', p_output, 'output_modalities', v_gives)
                when not v_routed then jsonb_build_object('refusal', 'model_not_served')
                else coalesce(v_reason, jsonb_build_object('refusal', 'model_not_priced'))
            end || jsonb_build_object('model', v_requested);
            exit admission;
        end if;

        v_reason := null;  -- of a candidate that could not be considered; what refuses those that could is of more use

        if p_idempotency_key is not null then
            perform set_config('gateway.engine', 'on', true);
            loop
                insert into gateway.idempotency_keys (key_id, idempotency_key, body_hash, request_id)
                values (v_key.id, p_idempotency_key, decode(p_body_hash, 'hex'), p_request_id)
                on conflict do nothing;
                v_idempotency_is_new := found;
                exit when v_idempotency_is_new;
                select * into v_idempotency from gateway.idempotency_keys
                where key_id = v_key.id and idempotency_key = p_idempotency_key
                for update;
                exit when found;  -- else it was forgotten in between
            end loop;
            -- one that is free is taken over below, when nothing can refuse the request any more
            if not v_idempotency_is_new and not v_idempotency.freed and v_idempotency.created_at >= v_at - interval '24 hours' then
                v_refusal := jsonb_build_object('refusal', case
                    when v_idempotency.body_hash is distinct from decode(p_body_hash, 'hex') then 'idempotency_mismatch'
                    when v_idempotency.charged then 'idempotency_reused'
                    else 'idempotency_running'
                end, 'first_request_id', v_idempotency.request_id);
                exit admission;
            end if;
        end if;

        v_limits := gateway.applicable_limits(
            v_key.id, v_key.customer_id,
            array(select distinct r.model_id from unnest(v_resolved) as r), array(select distinct r.service_id from unnest(v_resolved) as r),
            v_key.time_zone, v_at, v_key.maker_key_ids);
        if cardinality(v_limits) > 0 then
            v_limits := gateway.lock_counters(v_limits);
        end if;
        select * into v_account from gateway.accounts where customer_id = v_key.customer_id for update;
        v_free := v_account.balance_usd - v_account.held_usd;
        if v_account.debt_usd > 0 then
            v_refusal := jsonb_build_object('refusal', 'customer_in_debt', 'debt_usd', gateway.show_usd(v_account.debt_usd));
            exit admission;
        end if;

        foreach v_candidate in array v_resolved loop
            -- what the limits leave to this candidate: those of the key and the customer, of the key and its model, of its service,
            -- whose spending limit is on its cost
            v_requests_left := null;
            v_tokens_left := null;
            v_spend_left := null;
            v_cost_left := null;
            foreach v_limit in array v_limits loop
                v_fresh := v_fresh or v_limit.used_requests = 0;
                continue when v_limit.subject = 'service' and v_limit.subject_id <> v_candidate.service_id;
                continue when v_limit.model_id not in (0, v_candidate.model_id);
                v_requests_left := least(v_requests_left, v_limit.requests - v_limit.used_requests);
                v_tokens_left := least(v_tokens_left, v_limit.tokens - v_limit.used_tokens);
                if v_limit.subject = 'service' then
                    v_cost_left := least(v_cost_left, v_limit.spend_usd - v_limit.used_spend_usd);
                else
                    v_spend_left := least(v_spend_left, v_limit.spend_usd - v_limit.used_spend_usd);
                end if;
            end loop;

            if p_media_output then  -- an image for each choice
                v_candidate.fixed_usd := v_candidate.fixed_usd + p_choices * coalesce((v_candidate.prices ->> 'per_image')::numeric, 0);
            end if;
            v_rate_in := v_candidate.input_rate * v_commission;
            v_rate_out := v_candidate.output_rate * v_commission;
            if v_settings.billing_mode = 'flat' then
                v_rate_in := v_settings.flat_usd_per_1k_tokens * 0.001;
                v_rate_out := v_rate_in;
            end if;
            v_fixed := v_candidate.fixed_usd * v_commission + v_candidate.input_bound * v_rate_in;

            if p_output_bounds is not null then
                v_candidate.output_bound := case
                    when v_candidate.output_rate = 0 then 0
                    else least((p_output_bounds ->> v_candidate.provider)::bigint, v_candidate.max_output_tokens)
                end;
                if (p_output_bounds ->> v_candidate.provider) is null or v_candidate.output_bound not between 0 and c_most_tokens / p_choices then
                    raise exception 'output bounds are to be numbers, not negative ones' using errcode = 'invalid_parameter_value';
                end if;
            elsif p_max_output_tokens is not null then
                v_candidate.output_bound := p_max_output_tokens;
            else
                v_candidate.output_bound := least(v_bound, v_candidate.max_output_tokens, v_settings.default_max_output_tokens);
                v_least := least(c_least_output, v_candidate.output_bound);
                v_candidate.output_bound := greatest(v_least, least(
                    v_candidate.output_bound,
                    div(v_tokens_left - v_candidate.input_bound, p_choices),
                    case when v_rate_out > 0 then div(least(v_free, v_spend_left) - v_fixed, v_rate_out * p_choices) end));
            end if;
            v_tokens := v_candidate.input_bound + v_candidate.output_bound * p_choices;
            v_candidate.hold_usd := gateway.round_up_usd(v_fixed + v_candidate.output_bound * p_choices * v_rate_out);
            v_candidate.cost_bound_usd := gateway.round_up_usd(
                v_candidate.fixed_usd + v_candidate.input_bound * v_candidate.input_rate
                + v_candidate.output_bound * p_choices * v_candidate.output_rate);

            if v_requests_left < 1 or v_tokens > v_tokens_left
                or (v_candidate.hold_usd > v_spend_left and v_candidate.hold_usd > 0)
                or (v_candidate.cost_bound_usd > v_cost_left and v_candidate.cost_bound_usd > 0) then
                v_reason := coalesce(v_reason, gateway.describe_excess(
                    v_limits, v_candidate.service_id, v_candidate.model_id, v_tokens, v_candidate.hold_usd, v_candidate.cost_bound_usd, v_at));
                continue;
            elsif v_candidate.hold_usd > v_free then
                v_reason := coalesce(v_reason, jsonb_build_object(
                    'refusal', 'insufficient_credits',
                    'needed_usd', gateway.show_usd(v_candidate.hold_usd),
                    'available_usd', gateway.show_usd(v_free),
                    'affordable_output_tokens', case
                        when v_rate_out > 0 and p_output_bounds is null
                            then greatest(least(div(v_free - v_fixed, v_rate_out * p_choices), v_candidate.output_bound), 0)::bigint
                        else 0
                    end));
                continue;
            end if;

            -- the first candidate that fits sets the bound; a dearer one further down is kept if it can be afforded at that
            v_bound := coalesce(v_bound, v_candidate.output_bound);
            v_hold := greatest(v_hold, v_candidate.hold_usd);
            v_candidates := v_candidates || v_candidate;
        end loop;
        if cardinality(v_candidates) = 0 then
            v_refusal := v_reason;
            exit admission;
        end if;
    end admission;

    if v_refusal is not null then
        -- It consumed nothing: what a crash may take of it, a count and a line of the log, is not worth waiting for the disk.
        perform set_config('synchronous_commit', 'off', true);
        if v_idempotency_is_new then
            delete from gateway.idempotency_keys
            where key_id = v_key.id and idempotency_key = p_idempotency_key;
        end if;
        perform set_config('gateway.engine', 'on', true);
        if v_key.customer_id is not null then
            perform gateway.record_refusal(p_request_id, v_key.customer_id, v_key.id, v_requested, p_endpoint, p_streamed, v_refusal ->> 'refusal');
        end if;
        -- not a call that is merely too dear: one for whose least answer there is no money
        if v_refusal ->> 'refusal' = 'customer_in_debt'
            or (v_refusal ->> 'refusal' = 'insufficient_credits' and (v_refusal ->> 'affordable_output_tokens')::bigint < c_least_output)
        then
            perform gateway.record_exhaustion(v_account, v_refusal);
        end if;
        perform set_config('gateway.engine', 'off', true);
        return v_refusal || jsonb_build_object(
            'admitted', false, 'key_prefix', v_key.prefix, 'rate_limits', gateway.describe_limits(v_limits, v_at));
    end if;

    -- a service that was set aside is probed by one request, and by others only if nothing else is left
    for v_turn in 2 .. cardinality(v_candidates) loop
        exit when not v_candidates[1].probe_due
            or gateway.begin_probe(v_candidates[1].service_id, v_candidates[1].route_id, v_at);
        v_candidates := v_candidates[2:] || v_candidates[1];
    end loop;

    -- a limit of a model or a service reserves what its own candidates may use; the settlement gives back what they did not
    select coalesce(array_agg((
        l.subject, l.subject_id, l.model_id, l.per, l.window_start, 1, u.tokens, u.spend_usd
    )::gateway.counted), '{}')
    into v_counted
    from unnest(v_limits) as l
    cross join lateral (
        select max(c.input_bound + c.output_bound * p_choices) as tokens,
            max(case when l.subject = 'service' then c.cost_bound_usd else c.hold_usd end) as spend_usd
        from unnest(v_candidates) as c
        where (l.subject <> 'service' or c.service_id = l.subject_id) and (l.model_id = 0 or c.model_id = l.model_id)
    ) as u
    where u.tokens is not null;

    perform set_config('gateway.engine', 'on', true);
    if p_idempotency_key is not null and not v_idempotency_is_new then
        update gateway.idempotency_keys
        set body_hash = decode(p_body_hash, 'hex'), request_id = p_request_id, charged = false, freed = false, created_at = v_at
        where key_id = v_key.id and idempotency_key = p_idempotency_key;
    end if;
    if v_fresh then  -- a window that was marked has passed: what still runs of it is yet to be seen (record_crossings.sql)
        insert into gateway.turned_windows (subject, subject_id, model_id, per, window_start, requests, tokens, spend_usd)
        select c.subject, c.subject_id, c.model_id, c.per, c.window_start, c.requests, c.tokens, c.spend_usd
        from gateway.limit_counters as c
        join unnest(v_counted) as x on (c.subject, c.subject_id, c.model_id, c.per) = (x.subject, x.subject_id, x.model_id, x.per)
        where c.marked and c.window_start < x.window_start
        on conflict do nothing;
    end if;
    foreach v_count in array v_counted loop
        update gateway.limit_counters as c
        set requests = case when c.window_start = v_count.window_start then c.requests else 0 end + v_count.requests,
            tokens = case when c.window_start = v_count.window_start then c.tokens else 0 end + v_count.tokens,
            spend_usd = case when c.window_start = v_count.window_start then c.spend_usd else 0 end + v_count.spend_usd,
            window_start = v_count.window_start,
            marked = c.marked and c.window_start = v_count.window_start
        where c.subject = v_count.subject and c.subject_id = v_count.subject_id and c.model_id = v_count.model_id and c.per = v_count.per;
    end loop;

    update gateway.accounts
    set held_usd = held_usd + v_hold, low_mark_usd = coalesce(v_key.low_balance_usd, v_settings.low_balance_usd)
    where customer_id = v_key.customer_id;

    insert into gateway.requests (
        id, admitted_at, customer_id, key_id, model_id, requested_model, endpoint, streamed, state, hold_usd, lease_until,
        input_tokens_bound, output_tokens_bound, billing_mode, commission_percent, flat_usd_per_1k_tokens, routes, counted, idempotency_key)
    select p_request_id, v_at, v_key.customer_id, v_key.id, v_candidates[1].model_id, v_requested, p_endpoint, p_streamed, 'held',
        v_hold, v_at + make_interval(secs => p_lease_seconds),
        max(c.input_bound), max(c.output_bound) * p_choices,
        v_settings.billing_mode, v_settings.commission_percent, v_settings.flat_usd_per_1k_tokens,
        jsonb_agg(jsonb_build_object('route_id', c.route_id, 'service_id', c.service_id, 'model_id', c.model_id,
                                     'provider', c.provider, 'upstream_model', c.upstream_model, 'prices', c.prices)),
        v_counted, p_idempotency_key
    from unnest(v_candidates) as c;
    perform set_config('gateway.engine', 'off', true);

    -- what the client is told counts this request
    select array_agg((
        l.subject, l.subject_id, l.model_id, l.per, l.window_start, l.window_end, l.requests, l.tokens, l.spend_usd,
        l.warn_requests, l.warn_tokens, l.warn_spend_usd,
        l.used_requests + x.requests, l.used_tokens + x.tokens, l.used_spend_usd + x.spend_usd
    )::gateway.limit_state)
    into v_limits
    from unnest(v_limits) as l
    join unnest(v_counted) as x on (x.subject, x.subject_id, x.model_id, x.per) = (l.subject, l.subject_id, l.model_id, l.per);

    select array_agg(distinct w.name) filter (where l.subject <> 'service'), count(*) > 0 into v_warnings, v_beyond
    from unnest(v_limits) as l
    cross join lateral (values
        (case when l.used_requests > l.warn_requests then 'requests_per_' || l.per end),
        (case when l.used_tokens > l.warn_tokens then 'tokens_per_' || l.per end),
        (case when l.used_spend_usd > l.warn_spend_usd then 'spend_usd_per_' || l.per end)
    ) as w (name)
    where w.name is not null;

    if v_beyond then
        -- from here on the settlements of the window look whether what is really used is beyond the mark, too (record_crossings.sql)
        update gateway.limit_counters as c
        set marked = true
        from unnest(v_limits) as l
        where (c.subject, c.subject_id, c.model_id, c.per) = (l.subject, l.subject_id, l.model_id, l.per) and not c.marked
            and (l.used_requests > l.warn_requests or l.used_tokens > l.warn_tokens or l.used_spend_usd > l.warn_spend_usd);
        -- requests are used by being admitted, but where another model may answer, whose counter would keep this one instead
        for v_limit in
            select * from unnest(v_limits) as l
            where l.subject <> 'service' and l.used_requests > l.warn_requests and l.used_requests - 1 <= l.warn_requests
                and (l.model_id = 0 or not exists (select from unnest(v_candidates) as c where c.model_id <> l.model_id))
        loop
            perform gateway.record_crossing(
                v_limit.subject, v_limit.subject_id, v_limit.model_id, v_limit.per, v_limit.window_start,
                'requests', v_limit.warn_requests, v_limit.used_requests);
        end loop;
    end if;

    return jsonb_build_object(
        'admitted', true,
        'request_id', p_request_id,
        'admitted_at', v_at,
        'key_id', v_key.id,
        'key_prefix', v_key.prefix,
        'customer_id', v_key.customer_id,
        'max_output_tokens', v_bound,
        'unsupported_parameters', v_settings.unsupported_parameters,
        'hold_usd', gateway.show_usd(v_hold),
        'rate_limits', gateway.describe_limits(v_limits, v_at),
        'warnings', coalesce(to_jsonb(v_warnings), '[]'),
        'candidates', (
            select jsonb_agg(jsonb_build_object(
                'route_id', c.route_id, 'service_id', c.service_id, 'service_name', c.service_name, 'provider', c.provider,
                'base_url', c.base_url, 'provider_key', c.provider_key, 'model', c.model_name, 'upstream_model', c.upstream_model,
                'max_output_tokens', c.output_bound))
            from unnest(v_candidates) as c
        )
    );
end
$$;

-- api.settle_request: ends a request, once. Charges what was used at the prices that the route was admitted under, frees the hold,
-- corrects the counters of the windows that admitted it, writes ledger and rollup.
--
-- p_settlement: {"request_id", "admitted_at", "outcome": succeeded | failed | cancelled | cut, "route_id": of the route that
-- answered, "usage": tokens by disjoint class, or null if nothing is to be charged, "usage_estimated", "status", "error_code",
-- "finish_reason", "latency_ms", "time_to_first_token_ms", "provider_request_id", "provider_cost_usd", "failed_routes"}.
-- failed_routes: the routes that were tried in vain, in their order: {"route_id", "service_id", "status", "fault", "after_ms", "retry_after"}.
-- The whole of it in one document, so that a settlement that could not be made can be kept and replayed as it is.
--
-- Idempotent: a second call changes nothing and answers the same with "already": true. A hold that expired meanwhile is settled
-- late, once, by an adjustment. Never fails for money: what the balance can't give is booked as uncollected_usd, and what a provider
-- claims beyond all measure is cut to what the books can hold.
-- {"status": "unknown_request"} where there is no such request.
-- Locks, in this order: the request, its idempotency key, the limit counters (in key order), the account, the health of services (only where
-- one has failed).
-- Generic plans, as for api.admit_request: 1.5 -> 1.0 ms a call.
create or replace function api.settle_request(p_settlement jsonb) returns jsonb
language plpgsql security definer set search_path = '' set plan_cache_mode = force_generic_plan
as $$
declare
    c_most_usd constant numeric := 9999999999.9999999999;
    v_request gateway.requests;
    v_first_model_id bigint;
    v_usage jsonb := case when p_settlement -> 'usage' <> 'null' then gateway.tame_usage(p_settlement -> 'usage') end;
    v_claimed_usd numeric := (p_settlement ->> 'provider_cost_usd')::numeric;
    v_route jsonb;
    v_tokens bigint;
    v_late boolean;
    v_exact_tokens numeric;
    v_exact_fixed numeric;
    v_commission numeric;
    v_account gateway.accounts;
    v_before numeric;
    v_due numeric;
    v_take numeric;
    v_paid numeric := 0;
    v_asked_again boolean := false;
    v_outcome text := p_settlement ->> 'outcome';
begin
    select * into v_request
    from gateway.requests
    where id = p_settlement ->> 'request_id' and admitted_at = (p_settlement ->> 'admitted_at')::timestamptz and state <> 'refused'
    for update;
    if v_request.id is null then
        return jsonb_build_object('status', 'unknown_request');
    end if;
    if v_request.state = 'settled' then
        return gateway.describe_settlement(
            v_request,
            coalesce(v_request.input_tokens, 0) + coalesce(v_request.cached_input_tokens, 0) + coalesce(v_request.cache_write_tokens, 0)
            + coalesce(v_request.audio_input_tokens, 0) + coalesce(v_request.image_input_tokens, 0) + coalesce(v_request.output_tokens, 0)
            + coalesce(v_request.audio_output_tokens, 0) + coalesce(v_request.image_output_tokens, 0),
            (select balance_usd from gateway.accounts where customer_id = v_request.customer_id),
            true);
    end if;
    v_first_model_id := v_request.model_id;
    v_late := v_request.state = 'expired';
    v_before := v_request.collected_usd;  -- what an expired hold was charged, where the policy is to charge

    if v_usage is not null then
        select r into v_route
        from jsonb_array_elements(v_request.routes) as r
        where (r ->> 'route_id')::bigint = (p_settlement ->> 'route_id')::bigint;
        if v_route is null then
            raise exception 'request % was not admitted to this route', v_request.id using errcode = 'invalid_parameter_value';
        end if;
        v_exact_tokens := gateway.tokens_cost_usd(v_route -> 'prices', v_usage);
        v_exact_fixed := gateway.fixed_cost_usd(v_route -> 'prices', v_usage);
        v_commission := 1 + v_request.commission_percent * 0.01;
        v_tokens := gateway.total_tokens(v_usage);
        v_request.cost_usd := least(gateway.round_up_usd(v_exact_tokens + v_exact_fixed), c_most_usd);
        v_request.charge_usd := least(gateway.round_up_usd(case v_request.billing_mode
            when 'flat' then v_tokens * v_request.flat_usd_per_1k_tokens * 0.001 + v_exact_fixed * v_commission
            else (v_exact_tokens + v_exact_fixed) * v_commission
        end), c_most_usd);
        v_request.model_id := (v_route ->> 'model_id')::bigint;
        v_request.service_id := (v_route ->> 'service_id')::bigint;
    else
        v_tokens := 0;
        v_request.cost_usd := 0;
        v_request.charge_usd := 0;
    end if;

    perform set_config('gateway.engine', 'on', true);
    if v_request.idempotency_key is not null then
        -- Its own key, or one that its expiry freed and that nobody has taken since or has failed with. Kept when it is freed: a hold that
        -- expired under it may still be charged, and must then be found by the next one who asks.
        update gateway.idempotency_keys
        set request_id = v_request.id, charged = v_usage is not null, freed = v_usage is null
        where (key_id, idempotency_key) = (v_request.key_id, v_request.idempotency_key) and (request_id = v_request.id or freed);
        -- or else the client has asked again meanwhile: it is not to pay twice
        v_asked_again := not found and exists (
            select from gateway.idempotency_keys as i
            where (i.key_id, i.idempotency_key) = (v_request.key_id, v_request.idempotency_key)
        );
    end if;
    if cardinality(v_request.counted) > 0 then
        -- limits of a model or a service that did not answer get everything back; the first model keeps a failed request's count
        perform gateway.correct_counters(array(
            select (
                x.subject, x.subject_id, x.model_id, x.per, x.window_start,
                case when used.it then 0 else -x.requests end,
                case when used.it then v_tokens else 0 end - x.tokens,
                case when not used.it then 0 when x.subject = 'service' then v_request.cost_usd else v_request.charge_usd end - x.spend_usd
            )::gateway.counted
            from unnest(v_request.counted) as x
            cross join lateral (
                select case
                    when x.subject = 'service' then x.subject_id is not distinct from v_request.service_id
                    else x.model_id in (0, v_request.model_id)
                end as it
            ) as used
        ));
    end if;

    select * into v_account from gateway.accounts where customer_id = v_request.customer_id for update;
    v_due := v_request.charge_usd - v_before;
    v_take := least(v_due, v_account.balance_usd - v_account.held_usd + case when v_late then 0 else v_request.hold_usd end);
    if v_late and v_asked_again then
        v_take := least(v_take, 0);
    end if;
    if v_account.debt_usd > 0 then  -- it gets what is released
        v_paid := least(v_account.debt_usd, v_account.balance_usd - v_account.held_usd + case when v_late then 0 else v_request.hold_usd end - v_take);
    end if;
    update gateway.accounts
    set balance_usd = balance_usd - v_take - v_paid, held_usd = held_usd - case when v_late then 0 else v_request.hold_usd end,
        debt_usd = debt_usd - v_paid
    where customer_id = v_request.customer_id
    returning * into v_account;
    if v_take <> 0 then
        insert into gateway.ledger_entries (customer_id, kind, amount_usd, balance_after_usd, request_id, actor)
        values (v_request.customer_id, case when v_late then 'late_settlement' else 'charge' end, -v_take, v_account.balance_usd + v_paid, v_request.id, 'gateway');
    end if;
    if v_paid > 0 then
        insert into gateway.ledger_entries (customer_id, kind, amount_usd, balance_after_usd, debt_change_usd, actor)
        values (v_request.customer_id, 'debt_payment', -v_paid, v_account.balance_usd, -v_paid, 'gateway');
    end if;
    v_request.collected_usd := v_before + v_take;
    v_request.uncollected_usd := v_request.charge_usd - v_request.collected_usd;

    if v_late then  -- what its expiry counted
        perform gateway.add_to_rollup(v_request, v_first_model_id, null, -1, -1, '{}', 0, -v_before, 0, null);
    end if;
    perform gateway.add_to_rollup(
        v_request, v_request.model_id, v_request.service_id, 1, case when v_outcome = 'failed' then 1 else 0 end, coalesce(v_usage, '{}'),
        v_request.cost_usd, v_request.charge_usd, v_request.uncollected_usd, (p_settlement ->> 'latency_ms')::integer,
        (p_settlement ->> 'time_to_first_token_ms')::integer);
    if jsonb_typeof(p_settlement -> 'failed_routes') = 'array' then
        perform gateway.add_failures(v_request, p_settlement -> 'failed_routes');
    end if;

    update gateway.requests
    set state = 'settled', outcome = v_outcome,
        model_id = v_request.model_id, service_id = v_request.service_id,
        cost_usd = v_request.cost_usd, charge_usd = v_request.charge_usd,
        collected_usd = v_request.collected_usd, uncollected_usd = v_request.uncollected_usd,
        input_tokens = (v_usage ->> 'input')::bigint, cached_input_tokens = (v_usage ->> 'cached_input')::bigint,
        cache_write_tokens = (v_usage ->> 'cache_write')::bigint, audio_input_tokens = (v_usage ->> 'audio_input')::bigint,
        image_input_tokens = (v_usage ->> 'image_input')::bigint, output_tokens = (v_usage ->> 'output')::bigint,
        reasoning_tokens = (v_usage ->> 'reasoning')::bigint, audio_output_tokens = (v_usage ->> 'audio_output')::bigint,
        image_output_tokens = (v_usage ->> 'image_output')::bigint, images = (v_usage ->> 'images')::bigint,
        cache_write_1h_tokens = (v_usage ->> 'cache_write_1h')::bigint,
        usage_estimated = coalesce((p_settlement ->> 'usage_estimated')::boolean, false),
        failed_routes = nullif(p_settlement -> 'failed_routes', 'null'),
        status = (p_settlement ->> 'status')::integer, error_code = p_settlement ->> 'error_code',
        finish_reason = p_settlement ->> 'finish_reason',
        latency_ms = (p_settlement ->> 'latency_ms')::integer,
        time_to_first_token_ms = (p_settlement ->> 'time_to_first_token_ms')::integer,
        provider_request_id = p_settlement ->> 'provider_request_id',
        provider_cost_usd = case when abs(v_claimed_usd) <= c_most_usd then v_claimed_usd end,
        settled_at = clock_timestamp()
    where id = v_request.id and admitted_at = v_request.admitted_at;
    perform set_config('gateway.engine', 'off', true);

    if v_account.balance_usd < v_account.low_mark_usd and v_account.balance_usd + v_take + v_paid >= v_account.low_mark_usd then
        perform gateway.record_balance(v_request.customer_id, v_account.balance_usd + v_take + v_paid);
    end if;
    if v_request.uncollected_usd > 0 then
        perform gateway.record_uncollected(v_request, v_late);
    end if;
    if jsonb_typeof(p_settlement -> 'failed_routes') = 'array' then
        perform gateway.record_failures(v_request, p_settlement -> 'failed_routes', case when v_outcome = 'succeeded' then v_request.service_id end);
    end if;
    if v_outcome in ('succeeded', 'cancelled') and exists (select from gateway.service_health where service_id = v_request.service_id) then
        perform gateway.record_success(v_request.service_id, (v_route ->> 'route_id')::bigint, v_request.admitted_at + make_interval(secs => coalesce(
            (p_settlement ->> 'time_to_first_token_ms')::integer,
            case when v_outcome = 'succeeded' then (p_settlement ->> 'latency_ms')::integer end) * 0.001));
    end if;

    return gateway.describe_settlement(v_request, v_tokens, v_account.balance_usd, false);
end
$$;

-- api.expire_holds: ends the holds whose lease has run out, at most p_limit, the oldest first. By the setting expired_hold_policy they
-- are released (nothing is charged; the operator's loss) or charged whole. Either way the request can still be settled, once.
-- Returns {"expired": n, "charged_usd", "released_usd": the upper bound of what was given up}. For the maintenance function.
-- What is given up is told of by hold.expired_unsettled, one event for the whole batch: the operator may have to pay for it.
-- Skips requests that are being settled. Locks as all do, for the whole batch at a time: requests, idempotency keys, counters, accounts.
create or replace function api.expire_holds(p_limit integer default 500) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    c_most_ids constant integer := 20;
    v_policy text := (select expired_hold_policy from gateway.settings);
    v_requests gateway.requests[];
    v_request gateway.requests;
    v_charge numeric;
    v_charged numeric := 0;
    v_released numeric := 0;
    v_account record;
begin
    v_requests := array(
        select r from gateway.requests as r
        where r.state = 'held' and r.lease_until < clock_timestamp()
        order by r.lease_until
        limit p_limit
        for update skip locked
    );
    if cardinality(v_requests) = 0 then
        return jsonb_build_object('expired', 0, 'charged_usd', '0', 'released_usd', '0');
    end if;

    perform set_config('gateway.engine', 'on', true);
    perform 1
    from gateway.idempotency_keys as i
    join unnest(v_requests) as r on (i.key_id, i.idempotency_key, i.request_id) = (r.key_id, r.idempotency_key, r.id)
    order by i.key_id, i.idempotency_key
    for update of i;
    -- what was in flight no longer is; the request itself still counts
    perform gateway.correct_counters(array(
        select (x.subject, x.subject_id, x.model_id, x.per, x.window_start, 0, -x.tokens,
                case when v_policy = 'charge' and x.subject <> 'service' then r.hold_usd else 0 end - x.spend_usd)::gateway.counted
        from unnest(v_requests) as r
        cross join unnest(r.counted) as x
    ));
    perform 1
    from gateway.accounts
    where customer_id = any (array(select r.customer_id from unnest(v_requests) as r))
    order by customer_id
    for update;

    foreach v_request in array v_requests loop
        v_charge := case when v_policy = 'charge' then v_request.hold_usd else 0 end;
        -- what is released goes to the debt
        update gateway.accounts as a
        set held_usd = a.held_usd - v_request.hold_usd, balance_usd = a.balance_usd - v_charge - d.paid_usd, debt_usd = a.debt_usd - d.paid_usd
        from (
            select customer_id, least(debt_usd, balance_usd - held_usd + v_request.hold_usd - v_charge) as paid_usd
            from gateway.accounts
            where customer_id = v_request.customer_id
        ) as d
        where a.customer_id = d.customer_id
        returning a.balance_usd, a.low_mark_usd, d.paid_usd into v_account;
        if v_charge > 0 then
            insert into gateway.ledger_entries (customer_id, kind, amount_usd, balance_after_usd, request_id, note, actor)
            values (v_request.customer_id, 'charge', -v_charge, v_account.balance_usd + v_account.paid_usd, v_request.id, 'hold expired', 'gateway');
        end if;
        if v_account.paid_usd > 0 then
            insert into gateway.ledger_entries (customer_id, kind, amount_usd, balance_after_usd, debt_change_usd, actor)
            values (v_request.customer_id, 'debt_payment', -v_account.paid_usd, v_account.balance_usd, -v_account.paid_usd, 'gateway');
        end if;
        if v_account.balance_usd < v_account.low_mark_usd then
            perform gateway.record_balance(v_request.customer_id, v_account.balance_usd + v_charge + v_account.paid_usd);
        end if;
        v_charged := v_charged + v_charge;
        v_released := v_released + v_request.hold_usd - v_charge;
        if v_request.idempotency_key is not null then
            update gateway.idempotency_keys set charged = v_charge > 0, freed = v_charge = 0
            where (key_id, idempotency_key, request_id) = (v_request.key_id, v_request.idempotency_key, v_request.id);
        end if;
        perform gateway.add_to_rollup(v_request, v_request.model_id, null, 1, 1, '{}', 0, v_charge, 0, null);
        update gateway.requests
        set state = 'expired', charge_usd = v_charge, collected_usd = v_charge, error_code = 'hold_expired', settled_at = clock_timestamp(),
            -- a late settlement corrects from what is counted now
            counted = array(
                select (x.subject, x.subject_id, x.model_id, x.per, x.window_start, x.requests, 0,
                        case when x.subject <> 'service' then v_charge else 0 end)::gateway.counted
                from unnest(v_request.counted) as x)
        where id = v_request.id and admitted_at = v_request.admitted_at;
    end loop;
    perform set_config('gateway.engine', 'off', true);
    if v_released > 0 then
        perform gateway.raise_event('hold.expired_unsettled', 'holds', (
            select jsonb_build_object(
                'holds', count(*), 'customers', count(distinct r.customer_id), 'released_usd', gateway.show_usd(v_released),
                'first_admitted_at', min(r.admitted_at), 'last_admitted_at', max(r.admitted_at),
                'request_ids', (array_agg(r.id order by r.admitted_at))[:c_most_ids])
            from unnest(v_requests) as r
        ));
    end if;
    return jsonb_build_object('expired', cardinality(v_requests), 'charged_usd', gateway.show_usd(v_charged), 'released_usd', gateway.show_usd(v_released));
end
$$;

create function gateway.count_misbooked_payments() returns bigint
language plpgsql stable set search_path = ''
as $$
begin
    return (
        select count(*)
        from gateway.payments as p
        full join (
            select payment_id, sum(amount_usd - coalesce(debt_change_usd, 0)) as total
            from gateway.ledger_entries
            where payment_id is not null
            group by payment_id
        ) as e on e.payment_id = p.id
        where coalesce(p.credited_usd - p.refunded_usd - p.disputed_usd, 0) <> coalesce(e.total, 0)
    );
end
$$;

comment on function gateway.count_misbooked_payments() is 'Payments whose entries do not come to what was credited, less what was taken back.';

revoke all on function gateway.count_misbooked_payments() from public;

-- api.check_ledger: recomputes every balance from the ledger, every hold from the running requests, and every request's charge from its
-- entries. It goes on from each customer's last checkpoint, so that it costs the same however old the books are; with p_full from the first
-- entry, and proves the checkpoints as well. {"ok", "full", "accounts", "closed_through": last closed month or null,
-- "mismatches": [{customer_id, balance_usd, ledger_usd, held_usd, requests_held_usd, debt_usd, ledger_debt_usd}, …at most 100],
-- "misbooked_requests": n, "misbooked_payments": n (their entries do not come to what was credited and taken back of them),
-- "wrong_checkpoints": n or null, "orphan_holds": n (their lease has run out and nobody ended them)}. Reads one snapshot; locks nothing.
create or replace function api.check_ledger(p_full boolean default false) returns jsonb
language plpgsql stable security definer set search_path = '' set statement_timeout = '120s' set plan_cache_mode = force_custom_plan
as $$
declare
    v_misbooked bigint := gateway.count_misbooked(p_full);
    v_misbooked_payments bigint := gateway.count_misbooked_payments();
    v_wrong_checkpoints bigint;
begin
    if p_full then
        v_wrong_checkpoints := (
            select count(*)
            from (
                select c.*, lag(c.balance_usd, 1, 0) over of_customer as before_usd, lag(c.through_entry_id, 1, 0) over of_customer as after_entry_id
                from gateway.ledger_checkpoints as c
                window of_customer as (partition by c.customer_id order by c.month)
            ) as c
            cross join lateral (
                select count(*) as entries, coalesce(sum(e.amount_usd), 0) as total, max(e.id) as last_id
                from gateway.ledger_entries as e
                where e.customer_id = c.customer_id and e.id > c.after_entry_id and e.id <= c.through_entry_id
            ) as e
            where (e.entries, e.last_id, c.before_usd + e.total) is distinct from (c.entries, c.through_entry_id, c.balance_usd)
        );
    end if;
    return (
        with entries as (
            select c.customer_id, sum(c.amount_usd) as total
            from (
                select e.customer_id, e.amount_usd from gateway.ledger_entries as e where p_full
                union all
                select e.customer_id, e.amount_usd from gateway.recent_entries() as e where not p_full
                union all
                select a.customer_id, c.balance_usd
                from gateway.accounts as a
                cross join lateral (
                    select p.balance_usd from gateway.ledger_checkpoints as p where p.customer_id = a.customer_id order by p.month desc limit 1
                ) as c
                where not p_full
            ) as c
            group by c.customer_id
        ),
        holds as (
            select customer_id, sum(hold_usd) as total, count(*) filter (where lease_until < now()) as orphans
            from gateway.requests
            where state = 'held'
            group by customer_id
        ),
        -- reversals and what has paid for them are few: these are always summed whole
        debts as (
            select customer_id, sum(debt_change_usd) as total
            from gateway.ledger_entries
            where debt_change_usd is not null
            group by customer_id
        ),
        mismatches as (
            select a.customer_id, a.balance_usd, coalesce(e.total, 0) as ledger_usd, a.held_usd, coalesce(h.total, 0) as requests_held_usd,
                a.debt_usd, coalesce(d.total, 0) as ledger_debt_usd
            from gateway.accounts as a
            left join entries as e using (customer_id)
            left join holds as h using (customer_id)
            left join debts as d using (customer_id)
            where a.balance_usd <> coalesce(e.total, 0) or a.held_usd <> coalesce(h.total, 0) or a.debt_usd <> coalesce(d.total, 0)
        )
        select jsonb_build_object(
            'ok', not exists (select from mismatches) and v_misbooked = 0 and v_misbooked_payments = 0 and coalesce(v_wrong_checkpoints, 0) = 0,
            'full', p_full,
            'accounts', (select count(*) from gateway.accounts),
            'closed_through', (select to_char(max(month), 'YYYY-MM') from gateway.ledger_months),
            'mismatches', coalesce((
                select jsonb_agg(jsonb_build_object(
                    'customer_id', m.customer_id, 'balance_usd', gateway.show_usd(m.balance_usd), 'ledger_usd', gateway.show_usd(m.ledger_usd),
                    'held_usd', gateway.show_usd(m.held_usd), 'requests_held_usd', gateway.show_usd(m.requests_held_usd),
                    'debt_usd', gateway.show_usd(m.debt_usd), 'ledger_debt_usd', gateway.show_usd(m.ledger_debt_usd)))
                from (select * from mismatches order by customer_id limit 100) as m
            ), '[]'),
            'misbooked_requests', v_misbooked,
            'misbooked_payments', v_misbooked_payments,
            'wrong_checkpoints', v_wrong_checkpoints,
            'orphan_holds', coalesce((select sum(orphans) from holds), 0))
    );
end
$$;

-- The scheduled check of the books. What it finds is told of once, and once more when it is mended.

-- api.claim_ledger_check: whether the check is due, which is then the caller's to make; the next is due p_every_seconds later. Apart from the
-- check itself, so that one that runs into its time-out is not begun anew every minute. For the maintenance function.
create function api.claim_ledger_check(p_every_seconds integer default 3600) returns boolean
language plpgsql security definer set search_path = ''
as $$
declare
    v_due boolean;
begin
    perform set_config('gateway.engine', 'on', true);
    update gateway.maintenance_state
    set ledger_checked_at = clock_timestamp()
    where ledger_checked_at is null or ledger_checked_at <= clock_timestamp() - make_interval(secs => p_every_seconds);
    v_due := found;
    perform set_config('gateway.engine', 'off', true);
    return v_due;
end
$$;

revoke all on function api.claim_ledger_check(integer) from public;

grant execute on function api.claim_ledger_check(integer) to service_role;

comment on function api.claim_ledger_check(integer) is 'Whether the scheduled check of the books is due: true for one caller.';

-- api.watch_ledger: makes the check (api.check_ledger, from the last checkpoints), and raises ledger.mismatch where it finds what the last one did
-- not, ledger.ok where nothing is left of what one has found. {"ok", "raised": the event's type or null}. A finding is who differs and by how
-- much, not what the balances are: traffic moves these and adds nothing. Locks maintenance_state, and no account.
create function api.watch_ledger() returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '120s'
as $$
declare
    c_most_shown constant integer := 20;
    v_state gateway.maintenance_state;
    v_told jsonb;
    v_finding jsonb;
    v_raised text;
begin
    select * into v_state from gateway.maintenance_state for update;
    v_told := api.check_ledger();
    if not (v_told ->> 'ok')::boolean then
        v_finding := jsonb_build_object(
            'differences', (
                select coalesce(jsonb_agg(jsonb_build_array(
                    m.customer_id, m.balance_usd - m.ledger_usd, m.held_usd - m.requests_held_usd, m.debt_usd - m.ledger_debt_usd
                ) order by m.customer_id), '[]')
                from jsonb_to_recordset(v_told -> 'mismatches') as m (
                    customer_id bigint, balance_usd numeric, ledger_usd numeric, held_usd numeric, requests_held_usd numeric, debt_usd numeric,
                    ledger_debt_usd numeric)
            ),
            'misbooked_requests', v_told -> 'misbooked_requests', 'misbooked_payments', v_told -> 'misbooked_payments');
    end if;
    if v_finding is not distinct from v_state.ledger_finding then
        return jsonb_build_object('ok', v_finding is null, 'raised', null);
    end if;
    perform set_config('gateway.engine', 'on', true);
    update gateway.maintenance_state
    set ledger_finding = v_finding, ledger_found_at = case when v_finding is not null then coalesce(ledger_found_at, clock_timestamp()) end
    returning * into v_state;
    perform set_config('gateway.engine', 'off', true);
    v_raised := case when v_finding is null then 'ledger.ok' else 'ledger.mismatch' end;
    perform gateway.raise_event(v_raised, 'ledger', jsonb_build_object('accounts', v_told -> 'accounts') || case
        when v_finding is null then '{}'
        else jsonb_build_object(
            'since', v_state.ledger_found_at,
            'customers', jsonb_array_length(v_told -> 'mismatches'),
            'mismatches', jsonb_path_query_array(v_told -> 'mismatches', '$[0 to $most]', jsonb_build_object('most', c_most_shown - 1)),
            'misbooked_requests', v_told -> 'misbooked_requests', 'misbooked_payments', v_told -> 'misbooked_payments')
    end);
    return jsonb_build_object('ok', v_finding is null, 'raised', v_raised);
end
$$;

revoke all on function api.watch_ledger() from public;

grant execute on function api.watch_ledger() to service_role;

comment on function api.watch_ledger() is 'Checks the books, and tells of what it finds that is new, and of its end.';

-- api.list_top_customers: who was charged the most on the days of UTC from p_from to before p_to, at most p_limit of them, the most first:
-- [{"customer_id", "name", "active", "requests", "total_tokens", "charge_usd"}]. Requests count when they have ended, on the day on which
-- they were admitted. Reads a row for each key and day, and what has come since the last closing: the same however long the log is.
-- Days before usage_detail_days are gone. Reads only.
create function api.list_top_customers(p_from date, p_to date, p_limit integer) returns jsonb
language plpgsql stable security definer set search_path = '' set plan_cache_mode = force_custom_plan
as $$
declare
    v_start timestamptz := p_from::timestamp at time zone 'UTC';
    v_end timestamptz := p_to::timestamp at time zone 'UTC';
    v_closed_until timestamptz := coalesce((select closed_until from gateway.usage_closing), '-infinity'::timestamptz);
begin
    return (
        select coalesce(jsonb_agg(jsonb_build_object(
            'customer_id', s.customer_id, 'name', c.name, 'active', c.active, 'requests', s.requests, 'total_tokens', s.total_tokens,
            'charge_usd', gateway.show_usd(s.charge_usd)
        ) order by s.charge_usd desc, s.requests desc, s.customer_id), '[]')
        from (
            select u.customer_id, sum(u.requests) as requests, sum(u.total_tokens) as total_tokens, sum(u.charge_usd) as charge_usd
            from (
                select customer_id, requests, total_tokens, charge_usd
                from gateway.key_days
                where day >= p_from and day < p_to
                union all
                select customer_id, requests, total_tokens, charge_usd
                from gateway.usage_rollups
                where bucket >= greatest(v_closed_until, v_start) and bucket < v_end
                union all
                select customer_id, requests, total_tokens, charge_usd
                from gateway.usage_rollups
                where late and bucket >= v_start and bucket < least(v_closed_until, v_end)
            ) as u
            group by u.customer_id
            having sum(u.requests) > 0
            order by charge_usd desc, requests desc, u.customer_id
            limit p_limit
        ) as s
        join gateway.customers as c on c.id = s.customer_id
    );
end
$$;

revoke all on function api.list_top_customers(date, date, integer) from public;

grant execute on function api.list_top_customers(date, date, integer) to service_role;

comment on function api.list_top_customers(date, date, integer) is 'Who was charged the most over some days.';

create or replace function gateway.describe_customer(p_customer gateway.customers) returns jsonb
language plpgsql stable set search_path = ''
as $$
begin
    return to_jsonb(p_customer) - 'auth_user_id' || (
        select jsonb_build_object(
            'signs_in', p_customer.auth_user_id is not null,
            'credits', gateway.show_credits(a.balance_usd, s.credit_value_usd),
            'balance_usd', gateway.show_usd(a.balance_usd), 'held_usd', gateway.show_usd(a.held_usd), 'debt_usd', gateway.show_usd(a.debt_usd),
            'low_balance_usd', gateway.show_usd(p_customer.low_balance_usd),
            'active_keys', (select count(*) from gateway.api_keys as k where k.customer_id = p_customer.id and k.active))
        from gateway.accounts as a
        cross join gateway.settings as s
        where a.customer_id = p_customer.id
    );
end
$$;

-- api.update_customer: changes what p_changes names (name, username, email, company, time_zone, active, low_balance_usd), and returns the customer.
-- {"error": "unknown_customer" | "erased_customer" | "email_taken" | "username_taken" | "unknown_time_zone"}. Locks the customer.
create or replace function api.update_customer(p_id bigint, p_changes jsonb, p_actor text default null) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_customer gateway.customers;
    v_constraint text;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    select * into v_customer from gateway.customers where id = p_id for update;
    if v_customer.id is null then
        return jsonb_build_object('error', 'unknown_customer');
    elsif v_customer.erased_at is not null then
        return jsonb_build_object('error', 'erased_customer');
    elsif p_changes ? 'time_zone' and not exists (select from pg_timezone_names where name = p_changes ->> 'time_zone') then
        return jsonb_build_object('error', 'unknown_time_zone');
    end if;
    v_customer := jsonb_populate_record(v_customer, p_changes);
    begin
        update gateway.customers
        set (name, username, email, company, time_zone, active, low_balance_usd) = (
            v_customer.name, v_customer.username, v_customer.email, v_customer.company, v_customer.time_zone, v_customer.active,
            v_customer.low_balance_usd)
        where id = p_id
        returning * into v_customer;
    exception when unique_violation then
        get stacked diagnostics v_constraint = constraint_name;
        return jsonb_build_object('error', case v_constraint when 'customers_email_key' then 'email_taken' else 'username_taken' end);
    end;
    return gateway.describe_customer(v_customer);
end
$$;

-- How money that is no request's gets into the books and out of them. Whoever calls holds the account's lock, and writes as the engine.

create function gateway.book_income(
    p_customer_id bigint, p_kind text, p_usd numeric, p_reference text, p_note text, p_actor text, p_payment_id bigint default null
) returns gateway.accounts
language plpgsql set search_path = ''
as $$
declare
    v_account gateway.accounts;
    v_paid numeric;
begin
    select least(debt_usd, p_usd) into v_paid from gateway.accounts where customer_id = p_customer_id;
    delete from gateway.exhausted_accounts where customer_id = p_customer_id;
    update gateway.accounts
    set balance_usd = balance_usd + p_usd - v_paid, debt_usd = debt_usd - v_paid
    where customer_id = p_customer_id
    returning * into v_account;
    insert into gateway.ledger_entries (customer_id, kind, amount_usd, balance_after_usd, reference, note, actor, payment_id)
    values (p_customer_id, p_kind, p_usd, v_account.balance_usd + v_paid, p_reference, p_note, p_actor, p_payment_id);
    if v_paid > 0 then
        insert into gateway.ledger_entries (customer_id, kind, amount_usd, balance_after_usd, debt_change_usd, actor)
        values (p_customer_id, 'debt_payment', -v_paid, v_account.balance_usd, -v_paid, p_actor);
    end if;
    return v_account;
end
$$;

comment on function gateway.book_income(bigint, text, numeric, text, text, text, bigint) is 'Books what comes in, and pays the debt of it first. Returns the account.';

revoke all on function gateway.book_income(bigint, text, numeric, text, text, text, bigint) from public;

-- {"entry_id", "taken_usd", "debt_usd": what it added to the debt, "owed_before": whether there was one}.
create function gateway.book_reversal(
    p_customer_id bigint, p_kind text, p_usd numeric, p_payment_id bigint, p_note text, p_actor text
) returns jsonb
language plpgsql set search_path = ''
as $$
declare
    v_account gateway.accounts;
    v_taken numeric;
    v_entry_id bigint;
begin
    select * into v_account from gateway.accounts where customer_id = p_customer_id;
    v_taken := least(v_account.balance_usd - v_account.held_usd, p_usd);
    update gateway.accounts
    set balance_usd = balance_usd - v_taken, debt_usd = debt_usd + p_usd - v_taken
    where customer_id = p_customer_id;
    insert into gateway.ledger_entries (customer_id, kind, amount_usd, balance_after_usd, debt_change_usd, note, actor, payment_id)
    values (p_customer_id, p_kind, -v_taken, v_account.balance_usd - v_taken, nullif(p_usd - v_taken, 0), p_note, p_actor, p_payment_id)
    returning id into v_entry_id;
    perform gateway.record_balance(p_customer_id, v_account.balance_usd);
    return jsonb_build_object(
        'entry_id', v_entry_id, 'taken_usd', gateway.show_usd(v_taken), 'debt_usd', gateway.show_usd(p_usd - v_taken),
        'owed_before', v_account.debt_usd > 0);
end
$$;

comment on function gateway.book_reversal(bigint, text, numeric, bigint, text, text) is 'Takes back what a refund or dispute took: of what is free, and the rest becomes a debt.';

revoke all on function gateway.book_reversal(bigint, text, numeric, bigint, text, text) from public;

create trigger refuse_hand_edit before insert or update or delete or truncate on gateway.payments
    for each statement execute function gateway.refuse_hand_edit();

create trigger refuse_hand_edit before insert or update or delete or truncate on gateway.payment_refunds
    for each statement execute function gateway.refuse_hand_edit();

create trigger refuse_hand_edit before insert or update or delete or truncate on gateway.payment_disputes
    for each statement execute function gateway.refuse_hand_edit();

create trigger refuse_hand_edit before insert or update or delete or truncate on gateway.payment_events
    for each statement execute function gateway.refuse_hand_edit();

create trigger refuse_hand_edit before insert or update or delete or truncate on gateway.statements
    for each statement execute function gateway.refuse_hand_edit();

-- api.add_credits: pays in, or corrects by a negative amount, in USD or in credits. Of p_customer_id, p_key_hash and p_email one names the
-- customer. The same reference twice counts once ("duplicate": true); another amount under it is an error. What is paid in pays a debt first.
-- Locks the account.
-- {"customer_id", "added_usd", "credits_added", "balance_after_usd", "credits_after", "debt_usd": still owed, "duplicate"}, or {"error": "unknown_customer" |
-- "erased_customer" (nothing is paid in any more, but what is left can be paid out) | "invalid_amount" (zero, beyond a billion USD, a
-- balance beyond ten, or finer than the tenth decimal) | "reserved_reference" (stripe:…, of payments alone: one that was taken would keep its
-- payment out of the books) | "reference_conflict" | "more_than_free", "free_usd"}.
create or replace function api.add_credits(
    p_customer_id bigint default null, p_key_hash text default null, p_email text default null,
    p_usd numeric default null, p_credits numeric default null, p_reference text default null, p_note text default null, p_actor text default null
) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_customer_id bigint;
    v_credit_value numeric := (select credit_value_usd from gateway.settings);
    v_amount numeric(20, 10);
    v_account gateway.accounts;
    v_entry gateway.ledger_entries;
begin
    if num_nonnulls(p_usd, p_credits) <> 1 or num_nonnulls(p_customer_id, p_key_hash, p_email) <> 1 then
        raise exception 'one amount and one customer' using errcode = 'invalid_parameter_value';
    end if;
    if abs(coalesce(p_usd, p_credits * v_credit_value)) > 1000000000 then
        return jsonb_build_object('error', 'invalid_amount');
    end if;
    v_amount := coalesce(p_usd, p_credits * v_credit_value);
    if v_amount = 0 or v_amount <> coalesce(p_usd, p_credits * v_credit_value) then
        return jsonb_build_object('error', 'invalid_amount');
    end if;
    if starts_with(p_reference, 'stripe:') then
        return jsonb_build_object('error', 'reserved_reference');
    end if;
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    select c.id into v_customer_id
    from gateway.customers as c
    where c.id = p_customer_id
        or lower(c.email) = lower(p_email)
        or c.id = (select k.customer_id from gateway.api_keys as k where k.id = gateway.find_key(decode(p_key_hash, 'hex')));
    if v_customer_id is null then
        return jsonb_build_object('error', 'unknown_customer');
    end if;

    select * into v_account from gateway.accounts where customer_id = v_customer_id for update;
    -- asked only now: an erasure locks the account, too
    if v_amount > 0 and exists (select from gateway.customers where id = v_customer_id and erased_at is not null) then
        return jsonb_build_object('error', 'erased_customer');
    end if;
    select * into v_entry from gateway.ledger_entries where customer_id = v_customer_id and reference = p_reference;
    if v_entry.id is not null and v_entry.amount_usd <> v_amount then
        return jsonb_build_object('error', 'reference_conflict');
    elsif v_entry.id is null then
        if v_amount < 0 and v_account.balance_usd - v_account.held_usd < -v_amount then
            return jsonb_build_object('error', 'more_than_free', 'free_usd', gateway.show_usd(v_account.balance_usd - v_account.held_usd));
        end if;
        if v_account.balance_usd + v_amount >= 10000000000 then
            return jsonb_build_object('error', 'invalid_amount');
        end if;
        perform set_config('gateway.engine', 'on', true);
        if v_amount > 0 then
            v_account := gateway.book_income(v_customer_id, 'credit', v_amount, p_reference, p_note, coalesce(p_actor, session_user));
        else
            update gateway.accounts set balance_usd = balance_usd + v_amount where customer_id = v_customer_id returning * into v_account;
            insert into gateway.ledger_entries (customer_id, kind, amount_usd, balance_after_usd, reference, note, actor)
            values (v_customer_id, 'correction', v_amount, v_account.balance_usd, p_reference, p_note, coalesce(p_actor, session_user));
            perform gateway.record_balance(v_customer_id, v_account.balance_usd - v_amount);
        end if;
        perform set_config('gateway.engine', 'off', true);
    end if;
    return jsonb_build_object(
        'customer_id', v_customer_id, 'added_usd', gateway.show_usd(v_amount), 'credits_added', trim_scale(v_amount / v_credit_value),
        'balance_after_usd', gateway.show_usd(v_account.balance_usd), 'credits_after', gateway.show_credits(v_account.balance_usd, v_credit_value),
        'debt_usd', gateway.show_usd(v_account.debt_usd), 'duplicate', v_entry.id is not null);
end
$$;

create function gateway.describe_payment(p_payment gateway.payments, p_admin boolean) returns jsonb
language plpgsql stable set search_path = ''
as $$
begin
    return jsonb_build_object(
        'id', p_payment.id, 'created_at', p_payment.created_at, 'paid_at', p_payment.paid_at, 'currency', p_payment.currency,
        'status', case
            when p_payment.credited_usd > 0 and p_payment.disputed_usd > 0 then 'disputed'
            when p_payment.credited_usd > 0 and p_payment.refunded_usd = p_payment.credited_usd then 'refunded'
            when p_payment.refunded_usd > 0 then 'partially_refunded'
            when p_payment.credited_usd > 0 then 'paid'
            when p_payment.paid_minor is not null then 'not_credited'
            when p_payment.failed_at is not null then 'failed'
            else 'pending'
        end,
        'credited_usd', gateway.show_usd(p_payment.credited_usd), 'refunded_usd', gateway.show_usd(p_payment.refunded_usd),
        'disputed_usd', gateway.show_usd(p_payment.disputed_usd)
    ) || case when p_admin then jsonb_build_object(
        'customer_id', p_payment.customer_id, 'payment_intent', p_payment.payment_intent, 'checkout_session', p_payment.checkout_session,
        'livemode', p_payment.livemode, 'asked_usd', gateway.show_usd(p_payment.asked_usd), 'paid_minor', p_payment.paid_minor
    ) else '{}' end;
end
$$;

comment on function gateway.describe_payment(gateway.payments, boolean) is 'A payment as its customer sees it, and what of Stripe''s an admin sees beside.';

revoke all on function gateway.describe_payment(gateway.payments, boolean) from public;

-- gateway.reconcile_payment: brings the books to what is known of a payment. Whatever was told in whatever order, they come to the same: the
-- whole credit, less what is refunded, less what disputes hold of the rest. Both locks (payment, account) are held.
-- Null, or why a paid one was not credited, or not as it was asked for: currency | unknown_customer | erased_customer | amount.
create function gateway.reconcile_payment(p_payment gateway.payments, p_actor text) returns text
language plpgsql set search_path = ''
as $$
declare
    v_unexpected text;
    v_live bigint;
    v_failed bigint;
    v_refund numeric;
    v_dispute numeric;
    v_change record;
    v_told jsonb;
begin
    if p_payment.paid_minor > 0 and p_payment.credited_usd = 0 then
        v_unexpected := case
            when p_payment.currency <> 'usd' then 'currency'
            when p_payment.customer_id is null then 'unknown_customer'
            when exists (select from gateway.customers where id = p_payment.customer_id and erased_at is not null) then 'erased_customer'
        end;
        if v_unexpected is null then
            p_payment.credited_usd := p_payment.paid_minor * 0.01;
            perform gateway.book_income(
                p_payment.customer_id, 'credit', p_payment.credited_usd, 'stripe:' || p_payment.payment_intent, null, p_actor, p_payment.id);
            if p_payment.credited_usd <> p_payment.asked_usd then
                v_unexpected := 'amount';
            end if;
        end if;
    end if;
    if p_payment.credited_usd = 0 then
        return v_unexpected;
    end if;

    select coalesce(sum(amount_minor) filter (where not failed), 0), coalesce(sum(amount_minor) filter (where failed), 0)
    into v_live, v_failed
    from gateway.payment_refunds
    where payment_id = p_payment.id;
    -- what was told of as a sum alone is what the refunds that are known do not come to
    v_refund := least((v_live + greatest(coalesce(p_payment.refunded_minor, 0) - v_live - v_failed, 0)) * 0.01, p_payment.credited_usd);
    select least(coalesce(sum(amount_minor), 0) * 0.01, p_payment.credited_usd - v_refund)
    into v_dispute
    from gateway.payment_disputes
    where payment_id = p_payment.id and withdrawn_at > coalesce(returned_at, '-infinity');

    -- what is given back comes first, so that nobody owes for a moment what a refund in place of a dispute leaves as it was
    for v_change in
        select c.kind, c.usd
        from (values ('refund', v_refund - p_payment.refunded_usd), ('dispute', v_dispute - p_payment.disputed_usd)) as c (kind, usd)
        where c.usd <> 0
        order by c.usd
    loop
        if v_change.usd < 0 then
            perform gateway.book_income(p_payment.customer_id, 'reinstatement', -v_change.usd, null, v_change.kind, p_actor, p_payment.id);
        else
            v_told := gateway.book_reversal(p_payment.customer_id, v_change.kind, v_change.usd, p_payment.id, null, p_actor);
            -- No other transaction can come to these keys, so that nobody waits for them.
            perform gateway.raise_event(
                'payment.reversed', 'payment:' || p_payment.id,
                v_told - array['entry_id', 'owed_before'] || jsonb_build_object(
                    'customer_id', p_payment.customer_id, 'payment_intent', p_payment.payment_intent, 'reason', v_change.kind),
                'payment.reversed:' || (v_told ->> 'entry_id'), p_payment.customer_id);
            if v_told ->> 'debt_usd' <> '0' and not (v_told ->> 'owed_before')::boolean then
                perform gateway.raise_event(
                    'customer.in_debt', 'customer:' || p_payment.customer_id,
                    jsonb_build_object('customer_id', p_payment.customer_id, 'debt_usd', v_told -> 'debt_usd'),
                    'customer.in_debt:' || (v_told ->> 'entry_id'), p_payment.customer_id);
            end if;
        end if;
    end loop;
    update gateway.payments
    set credited_usd = p_payment.credited_usd, refunded_usd = v_refund, disputed_usd = v_dispute
    where id = p_payment.id;
    return v_unexpected;
end
$$;

comment on function gateway.reconcile_payment(gateway.payments, text) is 'Books the difference between what is known of a payment and what was booked of it.';

revoke all on function gateway.reconcile_payment(gateway.payments, text) from public;

-- api.record_payment_event: takes in what an event of Stripe's tells of a payment, once, and brings the books to it. p_event: {"id", "type",
-- "created": time, "livemode", "payment_intent", and of these what it tells: "checkout_session", "customer_id" (as we put it there), "asked_usd",
-- "currency", "paid_minor", "failed": true, "refunded_minor" (all refunds together), "refund": {"id", "amount_minor", "failed"}, "dispute":
-- {"id", "amount_minor", "withdrawn", "returned"}}. Facts only grow (the most, the first, the last, once true for ever), and what is booked follows from
-- them alone: any order, any repetition and any two at once come to the same account.
-- {"outcome": recorded | duplicate, "payment": as list_payments has it, or null for a duplicate, "unexpected": why it was not credited, or not
-- as asked (see gateway.reconcile_payment), or null}. Locks the event's id, then the payment, then the account.
create function api.record_payment_event(p_event jsonb, p_actor text default 'stripe') returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_payment gateway.payments;
    v_at timestamptz := (p_event ->> 'created')::timestamptz;
    v_customer_id bigint;
    v_unexpected text;
    v_disputed text;
begin
    perform set_config('gateway.actor', p_actor, true);
    perform set_config('gateway.engine', 'on', true);
    -- before the event, whose row refers to it
    insert into gateway.payments (payment_intent, livemode)
    values (p_event ->> 'payment_intent', (p_event ->> 'livemode')::boolean)
    on conflict (payment_intent) do nothing;
    select * into v_payment from gateway.payments where payment_intent = p_event ->> 'payment_intent' for update;
    insert into gateway.payment_events (id, kind, payment_id, created_at)
    values (p_event ->> 'id', p_event ->> 'type', v_payment.id, v_at)
    on conflict (id) do nothing;
    if not found then
        perform set_config('gateway.engine', 'off', true);
        return jsonb_build_object('outcome', 'duplicate', 'payment', null, 'unexpected', null);
    end if;

    -- Before anything refers to it, which would lock it by half: two who then want the whole would wait for each other.
    select customer_id into v_customer_id from gateway.accounts
    where customer_id = coalesce(v_payment.customer_id, (p_event ->> 'customer_id')::bigint)
    for update;
    update gateway.payments
    set checkout_session = coalesce(checkout_session, p_event ->> 'checkout_session'),
        customer_id = v_customer_id,  -- null where there is no such customer
        currency = coalesce(currency, p_event ->> 'currency'),
        asked_usd = coalesce(asked_usd, (p_event ->> 'asked_usd')::numeric),
        paid_at = case when p_event ->> 'paid_minor' is not null then least(paid_at, v_at) else paid_at end,
        paid_minor = coalesce(paid_minor, (p_event ->> 'paid_minor')::bigint),
        failed_at = case when (p_event ->> 'failed')::boolean then least(failed_at, v_at) else failed_at end,
        refunded_minor = greatest(refunded_minor, (p_event ->> 'refunded_minor')::bigint)
    where id = v_payment.id
    returning * into v_payment;
    if p_event ? 'refund' then
        insert into gateway.payment_refunds as r (id, payment_id, amount_minor, failed)
        values (p_event #>> '{refund,id}', v_payment.id, (p_event #>> '{refund,amount_minor}')::bigint, (p_event #>> '{refund,failed}')::boolean)
        on conflict (id) do update set
            amount_minor = greatest(r.amount_minor, excluded.amount_minor), failed = r.failed or excluded.failed;
    end if;
    if p_event ? 'dispute' then
        v_disputed := p_event #>> '{dispute,id}';
        insert into gateway.payment_disputes as d (id, payment_id, amount_minor, withdrawn_at, returned_at)
        values (v_disputed, v_payment.id, (p_event #>> '{dispute,amount_minor}')::bigint,
                case when (p_event #>> '{dispute,withdrawn}')::boolean then v_at end,
                case when (p_event #>> '{dispute,returned}')::boolean then v_at end)
        on conflict (id) do update set
            amount_minor = greatest(d.amount_minor, excluded.amount_minor),
            withdrawn_at = greatest(d.withdrawn_at, excluded.withdrawn_at), returned_at = greatest(d.returned_at, excluded.returned_at);
    end if;

    v_unexpected := gateway.reconcile_payment(v_payment, p_actor);
    perform set_config('gateway.engine', 'off', true);

    if v_disputed is not null then
        perform gateway.raise_event(
            'payment.disputed', 'payment:' || v_payment.id,
            jsonb_build_object(
                'customer_id', v_payment.customer_id, 'payment_intent', v_payment.payment_intent, 'dispute', v_disputed,
                'amount_minor', p_event #> '{dispute,amount_minor}'),
            'payment.disputed:' || v_disputed, v_payment.customer_id);
    end if;
    if v_unexpected is not null then
        perform gateway.raise_event(
            'payment.unexpected', 'payment:' || v_payment.id,
            jsonb_build_object(
                'customer_id', v_payment.customer_id, 'payment_intent', v_payment.payment_intent, 'reason', v_unexpected,
                'currency', v_payment.currency, 'paid_minor', v_payment.paid_minor, 'asked_usd', gateway.show_usd(v_payment.asked_usd)),
            'payment.unexpected:' || v_payment.id || ':' || v_unexpected, v_payment.customer_id);
    end if;
    select * into v_payment from gateway.payments where id = v_payment.id;
    return jsonb_build_object('outcome', 'recorded', 'payment', gateway.describe_payment(v_payment, true), 'unexpected', v_unexpected);
end
$$;

revoke all on function api.record_payment_event(jsonb, text) from public;

grant execute on function api.record_payment_event(jsonb, text) to service_role;

comment on function api.record_payment_event(jsonb, text) is 'Takes in an event of Stripe''s, once, and brings the books to what it tells.';

-- api.read_billing: what a customer sees before it tops up. {"customer_id", "email", "erased", "balance_usd", "held_usd", "debt_usd",
-- "amounts_usd", "minimum_usd", "maximum_usd"}, or null where there is no such customer. Reads only.
create function api.read_billing(p_customer_id bigint) returns jsonb
language plpgsql stable security definer set search_path = ''
as $$
begin
    return (
        select jsonb_build_object(
            'customer_id', c.id, 'email', c.email, 'erased', c.erased_at is not null,
            'balance_usd', gateway.show_usd(a.balance_usd), 'held_usd', gateway.show_usd(a.held_usd), 'debt_usd', gateway.show_usd(a.debt_usd),
            'amounts_usd', (select jsonb_agg(gateway.show_usd(u) order by u) from unnest(s.top_up_amounts_usd) as u),
            'minimum_usd', gateway.show_usd(s.top_up_minimum_usd), 'maximum_usd', gateway.show_usd(s.top_up_maximum_usd))
        from gateway.customers as c
        join gateway.accounts as a on a.customer_id = c.id
        cross join gateway.settings as s
        where c.id = p_customer_id
    );
end
$$;

revoke all on function api.read_billing(bigint) from public;

grant execute on function api.read_billing(bigint) to service_role;

comment on function api.read_billing(bigint) is 'A customer''s account, and what a top-up may be.';

-- api.list_payments: payments, the newest first, with ids below p_before. p_customer_id null: everybody's, with Stripe's ids, and those that
-- were paid for nobody we know. Reads only.
create function api.list_payments(p_limit integer, p_before bigint default null, p_customer_id bigint default null, p_admin boolean default false)
returns jsonb
language plpgsql stable security definer set search_path = '' set plan_cache_mode = force_custom_plan
as $$
begin
    return (
        select coalesce(jsonb_agg(gateway.describe_payment(p, p_admin) order by p.id desc), '[]')
        from (
            select * from gateway.payments
            where (p_before is null or id < p_before)
                and case when p_customer_id is null then customer_id is not null or paid_minor is not null else customer_id = p_customer_id end
            order by id desc
            limit p_limit
        ) as p
    );
end
$$;

revoke all on function api.list_payments(integer, bigint, bigint, boolean) from public;

grant execute on function api.list_payments(integer, bigint, bigint, boolean) to service_role;

comment on function api.list_payments(integer, bigint, bigint, boolean) is 'Payments, a page of them, the newest first.';

-- What settle_request has charged, once more from what the log has: the prices that were pinned, the usage that was told.
create function gateway.recompute_charge(p_request gateway.requests) returns numeric
language plpgsql stable set search_path = ''
as $$
declare
    c_most_usd constant numeric := 9999999999.9999999999;
    v_prices constant jsonb := (
        select r -> 'prices'
        from jsonb_array_elements(p_request.routes) as r
        where (r ->> 'service_id')::bigint = p_request.service_id and (r ->> 'model_id')::bigint = p_request.model_id
        limit 1
    );
    v_usage constant jsonb := jsonb_build_object(
        'input', p_request.input_tokens, 'cached_input', p_request.cached_input_tokens, 'cache_write', p_request.cache_write_tokens,
        'cache_write_1h', p_request.cache_write_1h_tokens, 'audio_input', p_request.audio_input_tokens,
        'image_input', p_request.image_input_tokens, 'output', p_request.output_tokens, 'audio_output', p_request.audio_output_tokens,
        'image_output', p_request.image_output_tokens, 'images', p_request.images);
    v_commission constant numeric := 1 + p_request.commission_percent * 0.01;
    v_fixed numeric;
begin
    if p_request.state = 'expired' then
        return case when p_request.charge_usd = 0 then 0 else p_request.hold_usd end;
    elsif v_prices is null then
        return 0;
    end if;
    v_fixed := gateway.fixed_cost_usd(v_prices, v_usage) * v_commission;
    return least(gateway.round_up_usd(case p_request.billing_mode
        when 'flat' then gateway.total_tokens(v_usage) * p_request.flat_usd_per_1k_tokens * 0.001 + v_fixed
        else gateway.tokens_cost_usd(v_prices, v_usage) * v_commission + v_fixed
    end), c_most_usd);
end
$$;

comment on function gateway.recompute_charge(gateway.requests) is 'What a request is to be charged, by the prices and terms that it was admitted under.';

revoke all on function gateway.recompute_charge(gateway.requests) from public;

-- The lines of charges, where the log has every request that was charged; null where some of it was dropped. A request whose hold was charged
-- when it expired, and that was settled in a later month, is there with its hold alone: its tokens are the later month's.
create function gateway.statement_of_log(p_customer_id bigint, p_after_id bigint, p_through_id bigint) returns jsonb
language plpgsql stable set search_path = ''
as $$
declare
    v_from timestamptz := (
        select min(created_at) from gateway.ledger_entries where customer_id = p_customer_id and id > p_after_id and id <= p_through_id
    ) - interval '2 days';
    v_to timestamptz := (
        select max(created_at) from gateway.ledger_entries where customer_id = p_customer_id and id > p_after_id and id <= p_through_id
    );
begin
    return (
        with booked as materialized (
            select e.request_id as id, -sum(e.amount_usd) as usd, bool_or(e.kind = 'late_settlement') as late,
                bool_or(e.note = 'hold expired') as lapsed
            from gateway.ledger_entries as e
            where e.customer_id = p_customer_id and e.id > p_after_id and e.id <= p_through_id and e.request_id is not null
            group by e.request_id
        ),
        near as materialized (
            select r from gateway.requests as r
            where r.customer_id = p_customer_id and r.admitted_at >= v_from and r.admitted_at <= v_to and r.collected_usd <> 0
        ),
        logged as materialized (
            select b.id, b.usd, b.late, b.lapsed, coalesce((n.r).id, (f.r).id) as log_id, coalesce(n.r, f.r) as r
            from booked as b
            left join near as n on (n.r).id = b.id
            -- a settlement that came late; each of these few is looked for in every month
            left join lateral (select q as r from gateway.requests as q where n.r is null and q.id = b.id) as f on true
        ),
        -- what it was charged in all is to be what the prices make of it; of what is not at its end yet, the hold
        recomputed as materialized (
            select l.usd, l.r, u.final,
                case when u.final then gateway.recompute_charge(l.r) - (l.r).uncollected_usd else (l.r).hold_usd end
                -- what an earlier month has charged of it
                + case when l.late and not coalesce(l.lapsed, false) then coalesce((
                    select sum(e.amount_usd) from gateway.ledger_entries as e where e.request_id = l.id and e.id <= p_after_id
                ), 0) else 0 end as recomputed_usd
            from logged as l
            cross join lateral (
                select not coalesce(l.lapsed, false) or l.late or (l.r).state = 'expired' as final
            ) as u
        ),
        lines as (
            select (c.r).model_id as model_id, (c.r).billing_mode as billing_mode, (c.r).commission_percent as commission_percent,
                case when (c.r).billing_mode = 'flat' then (c.r).flat_usd_per_1k_tokens end as flat_usd_per_1k_tokens,
                p.prices, not c.final or (c.r).state = 'expired' as lapsed, count(*) as requests,
                sum((c.r).input_tokens) filter (where c.final) as input_tokens,
                sum((c.r).cached_input_tokens) filter (where c.final) as cached_input_tokens,
                sum((c.r).cache_write_tokens) filter (where c.final) as cache_write_tokens,
                sum((c.r).audio_input_tokens) filter (where c.final) as audio_input_tokens,
                sum((c.r).image_input_tokens) filter (where c.final) as image_input_tokens,
                sum((c.r).output_tokens) filter (where c.final) as output_tokens,
                sum((c.r).reasoning_tokens) filter (where c.final) as reasoning_tokens,
                sum((c.r).audio_output_tokens) filter (where c.final) as audio_output_tokens,
                sum((c.r).image_output_tokens) filter (where c.final) as image_output_tokens,
                sum((c.r).images) filter (where c.final) as images,
                sum(c.usd) as charge_usd, sum(c.recomputed_usd) as recomputed_usd,
                count(*) filter (where c.usd <> c.recomputed_usd) as differing
            from recomputed as c
            left join lateral (
                -- at a flat price what the provider takes is the operator's affair
                select route -> 'prices' as prices
                from jsonb_array_elements((c.r).routes) as route
                where (c.r).billing_mode = 'markup' and c.final
                    and (route ->> 'service_id')::bigint = (c.r).service_id and (route ->> 'model_id')::bigint = (c.r).model_id
                limit 1
            ) as p on true
            group by 1, 2, 3, 4, 5, 6
        )
        select case when not exists (select from logged where log_id is null) then jsonb_build_object(
            'requests', coalesce((select sum(requests) from lines), 0),
            'differing', coalesce((select sum(differing) from lines), 0),
            'difference_usd', gateway.show_usd(coalesce((select sum(charge_usd - recomputed_usd) from lines), 0)),
            'lines', coalesce((
                select jsonb_agg(jsonb_build_object(
                    'model', m.name, 'requests', l.requests, 'expired_holds', l.lapsed, 'billing_mode', l.billing_mode,
                    'commission_percent', trim_scale(l.commission_percent)::text,
                    'flat_usd_per_1k_tokens', gateway.show_usd(l.flat_usd_per_1k_tokens),
                    'prices', l.prices,
                    'input_tokens', coalesce(l.input_tokens, 0), 'cached_input_tokens', coalesce(l.cached_input_tokens, 0),
                    'cache_write_tokens', coalesce(l.cache_write_tokens, 0), 'audio_input_tokens', coalesce(l.audio_input_tokens, 0),
                    'image_input_tokens', coalesce(l.image_input_tokens, 0), 'output_tokens', coalesce(l.output_tokens, 0),
                    'reasoning_tokens', coalesce(l.reasoning_tokens, 0), 'audio_output_tokens', coalesce(l.audio_output_tokens, 0),
                    'image_output_tokens', coalesce(l.image_output_tokens, 0), 'images', coalesce(l.images, 0),
                    'charge_usd', gateway.show_usd(l.charge_usd), 'recomputed_usd', gateway.show_usd(l.recomputed_usd)
                ) order by l.charge_usd desc, m.name, l.billing_mode, l.prices::text, l.commission_percent, l.lapsed)
                from lines as l
                left join gateway.models as m on m.id = l.model_id
            ), '[]')) end
    );
end
$$;

comment on function gateway.statement_of_log(bigint, bigint, bigint) is 'What the requests of a run of entries were charged, by model and price, beside what their prices make of it.';

revoke all on function gateway.statement_of_log(bigint, bigint, bigint) from public;

-- Where the log was dropped: what is kept of the month, by model. It counts requests by when they were admitted and not when they were charged,
-- so that what it leaves to the ledger's sum is a line of its own.
create function gateway.statement_of_sums(p_customer_id bigint, p_month date, p_charged_usd numeric) returns jsonb
language plpgsql stable set search_path = ''
as $$
begin
    return (
        with lines as (
            select m.name, p.requests, p.input_tokens, p.cached_input_tokens, p.cache_write_tokens, p.audio_input_tokens, p.image_input_tokens,
                p.output_tokens, p.reasoning_tokens, p.audio_output_tokens, p.image_output_tokens, p.images,
                p.charge_usd - p.uncollected_usd as charge_usd
            from gateway.usage_periods as p
            left join gateway.models as m on m.id = p.model_id
            where (p.customer_id, p.per, p.grouped_by, p.period) = (p_customer_id, 'month', 'model', p_month::timestamp)
                and p.charge_usd <> p.uncollected_usd
            union all
            select null, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, p_charged_usd - coalesce((
                select sum(p.charge_usd - p.uncollected_usd)
                from gateway.usage_periods as p
                where (p.customer_id, p.per, p.grouped_by, p.period) = (p_customer_id, 'month', 'model', p_month::timestamp)
            ), 0)
        )
        select jsonb_build_object(
            'requests', coalesce(sum(l.requests), 0), 'differing', null, 'difference_usd', null,
            'lines', coalesce(jsonb_agg(jsonb_build_object(
                'model', l.name, 'requests', l.requests, 'expired_holds', false, 'billing_mode', null, 'commission_percent', null,
                'flat_usd_per_1k_tokens', null, 'prices', null,
                'input_tokens', l.input_tokens, 'cached_input_tokens', l.cached_input_tokens, 'cache_write_tokens', l.cache_write_tokens,
                'audio_input_tokens', l.audio_input_tokens, 'image_input_tokens', l.image_input_tokens, 'output_tokens', l.output_tokens,
                'reasoning_tokens', l.reasoning_tokens, 'audio_output_tokens', l.audio_output_tokens,
                'image_output_tokens', l.image_output_tokens, 'images', l.images,
                'charge_usd', gateway.show_usd(l.charge_usd), 'recomputed_usd', null
            ) order by l.name is null, l.charge_usd desc, l.name), '[]'))
        from lines as l
        where l.charge_usd <> 0
    );
end
$$;

comment on function gateway.statement_of_sums(bigint, date, numeric) is 'What a month''s requests were charged, by model, from the sums that outlive the log.';

revoke all on function gateway.statement_of_sums(bigint, date, numeric) from public;

create function gateway.make_statement(
    p_customer_id bigint, p_month date, p_time_zone text, p_starts_at timestamptz, p_ends_at timestamptz, p_after_id bigint, p_through_id bigint
) returns jsonb
language plpgsql stable set search_path = ''
as $$
declare
    v_opening numeric := coalesce((
        select balance_after_usd from gateway.ledger_entries where customer_id = p_customer_id and id <= p_after_id order by id desc limit 1
    ), 0);
    v_closing numeric := coalesce((
        select balance_after_usd from gateway.ledger_entries where customer_id = p_customer_id and id <= p_through_id order by id desc limit 1
    ), 0);
    v_opening_debt numeric := coalesce((
        select sum(debt_change_usd) from gateway.ledger_entries
        where customer_id = p_customer_id and debt_change_usd is not null and id <= p_after_id
    ), 0);
    v_debt numeric := coalesce((
        select sum(debt_change_usd) from gateway.ledger_entries
        where customer_id = p_customer_id and debt_change_usd is not null and id > p_after_id and id <= p_through_id
    ), 0);
    v_sums record;
    v_charges jsonb := gateway.statement_of_log(p_customer_id, p_after_id, p_through_id);
    v_of_log constant boolean := v_charges is not null;
begin
    select coalesce(sum(e.amount_usd), 0) as all_usd,
        coalesce(-sum(e.amount_usd) filter (where e.request_id is not null), 0) as charged,
        coalesce(sum(e.amount_usd) filter (where e.kind = 'credit'), 0) as credits,
        coalesce(sum(e.amount_usd) filter (where e.kind = 'correction'), 0) as corrections,
        coalesce(sum(e.amount_usd) filter (where e.kind in ('refund', 'dispute', 'reinstatement')), 0) as reversals,
        coalesce(sum(e.amount_usd) filter (where e.kind = 'debt_payment'), 0) as debt_payments
    into v_sums
    from gateway.ledger_entries as e
    where e.customer_id = p_customer_id and e.id > p_after_id and e.id <= p_through_id;
    if not v_of_log then
        v_charges := gateway.statement_of_sums(p_customer_id, p_month, v_sums.charged);
    end if;
    return jsonb_build_object(
        'customer_id', p_customer_id, 'month', to_char(p_month, 'YYYY-MM'), 'time_zone', p_time_zone, 'from', p_starts_at, 'to', p_ends_at,
        'opening_balance_usd', gateway.show_usd(v_opening), 'credits_usd', gateway.show_usd(v_sums.credits),
        'corrections_usd', gateway.show_usd(v_sums.corrections), 'reversals_usd', gateway.show_usd(v_sums.reversals),
        'debt_payments_usd', gateway.show_usd(v_sums.debt_payments), 'charges_usd', gateway.show_usd(v_sums.charged),
        'closing_balance_usd', gateway.show_usd(v_closing),
        'opening_debt_usd', gateway.show_usd(v_opening_debt), 'closing_debt_usd', gateway.show_usd(v_opening_debt + v_debt),
        'charges', v_charges -> 'lines',
        'entries', coalesce((
            select jsonb_agg(jsonb_build_object(
                'at', e.created_at, 'kind', e.kind, 'amount_usd', gateway.show_usd(e.amount_usd),
                'debt_change_usd', gateway.show_usd(coalesce(e.debt_change_usd, 0)),
                'balance_after_usd', gateway.show_usd(e.balance_after_usd), 'reference', e.reference, 'payment_id', e.payment_id) order by e.id)
            from gateway.ledger_entries as e
            where e.customer_id = p_customer_id and e.id > p_after_id and e.id <= p_through_id and e.request_id is null
        ), '[]'),
        'check', jsonb_build_object(
            'source', case when v_of_log then 'request_log' else 'sums' end,
            'requests', v_charges -> 'requests', 'differing', v_charges -> 'differing', 'difference_usd', v_charges -> 'difference_usd',
            'balance_agrees', v_opening + v_sums.all_usd = v_closing));
end
$$;

comment on function gateway.make_statement(bigint, date, text, timestamptz, timestamptz, bigint, bigint) is 'A statement of a customer''s entries from after one up to another.';

revoke all on function gateway.make_statement(bigint, date, text, timestamptz, timestamptz, bigint, bigint) from public;

-- api.read_statement: a customer's statement of a month ('YYYY-MM'), as gateway.make_statement makes it, with "closed". A month that ended an hour
-- ago or earlier is closed when it is first asked for, and those before it, and stays as it is from then on; another one is "so far". A month
-- goes on from the entry with which the one before ended, so that none is missing or in two, and each is the customer's by the time zone of the
-- day on which it was closed. {"error": "unknown_customer" | "no_statement": before the first entry, or to come}. Locks no account.
-- An hour, because an entry that is written at the turn of the month can be seen a little later, when its transaction is over.
create function api.read_statement(p_customer_id bigint, p_month text) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '60s' set plan_cache_mode = force_custom_plan
as $$
declare
    v_month date := to_date(p_month, 'YYYY-MM');
    v_time_zone text := (select time_zone from gateway.customers where id = p_customer_id);
    v_statement gateway.statements;
    v_next gateway.statements;
begin
    if v_time_zone is null then
        return jsonb_build_object('error', 'unknown_customer');
    end if;
    select * into v_statement from gateway.statements where customer_id = p_customer_id and month = v_month;
    if found then
        return v_statement.document || jsonb_build_object('closed', true);
    end if;
    -- two at once would close the same months twice
    perform pg_advisory_xact_lock(hashtextextended('gateway.read_statement', p_customer_id));
    select * into v_statement from gateway.statements where customer_id = p_customer_id order by month desc limit 1;
    v_next.customer_id := p_customer_id;
    v_next.time_zone := v_time_zone;
    v_next.through_entry_id := coalesce(v_statement.through_entry_id, 0);
    v_next.month := coalesce(
        (v_statement.month + interval '1 month')::date,
        (select date_trunc('month', created_at at time zone v_time_zone)::date
         from gateway.ledger_entries where customer_id = p_customer_id order by id limit 1));
    v_next.ends_at := coalesce(v_statement.ends_at, gateway.first_moment(v_next.month::timestamp, v_time_zone));
    loop
        if v_next.month is null or v_next.month > v_month or v_next.ends_at > clock_timestamp() then
            -- another may have closed it since it was looked for
            select * into v_statement from gateway.statements where customer_id = p_customer_id and month = v_month;
            return case
                when found then v_statement.document || jsonb_build_object('closed', true)
                else jsonb_build_object('error', 'no_statement')
            end;
        end if;
        v_next.starts_at := v_next.ends_at;
        v_next.ends_at := greatest(gateway.first_moment((v_next.month + interval '1 month')::timestamp, v_time_zone), v_next.starts_at);
        v_next.after_entry_id := v_next.through_entry_id;
        v_next.through_entry_id := coalesce((
            select e.id - 1 from gateway.ledger_entries as e
            where e.customer_id = p_customer_id and e.id > v_next.after_entry_id and e.created_at >= v_next.ends_at
            order by e.id
            limit 1
        ), (select max(e.id) from gateway.ledger_entries as e where e.customer_id = p_customer_id and e.id > v_next.after_entry_id),
        v_next.after_entry_id);
        exit when v_next.ends_at + interval '1 hour' > clock_timestamp();
        v_next.document := gateway.make_statement(
            p_customer_id, v_next.month, v_time_zone, v_next.starts_at, v_next.ends_at, v_next.after_entry_id, v_next.through_entry_id);
        v_next.closed_at := clock_timestamp();
        perform set_config('gateway.engine', 'on', true);
        insert into gateway.statements values (v_next.*);
        perform set_config('gateway.engine', 'off', true);
        if v_next.month = v_month then
            return v_next.document || jsonb_build_object('closed', true);
        end if;
        v_next.month := (v_next.month + interval '1 month')::date;
    end loop;
    if v_next.month <> v_month then
        return jsonb_build_object('error', 'no_statement');
    end if;
    return gateway.make_statement(
        p_customer_id, v_next.month, v_time_zone, v_next.starts_at, v_next.ends_at, v_next.after_entry_id, v_next.through_entry_id)
        || jsonb_build_object('closed', false);
end
$$;

revoke all on function api.read_statement(bigint, text) from public;

grant execute on function api.read_statement(bigint, text) to service_role;

comment on function api.read_statement(bigint, text) is 'A customer''s statement of a month; of one that is over always the same.';

-- api.list_statements: the months that have a statement, the newest first: from that of the first entry to the current one, in the customer's
-- time zone. [{"month": 'YYYY-MM', "closed": whether it is over and can't change}]; null where there is no such customer. p_before: a month as
-- the number YYYYMM. Reads only.
create function api.list_statements(p_customer_id bigint, p_limit integer, p_before integer default null) returns jsonb
language plpgsql stable security definer set search_path = ''
as $$
declare
    v_time_zone text := (select time_zone from gateway.customers where id = p_customer_id);
begin
    if v_time_zone is null then
        return null;
    end if;
    return (
        select coalesce(jsonb_agg(jsonb_build_object('month', to_char(m.month, 'YYYY-MM'), 'closed', m.closed) order by m.month desc), '[]')
        from (
            select g::date as month,
                gateway.first_moment(g + interval '1 month', v_time_zone) + interval '1 hour' <= clock_timestamp()
                    or exists (select from gateway.statements as s where s.customer_id = p_customer_id and s.month = g::date) as closed
            from generate_series(
                (select date_trunc('month', least(
                     (select e.created_at from gateway.ledger_entries as e where e.customer_id = p_customer_id order by e.id limit 1) at time zone v_time_zone,
                     (select min(s.month)::timestamp from gateway.statements as s where s.customer_id = p_customer_id)))),
                date_trunc('month', clock_timestamp() at time zone v_time_zone), interval '1 month') as g
            where p_before is null or to_char(g, 'YYYYMM')::integer < p_before
            order by g desc
            limit p_limit
        ) as m
    );
end
$$;

revoke all on function api.list_statements(bigint, integer, integer) from public;

grant execute on function api.list_statements(bigint, integer, integer) to service_role;

comment on function api.list_statements(bigint, integer, integer) is 'The months that a customer has statements of.';

-- api.read_balance: one customer's account. {"customer_id", "credits", "balance_usd", "held_usd", "debt_usd"}. Reads only.
create or replace function api.read_balance(p_customer_id bigint) returns jsonb
language sql stable security definer set search_path = ''
as $$
    select jsonb_build_object(
        'customer_id', a.customer_id, 'credits', gateway.show_credits(a.balance_usd, s.credit_value_usd),
        'balance_usd', gateway.show_usd(a.balance_usd), 'held_usd', gateway.show_usd(a.held_usd), 'debt_usd', gateway.show_usd(a.debt_usd))
    from gateway.accounts as a
    cross join gateway.settings as s
    where a.customer_id = p_customer_id
$$;

-- api.list_balances: every customer's account with its keys, by id after p_after. Reads only.
create or replace function api.list_balances(p_limit integer, p_after bigint default 0) returns jsonb
language sql stable security definer set search_path = ''
as $$
    select coalesce(jsonb_agg(jsonb_build_object(
        'user_id', c.id, 'name', c.name, 'email', c.email,
        'credits', gateway.show_credits(a.balance_usd, s.credit_value_usd),
        'balance_usd', gateway.show_usd(a.balance_usd), 'held_usd', gateway.show_usd(a.held_usd), 'debt_usd', gateway.show_usd(a.debt_usd),
        'api_keys', coalesce((
            select jsonb_agg(jsonb_build_object('id', k.id, 'prefix', k.prefix, 'active', k.active) order by k.id)
            from gateway.api_keys as k
            where k.customer_id = c.id
        ), '[]')
    ) order by c.id), '[]')
    from (select * from gateway.customers where id > p_after order by id limit p_limit) as c
    join gateway.accounts as a on a.customer_id = c.id
    cross join gateway.settings as s
$$;

create function gateway.read_price_tiers(p_tiers jsonb) returns jsonb
language sql immutable set search_path = ''
as $$
    select jsonb_agg((
        select jsonb_object_agg(e.key, e.value::numeric) from jsonb_each_text(t.value) as e where e.value is not null
    ) order by (t.value ->> 'above_input_tokens')::numeric)
    from jsonb_array_elements(nullif(p_tiers, 'null')) as t
$$;

comment on function gateway.read_price_tiers(jsonb) is 'Tiers as they cross the wire, in the form of gateway.prices.tiers: numbers, ascending; null for none.';

revoke all on function gateway.read_price_tiers(jsonb) from public;

create function gateway.show_price_tiers(p_tiers jsonb) returns jsonb
language sql immutable set search_path = ''
as $$
    select jsonb_agg(jsonb_build_object('above_input_tokens', t.value -> 'above_input_tokens') || (
        select jsonb_object_agg(e.key, gateway.show_usd(e.value::numeric))
        from jsonb_each(t.value) as e
        where e.key <> 'above_input_tokens'
    ) order by t.ordinality)
    from jsonb_array_elements(p_tiers) with ordinality as t
$$;

comment on function gateway.show_price_tiers(jsonb) is 'The tiers of a price as the API shows them: amounts as text; null for none.';

revoke all on function gateway.show_price_tiers(jsonb) from public;

create or replace function gateway.describe_price(p_price gateway.prices) returns jsonb
language sql stable set search_path = ''
as $$
    select jsonb_build_object('id', p_price.id, 'effective_from', p_price.effective_from, 'source', p_price.source, 'source_date', p_price.source_date)
        || jsonb_strip_nulls(jsonb_build_object(
            'input', gateway.show_usd(p_price.input), 'cached_input', gateway.show_usd(p_price.cached_input),
            'cache_write', gateway.show_usd(p_price.cache_write), 'audio_input', gateway.show_usd(p_price.audio_input),
            'image_input', gateway.show_usd(p_price.image_input), 'output', gateway.show_usd(p_price.output),
            'audio_output', gateway.show_usd(p_price.audio_output), 'image_output', gateway.show_usd(p_price.image_output),
            'per_request', gateway.show_usd(p_price.per_request), 'per_image', gateway.show_usd(p_price.per_image),
            'cache_write_1h', gateway.show_usd(p_price.cache_write_1h), 'tiers', gateway.show_price_tiers(p_price.tiers)))
$$;

comment on function gateway.describe_price(gateway.prices) is 'A price as the API shows it: USD per million tokens, as text; classes without a price of their own are left out, and tiers where it has none.';

create or replace function gateway.insert_price(p_offer_id bigint, p_service_id bigint, p_prices jsonb, p_effective_from timestamptz) returns gateway.prices
language sql set search_path = ''
as $$
    insert into gateway.prices (offer_id, service_id, effective_from, input, cached_input, cache_write, audio_input, image_input,
                                output, audio_output, image_output, per_request, per_image, source, source_date, cache_write_1h, tiers)
    select p_offer_id, p_service_id, coalesce(p_effective_from, clock_timestamp()), r.input, r.cached_input, r.cache_write, r.audio_input,
        r.image_input, r.output, r.audio_output, r.image_output, r.per_request, r.per_image, r.source, r.source_date, r.cache_write_1h,
        gateway.read_price_tiers(r.tiers)
    from jsonb_populate_record(null::gateway.prices, p_prices - array['id', 'offer_id', 'service_id', 'effective_from', 'created_at']) as r
    returning *
$$;

-- api.import_prices: brings a price list in, all of it or nothing. p_lines: [{"model", "provider", "upstream_model"?, "context_length"?,
-- "max_output_tokens"?, "input_modalities"?, "output_modalities"?, "input", "output", other classes of gateway.prices?, "source"?,
-- "source_date"?, "tiers"?: [{"above_input_tokens", the same classes}]}], each offer once. Models and offers that are not there are added; where a provider's price for all its services is
-- another than the one in force at p_effective_from (now, if null; never in the past), a new version begins there. A version that was to
-- begin at that very moment is replaced. Nothing else is changed: not what the list lacks, not what is known of a model, no service's
-- own price. p_dry_run: tells the same and writes nothing.
-- Locks: what it adds by name, then the offers by id, so that of two lists with an offer in common one comes after the other. Returns {"dry_run", "lines", "models_added", "offers_added", "prices_changed",
-- "unchanged"} (each line is one of the last three), or {"error": "duplicate_offer" | "in_the_past"}.
create or replace function api.import_prices(
    p_lines jsonb, p_dry_run boolean default false, p_effective_from timestamptz default null, p_actor text default null
) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '25s'
as $$
declare
    v_at timestamptz;
    v_lines gateway.price_line[];
    v_models_added text[] := '{}'::text[];
    v_offers_added bigint[] := '{}'::bigint[];
    v_told jsonb;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    select array_agg(l) into v_lines from jsonb_populate_recordset(null::gateway.price_line, p_lines) as l;
    if (select count(*) > count(distinct (l.model, l.provider)) from unnest(v_lines) as l) then
        return jsonb_build_object('error', 'duplicate_offer');
    end if;
    if p_effective_from < clock_timestamp() then
        return jsonb_build_object('error', 'in_the_past');
    end if;

    if p_dry_run then
        select coalesce(array_agg(distinct l.model), '{}') into v_models_added
        from unnest(v_lines) as l
        where not exists (select from gateway.models as m where m.name = l.model);
    else
        with added as (
            insert into gateway.models (name, context_length, max_output_tokens, input_modalities, output_modalities)
            select l.model, max(l.context_length), max(l.max_output_tokens),
                coalesce(max(l.input_modalities), '{text}'), coalesce(max(l.output_modalities), '{text}')
            from unnest(v_lines) as l
            group by l.model
            order by l.model
            on conflict (name) do nothing
            returning name
        )
        select coalesce(array_agg(name), '{}') into v_models_added from added;
        with added as (
            insert into gateway.offers (model_id, provider, upstream_model)
            select m.id, l.provider, coalesce(l.upstream_model, l.model)
            from unnest(v_lines) as l
            join gateway.models as m on m.name = l.model
            order by m.id, l.provider
            on conflict (model_id, provider) do nothing
            returning id
        )
        select coalesce(array_agg(id), '{}') into v_offers_added from added;
        -- As in api.create_price: what is compared below is what is in force when it is replaced.
        perform from gateway.offers as o
        where (o.model_id, o.provider) in (
            select m.id, l.provider from unnest(v_lines) as l join gateway.models as m on m.name = l.model
        )
        order by o.id
        for no key update;
    end if;
    v_at := greatest(p_effective_from, clock_timestamp());
    with compared as materialized (
        select l.*, o.id as offer_id, o.id is null or n.id is not null as new_offer, c.changes
        from unnest(v_lines) as l
        left join gateway.models as m on m.name = l.model
        left join gateway.offers as o on o.model_id = m.id and o.provider = l.provider
        left join unnest(v_offers_added) as n (id) on n.id = o.id
        left join lateral (
            select v.* from gateway.prices as v
            where v.offer_id = o.id and v.service_id is null and v.effective_from <= v_at
            order by v.effective_from desc
            limit 1
        ) as p on true
        cross join lateral (
            select jsonb_object_agg(k.class, jsonb_build_object('old', gateway.show_usd(k.old), 'new', gateway.show_usd(k.new))) as changes
            from (
                values ('input', p.input, l.input), ('cached_input', p.cached_input, l.cached_input),
                    ('cache_write', p.cache_write, l.cache_write), ('audio_input', p.audio_input, l.audio_input),
                    ('image_input', p.image_input, l.image_input), ('output', p.output, l.output),
                    ('audio_output', p.audio_output, l.audio_output), ('image_output', p.image_output, l.image_output),
                    ('per_request', p.per_request, l.per_request), ('per_image', p.per_image, l.per_image),
                    ('cache_write_1h', p.cache_write_1h, l.cache_write_1h)
                union all
                select e.key || '_above_' || (t.tier ->> 'above_input_tokens'),
                    max(e.value::numeric) filter (where not t.is_new), max(e.value::numeric) filter (where t.is_new)
                from (
                    select false as is_new, jsonb_array_elements(p.tiers) as tier
                    union all
                    select true, jsonb_array_elements(gateway.read_price_tiers(l.tiers))
                ) as t
                cross join lateral jsonb_each_text(t.tier) as e
                where e.key <> 'above_input_tokens'
                group by 1
            ) as k (class, old, new)
            where k.old is distinct from k.new
        ) as c
    ),
    written as (
        insert into gateway.prices as p (offer_id, effective_from, input, cached_input, cache_write, audio_input, image_input,
                                         output, audio_output, image_output, per_request, per_image, source, source_date, cache_write_1h,
                                         tiers)
        select c.offer_id, v_at, c.input, c.cached_input, c.cache_write, c.audio_input, c.image_input,
            c.output, c.audio_output, c.image_output, c.per_request, c.per_image, c.source, c.source_date, c.cache_write_1h,
            gateway.read_price_tiers(c.tiers)
        from compared as c
        where not p_dry_run and c.changes is not null
        order by c.offer_id
        on conflict (offer_id, service_id, effective_from) do update set
            input = excluded.input, cached_input = excluded.cached_input, cache_write = excluded.cache_write,
            audio_input = excluded.audio_input, image_input = excluded.image_input, output = excluded.output,
            audio_output = excluded.audio_output, image_output = excluded.image_output, per_request = excluded.per_request,
            per_image = excluded.per_image, source = excluded.source, source_date = excluded.source_date,
            cache_write_1h = excluded.cache_write_1h, tiers = excluded.tiers
    )
    select jsonb_build_object(
        'dry_run', p_dry_run,
        'lines', count(*),
        'models_added', (select coalesce(jsonb_agg(a.name order by a.name), '[]') from unnest(v_models_added) as a (name)),
        'offers_added', coalesce(jsonb_agg(
            jsonb_build_object('model', c.model, 'provider', c.provider) order by c.model, c.provider) filter (where c.new_offer), '[]'),
        'prices_changed', coalesce(jsonb_agg(
            jsonb_build_object('model', c.model, 'provider', c.provider, 'changes', c.changes) order by c.model, c.provider
        ) filter (where not c.new_offer and c.changes is not null), '[]'),
        'unchanged', count(*) filter (where not c.new_offer and c.changes is null))
    into v_told
    from compared as c;
    return v_told;
end
$$;

-- api.change_settings: changes what p_changes names, and returns all settings: amounts as exact text, and of the webhook secret (which
-- comes in sealed) only whether it is set. With '{}' it only reads. The table's constraints decide what is valid; a name that is no setting
-- is ignored here and refused by the caller. {"error": "webhook_secret_needed"} where a webhook would go out unsigned, "top_ups_do_not_fit" where the amounts
-- offered would not lie between the least and the most. Locks the settings.
create or replace function api.change_settings(p_changes jsonb default '{}', p_actor text default null) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_names text;
    v_constraint text;
begin
    perform set_config('gateway.actor', coalesce(p_actor, ''), true);
    select string_agg(quote_ident(a.attname), ', ' order by a.attnum) into v_names
    from pg_attribute as a
    where a.attrelid = 'gateway.settings'::regclass and a.attnum > 0 and not a.attisdropped and a.attname <> 'singleton'
        and p_changes ? a.attname;
    if v_names is not null then
        execute format(
            'update gateway.settings set (%1$s) = (select %1$s from jsonb_populate_record(null::gateway.settings, $1))', v_names) using p_changes;
    end if;
    return (
        select jsonb_object_agg(s.key, case
                   when a.atttypid = 'numeric'::regtype and s.value <> 'null' then to_jsonb(trim_scale((s.value #>> '{}')::numeric)::text)
                   when a.atttypid = 'numeric[]'::regtype then (select jsonb_agg(trim_scale(u::numeric)::text) from jsonb_array_elements_text(s.value) as u)
                   else s.value
               end) - array['singleton', 'webhook_secret']
               || jsonb_build_object('webhook_secret_set', bool_or(s.key = 'webhook_secret' and s.value <> 'null'))
        from gateway.settings as t
        cross join jsonb_each(to_jsonb(t)) as s
        join pg_attribute as a on a.attrelid = 'gateway.settings'::regclass and a.attname = s.key
    );
exception when check_violation then
    get stacked diagnostics v_constraint = constraint_name;
    if v_constraint = 'settings_webhook_is_signed' then
        return jsonb_build_object('error', 'webhook_secret_needed');
    elsif v_constraint in ('settings_top_up_range', 'settings_top_up_amounts') then
        return jsonb_build_object('error', 'top_ups_do_not_fit');
    end if;
    raise;
end
$$;

-- api.list_models: the models that can be called: active, with a route of an active service, and a price; for a key only those that it
-- may use. p_key_hash null: the public list. {"models": [{id, name, …, "pricing": what the customer pays, of the route tried first, in USD
-- for one token, as text; what a long prompt costs instead is under its "overrides"}]}, or {"error"} as api.authenticate_key gives it. Reads only.
create or replace function api.list_models(p_key_hash text default null, p_name text default null) returns jsonb
language plpgsql stable security definer set search_path = ''
as $$
declare
    v_key jsonb;
    v_allowed_models bigint[];
    v_allowed_services bigint[];
begin
    if p_key_hash is not null then
        v_key := api.authenticate_key(p_key_hash);
        if v_key ? 'error' then
            return v_key;
        end if;
        v_allowed_models := (select array_agg(value::bigint) from jsonb_array_elements_text(nullif(v_key -> 'allowed_models', 'null')));
        v_allowed_services := (select array_agg(value::bigint) from jsonb_array_elements_text(nullif(v_key -> 'allowed_services', 'null')));
    end if;
    return jsonb_build_object('models', (
        select coalesce(jsonb_agg(jsonb_build_object(
            'id', m.id, 'name', m.name, 'display_name', m.display_name, 'created_at', m.created_at, 'context_length', m.context_length,
            'max_output_tokens', m.max_output_tokens, 'input_modalities', m.input_modalities, 'output_modalities', m.output_modalities,
            'provider', r.provider, 'pricing', r.pricing) order by m.name), '[]')
        from gateway.models as m
        cross join lateral (
            select s.provider, jsonb_strip_nulls(jsonb_build_object(
                'prompt', gateway.show_usd(case when c.flat then c.rate else p.input * c.rate end),
                'completion', gateway.show_usd(case when c.flat then c.rate else p.output * c.rate end),
                'input_cache_read', gateway.show_usd(case when c.flat then c.rate else p.cached_input * c.rate end),
                'input_cache_write', gateway.show_usd(case when c.flat then c.rate else p.cache_write * c.rate end),
                'audio', gateway.show_usd(case when c.flat then c.rate else p.audio_input * c.rate end),
                'request', gateway.show_usd(coalesce(p.per_request, 0) * c.commission),
                'image', gateway.show_usd(p.per_image * c.commission),
                -- at a flat price no prompt is too long
                'overrides', case when not c.flat then (
                    select jsonb_agg(jsonb_build_object(
                        'min_prompt_tokens', t.value -> 'above_input_tokens',
                        'prompt', gateway.show_usd((t.value ->> 'input')::numeric * c.rate),
                        'completion', gateway.show_usd((t.value ->> 'output')::numeric * c.rate),
                        'input_cache_read', gateway.show_usd((t.value ->> 'cached_input')::numeric * c.rate),
                        'input_cache_write', gateway.show_usd((t.value ->> 'cache_write')::numeric * c.rate),
                        'audio', gateway.show_usd((t.value ->> 'audio_input')::numeric * c.rate)) order by t.ordinality)
                    from jsonb_array_elements(p.tiers) with ordinality as t
                ) end)) as pricing
            from gateway.offers as o
            join gateway.routes as t on t.offer_id = o.id and t.active
            join gateway.services as s on s.id = t.service_id and s.active
            cross join lateral (
                select v.* from gateway.prices as v
                where v.offer_id = o.id and (v.service_id = s.id or v.service_id is null) and v.effective_from <= clock_timestamp()
                order by v.service_id is null, v.effective_from desc
                limit 1
            ) as p
            cross join (
                select t.billing_mode = 'flat' as flat, 1 + t.commission_percent * 0.01 as commission,
                    case when t.billing_mode = 'flat' then t.flat_usd_per_1k_tokens * 0.001 else (1 + t.commission_percent * 0.01) * 0.000001 end as rate
                from gateway.settings as t
            ) as c
            where o.model_id = m.id and (v_allowed_services is null or s.id = any (v_allowed_services))
            order by coalesce(t.priority, s.priority), t.id
            limit 1
        ) as r
        where m.active and (p_name is null or m.name = p_name) and (v_allowed_models is null or m.id = any (v_allowed_models))
    ));
end
$$;

create or replace function gateway.show_windows(p_limits gateway.limit_state[]) returns jsonb
language plpgsql stable set search_path = ''
as $$
begin
    return (
        select coalesce(jsonb_object_agg(w.name, jsonb_build_object(
            'limit', case w.metric when 'spend_usd' then to_jsonb(gateway.show_usd(w.most)) else to_jsonb(w.most::bigint) end,
            'used', case w.metric when 'spend_usd' then to_jsonb(gateway.show_usd(w.used)) else to_jsonb(w.used::bigint) end,
            'mark', case w.metric when 'spend_usd' then to_jsonb(gateway.show_usd(w.mark)) else to_jsonb(w.mark::bigint) end)), '{}')
        from (
            select distinct on (n.metric, l.per) n.metric || '_per_' || l.per as name, n.metric, n.most, n.used, n.mark
            from unnest(p_limits) as l
            cross join lateral (values
                ('requests', l.requests::numeric, l.used_requests::numeric, l.warn_requests::numeric),
                ('tokens', l.tokens, l.used_tokens, l.warn_tokens),
                ('spend_usd', l.spend_usd, l.used_spend_usd, l.warn_spend_usd)
            ) as n (metric, most, used, mark)
            where n.most is not null and l.subject <> 'service'
            order by n.metric, l.per, n.most - n.used, n.most
        ) as w
    );
end
$$;

comment on function gateway.show_windows(gateway.limit_state[]) is 'Of each name, such as requests_per_minute, the window with the least left: its limit, what is used of it, and its soft mark.';

-- api.read_limits: the limits that a key (p_key_id null: the customer's keys together) falls under now, and whether admission would let its next
-- request pass, however small.
--
-- {"time_zone", "limits": {"requests_per_minute": {"limit", "used", "mark": its soft mark or null}, …}, "reset_times": {"minute", "hour", "day", "month"},
--  "refusal": null | what api.admit_request would refuse with}; null where there is no such customer or key.
--
-- limits: the key's own, those of the keys that made it, and the customer's; where several windows have one name, the one with the
-- least left, as in the x-ratelimit headers. Of limits for each model by itself: with p_model this model's; without, those of the models
-- that were used in the running window, and what any other model would have. So the system's default of requests per minute shows.
-- Running requests count at their bound, as they do for admission. A service's limits are the operator's affair: not shown, but obeyed.
-- refusal: without p_model of the first of these windows that is full, with the name of its model ("of_model") where it is one model's.
-- Reads only, and locks nothing: a request that runs meanwhile may change the answer.
create or replace function api.read_limits(p_customer_id bigint, p_key_id bigint default null, p_model text default null) returns jsonb
language plpgsql stable security definer set search_path = ''
as $$
declare
    c_any_other_model constant bigint := -1;
    c_least_usd constant numeric := 0.0000000001;
    v_at timestamptz := clock_timestamp();
    v_caller record;
    v_settings gateway.settings;
    v_candidate gateway.candidate;
    v_candidates gateway.candidate[] := '{}'::gateway.candidate[];
    v_found boolean := false;
    v_allowed boolean := false;
    v_routed boolean := false;
    v_model_ids bigint[] := '{}'::bigint[];
    v_model_id bigint;
    v_limits gateway.limit_state[];
    v_charge numeric;
    v_excess jsonb;
    v_refusal jsonb;
begin
    select c.id, c.time_zone, a.balance_usd - a.held_usd as free_usd, a.debt_usd,
        k.id as key_id, k.scopes, k.allowed_models, k.allowed_services, coalesce(k.maker_key_ids, '{}') as maker_key_ids
    into v_caller
    from gateway.customers as c
    join gateway.accounts as a on a.customer_id = c.id
    left join gateway.api_keys as k on k.id = p_key_id and k.customer_id = c.id
    where c.id = p_customer_id;
    if v_caller.id is null or v_caller.key_id is distinct from p_key_id then
        return null;
    end if;
    select * into v_settings from gateway.settings;

    if p_model is not null then
        for v_candidate in
            select * from gateway.resolve_candidates(array[p_model], null, null, v_caller.allowed_services, false, false)
        loop
            v_found := true;
            v_model_ids := v_model_ids || v_candidate.model_id;
            continue when v_caller.allowed_models is not null and not v_candidate.model_id = any (v_caller.allowed_models);
            v_allowed := true;
            continue when v_candidate.route_id is null;
            v_routed := true;
            continue when v_candidate.prices is null;
            v_candidates := v_candidates || v_candidate;
        end loop;
        v_refusal := case
            when not v_found then jsonb_build_object('refusal', 'model_not_found', 'model', p_model)
            when not v_allowed then jsonb_build_object('refusal', 'model_not_allowed', 'model', p_model)
            when not v_routed then jsonb_build_object('refusal', 'model_not_served', 'model', p_model)
            when cardinality(v_candidates) = 0 then jsonb_build_object('refusal', 'model_not_priced', 'model', p_model)
        end;
    elsif p_key_id is not null then
        v_model_ids := c_any_other_model || array(
            select distinct c.model_id
            from gateway.limit_counters as c
            where c.subject = 'key' and c.subject_id = any (p_key_id || v_caller.maker_key_ids) and c.model_id <> 0 and c.requests > 0
            order by c.model_id
        );
    end if;

    v_limits := gateway.read_counters(gateway.applicable_limits(
        v_caller.key_id, v_caller.id, case when p_key_id is null then '{}' else array(select distinct m from unnest(v_model_ids) as m) end,
        array(select distinct c.service_id from unnest(v_candidates) as c), v_caller.time_zone, v_at, v_caller.maker_key_ids));
    if p_model is null then
        -- a model's counter may be of a window that has passed
        v_limits := array(select l from unnest(v_limits) as l where l.model_id <= 0 or l.used_requests > 0);
    end if;

    if p_key_id is not null and not 'chat' = any (v_caller.scopes) then
        v_refusal := jsonb_build_object('refusal', 'scope_missing', 'scope', 'chat');
    elsif p_model is null then
        foreach v_model_id in array coalesce(nullif(v_model_ids, '{}'), array[c_any_other_model]) loop
            v_refusal := gateway.describe_excess(v_limits, null, v_model_id, 1, c_least_usd, c_least_usd, v_at);
            if v_refusal is not null then
                if v_model_id <> c_any_other_model then
                    v_refusal := v_refusal || jsonb_build_object('of_model', (select m.name from gateway.models as m where m.id = v_model_id));
                end if;
                exit;
            end if;
        end loop;
        if v_refusal is null and v_caller.free_usd <= 0 then
            v_refusal := jsonb_build_object(
                'refusal', 'insufficient_credits', 'needed_usd', gateway.show_usd(c_least_usd),
                'available_usd', gateway.show_usd(v_caller.free_usd), 'affordable_output_tokens', 0);
        end if;
    elsif v_refusal is null then
        -- as admission does for each candidate, for a request of one token
        foreach v_candidate in array v_candidates loop
            v_charge := gateway.round_up_usd(
                v_candidate.fixed_usd * (1 + v_settings.commission_percent * 0.01) + case v_settings.billing_mode
                    when 'flat' then v_settings.flat_usd_per_1k_tokens * 0.001
                    else v_candidate.input_rate * (1 + v_settings.commission_percent * 0.01)
                end);
            v_excess := gateway.describe_excess(
                v_limits, v_candidate.service_id, v_candidate.model_id, 1, v_charge,
                gateway.round_up_usd(v_candidate.fixed_usd + v_candidate.input_rate), v_at);
            if v_excess is null and v_charge > v_caller.free_usd then
                v_excess := jsonb_build_object(
                    'refusal', 'insufficient_credits', 'needed_usd', gateway.show_usd(v_charge),
                    'available_usd', gateway.show_usd(v_caller.free_usd), 'affordable_output_tokens', 0);
            end if;
            if v_excess is null then
                v_refusal := null;
                exit;
            end if;
            v_refusal := coalesce(v_refusal, v_excess);
        end loop;
    end if;

    if v_caller.debt_usd > 0 and coalesce(v_refusal ->> 'refusal' in ('rate_limit_exceeded', 'insufficient_credits'), true) then
        -- as admission has it: after what is wrong with key and model, before limits and money
        v_refusal := jsonb_build_object('refusal', 'customer_in_debt', 'debt_usd', gateway.show_usd(v_caller.debt_usd));
    end if;

    return jsonb_build_object(
        'time_zone', v_caller.time_zone,
        'limits', gateway.show_windows(v_limits),
        'refusal', v_refusal,
        'reset_times', (
            select jsonb_object_agg(w.per, gateway.window_end(w.per, gateway.window_start(w.per, v_at, v_caller.time_zone), v_caller.time_zone))
            from (values ('minute'), ('hour'), ('day'), ('month')) as w (per)
        ));
end
$$;

-- gateway.next_attempt_at: when an event is sent again of which p_attempts have failed; null: it is given up.
create function gateway.next_attempt_at(p_attempts integer, p_at timestamptz) returns timestamptz
language plpgsql volatile set search_path = ''
as $$
declare
    c_most_attempts constant integer := 20;
begin
    return case
        when p_attempts < c_most_attempts
            then p_at + least(interval '1 minute' * power(2, p_attempts - 1), interval '6 hours') * (1 - 0.1 * random())
    end;
end
$$;

comment on function gateway.next_attempt_at(integer, timestamptz) is 'When an event is sent again that could not be delivered.';

revoke all on function gateway.next_attempt_at(integer, timestamptz) from public;

-- api.finish_delivery: what came of a claim. {"state": delivered | waiting | given_up | stale, "next_attempt_at"}.
-- An attempt that failed is made again after a minute, two, four … six hours, each shortened by up to a tenth at random, so that what failed
-- together does not come back together; after the twentieth, some three days on, it is given up, and stays to be seen.
-- stale: the lease has run out and another has claimed it since, who will say what came of it. But what was delivered is delivered.
create or replace function api.finish_delivery(p_event_id uuid, p_attempt integer, p_delivered boolean, p_status integer, p_error text) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_now timestamptz := clock_timestamp();
    v_delivery gateway.event_deliveries;
begin
    update gateway.event_deliveries
    set delivered_at = case when p_delivered then v_now end,
        next_attempt_at = case when not p_delivered then gateway.next_attempt_at(attempts, v_now) end,
        claimed_until = null,
        last_status = p_status,
        last_error = left(p_error, 300)
    where event_id = p_event_id and delivered_at is null and (p_delivered or (attempts = p_attempt and next_attempt_at is not null))
    returning * into v_delivery;
    return jsonb_build_object(
        'state', case
            when not found then 'stale'
            when v_delivery.delivered_at is not null then 'delivered'
            when v_delivery.next_attempt_at is not null then 'waiting'
            else 'given_up'
        end,
        'next_attempt_at', v_delivery.next_attempt_at);
end
$$;

-- api.read_deliveries: how the webhook is doing. {"webhook_set", "waiting": deliveries that are not made yet, "waiting_since": of the oldest,
-- "given_up", "last_delivered_at", "undelivered": [the newest p_limit that are waiting after a failure or given up: {"id", "type",
-- "created_at", "attempts", "next_attempt_at", "last_status", "last_error"}], "topic": the same of the SNS topic, with "topic_set" for
-- "webhook_set"}. Reads only.
create or replace function api.read_deliveries(p_limit integer default 20) returns jsonb
language plpgsql stable security definer set search_path = ''
as $$
begin
    return jsonb_build_object(
        'webhook_set', (select s.webhook_url is not null from gateway.settings as s),
        'given_up', (select count(*) from gateway.event_deliveries where delivered_at is null and next_attempt_at is null),
        'last_delivered_at', (select max(delivered_at) from gateway.event_deliveries where delivered_at is not null),
        'undelivered', (
            select coalesce(jsonb_agg(jsonb_build_object(
                'id', gateway.show_event_id(u.id), 'type', u.kind, 'created_at', u.at, 'attempts', u.attempts,
                'next_attempt_at', u.next_attempt_at, 'last_status', u.last_status, 'last_error', u.last_error
            ) order by u.at desc), '[]')
            from (
                select e.id, e.kind, e.at, d.attempts, d.next_attempt_at, d.last_status, d.last_error
                from gateway.event_deliveries as d
                join gateway.events as e on e.id = d.event_id
                where d.next_attempt_at is not null and d.attempts > 0
                union all
                select e.id, e.kind, e.at, d.attempts, d.next_attempt_at, d.last_status, d.last_error
                from gateway.event_deliveries as d
                join gateway.events as e on e.id = d.event_id
                where d.delivered_at is null and d.next_attempt_at is null
                order by 3 desc
                limit p_limit
            ) as u
        )
    ) || (
        select jsonb_build_object('waiting', count(*), 'waiting_since', min(e.at))
        from gateway.event_deliveries as d
        join gateway.events as e on e.id = d.event_id
        where d.next_attempt_at is not null
    ) || jsonb_build_object('topic', gateway.read_topic_deliveries(p_limit));
end
$$;

-- The outbox of the SNS topic, as deliver_events.sql has the webhook's: each is claimed, sent and written down by itself.

-- api.claim_topic_deliveries: takes at most p_limit events that are due for the topic, for p_lease_seconds, as api.claim_deliveries does:
-- {"deliveries": [{"event_id", "attempt", "id", "type", "created_at", "subject", "data"}]}. p_topic_arn: the topic of the caller's environment;
-- null: it has none. From when one is first named here events are put in line for it, those from before are not; taken away, what waits stays.
-- For the maintenance function.
create function api.claim_topic_deliveries(p_topic_arn text, p_limit integer, p_lease_seconds integer) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_now timestamptz := clock_timestamp();
    v_claimed jsonb;
begin
    perform set_config('gateway.engine', 'on', true);
    update gateway.maintenance_state set alert_topic_arn = p_topic_arn where alert_topic_arn is distinct from p_topic_arn;
    perform set_config('gateway.engine', 'off', true);
    if p_topic_arn is null then
        return jsonb_build_object('deliveries', '[]'::jsonb);
    end if;
    with due as (
        select event_id from gateway.topic_deliveries
        where next_attempt_at <= v_now and (claimed_until is null or claimed_until <= v_now)
        order by next_attempt_at
        limit p_limit
        for update skip locked
    ),
    claimed as (
        update gateway.topic_deliveries as d
        set attempts = d.attempts + 1, claimed_until = v_now + make_interval(secs => p_lease_seconds)
        from due
        where d.event_id = due.event_id
        returning d.event_id, d.attempts
    )
    select coalesce(jsonb_agg(jsonb_build_object(
        'event_id', e.id, 'attempt', c.attempts, 'id', gateway.show_event_id(e.id), 'type', e.kind, 'created_at', e.at,
        'subject', e.subject, 'data', e.data
    ) order by e.at), '[]')
    into v_claimed
    from claimed as c
    join gateway.events as e on e.id = c.event_id;
    return jsonb_build_object('deliveries', v_claimed);
end
$$;

revoke all on function api.claim_topic_deliveries(text, integer, integer) from public;

grant execute on function api.claim_topic_deliveries(text, integer, integer) to service_role;

comment on function api.claim_topic_deliveries(text, integer, integer) is 'Takes events that are due for the SNS topic; nobody else gets them while the lease runs.';

-- api.finish_topic_delivery: what came of a claim, as api.finish_delivery.
create function api.finish_topic_delivery(p_event_id uuid, p_attempt integer, p_delivered boolean, p_status integer, p_error text) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_now timestamptz := clock_timestamp();
    v_delivery gateway.topic_deliveries;
begin
    update gateway.topic_deliveries
    set delivered_at = case when p_delivered then v_now end,
        next_attempt_at = case when not p_delivered then gateway.next_attempt_at(attempts, v_now) end,
        claimed_until = null,
        last_status = p_status,
        last_error = left(p_error, 300)
    where event_id = p_event_id and delivered_at is null and (p_delivered or (attempts = p_attempt and next_attempt_at is not null))
    returning * into v_delivery;
    return jsonb_build_object(
        'state', case
            when not found then 'stale'
            when v_delivery.delivered_at is not null then 'delivered'
            when v_delivery.next_attempt_at is not null then 'waiting'
            else 'given_up'
        end,
        'next_attempt_at', v_delivery.next_attempt_at);
end
$$;

revoke all on function api.finish_topic_delivery(uuid, integer, boolean, integer, text) from public;

grant execute on function api.finish_topic_delivery(uuid, integer, boolean, integer, text) to service_role;

comment on function api.finish_topic_delivery(uuid, integer, boolean, integer, text) is 'Writes what came of publishing an event: delivered, to be tried again, or given up.';

create function gateway.read_topic_deliveries(p_limit integer) returns jsonb
language plpgsql stable set search_path = ''
as $$
begin
    return (
        select jsonb_build_object(
            'topic_set', (select s.alert_topic_arn is not null from gateway.maintenance_state as s),
            'given_up', count(*) filter (where d.next_attempt_at is null),
            'last_delivered_at', (select max(delivered_at) from gateway.topic_deliveries where delivered_at is not null),
            'waiting', count(d.next_attempt_at),
            'waiting_since', min(e.at) filter (where d.next_attempt_at is not null),
            'undelivered', coalesce((
                select jsonb_agg(jsonb_build_object(
                    'id', gateway.show_event_id(u.id), 'type', u.kind, 'created_at', u.at, 'attempts', u.attempts,
                    'next_attempt_at', u.next_attempt_at, 'last_status', u.last_status, 'last_error', u.last_error
                ) order by u.at desc)
                from (
                    select n.id, n.kind, n.at, t.attempts, t.next_attempt_at, t.last_status, t.last_error
                    from gateway.topic_deliveries as t
                    join gateway.events as n on n.id = t.event_id
                    where t.delivered_at is null and t.attempts > 0
                    order by n.at desc
                    limit p_limit
                ) as u
            ), '[]'))
        from gateway.topic_deliveries as d
        join gateway.events as e on e.id = d.event_id
        where d.delivered_at is null
    );
end
$$;

comment on function gateway.read_topic_deliveries(integer) is 'How the publishing to the SNS topic is doing.';

revoke all on function gateway.read_topic_deliveries(integer) from public;

-- api.list_events: what happened, the newest first, after the event p_before in this order, with how far the telling has come:
-- [{"id", "type", "created_at", "customer_id", "subject", "data", "state": unsent (no webhook was set when it came) | waiting | delivered |
-- given_up, "attempts", "next_attempt_at", "delivered_at", "last_status", "last_error", "topic_state": the same of the SNS topic}]. p_state, p_kind: of these alone. Empty where
-- p_before is gone. Reads only.
create function api.list_events(
    p_limit integer, p_before uuid default null, p_state text default null, p_kind text default null
) returns jsonb
language plpgsql stable security definer set search_path = '' set plan_cache_mode = force_custom_plan
as $$
declare
    v_before gateway.events;
begin
    if p_before is not null then
        select * into v_before from gateway.events where id = p_before;
        if not found then
            return '[]'::jsonb;
        end if;
    end if;
    return (
        select coalesce(jsonb_agg(jsonb_build_object(
            'id', gateway.show_event_id(s.id), 'type', s.kind, 'created_at', s.at, 'customer_id', s.customer_id, 'subject', s.subject,
            'data', s.data, 'state', s.state, 'attempts', coalesce(s.attempts, 0), 'next_attempt_at', s.next_attempt_at,
            'delivered_at', s.delivered_at, 'last_status', s.last_status, 'last_error', s.last_error, 'topic_state', s.topic_state
        ) order by s.at desc, s.id desc), '[]')
        from (
            select e.id, e.kind, e.at, e.customer_id, e.subject, e.data, t.state, d.attempts, d.next_attempt_at, d.delivered_at,
                d.last_status, d.last_error, t.topic_state
            from gateway.events as e
            left join gateway.event_deliveries as d on d.event_id = e.id
            left join gateway.topic_deliveries as p on p.event_id = e.id
            cross join lateral (
                select
                    case
                        when d.event_id is null then 'unsent'
                        when d.delivered_at is not null then 'delivered'
                        when d.next_attempt_at is not null then 'waiting'
                        else 'given_up'
                    end as state,
                    case
                        when p.event_id is null then 'unsent'
                        when p.delivered_at is not null then 'delivered'
                        when p.next_attempt_at is not null then 'waiting'
                        else 'given_up'
                    end as topic_state
            ) as t
            where (p_before is null or (e.at, e.id) < (v_before.at, v_before.id))
                and (p_kind is null or e.kind = p_kind) and (p_state is null or t.state = p_state)
            order by e.at desc, e.id desc
            limit p_limit
        ) as s
    );
end
$$;

revoke all on function api.list_events(integer, uuid, text, text) from public;

grant execute on function api.list_events(integer, uuid, text, text) to service_role;

comment on function api.list_events(integer, uuid, text, text) is 'What happened, the newest first, and whether the webhook has been told.';

-- api.resend_event: puts an event in line for the webhook once more, whatever became of it, and for the SNS topic where that was given up.
-- {"id", "state": waiting}, or {"error": unknown_event | webhook_not_set: there is nobody to send it to}. One that was given up has one
-- attempt more. What is being sent just now is left at it. Locks the deliveries.
create function api.resend_event(p_event_id uuid) returns jsonb
language plpgsql security definer set search_path = ''
as $$
declare
    v_topic boolean;
begin
    perform from gateway.events where id = p_event_id for key share;
    if not found then
        return jsonb_build_object('error', 'unknown_event');
    end if;
    update gateway.topic_deliveries
    set next_attempt_at = clock_timestamp()
    where event_id = p_event_id and delivered_at is null and next_attempt_at is null
        and exists (select from gateway.maintenance_state where alert_topic_arn is not null);
    v_topic := found;
    insert into gateway.event_deliveries as d (event_id)
    select p_event_id from gateway.settings where webhook_url is not null
    on conflict (event_id) do update set next_attempt_at = clock_timestamp(), delivered_at = null;
    if not found and not v_topic then
        return jsonb_build_object('error', 'webhook_not_set');
    end if;
    return jsonb_build_object('id', gateway.show_event_id(p_event_id), 'state', 'waiting');
end
$$;

revoke all on function api.resend_event(uuid) from public;

grant execute on function api.resend_event(uuid) to service_role;

comment on function api.resend_event(uuid) is 'Puts an event in line for the webhook once more, and for the topic where that was given up.';

comment on column gateway.ledger_readable.kind is 'credit (paid in), correction (by an admin), charge (of a request), late_settlement (of a request whose hold had expired), refund and dispute (of a payment: taken back), reinstatement (a dispute was won, or a refund failed), debt_payment (what became free went to the debt).';

create or replace view gateway.price_list with (security_invoker = true) as
select m.name as model, o.provider, o.upstream_model, s.name as service, m.active,
    p.input as input_per_million_usd, p.cached_input as cached_input_per_million_usd, p.cache_write as cache_write_per_million_usd,
    p.output as output_per_million_usd, p.audio_input as audio_input_per_million_usd, p.image_input as image_input_per_million_usd,
    p.audio_output as audio_output_per_million_usd, p.image_output as image_output_per_million_usd,
    p.per_request as per_request_usd, p.per_image as per_image_usd,
    trim_scale(p.input * 0.000001) as input_per_token_usd, trim_scale(p.output * 0.000001) as output_per_token_usd,
    p.effective_from, n.effective_from as next_price_from, p.source, p.source_date, p.id as price_id,
    p.cache_write_1h as cache_write_1h_per_million_usd, p.tiers
from gateway.offers as o
join gateway.models as m on m.id = o.model_id
join (
    select distinct on (offer_id, service_id) *
    from gateway.prices
    where effective_from <= now()
    order by offer_id, service_id, effective_from desc
) as p on p.offer_id = o.id
left join gateway.services as s on s.id = p.service_id
left join lateral (
    select min(f.effective_from) as effective_from
    from gateway.prices as f
    where f.offer_id = p.offer_id and f.service_id is not distinct from p.service_id and f.effective_from > now()
) as n on true
order by m.name, o.provider, s.name;

comment on view gateway.price_list is 'The prices in force: what each provider takes for each model, before the commission. Of a long prompt: gateway.price_tiers.';

comment on column gateway.price_list.tiers is 'What a long prompt costs, where that is another price; a line each in gateway.price_tiers.';

create view gateway.price_tiers with (security_invoker = true) as
select p.model, p.provider, p.service, p.active, (t.value ->> 'above_input_tokens')::bigint as above_input_tokens,
    (t.value ->> 'input')::numeric as input_per_million_usd, (t.value ->> 'cached_input')::numeric as cached_input_per_million_usd,
    (t.value ->> 'cache_write')::numeric as cache_write_per_million_usd, (t.value ->> 'cache_write_1h')::numeric as cache_write_1h_per_million_usd,
    (t.value ->> 'output')::numeric as output_per_million_usd, (t.value ->> 'audio_input')::numeric as audio_input_per_million_usd,
    (t.value ->> 'image_input')::numeric as image_input_per_million_usd, (t.value ->> 'audio_output')::numeric as audio_output_per_million_usd,
    (t.value ->> 'image_output')::numeric as image_output_per_million_usd, p.effective_from, p.source, p.source_date, p.price_id
from gateway.price_list as p
cross join lateral jsonb_array_elements(p.tiers) as t
order by p.model, p.provider, p.service, above_input_tokens;

create trigger read_only instead of insert or update or delete on gateway.price_tiers
    for each row execute function gateway.refuse_view_edit('Edit tiers of gateway.prices: an edit there makes a new version.');

comment on view gateway.price_tiers is 'The prices in force of long prompts: from which length on, and what the whole request costs then. The rest: gateway.price_list.';

comment on column gateway.price_tiers.model is 'The model in our catalogue.';

comment on column gateway.price_tiers.provider is 'Who sells it.';

comment on column gateway.price_tiers.service is 'The service that alone has this price; empty: every service of the provider without one of its own.';

comment on column gateway.price_tiers.active is 'False: the model is hidden and refused.';

comment on column gateway.price_tiers.above_input_tokens is 'A request with more input tokens than this, cached and written ones included, costs what stands here, up to the next line''s.';

comment on column gateway.price_tiers.input_per_million_usd is 'USD per million input tokens.';

comment on column gateway.price_tiers.cached_input_per_million_usd is 'USD per million input tokens read from the provider''s cache. Empty: as input.';

comment on column gateway.price_tiers.cache_write_per_million_usd is 'USD per million input tokens written to the provider''s cache. Empty: as input.';

comment on column gateway.price_tiers.cache_write_1h_per_million_usd is 'USD per million input tokens written to the provider''s cache for an hour. Empty: not offered.';

comment on column gateway.price_tiers.output_per_million_usd is 'USD per million output tokens, reasoning included.';

comment on column gateway.price_tiers.audio_input_per_million_usd is 'USD per million audio tokens read. Empty: as input.';

comment on column gateway.price_tiers.image_input_per_million_usd is 'USD per million image tokens read. Empty: as input.';

comment on column gateway.price_tiers.audio_output_per_million_usd is 'USD per million audio tokens answered. Empty: as output.';

comment on column gateway.price_tiers.image_output_per_million_usd is 'USD per million image tokens answered. Empty: as output.';

comment on column gateway.price_tiers.effective_from is 'In force since.';

comment on column gateway.price_tiers.source is 'Where the price was read.';

comment on column gateway.price_tiers.source_date is 'When it was read there.';

comment on column gateway.price_tiers.price_id is 'The version, in gateway.prices.';

create or replace view legacy.pricing with (security_invoker = true) as
select p.provider, p.model, greatest(
        p.input_per_token_usd, p.output_per_token_usd,
        (select max(trim_scale(greatest((t.value ->> 'input')::numeric, (t.value ->> 'output')::numeric) * 0.000001))
         from jsonb_array_elements(p.tiers) as t)) as price_per_token,
    p.input_per_token_usd as input_price_per_token, p.output_per_token_usd as output_price_per_token, p.effective_from
from gateway.price_list as p
where p.service is null;

comment on column legacy.pricing.price_per_token is 'USD for a token of either kind at most: the dearer of the two, of the longest prompts where these cost more. Requests are charged by the two, each by itself.';

comment on column legacy.pricing.input_price_per_token is 'USD for an input token. Of a long prompt: gateway.price_tiers.';

comment on column legacy.pricing.output_price_per_token is 'USD for an output token. After a long prompt: gateway.price_tiers.';

create policy nobody on gateway.topic_deliveries as restrictive to public using (false);

create policy nobody on gateway.maintenance_state as restrictive to public using (false);

create policy nobody on gateway.exhausted_accounts as restrictive to public using (false);

create policy nobody on gateway.payments as restrictive to public using (false);

create policy nobody on gateway.payment_refunds as restrictive to public using (false);

create policy nobody on gateway.payment_disputes as restrictive to public using (false);

create policy nobody on gateway.payment_events as restrictive to public using (false);

create policy nobody on gateway.statements as restrictive to public using (false);
