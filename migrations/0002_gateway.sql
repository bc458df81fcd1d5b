-- depends: 0001_foundation
-- The gateway's tables: sign-in (auth.*), profiles, idempotency keys, switches, audit, erasures.

SET LOCAL lock_timeout = '5s';
SET LOCAL ROLE venture_owner;

CREATE TABLE auth.users (
    id uuid PRIMARY KEY,
    email text,
    encrypted_password text,
    email_confirmed_at timestamptz,
    invited_at timestamptz,
    confirmation_sent_at timestamptz,
    recovery_sent_at timestamptz,
    phone text,
    phone_confirmed_at timestamptz,
    email_change text,
    email_change_sent_at timestamptz,
    -- How many of the mails sent for a change of address are still to be confirmed: the new address, and the old one.
    email_change_confirms_left integer NOT NULL DEFAULT 0,
    reauthentication_sent_at timestamptz,
    last_sign_in_at timestamptz,
    raw_app_meta_data jsonb NOT NULL DEFAULT '{}',
    raw_user_meta_data jsonb NOT NULL DEFAULT '{}',
    is_anonymous boolean NOT NULL DEFAULT false,
    banned_until timestamptz,
    deleted_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CHECK (email IS NOT NULL OR phone IS NOT NULL OR is_anonymous OR deleted_at IS NOT NULL),
    CHECK (email = lower(email))
);
-- The address is the account; a soft-deleted user frees it.
CREATE UNIQUE INDEX users_email_key ON auth.users (email) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX users_phone_key ON auth.users (phone) WHERE deleted_at IS NULL;
CREATE INDEX users_created_at ON auth.users (created_at DESC, id);

CREATE TABLE auth.identities (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES auth.users (id) ON DELETE CASCADE,
    provider text NOT NULL,
    provider_id text NOT NULL,
    identity_data jsonb NOT NULL,
    last_sign_in_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (provider, provider_id)
);
CREATE INDEX identities_user_id ON auth.identities (user_id);

-- A session is one refresh-token family. Tokens are not stored: each is the session's id and a counter under the
-- session's own key, so a family ends with its row and a stolen database yields no usable token without the key.
CREATE TABLE auth.sessions (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES auth.users (id) ON DELETE CASCADE,
    aal text NOT NULL DEFAULT 'aal1',
    amr jsonb NOT NULL DEFAULT '[]',
    refresh_key bytea NOT NULL,
    refresh_counter bigint NOT NULL DEFAULT 0,
    refreshed_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    not_after timestamptz
);
CREATE INDEX sessions_user_id ON auth.sessions (user_id);

-- Hashed, single use, one per user and kind.
CREATE TABLE auth.one_time_tokens (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES auth.users (id) ON DELETE CASCADE,
    kind text NOT NULL CHECK (kind IN ('confirmation', 'recovery', 'email_change_new', 'email_change_current', 'reauthentication')),
    token_hash bytea NOT NULL,
    code_hash bytea,
    email text NOT NULL,
    redirect_to text,
    flow_state_id uuid,
    attempts integer NOT NULL DEFAULT 0,
    expires_at timestamptz NOT NULL,
    -- Six digits can be guessed and a link cannot, so the code ends sooner.
    code_expires_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (user_id, kind)
);
CREATE INDEX one_time_tokens_email ON auth.one_time_tokens (email, kind);
CREATE UNIQUE INDEX one_time_tokens_token_hash ON auth.one_time_tokens (token_hash);

