"""The gateway is the front door: sign-in, limits, switches, idempotency, streams; it owns users and their profiles."""
