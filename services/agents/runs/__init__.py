"""Runs: one row each, which is the queue as well; their events; the engine that executes them."""
