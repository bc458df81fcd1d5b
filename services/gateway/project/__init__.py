"""Sign-in by an existing Supabase project instead of our own: its tokens are accepted, /auth/v1 is relayed to it."""
