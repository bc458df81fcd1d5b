-- depends: 0002_gateway
-- Metering's tables: counters, ledger, holds, the projection of entitlements, told thresholds.

SET LOCAL lock_timeout = '5s';

-- When an operator's DELETE and a reservation lock one user's rows crosswise, whoever looks for deadlocks first gives
-- way: with this it is the reservation, which is repeated, and never the operator's statement.
ALTER ROLE venture_operator SET deadlock_timeout = '10s';
-- Many users' counters are locked in batches; should two ever cross, the one that gives way does not wait a second for it.
ALTER ROLE venture_metering SET deadlock_timeout = '200ms';

SET LOCAL ROLE venture_owner;

GRANT USAGE ON SCHEMA metering TO authenticated, service_role;

-- The period an instant falls in. Without an anchor: its calendar month in UTC. With the period of a subscription: that
-- period while it lasts, and before and after it the months counted from its start (from the start each time, so that
-- one that begins on the 31st does not drift). Half-open, by whoever's clock gives the instant: ours is now().
CREATE FUNCTION metering.period_at(at timestamptz, anchor_start timestamptz, anchor_end timestamptz,
    OUT period_start timestamptz, OUT period_end timestamptz) LANGUAGE plpgsql STABLE SET search_path = '' AS $$
DECLARE
    here timestamp := at AT TIME ZONE 'UTC';
    anchor timestamp := anchor_start AT TIME ZONE 'UTC';
    months integer;
BEGIN
    IF anchor IS NULL THEN
        period_start := date_trunc('month', here) AT TIME ZONE 'UTC';
        period_end := (date_trunc('month', here) + interval '1 month') AT TIME ZONE 'UTC';
    ELSIF at >= anchor_start AND at < anchor_end AND anchor_end <= anchor_start + interval '32 days' THEN
        period_start := anchor_start;
        period_end := anchor_end;
    ELSE
        -- A period of another length than a month (a trial, a change of plan) is followed by months from its end.
        IF at >= anchor_end AND anchor + interval '1 month' <> anchor_end AT TIME ZONE 'UTC' THEN
            anchor := anchor_end AT TIME ZONE 'UTC';
        END IF;
        months := (extract(year FROM here) - extract(year FROM anchor)) * 12
            + extract(month FROM here) - extract(month FROM anchor);
        IF anchor + make_interval(months => months) > here THEN
            months := months - 1;
        END IF;
        period_start := (anchor + make_interval(months => months)) AT TIME ZONE 'UTC';
        period_end := (anchor + make_interval(months => months + 1)) AT TIME ZONE 'UTC';
    END IF;
END
$$;
CREATE FUNCTION metering.period_start(at timestamptz) RETURNS timestamptz LANGUAGE sql STABLE AS
$$ SELECT date_trunc('month', at, 'UTC') $$;
CREATE FUNCTION metering.period_end(at timestamptz) RETURNS timestamptz LANGUAGE sql STABLE AS
$$ SELECT (date_trunc('month', at AT TIME ZONE 'UTC') + interval '1 month') AT TIME ZONE 'UTC' $$;
GRANT EXECUTE ON FUNCTION metering.period_start(timestamptz), metering.period_end(timestamptz),
    metering.period_at(timestamptz, timestamptz, timestamptz)
    TO authenticated, service_role, venture_metering, venture_operator;

-- Settled and held stand on one row, so that `settled + held + asked <= limit` is one conditional statement.
-- `latest_at` and `latest_id` say which event a meter of the newest value was set by.
CREATE TABLE public.usage_metrics (
    user_id text NOT NULL,
    metric_type text NOT NULL CHECK (metric_type ~ '^[a-z][a-z0-9_]{0,62}$'),
    metric_value bigint NOT NULL DEFAULT 0 CHECK (metric_value >= 0),
    held_value bigint NOT NULL DEFAULT 0 CHECK (held_value >= 0),
    period_start timestamptz NOT NULL,
    period_end timestamptz NOT NULL CHECK (period_end > period_start),
    latest_at timestamptz,
    latest_id text,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, metric_type, period_start)
) WITH (fillfactor = 70);  -- a counter is rewritten all the time: room on its page keeps the rewrite off the index

-- The names of all facts ever booked, and what each said: what makes a fact count once for ever, in whatever month of
-- the ledger it stands and also when that month is detached. `key` and `digest` are the first 128 bits of SHA-256.
CREATE TABLE metering.booked_events (
    key bytea PRIMARY KEY CHECK (length(key) = 16),
    digest bytea NOT NULL CHECK (length(digest) = 16),
    booked_at timestamptz NOT NULL DEFAULT now()
);

