-- depends: 0007_metric_names
-- A transaction of its own: it reads all counters and the whole ledger, under a lock that lets everybody else read and
-- write meanwhile. In the one that makes the constraints it would keep everybody out for as long.

SET LOCAL lock_timeout = '5s';
SET LOCAL ROLE venture_owner;

ALTER TABLE public.usage_metrics VALIDATE CONSTRAINT usage_metrics_name;
ALTER TABLE metering.usage_ledger VALIDATE CONSTRAINT usage_ledger_name;
