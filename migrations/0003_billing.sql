-- depends: 0002_gateway
-- Billing's tables: what Stripe said, what was fetched after it, and what follows from that for each user.

SET LOCAL lock_timeout = '5s';
SET LOCAL ROLE venture_owner;

-- One Stripe customer per user. The row is written before Stripe is asked, so that every repetition of the question
-- carries the same idempotency key; `stripe_customer_id` is NULL until the answer is known.
CREATE TABLE billing.customers (
    user_id uuid PRIMARY KEY,
    stripe_customer_id text UNIQUE,
    idempotency_key text NOT NULL,
    email text,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- The effective plan of a user, decided from all subscriptions. `version` grows with each change that was told.
CREATE TABLE billing.accounts (
    user_id uuid PRIMARY KEY,
    version bigint NOT NULL DEFAULT 0,
    tier text NOT NULL DEFAULT 'free',
    status text NOT NULL DEFAULT 'inactive',
    current_period_start timestamptz,
    current_period_end timestamptz,
    cancel_at timestamptz,
    trial_end timestamptz,
    stripe_customer_id text,
    review_at timestamptz,
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX accounts_review_at ON billing.accounts (review_at) WHERE review_at IS NOT NULL;

-- Stripe's subscriptions as last fetched. `user_id` is NULL while nobody is known for the customer, `tier` while the
-- price belongs to no plan. `read_at` is when the fetch began: an older answer never replaces a newer one.
CREATE TABLE billing.subscriptions (
    id text PRIMARY KEY,
    user_id uuid,
    stripe_customer_id text NOT NULL,
    status text NOT NULL,
    tier text,
    price_id text,
    price_lookup_key text,
    current_period_start timestamptz,
    current_period_end timestamptz,
    cancel_at timestamptz,
    cancel_at_period_end boolean NOT NULL DEFAULT false,
    canceled_at timestamptz,
    ended_at timestamptz,
    trial_end timestamptz,
    past_due_since timestamptz,
    created_at timestamptz NOT NULL,
    read_at timestamptz NOT NULL
);
CREATE INDEX subscriptions_user_id ON billing.subscriptions (user_id);
CREATE INDEX subscriptions_stripe_customer_id ON billing.subscriptions (stripe_customer_id);
CREATE INDEX subscriptions_unclaimed ON billing.subscriptions (id) WHERE user_id IS NULL OR tier IS NULL;

-- Kept when the user is erased, without user, customer and page: the amounts are books, the person is not.
CREATE TABLE billing.invoices (
    id text PRIMARY KEY,
    user_id uuid,
    stripe_customer_id text,
    stripe_subscription_id text,
    number text,
    status text NOT NULL,
    currency text NOT NULL,
    amount_due_minor bigint NOT NULL,
    amount_paid_minor bigint NOT NULL,
    attempt_count integer NOT NULL,
    next_attempt_at timestamptz,
    hosted_url text,
    period_start timestamptz,
    period_end timestamptz,
    paid_at timestamptz,
    created_at timestamptz NOT NULL,
    read_at timestamptz NOT NULL,
    -- What the user's services were told: that it was paid, and the last attempt that failed.
    is_paid_told boolean NOT NULL DEFAULT false,
    attempt_told integer NOT NULL DEFAULT 0
);
CREATE INDEX invoices_user_id ON billing.invoices (user_id, created_at DESC, id DESC);
CREATE INDEX invoices_stripe_customer_id ON billing.invoices (stripe_customer_id);

-- The inbox of Stripe's webhook. `payload` keeps what helps a diagnosis and nothing that names a person.
CREATE TABLE billing.stripe_events (
    id text PRIMARY KEY,
    type text NOT NULL,
    object_id text,
    stripe_customer_id text,
    livemode boolean NOT NULL,
    api_version text,
    created timestamptz NOT NULL,
    payload jsonb NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    handled_at timestamptz
);
CREATE INDEX stripe_events_object_id ON billing.stripe_events (object_id, received_at);
CREATE INDEX stripe_events_unhandled_age ON billing.stripe_events (received_at) WHERE handled_at IS NULL;
CREATE INDEX stripe_events_customer ON billing.stripe_events (stripe_customer_id);
CREATE INDEX stripe_events_received_at ON billing.stripe_events (received_at DESC, id);

-- One row per Stripe object that must be fetched again: `wanted` counts the reasons, `done` those a fetch has covered.
-- A lease makes the fetch single-flight; failures move `due_at` and never end the row's life.
CREATE TABLE billing.refreshes (
    object_id text PRIMARY KEY,
    wanted bigint NOT NULL DEFAULT 1,
    done bigint NOT NULL DEFAULT 0,
    due_at timestamptz NOT NULL DEFAULT now(),
    lease uuid,
    leased_until timestamptz NOT NULL DEFAULT '-infinity',
    attempts integer NOT NULL DEFAULT 0,
    last_error text
) WITH (fillfactor = 70);
CREATE INDEX refreshes_due ON billing.refreshes (due_at) WHERE done < wanted;

-- Checkout intents, written before Stripe is asked; `idempotency_key` goes with every repetition of the question.
CREATE TABLE billing.checkouts (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL,
    tier text NOT NULL,
    success_url text NOT NULL,
    cancel_url text NOT NULL,
    idempotency_key text NOT NULL UNIQUE,
    status text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'open', 'complete', 'expired', 'refused')),
    stripe_session_id text UNIQUE,
    stripe_subscription_id text,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX checkouts_user_id ON billing.checkouts (user_id, created_at DESC);

-- Settled usage of plans billed by use, on its way to Stripe's meters. The row is our own memory of what was reported:
-- Stripe's, by `identifier`, lasts a day. `tried_at` is when it was sent first.
CREATE TABLE billing.usage_reports (
    hold_id uuid NOT NULL,
    metric text NOT NULL,
    user_id uuid NOT NULL,
    stripe_customer_id text NOT NULL,
    meter text NOT NULL,
    identifier text NOT NULL UNIQUE,
    value bigint NOT NULL CHECK (value > 0),
    used_at timestamptz NOT NULL,
    state text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'sent', 'refused')),
    due_at timestamptz NOT NULL DEFAULT now(),
    lease uuid,
    leased_until timestamptz NOT NULL DEFAULT '-infinity',
    attempts integer NOT NULL DEFAULT 0,
    tried_at timestamptz,
    settled_at timestamptz,
    last_error text,
    PRIMARY KEY (hold_id, metric)
);
CREATE INDEX usage_reports_due ON billing.usage_reports (due_at) WHERE state = 'waiting';
CREATE INDEX usage_reports_refused ON billing.usage_reports (used_at) WHERE state = 'refused';
CREATE INDEX usage_reports_customer ON billing.usage_reports (stripe_customer_id, meter, used_at);
CREATE INDEX usage_reports_user_id ON billing.usage_reports (user_id);

