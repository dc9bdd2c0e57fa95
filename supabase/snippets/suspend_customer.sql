-- Suspend a customer at once: its next request is refused, and what runs is finished and charged. true lets it in again. Put in the address.
update gateway.customers
set active = false
where lower(email) = lower('ada@example.com')
returning id, name, email, active;
