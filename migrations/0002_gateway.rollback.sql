SET LOCAL lock_timeout = '5s';
DROP TABLE gateway.traffic_minutes, gateway.health_samples;
DROP TABLE gateway.limited_requests, gateway.api_keys, gateway.mails, gateway.audit_log, gateway.switches, gateway.user_events, gateway.user_event_heads, gateway.idempotency_keys, gateway.erasures;
DROP TABLE public.user_profiles CASCADE;
DROP TABLE auth.mfa_challenges, auth.mfa_factors, auth.mail_requests, auth.flow_state, auth.one_time_tokens, auth.sessions, auth.identities, auth.users CASCADE;
DROP FUNCTION gateway.on_profile_deleted(), gateway.on_profile_written(), gateway.version_entitlements(),
    gateway.create_profile(), gateway.emit(text, text, jsonb), public.is_admin();
