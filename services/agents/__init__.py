"""Agents owns runs: queueing, executing and streaming them, what their prompts are made of, and background events."""
