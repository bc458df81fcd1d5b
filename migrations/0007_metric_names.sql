-- depends: 0006_keys_kept_a_day
-- The same names as before, checked more cheaply: of a bounded repetition the server makes a machine of sixty-odd
-- states, which took 1.8 µs a check instead of 0.3, and a counter is checked twice whenever it is changed (once as the
-- row that was proposed, once as the row it became).

SET LOCAL lock_timeout = '5s';
SET LOCAL ROLE venture_owner;

-- NOT VALID: whoever waits for these locks waits for no look at the rows. They satisfy the constraint that goes, which
-- says the same; the next migration has the server see that for itself.
ALTER TABLE public.usage_metrics
    ADD CONSTRAINT usage_metrics_name CHECK (metric_type ~ '^[a-z][a-z0-9_]*$' AND length(metric_type) <= 63) NOT VALID,
    DROP CONSTRAINT usage_metrics_metric_type_check;
ALTER TABLE metering.usage_ledger
    ADD CONSTRAINT usage_ledger_name CHECK (metric_type ~ '^[a-z][a-z0-9_]*$' AND length(metric_type) <= 63) NOT VALID,
    DROP CONSTRAINT usage_ledger_metric_type_check;