-- Deleted users. `erased_at`: our rows are gone and it was told; `stripe_done_at`: Stripe's are, too. The row stays as the
-- memory that the customers' late events are nobody's.
CREATE TABLE billing.erasures (
    user_id uuid PRIMARY KEY,
    stripe_customer_ids text[] NOT NULL DEFAULT '{}',
    requested_at timestamptz NOT NULL DEFAULT now(),
    due_at timestamptz NOT NULL DEFAULT now(),
    attempts integer NOT NULL DEFAULT 0,
    last_error text,
    erased_at timestamptz,
    stripe_done_at timestamptz
);
CREATE INDEX erasures_due ON billing.erasures (due_at) WHERE stripe_done_at IS NULL;
CREATE INDEX erasures_stripe_customer_ids ON billing.erasures USING gin (stripe_customer_ids);

-- Comparisons with Stripe, asked for by night or by an operator; one runs at a time, under a lease.
CREATE TABLE billing.reconciliations (
    id uuid PRIMARY KEY,
    night date UNIQUE,
    is_fixing boolean NOT NULL DEFAULT false,
    asked_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    finished_at timestamptz,
    counts jsonb NOT NULL DEFAULT '{}',
    last_error text,
    lease uuid,
    leased_until timestamptz NOT NULL DEFAULT '-infinity'
);
CREATE INDEX reconciliations_open ON billing.reconciliations (asked_at) WHERE finished_at IS NULL;

-- What the last comparison found to differ. A row goes when a comparison finds both sides equal.
CREATE TABLE billing.drift (
    object_id text NOT NULL,
    what text NOT NULL,
    ours jsonb,
    theirs jsonb,
    since timestamptz NOT NULL DEFAULT now(),
    seen_at timestamptz NOT NULL DEFAULT now(),
    seen_by uuid NOT NULL,
    PRIMARY KEY (object_id, what)
);

-- What each user's profile shows, as the gateway last said: an operator may have changed it by hand.
CREATE TABLE billing.profiles (
    user_id uuid PRIMARY KEY,
    version bigint NOT NULL,
    tier text NOT NULL,
    status text NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
);

GRANT USAGE ON SCHEMA billing TO authenticated, service_role;

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['customers', 'accounts', 'subscriptions', 'invoices', 'stripe_events', 'refreshes',
                                'checkouts', 'usage_reports', 'erasures', 'reconciliations', 'drift', 'profiles'] LOOP
        EXECUTE format('ALTER TABLE billing.%I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON billing.%I TO venture_billing', name);
        EXECUTE format('GRANT SELECT ON billing.%I TO venture_operator', name);
        EXECUTE format('CREATE POLICY %I ON billing.%I TO venture_billing USING (true) WITH CHECK (true)',
            name || '_billing', name);
        EXECUTE format('CREATE POLICY %I ON billing.%I FOR SELECT TO venture_operator USING (true)',
            name || '_operator', name);
    END LOOP;
    -- What belongs to one user: the user reads the own rows, admins read all.
    FOREACH name IN ARRAY ARRAY['customers', 'accounts', 'subscriptions', 'invoices', 'checkouts',
                                'usage_reports'] LOOP
        EXECUTE format('GRANT SELECT ON billing.%I TO authenticated, service_role', name);
        EXECUTE format('CREATE POLICY %I ON billing.%I FOR SELECT TO authenticated '
            'USING (user_id = auth.uid() OR public.is_admin())', name || '_read', name);
        EXECUTE format('CREATE POLICY %I ON billing.%I FOR SELECT TO service_role USING (true)',
            name || '_service', name);
    END LOOP;
END
$$;

-- An operator may ask for a comparison; a worker carries it out.
GRANT INSERT (id, is_fixing) ON billing.reconciliations TO venture_operator;
CREATE POLICY reconciliations_ask ON billing.reconciliations FOR INSERT TO venture_operator WITH CHECK (true);

RESET ROLE;
