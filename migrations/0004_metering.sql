-- depends: 0002_gateway
-- Metering's tables: counters, ledger, holds, the projection of entitlements, told thresholds.

SET LOCAL lock_timeout = '5s';

-- When an operator's DELETE and a reservation lock one user's rows crosswise, whoever looks for deadlocks first gives
-- way: with this it is the reservation, which is repeated, and never the operator's statement.
ALTER ROLE venture_operator SET deadlock_timeout = '10s';

SET LOCAL ROLE venture_owner;

GRANT USAGE ON SCHEMA metering TO authenticated, service_role;

-- Calendar months in UTC, half-open.
CREATE FUNCTION metering.period_start(at timestamptz) RETURNS timestamptz LANGUAGE sql STABLE AS
$$ SELECT date_trunc('month', at, 'UTC') $$;
CREATE FUNCTION metering.period_end(at timestamptz) RETURNS timestamptz LANGUAGE sql STABLE AS
$$ SELECT (date_trunc('month', at AT TIME ZONE 'UTC') + interval '1 month') AT TIME ZONE 'UTC' $$;
GRANT EXECUTE ON FUNCTION metering.period_start(timestamptz), metering.period_end(timestamptz)
    TO authenticated, service_role, venture_metering, venture_operator;

-- Settled and held stand on one row, so that `settled + held + asked <= limit` is one conditional statement.
CREATE TABLE public.usage_metrics (
    user_id text NOT NULL,
    metric_type text NOT NULL CHECK (metric_type IN ('runs', 'tokens', 'templates', 'exports')),
    metric_value bigint NOT NULL DEFAULT 0 CHECK (metric_value >= 0),
    held_value bigint NOT NULL DEFAULT 0 CHECK (held_value >= 0),
    period_start timestamptz NOT NULL,
    period_end timestamptz NOT NULL CHECK (period_end > period_start),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, metric_type, period_start)
) WITH (fillfactor = 70);  -- a counter is rewritten all the time: room on its page keeps the rewrite off the index

-- What was used, for ever. (source, event_id) is the name of the fact: booked once whatever is delivered how often.
-- A partitioned table cannot promise that by itself: when this becomes one, the key moves to a table of its own.
CREATE TABLE metering.usage_ledger (
    id uuid PRIMARY KEY DEFAULT public.uuid_v7(),
    source text NOT NULL,
    event_id text NOT NULL,
    user_id text NOT NULL,
    metric_type text NOT NULL CHECK (metric_type IN ('runs', 'tokens', 'templates', 'exports')),
    amount bigint NOT NULL CHECK (amount <> 0),
    kind text NOT NULL CHECK (kind IN ('usage', 'adjustment', 'refund')),
    period_start timestamptz NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    attributes jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(attributes) = 'object'),
    UNIQUE (source, event_id),
    CHECK (kind <> 'usage' OR amount > 0)
);
CREATE INDEX usage_ledger_user ON metering.usage_ledger (user_id, period_start, metric_type);

-- `state` is how the hold stands or how it ended; `settled_at` is when its run's usage was booked, which may also
-- happen after a sweep. `amounts` is {"metric": amount}.
CREATE TABLE metering.holds (
    id uuid PRIMARY KEY,
    user_id text NOT NULL,
    amounts jsonb NOT NULL CHECK (jsonb_typeof(amounts) = 'object'),
    state text NOT NULL DEFAULT 'held' CHECK (state IN ('held', 'settled', 'released', 'swept')),
    period_start timestamptz NOT NULL,
    period_end timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    confirmed_at timestamptz,
    expires_at timestamptz NOT NULL,
    ended_at timestamptz,
    settled_at timestamptz,
    CHECK ((state = 'held') = (ended_at IS NULL)),
    CHECK (state NOT IN ('held', 'settled') OR (state = 'settled') = (settled_at IS NOT NULL))
);
CREATE INDEX holds_open ON metering.holds (expires_at) WHERE state = 'held';
CREATE INDEX holds_user ON metering.holds (user_id);

