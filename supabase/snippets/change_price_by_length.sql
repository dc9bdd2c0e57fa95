-- A new price that goes by the length of the prompt, in USD per million tokens, from now on: a request with more input tokens than a tier says
-- costs the tier's rates, all of it. A tier has every class that the price itself has. Put in model, provider, prices and tiers.
select api.create_price(
    p_model => 'my-model', p_provider => 'openai',
    p_prices => '{"input": "1.25", "output": "10", "tiers": [{"above_input_tokens": 200000, "input": "2.5", "output": "15"}]}',
    p_actor => session_user::text);
