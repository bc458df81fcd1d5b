-- Roles stay: they belong to the cluster and may serve another database.
SET LOCAL lock_timeout = '5s';
DROP SCHEMA agents CASCADE;
DROP SCHEMA metering CASCADE;
DROP SCHEMA billing CASCADE;
DROP SCHEMA gateway CASCADE;
DROP SCHEMA auth CASCADE;
DROP FUNCTION public.uuid_v7();
