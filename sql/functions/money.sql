-- Here and in windows.sql: PL/pgSQL with a search_path of its own costs an admission and its settlement no more than SQL that is
-- inlined (2.90 and 2.75 ms of CPU the pair, measured); SQL with one is not inlined and is planned at every call: 8 % more.

-- The one place where money is rounded.
create function gateway.round_up_usd(p_exact numeric) returns numeric
language plpgsql immutable parallel safe set search_path = ''
as $$
begin
    return ceil(p_exact * 10000000000) * 0.0000000001;
end
$$;
comment on function gateway.round_up_usd(numeric) is 'An exact amount, rounded up at the tenth decimal: once for a cost, once for a charge, never in between.';
revoke all on function gateway.round_up_usd(numeric) from public;

create function gateway.show_credits(p_usd numeric, p_credit_value_usd numeric) returns numeric
language plpgsql immutable parallel safe set search_path = ''
as $$
begin
    return trim_scale(floor(p_usd / p_credit_value_usd * 10000) * 0.0001);
end
$$;
comment on function gateway.show_credits(numeric, numeric) is 'USD shown as credits, rounded down at the fourth decimal. For showing only: the books are in USD.';
revoke all on function gateway.show_credits(numeric, numeric) from public;

create function gateway.show_usd(p_usd numeric) returns text
language plpgsql immutable parallel safe set search_path = ''
as $$
begin
    return trim_scale(p_usd)::text;
end
$$;
comment on function gateway.show_usd(numeric) is 'An amount as it crosses the wire: exact decimal text.';
revoke all on function gateway.show_usd(numeric) from public;

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

create function gateway.tokens_cost_usd(p_prices jsonb, p_usage jsonb) returns numeric
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
revoke all on function gateway.tokens_cost_usd(jsonb, jsonb) from public;

create function gateway.fixed_cost_usd(p_prices jsonb, p_usage jsonb) returns numeric
language plpgsql immutable parallel safe set search_path = ''
as $$
begin
    return coalesce((p_prices ->> 'per_request')::numeric, 0)
        + coalesce((p_usage ->> 'images')::bigint, 0) * coalesce((p_prices ->> 'per_image')::numeric, 0);
end
$$;
comment on function gateway.fixed_cost_usd(jsonb, jsonb) is 'Exact cost of what is not a token: the request itself, and the images made.';
revoke all on function gateway.fixed_cost_usd(jsonb, jsonb) from public;

create function gateway.total_tokens(p_usage jsonb) returns bigint
language plpgsql immutable parallel safe set search_path = ''
as $$
begin
    return coalesce((p_usage ->> 'input')::bigint, 0) + coalesce((p_usage ->> 'cached_input')::bigint, 0)
        + coalesce((p_usage ->> 'cache_write')::bigint, 0) + coalesce((p_usage ->> 'audio_input')::bigint, 0)
        + coalesce((p_usage ->> 'image_input')::bigint, 0) + coalesce((p_usage ->> 'output')::bigint, 0)
        + coalesce((p_usage ->> 'audio_output')::bigint, 0) + coalesce((p_usage ->> 'image_output')::bigint, 0);
end
$$;
comment on function gateway.total_tokens(jsonb) is 'Tokens of all the disjoint classes; reasoning is inside the output.';
revoke all on function gateway.total_tokens(jsonb) from public;
