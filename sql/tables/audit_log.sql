create table gateway.audit_log (
    id bigint generated always as identity primary key,
    at timestamptz not null default clock_timestamp(),
    actor text not null,
    action text not null check (action in ('insert', 'update', 'delete')),
    entity text not null,
    entity_id text not null,
    before jsonb,
    after jsonb
);
create index audit_log_entity_idx on gateway.audit_log (entity, entity_id, id);
create index audit_log_actor_idx on gateway.audit_log (actor, id);
create index audit_log_at_idx on gateway.audit_log (at);
alter table gateway.audit_log enable row level security;

comment on table gateway.audit_log is 'Who changed what when: every change of customers, keys, services, routes, models, offers, prices, limits and settings, by the API or by hand. No secrets.';
comment on column gateway.audit_log.id is 'Identifies the record.';
comment on column gateway.audit_log.at is 'When.';
comment on column gateway.audit_log.actor is 'Who: an admin key''s or user''s name as the gateway tells it, else the database role (Studio is postgres).';
comment on column gateway.audit_log.action is 'insert, update or delete.';
comment on column gateway.audit_log.entity is 'Which table.';
comment on column gateway.audit_log.entity_id is 'Which row.';
comment on column gateway.audit_log.before is 'The row before, without secrets; of an update, only what changed.';
comment on column gateway.audit_log.after is 'The row after, without secrets; of an update, only what changed.';
