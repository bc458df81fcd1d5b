-- depends: 0002_gateway
-- The agents' tables: runs and their events, what prompts are made of, webhooks and the events they bring.

SET LOCAL lock_timeout = '5s';
SET LOCAL ROLE venture_owner;

-- One row per user, written before the user's first run. Leasing locks it, so that the concurrency cap holds across
-- replicas; erasing locks it harder, so that no run can slip in behind the erasure. The row outlives the user as a
-- tombstone (`erased_at`, nothing personal but the id), because events of a deleted user may still be on their way.
CREATE TABLE agents.entitlements (
    user_id text PRIMARY KEY,
    version bigint NOT NULL DEFAULT 0,
    tier text NOT NULL DEFAULT 'free',
    last_leased_at timestamptz NOT NULL DEFAULT '-infinity',
    erased_at timestamptz
) WITH (fillfactor = 70);

-- The runs, and at the same time the durable queue of them.
CREATE TABLE public.agent_runs (
    id uuid PRIMARY KEY,
    user_id text NOT NULL,
    agent_type text NOT NULL,
    task text NOT NULL,
    status text NOT NULL DEFAULT 'queued'
        CHECK (status IN ('queued', 'running', 'succeeded', 'failed', 'cancelled', 'timed_out')),
    model_requested text,
    model_used text,
    output text,
    input_tokens bigint NOT NULL DEFAULT 0 CHECK (input_tokens >= 0),
    output_tokens bigint NOT NULL DEFAULT 0 CHECK (output_tokens >= 0),
    cost_micro_usd bigint NOT NULL DEFAULT 0 CHECK (cost_micro_usd >= 0),
    is_billable boolean NOT NULL DEFAULT false,
    error jsonb,
    vibe jsonb NOT NULL DEFAULT '{}',
    context jsonb NOT NULL DEFAULT '{}',
    profile jsonb NOT NULL DEFAULT '{}',
    template_id uuid,
    background_event_id uuid,
    -- What a reader of the output should know, and the atoms of its prompt (key@version), for feedback to find them.
    warnings jsonb NOT NULL DEFAULT '[]',
    atoms text[] NOT NULL DEFAULT '{}',
    -- Of a run nobody asked for, where its endpoint wants a person to look first; NULL for all others.
    approval text CHECK (approval IN ('pending', 'approved', 'rejected')),
    is_bookmarked boolean NOT NULL DEFAULT false,
    max_output_tokens integer NOT NULL CHECK (max_output_tokens > 0),
    priority smallint NOT NULL DEFAULT 0,
    traceparent text,
    attempt integer NOT NULL DEFAULT 0,
    handed_back integer NOT NULL DEFAULT 0,
    lease_token bigint,
    leased_by text,
    lease_expires_at timestamptz,
    cancel_requested_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    queued_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    finished_at timestamptz,
    CHECK ((status = 'running') = (lease_expires_at IS NOT NULL)),
    CHECK ((status IN ('succeeded', 'failed', 'cancelled', 'timed_out')) = (finished_at IS NOT NULL)),
    CHECK (handed_back <= attempt)
) WITH (fillfactor = 70);
CREATE INDEX agent_runs_user ON public.agent_runs (user_id, created_at DESC, id DESC);
-- The queue's indices hold only what waits or runs: they are as small as the backlog, whatever the history.
CREATE INDEX agent_runs_queued ON public.agent_runs (user_id, priority DESC, queued_at, id) WHERE status = 'queued';
CREATE INDEX agent_runs_running ON public.agent_runs (user_id) WHERE status = 'running';

-- Fencing tokens: each lease has a higher one than every lease before it.
CREATE SEQUENCE agents.lease_tokens;

CREATE FUNCTION agents.keep_terminal_state() RETURNS trigger LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    RAISE EXCEPTION 'run % is %, which is final', OLD.id, OLD.status USING ERRCODE = 'check_violation';
END
$$;
CREATE TRIGGER agent_runs_keep_terminal_state BEFORE UPDATE OF status ON public.agent_runs
    FOR EACH ROW WHEN (OLD.status IN ('succeeded', 'failed', 'cancelled', 'timed_out'))
    EXECUTE FUNCTION agents.keep_terminal_state();

