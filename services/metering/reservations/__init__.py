"""Reservations without a transaction around them: what fits is held by one statement that commits itself."""
