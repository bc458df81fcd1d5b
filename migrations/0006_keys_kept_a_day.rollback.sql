SET LOCAL lock_timeout = '5s';
SET LOCAL ROLE venture_owner;
ALTER TABLE gateway.idempotency_keys DROP COLUMN first_used_at;