-- What the gateway said last of a user. `erased_as` is the pseudonym of a deleted account in the ledger; the row stays
-- as the mark that makes latecomers harmless.
CREATE TABLE metering.entitlements (
    user_id text PRIMARY KEY,
    version bigint NOT NULL,
    tier text NOT NULL,
    status text NOT NULL,
    features jsonb NOT NULL DEFAULT '{}',
    period_start timestamptz,
    period_end timestamptz,
    updated_at timestamptz NOT NULL DEFAULT now(),
    erased_as text
);

CREATE TABLE metering.thresholds (
    user_id text NOT NULL,
    metric_type text NOT NULL,
    period_start timestamptz NOT NULL,
    percent integer NOT NULL,
    told_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, metric_type, period_start, percent)
);

-- Who may do what. ---------------------------------------------------------------------------------------------------

GRANT SELECT, INSERT, UPDATE, DELETE ON public.usage_metrics TO venture_metering;
GRANT SELECT, INSERT ON metering.usage_ledger TO venture_metering;  -- append-only by grant
GRANT SELECT, INSERT, UPDATE ON metering.holds TO venture_metering;
GRANT SELECT, INSERT, UPDATE ON metering.entitlements TO venture_metering;
GRANT SELECT, INSERT ON metering.thresholds TO venture_metering;

GRANT SELECT, DELETE ON public.usage_metrics TO venture_operator, service_role;
GRANT SELECT ON metering.usage_ledger, metering.holds, metering.entitlements, metering.thresholds
    TO venture_operator, service_role;
GRANT SELECT ON public.usage_metrics, metering.usage_ledger, metering.entitlements TO authenticated;

ALTER TABLE public.usage_metrics ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE metering.usage_ledger ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE metering.holds ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE metering.entitlements ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE metering.thresholds ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;

-- The owner is here because definer functions run as it, and forced row-level security binds it, too.
CREATE POLICY usage_metrics_system ON public.usage_metrics
    TO venture_metering, venture_owner, venture_operator, service_role USING (true) WITH CHECK (true);
CREATE POLICY usage_ledger_system ON metering.usage_ledger
    TO venture_metering, venture_owner, venture_operator, service_role USING (true) WITH CHECK (true);
CREATE POLICY holds_system ON metering.holds
    TO venture_metering, venture_owner, venture_operator, service_role USING (true) WITH CHECK (true);
CREATE POLICY entitlements_system ON metering.entitlements
    TO venture_metering, venture_owner, venture_operator, service_role USING (true) WITH CHECK (true);
CREATE POLICY thresholds_system ON metering.thresholds
    TO venture_metering, venture_owner, venture_operator, service_role USING (true) WITH CHECK (true);

-- In a sub-SELECT the caller is worked out once per statement instead of once per row.
CREATE POLICY usage_metrics_read ON public.usage_metrics FOR SELECT TO authenticated
    USING (user_id = (SELECT auth.uid())::text OR (SELECT public.is_admin()));
CREATE POLICY usage_ledger_read ON metering.usage_ledger FOR SELECT TO authenticated
    USING (user_id = (SELECT auth.uid())::text OR (SELECT public.is_admin()));
CREATE POLICY entitlements_read ON metering.entitlements FOR SELECT TO authenticated
    USING (user_id = (SELECT auth.uid())::text OR (SELECT public.is_admin()));

-- What follows from rows, whoever changed them. ----------------------------------------------------------------------

CREATE FUNCTION metering.guard_ledger() RETURNS trigger LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    -- One change exists: metering.erase_user, which runs as the owner, puts a pseudonym in place of the user.
    IF TG_OP = 'UPDATE' AND current_user = 'venture_owner'
        AND to_jsonb(NEW) - 'user_id' = to_jsonb(OLD) - 'user_id'
    THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'the usage ledger is append-only: book an adjustment instead' USING ERRCODE = 'insufficient_privilege';
END
$$;
CREATE TRIGGER usage_ledger_append_only BEFORE UPDATE OR DELETE ON metering.usage_ledger
    FOR EACH ROW EXECUTE FUNCTION metering.guard_ledger();
CREATE TRIGGER usage_ledger_no_truncate BEFORE TRUNCATE ON metering.usage_ledger
    FOR EACH STATEMENT EXECUTE FUNCTION metering.guard_ledger();

