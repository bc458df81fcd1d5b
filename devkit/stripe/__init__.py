"""A stateful stand-in for the Stripe API over HTTP: no money moves, and what it holds survives a kill."""
