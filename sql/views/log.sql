create view gateway.request_log with (security_invoker = true) as
select r.admitted_at as at, r.id as request_id, c.name as customer, k.prefix as key_prefix, coalesce(m.name, r.requested_model) as model,
    s.provider, s.name as service, r.endpoint, r.streamed,
    case r.state when 'held' then 'running' when 'settled' then r.outcome else r.state end as status,
    r.status as http_status, r.error_code, r.finish_reason,
    coalesce(r.input_tokens, 0) + coalesce(r.cached_input_tokens, 0) + coalesce(r.cache_write_tokens, 0)
    + coalesce(r.audio_input_tokens, 0) + coalesce(r.image_input_tokens, 0) as input_tokens,
    coalesce(r.output_tokens, 0) + coalesce(r.audio_output_tokens, 0) + coalesce(r.image_output_tokens, 0) as output_tokens,
    r.usage_estimated, r.hold_usd, r.cost_usd, r.charge_usd, r.uncollected_usd, r.latency_ms, r.time_to_first_token_ms,
    r.requested_model, coalesce(jsonb_array_length(r.failed_routes), 0) as failed_routes, r.customer_id, r.key_id
from gateway.requests as r
left join gateway.customers as c on c.id = r.customer_id
left join gateway.api_keys as k on k.id = r.key_id
left join gateway.models as m on m.id = r.model_id
left join gateway.services as s on s.id = r.service_id
where r.admitted_at > now() - interval '7 days'
order by r.admitted_at desc, r.id;
create trigger read_only instead of insert or update or delete on gateway.request_log
    for each row execute function gateway.refuse_view_edit('A request is never edited; give money back with api.add_credits.');

comment on view gateway.request_log is 'The requests of the last seven days, newest first, in words. Never the content. Older ones are in gateway.requests.';
comment on column gateway.request_log.at is 'When it was admitted.';
comment on column gateway.request_log.request_id is 'Its id, as in x-request-id.';
comment on column gateway.request_log.customer is 'Who pays.';
comment on column gateway.request_log.key_prefix is 'First characters of the key that it came with.';
comment on column gateway.request_log.model is 'The model that answered; while it runs, the first candidate.';
comment on column gateway.request_log.provider is 'The provider that answered; empty where none did.';
comment on column gateway.request_log.service is 'The service that answered; empty where none did.';
comment on column gateway.request_log.endpoint is 'Which API: chat.completions, generate, ….';
comment on column gateway.request_log.streamed is 'Whether the client asked for a stream.';
comment on column gateway.request_log.status is 'running, succeeded, failed (not charged), cancelled (the client left), cut (the provider or the deadline ended it), expired (nobody settled it) or refused (a sample).';
comment on column gateway.request_log.http_status is 'HTTP status that the client was given.';
comment on column gateway.request_log.error_code is 'Error code that the client was given.';
comment on column gateway.request_log.finish_reason is 'Why the answer ended, as the provider told.';
comment on column gateway.request_log.input_tokens is 'Tokens read, of all input classes.';
comment on column gateway.request_log.output_tokens is 'Tokens answered, of all output classes.';
comment on column gateway.request_log.usage_estimated is 'True: the provider told no usage, and it was counted here.';
comment on column gateway.request_log.hold_usd is 'Upper bound of the charge, held while it ran.';
comment on column gateway.request_log.cost_usd is 'What the provider takes.';
comment on column gateway.request_log.charge_usd is 'What the customer owes.';
comment on column gateway.request_log.uncollected_usd is 'Of the charge, what could not be taken.';
comment on column gateway.request_log.latency_ms is 'From admission to the end, in milliseconds.';
comment on column gateway.request_log.time_to_first_token_ms is 'From admission to the provider''s first token, in milliseconds.';
comment on column gateway.request_log.requested_model is 'What the client wrote.';
comment on column gateway.request_log.failed_routes is 'How many routes were tried and failed.';
comment on column gateway.request_log.customer_id is 'Who pays: the id.';
comment on column gateway.request_log.key_id is 'The key''s id.';