CREATE TABLE agents.run_events (
    run_id uuid NOT NULL REFERENCES public.agent_runs (id) ON DELETE CASCADE,
    seq bigint NOT NULL CHECK (seq > 0),
    type text NOT NULL CHECK (type IN ('run.queued', 'run.started', 'run.delta', 'run.tool', 'run.usage',
        'run.succeeded', 'run.failed', 'run.cancelled', 'run.timed_out')),
    data jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (run_id, seq)
);
-- A stream has one end.
CREATE UNIQUE INDEX run_events_one_end ON agents.run_events (run_id)
    WHERE type IN ('run.succeeded', 'run.failed', 'run.cancelled', 'run.timed_out');

-- Old streams are swept in the order they were written.
CREATE INDEX run_events_created ON agents.run_events USING brin (created_at);

CREATE TABLE agents.run_feedback (
    run_id uuid PRIMARY KEY REFERENCES public.agent_runs (id) ON DELETE CASCADE,
    user_id text NOT NULL,
    agent_type text NOT NULL,
    verdict text NOT NULL CHECK (verdict IN ('approved', 'rejected', 'revised')),
    detail text,
    given_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX run_feedback_lessons ON agents.run_feedback (user_id, agent_type, given_at DESC) WHERE verdict <> 'approved';

CREATE TABLE public.vibe_configs (
    user_id text PRIMARY KEY,
    playfulness smallint NOT NULL DEFAULT 50 CHECK (playfulness BETWEEN 0 AND 100),
    revenue_focus smallint NOT NULL DEFAULT 50 CHECK (revenue_focus BETWEEN 0 AND 100),
    investor_perspective smallint NOT NULL DEFAULT 50 CHECK (investor_perspective BETWEEN 0 AND 100),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE public.user_template_customizations (
    id uuid PRIMARY KEY,
    user_id text NOT NULL,
    name text NOT NULL,
    agent_type text NOT NULL,
    instructions text NOT NULL,
    version integer NOT NULL DEFAULT 1,
    -- The right to read the template, for whoever has the link. Random throughout.
    share_token uuid UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX user_template_customizations_user ON public.user_template_customizations (user_id, created_at DESC, id DESC);

-- What each template said before, the present version included.
CREATE TABLE agents.template_versions (
    template_id uuid NOT NULL REFERENCES public.user_template_customizations (id) ON DELETE CASCADE,
    version integer NOT NULL,
    user_id text NOT NULL,
    name text NOT NULL,
    instructions text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (template_id, version)
);

CREATE TABLE public.prompt_atoms (
    key text PRIMARY KEY,
    category text NOT NULL CHECK (category IN ('tone', 'stack', 'perspective', 'phase', 'domain', 'constraint',
        'example', 'goal', 'risk')),
    title text NOT NULL,
    body text NOT NULL,
    -- Words that call for the atom: of the profile, of the vibe (see services/agents/prompts/domain.py), agent types.
    tags text[] NOT NULL DEFAULT '{}',
    is_default boolean NOT NULL DEFAULT false,
    position integer NOT NULL,
    version integer NOT NULL DEFAULT 1,
    weight integer NOT NULL DEFAULT 100 CHECK (weight BETWEEN 1 AND 1000),
    -- Empty: for everybody.
    target_roles text[] NOT NULL DEFAULT '{}',
    verticals text[] NOT NULL DEFAULT '{}',
    incompatible_with text[] NOT NULL DEFAULT '{}',
    -- Verdicts of users on runs it took part in.
    approvals integer NOT NULL DEFAULT 0,
    rejections integer NOT NULL DEFAULT 0,
    is_active boolean NOT NULL DEFAULT true,
    changed_at timestamptz NOT NULL DEFAULT now(),
    -- The admin; NULL for what ships with the product.
    changed_by text
);
CREATE UNIQUE INDEX prompt_atoms_one_default ON public.prompt_atoms (category) WHERE is_default;

-- What an atom said before it was changed, with the verdicts on that version.
CREATE TABLE agents.prompt_atom_versions (
    key text NOT NULL REFERENCES public.prompt_atoms (key),
    version integer NOT NULL,
    category text NOT NULL,
    title text NOT NULL,
    body text NOT NULL,
    approvals integer NOT NULL,
    rejections integer NOT NULL,
    replaced_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (key, version)
);

CREATE TABLE agents.webhook_endpoints (
    id uuid PRIMARY KEY,
    user_id text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('github', 'gitlab', 'generic')),
    name text NOT NULL,
    -- The signature schemes need the secret itself, not a hash of it: no role but the service's may read this column.
    secret text NOT NULL,
    -- After a rotation the former secret is accepted for a while, so that no delivery is lost while it is exchanged.
    former_secret text,
    former_secret_until timestamptz,
    auto_suggest boolean NOT NULL DEFAULT false,
    approval_required boolean NOT NULL DEFAULT false,
    CHECK ((former_secret IS NULL) = (former_secret_until IS NULL)),
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX webhook_endpoints_user ON agents.webhook_endpoints (user_id, created_at DESC, id DESC);

CREATE TABLE public.background_events (
    id uuid PRIMARY KEY,
    user_id text NOT NULL,
    source text NOT NULL,
    kind text NOT NULL,
    endpoint_id uuid NOT NULL,
    delivery_id text NOT NULL,
    payload jsonb NOT NULL DEFAULT '{}',
    -- Set when the event has led to a run; `refusal` says why it has not.
    run_id uuid,
    refusal jsonb,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (endpoint_id, delivery_id)
);
CREATE INDEX background_events_user ON public.background_events (user_id, created_at DESC, id DESC);

-- A run that a background event asks for, until metering has answered. It is no run yet: nobody has accepted it.
CREATE TABLE agents.proposals (
    run_id uuid PRIMARY KEY,
    user_id text NOT NULL,
    background_event_id uuid NOT NULL UNIQUE REFERENCES public.background_events (id) ON DELETE CASCADE,
    task text NOT NULL,
    max_output_tokens integer NOT NULL,
    approval_required boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX proposals_user ON agents.proposals (user_id);

-- The starter set. Bodies are instructions to the model; each stands on its own, because any subset may be chosen.
INSERT INTO public.prompt_atoms (category, key, title, body, tags, is_default, position) VALUES
('tone', 'tone.plain', 'Plain and direct', 'Write plainly. Short sentences, concrete nouns, no filler, no praise of the question.', '{direct,plain,concise}', true, 10),
('tone', 'tone.playful', 'Playful', 'Be warm and a little witty. One light image per section at most; never at the cost of precision.', '{playful,fun,casual,friendly}', false, 20),
('tone', 'tone.sober', 'Sober', 'Keep a sober, businesslike register, as in a memo that a lawyer may read one day.', '{sober,formal,professional,serious}', false, 30),
('tone', 'tone.coach', 'Coach', 'Encourage by naming the next small win. Ask one question back where the answer depends on it.', '{coach,supportive,encouraging,mentor}', false, 40),
('stack', 'stack.any', 'Any stack', 'Name no technology unless the choice changes the advice; if it does, say what would change your mind.', '{}', true, 10),
('stack', 'stack.python', 'Python', 'Assume a Python team: prefer the standard library and well-kept packages, typed code, plain SQL.', '{python,django,fastapi,flask}', false, 20),
('stack', 'stack.typescript', 'TypeScript', 'Assume a TypeScript team: one language in front and behind, strict types at every boundary.', '{typescript,javascript,node,react,nextjs,next.js,vue,svelte}', false, 30),
('stack', 'stack.mobile', 'Mobile', 'Assume a mobile app: releases take days, old versions stay in the field, offline is normal.', '{mobile,ios,android,swift,kotlin,flutter,react-native}', false, 40),
('stack', 'stack.nocode', 'No code', 'Assume nobody writes code: propose tools that one person can set up in an afternoon, and their monthly price.', '{nocode,no-code,zapier,airtable,bubble,webflow}', false, 50),
('perspective', 'perspective.cofounder', 'Cofounder', 'Speak as a cofounder who shares the risk: say what you would do yourself, and what you would not.', '{cofounder,founder}', true, 10),
('perspective', 'perspective.investor', 'Investor', 'Read everything as an investor would: market size, defensibility, what the next round needs to see.', '{investor,fundraising,vc,board}', false, 20),
('perspective', 'perspective.builder', 'Builder', 'Think as the person who builds it this week: smallest useful change first, reversible before irreversible.', '{builder,engineer,engineering,developer,cto,technical}', false, 30),
('perspective', 'perspective.customer', 'Customer', 'Take the customer''s chair: what do they do today instead, and what would make them switch on a Tuesday?', '{customer,product,ux,design,support}', false, 40),
('perspective', 'perspective.operator', 'Operator', 'Think as whoever runs it at night: who notices a failure first, and what do they do in the first five minutes?', '{operator,operations,ops,coo}', false, 50),
('phase', 'phase.validate', 'Validation', 'Nothing is proven yet. Prefer the cheapest test that could prove the idea wrong over any building.', '{idea,validation,pre-seed,discovery,prototype}', true, 10),
('phase', 'phase.launch', 'Launch', 'The aim is the first ten users who would miss the product. Do what does not scale, and write down what you learn.', '{launch,mvp,beta,seed}', false, 20),
('phase', 'phase.grow', 'Growth', 'Something works. Find the one step of the funnel that loses most and mend that before adding another channel.', '{growth,scale,scaling,series-a,traction}', false, 30),
('phase', 'phase.steady', 'Steady operation', 'Customers rely on this. Every change needs a way back, and reliability counts as a feature.', '{mature,enterprise,profitable,steady}', false, 40),
('domain', 'domain.general', 'General business', 'Assume a small software business; where an industry rule might apply, name it and tell the reader to check it.', '{}', true, 10),
('domain', 'domain.saas', 'Software as a service', 'Reason in recurring revenue: activation, retention, expansion, churn. A discount is a price; say what it buys.', '{saas,b2b,subscription,software}', false, 20),
('domain', 'domain.commerce', 'Commerce', 'Reason in margin per order: returns, shipping, payment fees and stock come before growth.', '{ecommerce,e-commerce,commerce,retail,marketplace,shop}', false, 30),
('domain', 'domain.finance', 'Finance', 'Money and identity are involved: name licensing, fraud and reconciliation duties before features.', '{fintech,finance,banking,payments,insurance}', false, 40),
('domain', 'domain.health', 'Health', 'Health data is involved: assume strict consent, audit and retention duties; give no medical advice.', '{health,healthcare,medical,medtech,wellness}', false, 50),
('domain', 'domain.education', 'Education', 'Buyer, user and beneficiary differ: name which of teacher, learner, parent and institution each step is for.', '{education,edtech,learning,school}', false, 60),
('constraint', 'constraint.small', 'Small team', 'Assume two people and no budget beyond their time. Nothing may take longer than a week to show a result.', '{}', true, 10),
('constraint', 'constraint.careful', 'Careful', 'Prefer the option with the smallest worst case, and name the worst case of each option you offer.', '{low,careful,cautious,conservative,risk-averse}', false, 20),
('constraint', 'constraint.bold', 'Bold', 'A bold move is welcome if its failure is survivable: say what is staked, and the point at which to stop.', '{high,bold,aggressive,moonshot}', false, 30),
('example', 'example.number', 'One worked number', 'Where a decision hangs on a number, work one example through with round figures and say they are assumptions.', '{revenue,investor,plan,pricing}', false, 10),
('example', 'example.wording', 'Ready wording', 'Where the reader must write to somebody, give the first two sentences ready to send.', '{suggestion,sales,marketing,outreach}', true, 20),
('example', 'example.code', 'Code review example', 'Where you criticise code or a change, quote the smallest passage that shows it and the better version beside it.', '{review,code,builder,github,gitlab}', false, 30),
('goal', 'goal.learn', 'Learn', 'Judge every step by what it teaches: say which belief it tests and what result would change the plan.', '{}', true, 10),
('goal', 'goal.revenue', 'Revenue', 'Judge every step by its distance to paid revenue; put the one that is nearest first.', '{revenue,mrr,arr,sales,profit}', false, 20),
('goal', 'goal.users', 'Active users', 'Judge every step by whether people come back because of it; sign-ups alone count for nothing.', '{users,activation,retention,engagement,growth,dau,mau}', false, 30),
('goal', 'goal.cost', 'Cost', 'Judge every step by what it stops costing, in money or hours a month.', '{cost,margin,efficiency,burn,runway}', false, 40),
('risk', 'risk.assumption', 'Riskiest assumption', 'Name the assumption that would hurt most if wrong, and the earliest sign that it is.', '{}', true, 10),
('risk', 'risk.cash', 'Cash', 'Say how the plan changes if income comes three months late.', '{revenue,runway,burn,low,cautious}', false, 20),
('risk', 'risk.dependency', 'Dependency', 'Name what the plan borrows from others (platforms, one customer, one person) and what happens without it.', '{builder,platform,api,integration,marketplace}', false, 30),
('risk', 'risk.story', 'The hard question', 'Name the hardest question a sceptical investor will ask, and the honest answer as it stands today.', '{investor,fundraising,vc,board}', false, 40);

-- Who may what. -------------------------------------------------------------------------------------------------------

ALTER TABLE agents.entitlements ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE public.agent_runs ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE agents.run_events ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE agents.run_feedback ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE public.vibe_configs ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE public.user_template_customizations ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE agents.template_versions ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE agents.prompt_atom_versions ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE public.prompt_atoms ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE agents.webhook_endpoints ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE public.background_events ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE agents.proposals ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;

GRANT USAGE ON SCHEMA agents TO authenticated;
GRANT USAGE ON SEQUENCE agents.lease_tokens TO venture_agents;

GRANT SELECT, INSERT, UPDATE, DELETE ON agents.entitlements, public.agent_runs, agents.run_events, agents.run_feedback, public.vibe_configs,
    public.user_template_customizations, agents.template_versions, agents.webhook_endpoints, public.background_events,
    agents.proposals TO venture_agents;
GRANT SELECT, INSERT, UPDATE ON public.prompt_atoms TO venture_agents;
GRANT SELECT, INSERT ON agents.prompt_atom_versions TO venture_agents;
CREATE POLICY entitlements_agents ON agents.entitlements TO venture_agents USING (true) WITH CHECK (true);
CREATE POLICY agent_runs_agents ON public.agent_runs TO venture_agents USING (true) WITH CHECK (true);
CREATE POLICY run_events_agents ON agents.run_events TO venture_agents USING (true) WITH CHECK (true);
CREATE POLICY vibe_configs_agents ON public.vibe_configs TO venture_agents USING (true) WITH CHECK (true);
CREATE POLICY templates_agents ON public.user_template_customizations TO venture_agents USING (true) WITH CHECK (true);
CREATE POLICY template_versions_agents ON agents.template_versions TO venture_agents USING (true) WITH CHECK (true);
CREATE POLICY prompt_atom_versions_agents ON agents.prompt_atom_versions TO venture_agents USING (true) WITH CHECK (true);
CREATE POLICY run_feedback_agents ON agents.run_feedback TO venture_agents USING (true) WITH CHECK (true);
CREATE POLICY prompt_atoms_agents ON public.prompt_atoms TO venture_agents USING (true) WITH CHECK (true);
CREATE POLICY webhook_endpoints_agents ON agents.webhook_endpoints TO venture_agents USING (true) WITH CHECK (true);
CREATE POLICY background_events_agents ON public.background_events TO venture_agents USING (true) WITH CHECK (true);
CREATE POLICY proposals_agents ON agents.proposals TO venture_agents USING (true) WITH CHECK (true);

-- Users: own rows, admins all. `(SELECT …)` makes the caller's id a value computed once, not once per row.
GRANT SELECT ON public.agent_runs, agents.run_events, agents.run_feedback, public.background_events, public.prompt_atoms
    TO authenticated;
CREATE POLICY run_feedback_read ON agents.run_feedback FOR SELECT TO authenticated
    USING (user_id = (SELECT auth.uid()::text) OR (SELECT public.is_admin()));
CREATE POLICY agent_runs_read ON public.agent_runs FOR SELECT TO authenticated
    USING (user_id = (SELECT auth.uid()::text) OR (SELECT public.is_admin()));
CREATE POLICY run_events_read ON agents.run_events FOR SELECT TO authenticated
    USING (EXISTS (SELECT FROM public.agent_runs r WHERE r.id = run_id));  -- which the policy above filters
CREATE POLICY background_events_read ON public.background_events FOR SELECT TO authenticated
    USING (user_id = (SELECT auth.uid()::text) OR (SELECT public.is_admin()));
CREATE POLICY prompt_atoms_read ON public.prompt_atoms FOR SELECT TO authenticated USING (is_active);

GRANT SELECT, INSERT, UPDATE ON public.vibe_configs TO authenticated;
CREATE POLICY vibe_configs_read ON public.vibe_configs FOR SELECT TO authenticated
    USING (user_id = (SELECT auth.uid()::text) OR (SELECT public.is_admin()));
CREATE POLICY vibe_configs_insert ON public.vibe_configs FOR INSERT TO authenticated
    WITH CHECK (user_id = (SELECT auth.uid()::text));
CREATE POLICY vibe_configs_update ON public.vibe_configs FOR UPDATE TO authenticated
    USING (user_id = (SELECT auth.uid()::text)) WITH CHECK (user_id = (SELECT auth.uid()::text));

GRANT SELECT, INSERT, UPDATE, DELETE ON public.user_template_customizations TO authenticated;
CREATE POLICY templates_update ON public.user_template_customizations FOR UPDATE TO authenticated
    USING (user_id = (SELECT auth.uid()::text)) WITH CHECK (user_id = (SELECT auth.uid()::text));
CREATE POLICY templates_delete ON public.user_template_customizations FOR DELETE TO authenticated
    USING (user_id = (SELECT auth.uid()::text));
CREATE POLICY templates_read ON public.user_template_customizations FOR SELECT TO authenticated
    USING (user_id = (SELECT auth.uid()::text) OR (SELECT public.is_admin()));
CREATE POLICY templates_insert ON public.user_template_customizations FOR INSERT TO authenticated
    WITH CHECK (user_id = (SELECT auth.uid()::text));

GRANT SELECT ON agents.template_versions TO authenticated;
CREATE POLICY template_versions_read ON agents.template_versions FOR SELECT TO authenticated
    USING (user_id = (SELECT auth.uid()::text) OR (SELECT public.is_admin()));

GRANT SELECT (id, user_id, kind, name, auto_suggest, approval_required, created_at) ON agents.webhook_endpoints TO authenticated;
GRANT INSERT (id, user_id, kind, name, secret, auto_suggest, approval_required) ON agents.webhook_endpoints
    TO authenticated;

CREATE POLICY webhook_endpoints_read ON agents.webhook_endpoints FOR SELECT TO authenticated
    USING (user_id = (SELECT auth.uid()::text) OR (SELECT public.is_admin()));
CREATE POLICY webhook_endpoints_insert ON agents.webhook_endpoints FOR INSERT TO authenticated
    WITH CHECK (user_id = (SELECT auth.uid()::text));

-- People with the runbook read; `secret` is not among the columns.
GRANT SELECT ON public.agent_runs, public.background_events, public.vibe_configs, public.user_template_customizations,
    public.prompt_atoms, agents.entitlements, agents.run_events, agents.proposals TO venture_operator;
GRANT SELECT (id, user_id, kind, name, auto_suggest, approval_required, created_at) ON agents.webhook_endpoints TO venture_operator;
CREATE POLICY agent_runs_operator ON public.agent_runs FOR SELECT TO venture_operator USING (true);
-- Ending a lease gives the run to another worker; the fencing token keeps the first one from writing.
GRANT UPDATE (lease_expires_at) ON public.agent_runs TO venture_operator;
CREATE POLICY agent_runs_requeue ON public.agent_runs FOR UPDATE TO venture_operator
    USING (status = 'running') WITH CHECK (status = 'running');
CREATE POLICY background_events_operator ON public.background_events FOR SELECT TO venture_operator USING (true);
CREATE POLICY vibe_configs_operator ON public.vibe_configs FOR SELECT TO venture_operator USING (true);
CREATE POLICY templates_operator ON public.user_template_customizations FOR SELECT TO venture_operator USING (true);
CREATE POLICY prompt_atoms_operator ON public.prompt_atoms FOR SELECT TO venture_operator USING (true);
CREATE POLICY entitlements_operator ON agents.entitlements FOR SELECT TO venture_operator USING (true);
CREATE POLICY run_events_operator ON agents.run_events FOR SELECT TO venture_operator USING (true);
CREATE POLICY proposals_operator ON agents.proposals FOR SELECT TO venture_operator USING (true);
CREATE POLICY webhook_endpoints_operator ON agents.webhook_endpoints FOR SELECT TO venture_operator USING (true);

GRANT SELECT ON public.agent_runs, public.background_events, public.vibe_configs, public.user_template_customizations,
    public.prompt_atoms TO service_role;
CREATE POLICY agent_runs_service ON public.agent_runs FOR SELECT TO service_role USING (true);
CREATE POLICY background_events_service ON public.background_events FOR SELECT TO service_role USING (true);
CREATE POLICY vibe_configs_service ON public.vibe_configs FOR SELECT TO service_role USING (true);
CREATE POLICY templates_service ON public.user_template_customizations FOR SELECT TO service_role USING (true);
CREATE POLICY prompt_atoms_service ON public.prompt_atoms FOR SELECT TO service_role USING (true);

RESET ROLE;