CREATE FUNCTION metering.event_key(source text, event_id text) RETURNS bytea LANGUAGE sql IMMUTABLE SET search_path = '' AS
$$ SELECT substring(sha256(convert_to(source || E'\n' || event_id, 'UTF8')) FOR 16) $$;
GRANT EXECUTE ON FUNCTION metering.event_key(text, text) TO venture_metering, venture_operator;

-- What came again under a name that is booked, with other content: refused, and kept to be looked at.
CREATE TABLE metering.conflicts (
    key bytea NOT NULL,
    digest bytea NOT NULL,
    source text NOT NULL,
    event_id text NOT NULL,
    user_id text NOT NULL,
    content jsonb NOT NULL,
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    last_seen_at timestamptz NOT NULL DEFAULT now(),
    times integer NOT NULL DEFAULT 1,
    PRIMARY KEY (key, digest)
);

-- What was used, for ever. `amount` is what the booking did to its counter, so that counters are sums of the ledger
-- whatever a meter aggregates; `value` is what the event said. A partition a month of `period_start`.
CREATE SEQUENCE metering.ledger_entries AS bigint CACHE 50;
CREATE TABLE metering.usage_ledger (
    id bigint NOT NULL DEFAULT nextval('metering.ledger_entries'),
    source text NOT NULL,
    event_id text NOT NULL,
    user_id text NOT NULL,
    metric_type text NOT NULL CHECK (metric_type ~ '^[a-z][a-z0-9_]{0,62}$'),
    amount bigint NOT NULL,
    value bigint CHECK (value >= 0),
    kind text NOT NULL CHECK (kind IN ('usage', 'adjustment', 'refund', 'correction')),
    period_start timestamptz NOT NULL,
    occurred_at timestamptz NOT NULL DEFAULT now(),
    recorded_at timestamptz NOT NULL DEFAULT now(),
    cost_micro_usd bigint NOT NULL DEFAULT 0,
    attributes jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(attributes) = 'object'),
    -- Only an event of a meter that is no sum may leave its counter as it was, or lower it.
    CHECK (kind <> 'usage' OR amount > 0 OR value IS NOT NULL),
    CHECK (kind = 'usage' OR amount <> 0)
) PARTITION BY RANGE (period_start);
CREATE INDEX usage_ledger_user ON metering.usage_ledger (user_id, period_start, metric_type);
-- The ledger grows in the order of this column, so a few pages of summaries find the last hour in any month.
CREATE INDEX usage_ledger_recent ON metering.usage_ledger USING brin (recorded_at) WITH (pages_per_range = 32);

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

-- Credits beyond the plan: for goodwill, promotions, paid packs. `used_amount` never gives back what a reset forgave.
CREATE TABLE metering.grants (
    id uuid PRIMARY KEY,
    user_id text NOT NULL,
    metric_type text NOT NULL,
    amount bigint NOT NULL CHECK (amount > 0),
    used_amount bigint NOT NULL DEFAULT 0 CHECK (used_amount BETWEEN 0 AND amount),
    priority smallint NOT NULL DEFAULT 100,
    starts_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL DEFAULT 'infinity',
    reason text NOT NULL,
    granted_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    voided_at timestamptz,
    CHECK (expires_at > starts_at)
);
CREATE INDEX grants_user ON metering.grants (user_id, metric_type);

-- What of which grant went into which period: what a refund gives back, in reverse order.
CREATE TABLE metering.grant_uses (
    grant_id uuid NOT NULL REFERENCES metering.grants ON DELETE CASCADE,
    user_id text NOT NULL,
    metric_type text NOT NULL,
    period_start timestamptz NOT NULL,
    amount bigint NOT NULL CHECK (amount >= 0),
    PRIMARY KEY (grant_id, period_start)
);
CREATE INDEX grant_uses_period ON metering.grant_uses (user_id, metric_type, period_start);

-- Values already counted by meters that count different ones.
CREATE TABLE metering.seen_values (
    user_id text NOT NULL,
    metric_type text NOT NULL,
    period_start timestamptz NOT NULL,
    value_key bytea NOT NULL,
    PRIMARY KEY (user_id, metric_type, period_start, value_key)
);

