"""The operators' console: pages rendered here for admins, over what the services tell and may be asked to do."""
