"""Background events: webhooks with their signatures, what they brought, and the runs they propose."""
