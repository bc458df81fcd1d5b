"""The user's profile and account, and what the user's own event stream tells."""
