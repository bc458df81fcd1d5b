SET LOCAL lock_timeout = '5s';
SET LOCAL ROLE venture_owner;
-- NOT VALID, so that nobody waits for a look at all rows: what comes in is checked, and what is there says the same.
ALTER TABLE metering.usage_ledger
    ADD CONSTRAINT usage_ledger_metric_type_check CHECK (metric_type ~ '^[a-z][a-z0-9_]{0,62}$') NOT VALID,
    DROP CONSTRAINT usage_ledger_name;
ALTER TABLE public.usage_metrics
    ADD CONSTRAINT usage_metrics_metric_type_check CHECK (metric_type ~ '^[a-z][a-z0-9_]{0,62}$') NOT VALID,
    DROP CONSTRAINT usage_metrics_name;
