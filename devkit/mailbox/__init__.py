"""A mailbox for development: SMTP in, Mailpit's JSON API and a small inbox page out. Nothing is ever sent on."""