create view gateway.holds_outstanding with (security_invoker = true) as
select r.id as request_id, c.name as customer, k.prefix as key_prefix, m.name as model, r.endpoint, r.streamed, r.hold_usd, r.admitted_at,
    date_trunc('second', now() - r.admitted_at) as age, r.lease_until, r.lease_until < now() as orphaned, r.customer_id, r.key_id
from gateway.requests as r
left join gateway.customers as c on c.id = r.customer_id
left join gateway.api_keys as k on k.id = r.key_id
left join gateway.models as m on m.id = r.model_id
where r.state = 'held'
order by r.lease_until;
create trigger read_only instead of insert or update or delete on gateway.holds_outstanding
    for each row execute function gateway.refuse_view_edit('A hold ends with its request, or by api.expire_holds once its lease is over.');

comment on view gateway.holds_outstanding is 'What runs now and holds money. Orphaned ones are ended by the next sweep: several minutes old, they mean that maintenance is not running.';
comment on column gateway.holds_outstanding.request_id is 'The request.';
comment on column gateway.holds_outstanding.customer is 'Whose money.';
comment on column gateway.holds_outstanding.key_prefix is 'First characters of the key that it came with.';
comment on column gateway.holds_outstanding.model is 'The first model that it may take.';
comment on column gateway.holds_outstanding.endpoint is 'Which API: chat.completions, generate, ….';
comment on column gateway.holds_outstanding.streamed is 'Whether the client asked for a stream.';
comment on column gateway.holds_outstanding.hold_usd is 'Upper bound of the charge: what is held.';
comment on column gateway.holds_outstanding.admitted_at is 'When it was admitted.';
comment on column gateway.holds_outstanding.age is 'How long ago.';
comment on column gateway.holds_outstanding.lease_until is 'From then on the sweeper may end the hold.';
comment on column gateway.holds_outstanding.orphaned is 'True: the lease is over, and nobody settled it.';
comment on column gateway.holds_outstanding.customer_id is 'Whose money: the id.';
comment on column gateway.holds_outstanding.key_id is 'The key''s id.';

create view gateway.ledger_readable with (security_invoker = true) as
select e.created_at as at, c.name as customer, e.kind, e.amount_usd, e.balance_after_usd, e.request_id, e.reference, e.note, e.actor,
    e.id as entry_id, e.customer_id
from gateway.ledger_entries as e
join gateway.customers as c on c.id = e.customer_id
order by e.id desc;
create trigger read_only instead of insert or update or delete on gateway.ledger_readable
    for each row execute function gateway.refuse_view_edit('The books are append-only; correct a balance with api.add_credits.');

comment on view gateway.ledger_readable is 'The books with their customers'' names, newest first.';
comment on column gateway.ledger_readable.at is 'When.';
comment on column gateway.ledger_readable.customer is 'Whose account.';
comment on column gateway.ledger_readable.kind is 'credit (paid in), correction (by an admin), charge (of a request), late_settlement (of a request whose hold had expired), refund and dispute (of a payment: taken back), reinstatement (a dispute was won, or a refund failed), debt_payment (what became free went to the debt).';
comment on column gateway.ledger_readable.amount_usd is 'Positive raises the balance, negative lowers it.';
comment on column gateway.ledger_readable.balance_after_usd is 'The balance after this entry.';
comment on column gateway.ledger_readable.request_id is 'The request that it is for.';
comment on column gateway.ledger_readable.reference is 'The payer''s or admin''s reference.';
comment on column gateway.ledger_readable.note is 'Free text.';
comment on column gateway.ledger_readable.actor is 'Who did it.';
comment on column gateway.ledger_readable.entry_id is 'The entry; later ones of a customer have larger ids.';
comment on column gateway.ledger_readable.customer_id is 'Whose account: the id.';
