-- depends: 0005_agents
-- A key is kept for a day from when it was first used, also when it was given back: what was made under its id before
-- is then found again by every try of that day.

SET LOCAL lock_timeout = '5s';
SET LOCAL ROLE venture_owner;

ALTER TABLE gateway.idempotency_keys ADD COLUMN first_used_at timestamptz NOT NULL DEFAULT now();
CREATE INDEX idempotency_keys_first_used_at ON gateway.idempotency_keys (first_used_at);
