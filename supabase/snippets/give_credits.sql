-- Pay in by hand, in USD. The same reference again is credited once; a negative amount corrects. Put in address, amount and reference.
select api.add_credits(
    p_email => 'ada@example.com', p_usd => 10, p_reference => 'invoice-1', p_note => 'by hand', p_actor => session_user::text);
