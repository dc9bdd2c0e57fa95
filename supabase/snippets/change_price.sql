-- A new price, in USD per million tokens, from now on; what was admitted keeps the old one. An edit of gateway.prices does the same. Put in
-- model, provider and prices.
select api.create_price(
    p_model => 'my-model', p_provider => 'openai', p_prices => '{"input": "0.15", "cached_input": "0.075", "output": "0.60"}',
    p_actor => session_user::text);