-- An hour in which a user used far more than that user is used to: told to the operators once.
CREATE TABLE metering.spikes (
    user_id text NOT NULL,
    metric_type text NOT NULL,
    hour timestamptz NOT NULL,
    amount bigint NOT NULL,
    habit_per_hour bigint NOT NULL,
    seen_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, metric_type, hour)
);

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
GRANT SELECT, INSERT ON metering.usage_ledger, metering.booked_events TO venture_metering;  -- append-only by grant
GRANT USAGE ON SEQUENCE metering.ledger_entries TO venture_metering;
GRANT SELECT, INSERT, UPDATE ON metering.conflicts, metering.grants, metering.grant_uses TO venture_metering;
GRANT SELECT, INSERT ON metering.seen_values, metering.spikes TO venture_metering;
-- A hold that was refused goes in the transaction that made it.
GRANT SELECT, INSERT, UPDATE, DELETE ON metering.holds TO venture_metering;
GRANT SELECT, INSERT, UPDATE ON metering.entitlements TO venture_metering;
GRANT SELECT, INSERT ON metering.thresholds TO venture_metering;

GRANT SELECT, DELETE ON public.usage_metrics TO venture_operator, service_role;
GRANT SELECT ON metering.usage_ledger, metering.booked_events, metering.conflicts, metering.holds, metering.entitlements,
    metering.thresholds, metering.grants, metering.grant_uses, metering.seen_values, metering.spikes
    TO venture_operator, service_role;
GRANT SELECT ON public.usage_metrics, metering.usage_ledger, metering.entitlements, metering.grants, metering.grant_uses
    TO authenticated;

-- The owner is here because definer functions run as it, and forced row-level security binds it, too.
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['public.usage_metrics', 'metering.usage_ledger', 'metering.booked_events',
        'metering.conflicts', 'metering.holds', 'metering.entitlements', 'metering.thresholds', 'metering.grants',
        'metering.grant_uses', 'metering.seen_values', 'metering.spikes']
    LOOP
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY %s_system ON %s TO venture_metering, venture_owner, venture_operator, service_role '
            'USING (true) WITH CHECK (true)', split_part(name, '.', 2), name);
    END LOOP;
    -- In a sub-SELECT the caller is worked out once per statement instead of once per row.
    FOREACH name IN ARRAY ARRAY['public.usage_metrics', 'metering.usage_ledger', 'metering.entitlements',
        'metering.grants', 'metering.grant_uses']
    LOOP
        EXECUTE format('CREATE POLICY %s_read ON %s FOR SELECT TO authenticated '
            'USING (user_id = (SELECT auth.uid())::text OR (SELECT public.is_admin()))', split_part(name, '.', 2), name);
    END LOOP;
END
$$;

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
CREATE TRIGGER booked_events_append_only BEFORE UPDATE OR DELETE ON metering.booked_events
    FOR EACH ROW EXECUTE FUNCTION metering.guard_ledger();
CREATE TRIGGER booked_events_no_truncate BEFORE TRUNCATE ON metering.booked_events
    FOR EACH STATEMENT EXECUTE FUNCTION metering.guard_ledger();

-- Partitions of the ledger: made ahead, so that no booking waits for one. A table that is attached later locks nobody
-- out meanwhile, as CREATE TABLE ... PARTITION OF would. Returns how many were made; safe to repeat.
CREATE FUNCTION metering.make_ledger_months(from_month timestamptz, to_month timestamptz) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE
    month timestamp;
    name text;
    made integer := 0;
BEGIN
    -- One maker at a time: two workers that start together would otherwise make the same table.
    PERFORM pg_advisory_xact_lock(hashtextextended('metering.make_ledger_months', 0));
    FOR month IN SELECT generate_series(date_trunc('month', from_month AT TIME ZONE 'UTC'),
        date_trunc('month', to_month AT TIME ZONE 'UTC'), interval '1 month')
    LOOP
        name := 'usage_ledger_' || to_char(month, 'YYYYMM');
        CONTINUE WHEN to_regclass('metering.' || name) IS NOT NULL;
        EXECUTE format('CREATE TABLE metering.%I (LIKE metering.usage_ledger INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', name);
        EXECUTE format('ALTER TABLE metering.%I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY %1$I ON metering.%1$I TO venture_owner, venture_operator USING (true)', name);
        EXECUTE format('GRANT SELECT ON metering.%I TO venture_operator', name);
        -- Rows inherit their trigger when the table is attached, a TRUNCATE of the partition alone does not.
        EXECUTE format('CREATE TRIGGER no_truncate BEFORE TRUNCATE ON metering.%I '
            'FOR EACH STATEMENT EXECUTE FUNCTION metering.guard_ledger()', name);
        EXECUTE format('ALTER TABLE metering.usage_ledger ATTACH PARTITION metering.%I FOR VALUES FROM (%L) TO (%L)',
            name, month AT TIME ZONE 'UTC', (month + interval '1 month') AT TIME ZONE 'UTC');
        made := made + 1;
    END LOOP;
    RETURN made;
