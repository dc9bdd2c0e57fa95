-- Who changed what in the last day. Studio's own edits are by postgres.
select at, actor, action, entity, entity_id, before, after
from gateway.audit_log
where at > now() - interval '1 day'
order by id desc
limit 500;
