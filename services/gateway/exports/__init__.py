"""Everything the product holds about a user, as one file for the user."""
