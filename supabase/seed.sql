-- What `supabase start` and `supabase db reset` put into a local project, so that Studio has something to show: a customer with 5 USD. No
-- key and no secret: `sluice admin-key` makes the first key, and that makes the rest. Running it again changes nothing.
select api.create_customer(p_name => 'Demo', p_email => 'demo@sluice.example', p_username => 'demo', p_actor => 'seed');
select api.add_credits(
    p_email => 'demo@sluice.example', p_usd => 5, p_reference => 'first credits of the demo', p_actor => 'seed');
