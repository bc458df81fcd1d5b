"""Sign-in: the HTTP contract of Supabase Auth for e-mail and password products."""
