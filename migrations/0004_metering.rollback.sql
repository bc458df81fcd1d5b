SET LOCAL lock_timeout = '5s';
DROP VIEW metering.drift;
DO $$
DECLARE
    month record;
BEGIN
    FOR month IN SELECT name FROM metering.ledger_months() WHERE NOT is_attached LOOP
        EXECUTE format('DROP TABLE metering.%I', month.name);
    END LOOP;
END
$$;
DROP TABLE public.usage_metrics, metering.usage_ledger, metering.booked_events, metering.conflicts, metering.holds,
    metering.entitlements, metering.thresholds, metering.grant_uses, metering.grants, metering.seen_values,
    metering.spikes;
DROP SEQUENCE metering.ledger_entries;
DROP FUNCTION metering.erase_user(text), metering.on_counter_deleted(), metering.guard_ledger(),
    metering.make_ledger_months(timestamptz, timestamptz), metering.ledger_since(), metering.ledger_months(),
    metering.detach_ledger_months(timestamptz), metering.event_key(text, text),
    metering.period_at(timestamptz, timestamptz, timestamptz),
    metering.period_start(timestamptz), metering.period_end(timestamptz);
REVOKE USAGE ON SCHEMA metering FROM authenticated, service_role;
ALTER ROLE venture_operator RESET deadlock_timeout;
ALTER ROLE venture_metering RESET deadlock_timeout;
