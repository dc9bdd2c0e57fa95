-- Whether the books add up: every balance from the ledger, every hold from the running requests.
select jsonb_pretty(api.check_ledger()) as ledger;