CREATE TABLE auth.flow_state (
    id uuid PRIMARY KEY,
    user_id uuid REFERENCES auth.users (id) ON DELETE CASCADE,
    auth_code uuid NOT NULL UNIQUE,
    code_challenge text NOT NULL,
    code_challenge_method text NOT NULL,
    authentication_method text NOT NULL,
    issued_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- How often mail of a kind was asked for an address, whether or not it has an account: a refusal tells nothing.
CREATE TABLE auth.mail_requests (
    address_hash bytea NOT NULL,
    kind text NOT NULL,
    asked_at timestamptz NOT NULL DEFAULT now(),
    hour_began_at timestamptz NOT NULL DEFAULT now(),
    in_hour integer NOT NULL DEFAULT 1,
    PRIMARY KEY (address_hash, kind)
);
CREATE INDEX mail_requests_asked_at ON auth.mail_requests (asked_at);

CREATE TABLE auth.mfa_factors (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES auth.users (id) ON DELETE CASCADE,
    friendly_name text NOT NULL DEFAULT '',
    factor_type text NOT NULL CHECK (factor_type = 'totp'),
    status text NOT NULL DEFAULT 'unverified' CHECK (status IN ('unverified', 'verified')),
    secret text NOT NULL,
    last_step bigint NOT NULL DEFAULT 0,  -- the time step of the last accepted code: none is accepted twice
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX mfa_factors_name ON auth.mfa_factors (user_id, friendly_name) WHERE friendly_name <> '';
CREATE INDEX mfa_factors_user_id ON auth.mfa_factors (user_id);

CREATE TABLE auth.mfa_challenges (
    id uuid PRIMARY KEY,
    factor_id uuid NOT NULL REFERENCES auth.mfa_factors (id) ON DELETE CASCADE,
    attempts integer NOT NULL DEFAULT 0,
    expires_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX mfa_challenges_factor_id ON auth.mfa_challenges (factor_id);

GRANT SELECT, INSERT, UPDATE, DELETE ON auth.users, auth.identities, auth.sessions, auth.one_time_tokens,
    auth.flow_state, auth.mail_requests, auth.mfa_factors, auth.mfa_challenges TO venture_gateway;

-- People delete accounts and read what identifies them; never hashes or keys.
GRANT DELETE ON auth.users TO venture_operator;
GRANT SELECT (id, email, email_confirmed_at, last_sign_in_at, raw_app_meta_data, raw_user_meta_data, is_anonymous,
    banned_until, deleted_at, created_at, updated_at) ON auth.users TO venture_operator;

CREATE TABLE public.user_profiles (
    user_id uuid PRIMARY KEY REFERENCES auth.users (id) ON DELETE CASCADE,
    subscription_status text NOT NULL DEFAULT 'inactive',
    subscription_tier text NOT NULL DEFAULT 'free',
    stripe_customer_id text,
    premium_features jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(premium_features) = 'object'),
    subscription_version bigint NOT NULL DEFAULT 0,
    subscription_period_start timestamptz,
    subscription_period_end timestamptz,
    entitlements_version bigint NOT NULL DEFAULT 1,
    name text NOT NULL DEFAULT '',
    role text NOT NULL DEFAULT '',
    vertical text NOT NULL DEFAULT '',
    stack text[] NOT NULL DEFAULT '{}',
    tone text NOT NULL DEFAULT '',
    risk_tolerance text NOT NULL DEFAULT '',
    kpi_focus text NOT NULL DEFAULT '',
    perspective text NOT NULL DEFAULT '',
    company_context text NOT NULL DEFAULT '',
    timezone text NOT NULL DEFAULT 'UTC',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- Not unique: an operator's hand must never be refused here; billing guarantees one customer per user at its source.
CREATE INDEX user_profiles_stripe_customer_id ON public.user_profiles (stripe_customer_id);

ALTER TABLE auth.users ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE auth.identities ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE auth.sessions ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE auth.one_time_tokens ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE auth.flow_state ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE auth.mail_requests ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE auth.mfa_factors ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE auth.mfa_challenges ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE public.user_profiles ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;

CREATE POLICY users_gateway ON auth.users TO venture_gateway USING (true) WITH CHECK (true);
CREATE POLICY users_operator ON auth.users TO venture_operator USING (true) WITH CHECK (true);
CREATE POLICY identities_gateway ON auth.identities TO venture_gateway USING (true) WITH CHECK (true);
CREATE POLICY sessions_gateway ON auth.sessions TO venture_gateway USING (true) WITH CHECK (true);
CREATE POLICY one_time_tokens_gateway ON auth.one_time_tokens TO venture_gateway USING (true) WITH CHECK (true);
CREATE POLICY flow_state_gateway ON auth.flow_state TO venture_gateway USING (true) WITH CHECK (true);
CREATE POLICY mail_requests_gateway ON auth.mail_requests TO venture_gateway USING (true) WITH CHECK (true);
CREATE POLICY mfa_factors_gateway ON auth.mfa_factors TO venture_gateway USING (true) WITH CHECK (true);
CREATE POLICY mfa_challenges_gateway ON auth.mfa_challenges TO venture_gateway USING (true) WITH CHECK (true);

-- Definer functions run as venture_owner, which forced row-level security binds, too.
CREATE POLICY user_profiles_owner ON public.user_profiles TO venture_owner USING (true) WITH CHECK (true);

CREATE FUNCTION public.is_admin() RETURNS boolean LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS $$
    SELECT coalesce(
        (SELECT premium_features -> 'admin' = 'true'::jsonb FROM public.user_profiles WHERE user_id = auth.uid()),
        false
    )
$$;
GRANT EXECUTE ON FUNCTION public.is_admin() TO authenticated, service_role,
    venture_gateway, venture_billing, venture_metering, venture_agents, venture_operator;

-- A user reads and edits the own profile; plan, features and customer are nobody's to edit but the system's.
CREATE POLICY user_profiles_read ON public.user_profiles FOR SELECT TO authenticated
    USING (user_id = auth.uid() OR public.is_admin());
CREATE POLICY user_profiles_edit ON public.user_profiles FOR UPDATE TO authenticated
    USING (user_id = auth.uid()) WITH CHECK (user_id = auth.uid());
CREATE POLICY user_profiles_gateway ON public.user_profiles TO venture_gateway USING (true) WITH CHECK (true);
CREATE POLICY user_profiles_service ON public.user_profiles TO service_role USING (true) WITH CHECK (true);
CREATE POLICY user_profiles_operator ON public.user_profiles TO venture_operator USING (true) WITH CHECK (true);
GRANT SELECT ON public.user_profiles TO authenticated;
GRANT UPDATE (name, role, vertical, stack, tone, risk_tolerance, kpi_focus, perspective, company_context, timezone, updated_at)
    ON public.user_profiles TO authenticated;
GRANT SELECT, INSERT, UPDATE, DELETE ON public.user_profiles TO venture_gateway;
GRANT SELECT, INSERT, UPDATE, DELETE ON public.user_profiles TO service_role;
GRANT SELECT, UPDATE ON public.user_profiles TO venture_operator;

-- Events that follow from rows, whoever changed them: a service, an operator's psql, a cascade. -----------------------

CREATE FUNCTION gateway.emit(event_type text, subject text, data jsonb) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = '' AS $$
    INSERT INTO gateway.outbox (id, type, subject, data) VALUES (public.uuid_v7(), event_type, subject, data)
$$;

CREATE FUNCTION gateway.create_profile() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
    INSERT INTO public.user_profiles (user_id, name)
    VALUES (NEW.id, coalesce(NEW.raw_user_meta_data ->> 'name', ''));
    RETURN NULL;
END
$$;
CREATE TRIGGER users_create_profile AFTER INSERT ON auth.users
    FOR EACH ROW EXECUTE FUNCTION gateway.create_profile();

CREATE FUNCTION gateway.emit_entitlements(profile public.user_profiles) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = '' AS $$
    SELECT gateway.emit('gateway.entitlements_changed.v1', profile.user_id::text, jsonb_build_object(
        'user_id', profile.user_id,
        'version', profile.entitlements_version,
        'tier', profile.subscription_tier,
        'status', profile.subscription_status,
        'features', profile.premium_features,
        'stripe_customer_id', profile.stripe_customer_id,
        'period_start', profile.subscription_period_start,
        'period_end', profile.subscription_period_end
    ))
$$;

CREATE FUNCTION gateway.version_entitlements() RETURNS trigger LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    NEW.updated_at := now();
    IF (NEW.subscription_tier, NEW.subscription_status, NEW.premium_features, NEW.stripe_customer_id,
        NEW.subscription_period_start, NEW.subscription_period_end)
       IS DISTINCT FROM
       (OLD.subscription_tier, OLD.subscription_status, OLD.premium_features, OLD.stripe_customer_id,
        OLD.subscription_period_start, OLD.subscription_period_end)
    THEN
        NEW.entitlements_version := OLD.entitlements_version + 1;
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER user_profiles_version BEFORE UPDATE ON public.user_profiles
    FOR EACH ROW EXECUTE FUNCTION gateway.version_entitlements();

CREATE FUNCTION gateway.on_profile_written() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        PERFORM gateway.emit('gateway.user_created.v1', NEW.user_id::text, jsonb_build_object('user_id', NEW.user_id));
        PERFORM gateway.emit_entitlements(NEW);
    ELSIF NEW.entitlements_version <> OLD.entitlements_version THEN
        PERFORM gateway.emit_entitlements(NEW);
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER user_profiles_emit AFTER INSERT OR UPDATE ON public.user_profiles
    FOR EACH ROW EXECUTE FUNCTION gateway.on_profile_written();

-- On the profile, not on auth.users: the cascade removes the profile first, and with it the customer id billing needs.
CREATE FUNCTION gateway.on_profile_deleted() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
    -- ON CONFLICT: a service's answer to an earlier deletion of the same id may have made the row.
    INSERT INTO gateway.erasures (user_id) VALUES (OLD.user_id) ON CONFLICT (user_id) DO NOTHING;
    PERFORM gateway.emit('gateway.user_deleted.v1', OLD.user_id::text,
        jsonb_build_object('user_id', OLD.user_id, 'stripe_customer_id', OLD.stripe_customer_id));
    RETURN NULL;
END
$$;
CREATE TRIGGER user_profiles_deleted AFTER DELETE ON public.user_profiles
    FOR EACH ROW EXECUTE FUNCTION gateway.on_profile_deleted();

-- The gateway's own. ------------------------------------------------------------------------------------------------

CREATE TABLE gateway.erasures (
    user_id uuid PRIMARY KEY,
    requested_at timestamptz NOT NULL DEFAULT now(),
    billing_at timestamptz,
    metering_at timestamptz,
    agents_at timestamptz
);

-- The first request with a key claims the row; its answer is kept byte for byte. `resource_id` is chosen at the claim,
-- so that a retry after a crash makes the same resource instead of a second one.
CREATE TABLE gateway.idempotency_keys (
    user_id uuid NOT NULL REFERENCES auth.users (id) ON DELETE CASCADE,
    key text NOT NULL,
    request_hash bytea NOT NULL,
    resource_id uuid NOT NULL,
    claimed_at timestamptz NOT NULL DEFAULT now(),
    response_status integer,
    response_body bytea,
    response_headers jsonb,
    PRIMARY KEY (user_id, key)
);
CREATE INDEX idempotency_keys_claimed_at ON gateway.idempotency_keys (claimed_at);

-- What a user's own event stream tells, numbered per user. The head's row lock is held to the commit, so numbers become
-- visible in their order: a reader behind number n never misses a smaller one that commits later.
CREATE TABLE gateway.user_event_heads (
    user_id uuid PRIMARY KEY REFERENCES auth.users (id) ON DELETE CASCADE,
    last_seq bigint NOT NULL
);
CREATE TABLE gateway.user_events (
    user_id uuid NOT NULL REFERENCES auth.users (id) ON DELETE CASCADE,
    seq bigint NOT NULL,
    type text NOT NULL,
    data jsonb NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, seq)
);
CREATE INDEX user_events_at ON gateway.user_events (at);

CREATE TABLE gateway.switches (
    name text PRIMARY KEY,
    is_on boolean NOT NULL,
    reason text NOT NULL DEFAULT '',
    set_by text NOT NULL,
    set_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz
);

CREATE TABLE gateway.audit_log (
    id uuid PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    actor text NOT NULL,
    action text NOT NULL,
    subject text NOT NULL DEFAULT '',
    before jsonb,
    after jsonb,
    request_id text
);
CREATE INDEX audit_log_at ON gateway.audit_log (at DESC);
CREATE INDEX audit_log_subject ON gateway.audit_log (subject, at DESC);

-- What the console's charts and strips are drawn from, kept for a week. Replicas add to the same minute; one of them
-- looks at everybody's health in each slot of 15 s. `buckets` counts answers by duration.
CREATE TABLE gateway.traffic_minutes (
    minute timestamptz PRIMARY KEY,
    requests bigint NOT NULL,
    errors bigint NOT NULL,
    attempts bigint NOT NULL,
    failures bigint NOT NULL,
    buckets bigint[] NOT NULL
) WITH (fillfactor = 50);
CREATE TABLE gateway.health_samples (
    slot bigint PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    statuses jsonb NOT NULL DEFAULT '{}'
);
GRANT SELECT, INSERT, UPDATE, DELETE ON gateway.traffic_minutes, gateway.health_samples TO venture_gateway;
GRANT SELECT ON gateway.traffic_minutes, gateway.health_samples TO venture_operator;

-- Who was refused by which rate limit, in which part of the house: counted by the hour, kept for a week.
CREATE TABLE gateway.limited_requests (
    hour timestamptz NOT NULL,
    subject text NOT NULL,
    limit_name text NOT NULL,
    route_group text NOT NULL,
    requests bigint NOT NULL,
    first_at timestamptz NOT NULL DEFAULT now(),
    last_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (hour, subject, limit_name, route_group)
);
CREATE INDEX limited_requests_last_at ON gateway.limited_requests (last_at);
GRANT SELECT, INSERT, UPDATE, DELETE ON gateway.limited_requests TO venture_gateway;
GRANT SELECT ON gateway.limited_requests TO venture_operator;

-- Keys for programs. Only the hash is kept; the hint is what the owner tells keys apart by.
CREATE TABLE gateway.api_keys (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES auth.users (id) ON DELETE CASCADE,
    name text NOT NULL,
    scopes text[] NOT NULL,
    key_hash bytea NOT NULL UNIQUE,
    hint text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    last_used_at timestamptz
);
CREATE INDEX api_keys_user_id ON gateway.api_keys (user_id);
ALTER TABLE gateway.api_keys ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY api_keys_gateway ON gateway.api_keys TO venture_gateway USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON gateway.api_keys TO venture_gateway;

-- Mail to be handed over: written with the change it tells of, deleted once the mail server has it.
CREATE TABLE gateway.mails (
    id uuid PRIMARY KEY,
    address text NOT NULL,
    letter text NOT NULL,
    content jsonb NOT NULL,
    attempts integer NOT NULL DEFAULT 0,
    next_attempt_at timestamptz NOT NULL DEFAULT now(),
    last_error text,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX mails_next_attempt_at ON gateway.mails (next_attempt_at);

ALTER TABLE gateway.mails ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY mails_gateway ON gateway.mails TO venture_gateway USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON gateway.mails TO venture_gateway;

ALTER TABLE gateway.idempotency_keys ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE gateway.user_events ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE gateway.user_event_heads ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY idempotency_keys_gateway ON gateway.idempotency_keys TO venture_gateway USING (true) WITH CHECK (true);
CREATE POLICY user_events_gateway ON gateway.user_events TO venture_gateway USING (true) WITH CHECK (true);
CREATE POLICY user_event_heads_gateway ON gateway.user_event_heads TO venture_gateway USING (true) WITH CHECK (true);

GRANT SELECT, INSERT, UPDATE, DELETE ON gateway.idempotency_keys, gateway.switches, gateway.user_events, gateway.user_event_heads
    TO venture_gateway;
GRANT SELECT, INSERT, UPDATE ON gateway.erasures TO venture_gateway;
GRANT SELECT, INSERT ON gateway.audit_log TO venture_gateway, venture_operator;  -- append-only by grant
GRANT SELECT ON gateway.erasures, gateway.switches TO venture_operator;
-- Maintenance must also be possible while no gateway answers.
GRANT INSERT, UPDATE ON gateway.switches TO venture_operator;

ALTER TABLE gateway.erasures ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE gateway.switches ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE gateway.audit_log ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY erasures_gateway ON gateway.erasures TO venture_gateway, venture_owner USING (true) WITH CHECK (true);
CREATE POLICY erasures_operator ON gateway.erasures FOR SELECT TO venture_operator USING (true);
CREATE POLICY switches_all ON gateway.switches TO venture_gateway, venture_operator USING (true) WITH CHECK (true);
CREATE POLICY audit_log_all ON gateway.audit_log TO venture_gateway, venture_operator USING (true) WITH CHECK (true);

RESET ROLE;