END
$$;

CREATE FUNCTION metering.ledger_months() RETURNS TABLE (name text, month timestamptz, is_attached boolean)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS $$
    SELECT c.relname::text, to_timestamp(right(c.relname, 6) || '+00', 'YYYYMMTZH'), c.relispartition
    FROM pg_catalog.pg_class AS c
    WHERE c.relnamespace = 'metering'::regnamespace AND c.relkind = 'r' AND c.relname ~ '^usage_ledger_[0-9]{6}$'
    ORDER BY c.relname
$$;

-- Take old months out of the ledger; their tables stay beside it, read-only, to be dumped and dropped by hand. What they
-- booked stays booked: its names are in booked_events, its sums in usage_metrics. The last twelve months stay attached.
CREATE FUNCTION metering.detach_ledger_months(before timestamptz) RETURNS SETOF text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE
    old record;
BEGIN
    PERFORM set_config('lock_timeout', '2s', true);
    FOR old IN SELECT m.name FROM metering.ledger_months() AS m
        WHERE m.is_attached AND m.month + interval '31 days' <= least(before, now() - interval '1 year')
    LOOP
        EXECUTE format('ALTER TABLE metering.usage_ledger DETACH PARTITION metering.%I', old.name);
        EXECUTE format('CREATE TRIGGER append_only BEFORE INSERT OR UPDATE OR DELETE ON metering.%I '
            'FOR EACH ROW EXECUTE FUNCTION metering.guard_ledger()', old.name);
        RETURN NEXT old.name;
    END LOOP;
END
$$;

-- Since when the ledger says everything: counters of periods before it cannot be compared any more.
CREATE FUNCTION metering.ledger_since() RETURNS timestamptz LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS
$$ SELECT min(month) FROM metering.ledger_months() WHERE is_attached $$;
GRANT EXECUTE ON FUNCTION metering.make_ledger_months(timestamptz, timestamptz), metering.ledger_months(),
    metering.detach_ledger_months(timestamptz), metering.ledger_since() TO venture_metering, venture_operator;

DO $$ BEGIN PERFORM metering.make_ledger_months(now() - interval '3 months', now() + interval '3 months'); END $$;

-- Deleting a counter gives the quota back: the ledger gets the opposite amount, so both stay equal, and what open
-- holds still hold stays held, so that the runs under way cannot exceed the limit either.
CREATE FUNCTION metering.on_counter_deleted() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
    IF OLD.metric_value > 0 THEN
        INSERT INTO metering.usage_ledger
            (source, event_id, user_id, metric_type, amount, kind, period_start, occurred_at, attributes)
        VALUES ('metering.reset', public.uuid_v7()::text, OLD.user_id, OLD.metric_type, -OLD.metric_value, 'adjustment',
            OLD.period_start, now(), jsonb_build_object('by', session_user));
        -- What is forgiven is forgotten: values count as new again, and credits spent stay spent.
        DELETE FROM metering.seen_values
        WHERE (user_id, metric_type, period_start) = (OLD.user_id, OLD.metric_type, OLD.period_start);
        DELETE FROM metering.grant_uses
        WHERE (user_id, metric_type, period_start) = (OLD.user_id, OLD.metric_type, OLD.period_start);
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
    old record;
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
    DELETE FROM metering.grants WHERE user_id = erased;
    DELETE FROM metering.seen_values WHERE user_id = erased;
    DELETE FROM metering.spikes WHERE user_id = erased;
    DELETE FROM metering.conflicts WHERE user_id = erased;
    UPDATE metering.usage_ledger SET user_id = pseudonym WHERE user_id = erased;
    -- Detached months that are still here are no hiding place.
    FOR old IN SELECT m.name FROM metering.ledger_months() AS m WHERE NOT m.is_attached LOOP
        EXECUTE format('UPDATE metering.%I SET user_id = $1 WHERE user_id = $2', old.name) USING pseudonym, erased;
    END LOOP;
END
$$;
GRANT EXECUTE ON FUNCTION metering.erase_user(text) TO venture_metering;

-- Empty, or something is wrong: where counters differ from the ledger, or held amounts from the open holds.
CREATE VIEW metering.drift WITH (security_invoker = true) AS
    SELECT user_id, metric_type, period_start,
        sum(counted) AS counted, sum(booked) AS booked, sum(held) AS held, sum(open) AS open
    FROM (
        SELECT user_id, metric_type, period_start, metric_value AS counted, 0 AS booked, held_value AS held, 0 AS open
        FROM public.usage_metrics WHERE period_start >= (SELECT metering.ledger_since())
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
