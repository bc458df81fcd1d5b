SET LOCAL lock_timeout = '5s';
REVOKE USAGE ON SCHEMA agents FROM authenticated;
DROP TABLE agents.proposals, agents.template_versions, agents.prompt_atom_versions, agents.webhook_endpoints,
    agents.run_feedback, agents.run_events, agents.entitlements;
DROP TABLE public.background_events, public.prompt_atoms, public.user_template_customizations, public.vibe_configs,
    public.agent_runs;
DROP FUNCTION agents.keep_terminal_state();
DROP SEQUENCE agents.lease_tokens;
