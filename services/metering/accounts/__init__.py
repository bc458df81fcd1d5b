"""What a user may use: the plan, what overrides it for this user alone, and the period it is counted by."""
