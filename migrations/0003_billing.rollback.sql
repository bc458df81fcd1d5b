SET LOCAL lock_timeout = '5s';
DROP TABLE billing.profiles, billing.drift, billing.reconciliations, billing.erasures, billing.usage_reports, billing.checkouts,
    billing.refreshes, billing.stripe_events, billing.invoices,
    billing.subscriptions, billing.accounts, billing.customers;
REVOKE USAGE ON SCHEMA billing FROM authenticated, service_role;
