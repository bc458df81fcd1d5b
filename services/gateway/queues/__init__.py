"""Queues of all services and what is parked behind them, for admins: seen, sent again, given up."""
