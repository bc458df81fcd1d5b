"""Switches an operator can trust: maintenance, for everything or one route group, live in every replica within 2 s."""
