-- Revoke a key for good, with the secrets that it had before. Put in its first characters, as its owner tells them.
update gateway.api_keys
set active = false, revoked_at = coalesce(revoked_at, now())
where prefix = 'sk_a1B2c3D4'
returning id, customer_id, name, prefix, revoked_at;
