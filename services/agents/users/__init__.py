"""What agents keeps of users: their tier for concurrency, and that they are gone."""
