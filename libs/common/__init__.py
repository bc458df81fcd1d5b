"""Mechanism every service uses: events, outbox, inbox, broker, database, HTTP, telemetry. No business rules."""
