-- Roles, schemas, the caller's identity for row-level security, and one outbox and inbox per service.
-- Run as a superuser; everything is owned by venture_owner, which cannot log in.

SET LOCAL lock_timeout = '5s';

-- Roles belong to the cluster, not to a database: another database of the same cluster may have made them already.
DO $$
DECLARE
    role_name text;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['venture_owner', 'anon', 'authenticated'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role_name) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN NOINHERIT', role_name);
        END IF;
    END LOOP;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'service_role') THEN
        CREATE ROLE service_role NOLOGIN NOINHERIT;
    END IF;
    FOREACH role_name IN ARRAY ARRAY['venture_gateway', 'venture_billing', 'venture_metering', 'venture_agents', 'venture_operator'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role_name) THEN
            EXECUTE format('CREATE ROLE %I LOGIN NOINHERIT', role_name);
        END IF;
    END LOOP;
END
$$;

-- What a service may become to run a user's query, and nothing more: no service role, no owner.
GRANT anon, authenticated TO venture_gateway, venture_billing, venture_metering, venture_agents;

ALTER ROLE venture_gateway SET search_path = gateway, public;
ALTER ROLE venture_billing SET search_path = billing, public;
ALTER ROLE venture_metering SET search_path = metering, public;
ALTER ROLE venture_agents SET search_path = agents, public;
ALTER ROLE venture_operator SET search_path = public;

REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO anon, authenticated, service_role,
    venture_gateway, venture_billing, venture_metering, venture_agents, venture_operator;
GRANT CREATE, USAGE ON SCHEMA public TO venture_owner;
DO $$
BEGIN
    EXECUTE format('GRANT CREATE ON DATABASE %I TO venture_owner', current_database());
END
$$;

SET LOCAL ROLE venture_owner;

CREATE SCHEMA auth;
CREATE SCHEMA gateway;
CREATE SCHEMA billing;
CREATE SCHEMA metering;
CREATE SCHEMA agents;

GRANT USAGE ON SCHEMA auth TO anon, authenticated, service_role,
    venture_gateway, venture_billing, venture_metering, venture_agents, venture_operator;
GRANT USAGE ON SCHEMA gateway TO venture_gateway, venture_operator;
GRANT USAGE ON SCHEMA billing TO venture_billing, venture_operator;
GRANT USAGE ON SCHEMA metering TO venture_metering, venture_operator;
GRANT USAGE ON SCHEMA agents TO venture_agents, venture_operator;

-- Functions are executable by PUBLIC unless told otherwise; here each is granted by name.
ALTER DEFAULT PRIVILEGES FOR ROLE venture_owner REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;

-- The caller, as Supabase's policies read it. A pooled connection leaves the setting '' after a transaction, a fresh
-- one has NULL: nullif covers both, because ''::jsonb raises.
CREATE FUNCTION auth.jwt() RETURNS jsonb LANGUAGE sql STABLE SET search_path = '' AS
$$ SELECT nullif(current_setting('request.jwt.claims', true), '')::jsonb $$;

CREATE FUNCTION auth.uid() RETURNS uuid LANGUAGE sql STABLE SET search_path = '' AS
$$ SELECT nullif(nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub', '')::uuid $$;

CREATE FUNCTION auth.role() RETURNS text LANGUAGE sql STABLE SET search_path = '' AS
$$ SELECT nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'role' $$;

GRANT EXECUTE ON FUNCTION auth.jwt(), auth.uid(), auth.role() TO PUBLIC;

-- UUIDv7 for rows that triggers write; services make their own. Time in ms, then version, variant and random bits.
CREATE FUNCTION public.uuid_v7() RETURNS uuid LANGUAGE sql VOLATILE SET search_path = '' AS $$
    SELECT encode(
        overlay(
            overlay(
                uuid_send(gen_random_uuid())
                PLACING substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6
            )
            PLACING set_byte('\x00'::bytea, 0, 112 + (random() * 15)::int) FROM 7 FOR 1
        ),
        'hex'
    )::uuid
$$;
GRANT EXECUTE ON FUNCTION public.uuid_v7() TO PUBLIC;

-- One outbox and one inbox per service, alike in all four: the relay and the runner name them without a schema and
-- find their own by the search path of their role.
DO $$
DECLARE
    service text;
BEGIN
    FOREACH service IN ARRAY ARRAY['gateway', 'billing', 'metering', 'agents'] LOOP
        EXECUTE format($ddl$
            CREATE TABLE %1$I.outbox (
                id uuid PRIMARY KEY,
                type text NOT NULL,
                subject text NOT NULL DEFAULT '',
                data jsonb NOT NULL,
                traceparent text,
                created_at timestamptz NOT NULL DEFAULT now(),
                claimed_until timestamptz NOT NULL DEFAULT '-infinity',
                attempts integer NOT NULL DEFAULT 0,
                last_error text,
                sent_at timestamptz
            ) WITH (fillfactor = 70);
            -- Only the backlog is indexed: it is as small as the relay is quick.
            CREATE INDEX outbox_unsent ON %1$I.outbox (id) WHERE sent_at IS NULL;
            CREATE INDEX outbox_sent ON %1$I.outbox (sent_at) WHERE sent_at IS NOT NULL;
            CREATE TABLE %1$I.inbox (
                event_id uuid PRIMARY KEY,
                type text NOT NULL,
                handled_at timestamptz NOT NULL DEFAULT now()
            );
            ALTER TABLE %1$I.outbox ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
            ALTER TABLE %1$I.inbox ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
            -- The owner, because triggers that act as it write events, and forced row-level security binds it, too.
            CREATE POLICY outbox_service ON %1$I.outbox TO venture_%1$s, venture_owner USING (true) WITH CHECK (true);
            CREATE POLICY outbox_operator ON %1$I.outbox FOR SELECT TO venture_operator USING (true);
            CREATE POLICY inbox_service ON %1$I.inbox TO venture_%1$s USING (true) WITH CHECK (true);
            CREATE POLICY inbox_operator ON %1$I.inbox FOR SELECT TO venture_operator USING (true);
            GRANT SELECT, INSERT, UPDATE, DELETE ON %1$I.outbox TO venture_%1$s;
            GRANT SELECT, INSERT ON %1$I.inbox TO venture_%1$s;
            GRANT SELECT ON %1$I.outbox, %1$I.inbox TO venture_operator;
        $ddl$, service);
    END LOOP;
END
$$;

RESET ROLE;
