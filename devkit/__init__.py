"""Stand-ins for the outside world, for development and tests only; no service imports this package."""
