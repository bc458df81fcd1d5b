SET LOCAL lock_timeout = '5s';
DROP VIEW metering.drift;
DROP TABLE public.usage_metrics, metering.usage_ledger, metering.holds, metering.entitlements, metering.thresholds;
DROP FUNCTION metering.erase_user(text), metering.on_counter_deleted(), metering.guard_ledger(),
    metering.period_start(timestamptz), metering.period_end(timestamptz);
REVOKE USAGE ON SCHEMA metering FROM authenticated, service_role;
ALTER ROLE venture_operator RESET deadlock_timeout;