-- Deleting a counter gives the quota back: the ledger gets the opposite amount, so both stay equal, and what open
-- holds still hold stays held, so that the runs under way cannot exceed the limit either.
CREATE FUNCTION metering.on_counter_deleted() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
    IF OLD.metric_value > 0 THEN
        INSERT INTO metering.usage_ledger (source, event_id, user_id, metric_type, amount, kind, period_start, attributes)
        VALUES ('metering.reset', public.uuid_v7()::text, OLD.user_id, OLD.metric_type, -OLD.metric_value, 'adjustment',
            OLD.period_start, jsonb_build_object('by', session_user));
    END IF;
    IF OLD.held_value > 0 THEN
        INSERT INTO public.usage_metrics (user_id, metric_type, held_value, period_start, period_end)
        VALUES (OLD.user_id, OLD.metric_type, OLD.held_value, OLD.period_start, OLD.period_end);
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER usage_metrics_deleted AFTER DELETE ON public.usage_metrics
    FOR EACH ROW EXECUTE FUNCTION metering.on_counter_deleted();

-- A deleted account: everything goes but the ledger, which is kept under a pseudonym. Safe to repeat.
CREATE FUNCTION metering.erase_user(erased text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE
    pseudonym text;
BEGIN
    INSERT INTO metering.entitlements AS e (user_id, version, tier, status, erased_as)
    VALUES (erased, 9223372036854775807, 'free', 'erased', 'erased:' || gen_random_uuid())
    -- ON CONFLICT: entitlements that arrive at the same moment come before this version, or are older than it.
    ON CONFLICT (user_id) DO UPDATE
    SET version = EXCLUDED.version, tier = EXCLUDED.tier, status = EXCLUDED.status, features = '{}',
        period_start = NULL, period_end = NULL, updated_at = now(),
        erased_as = coalesce(e.erased_as, EXCLUDED.erased_as)
    RETURNING erased_as INTO pseudonym;

    -- Holds before counters, counters in the order everyone locks them: no deadlock with reservations and settlements.
    DELETE FROM metering.holds WHERE user_id = erased;
    -- FOR UPDATE makes a reservation under way finish first; it would otherwise add to a counter that is being deleted.
    PERFORM FROM public.usage_metrics WHERE user_id = erased ORDER BY metric_type, period_start FOR UPDATE;
    -- At zero the trigger on DELETE has nothing to book and nothing to keep.
    UPDATE public.usage_metrics SET metric_value = 0, held_value = 0 WHERE user_id = erased;
    DELETE FROM public.usage_metrics WHERE user_id = erased;
    DELETE FROM metering.thresholds WHERE user_id = erased;
    UPDATE metering.usage_ledger SET user_id = pseudonym WHERE user_id = erased;
END
$$;
GRANT EXECUTE ON FUNCTION metering.erase_user(text) TO venture_metering;

-- Empty, or something is wrong: where counters differ from the ledger, or held amounts from the open holds.
CREATE VIEW metering.drift WITH (security_invoker = true) AS
    SELECT user_id, metric_type, period_start,
        sum(counted) AS counted, sum(booked) AS booked, sum(held) AS held, sum(open) AS open
    FROM (
        SELECT user_id, metric_type, period_start, metric_value AS counted, 0 AS booked, held_value AS held, 0 AS open
        FROM public.usage_metrics
        UNION ALL
        SELECT user_id, metric_type, period_start, 0, amount, 0, 0
        FROM metering.usage_ledger WHERE user_id NOT LIKE 'erased:%'
        UNION ALL
        SELECT h.user_id, a.key, h.period_start, 0, 0, 0, a.value::bigint
        FROM metering.holds AS h CROSS JOIN LATERAL jsonb_each_text(h.amounts) AS a WHERE h.state = 'held'
    ) AS both_sides
    GROUP BY user_id, metric_type, period_start
    HAVING sum(counted) <> sum(booked) OR sum(held) <> sum(open);
GRANT SELECT ON metering.drift TO venture_metering, venture_operator;

RESET ROLE;
