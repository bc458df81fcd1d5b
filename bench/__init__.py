"""Benchmarks: figures for people, never assertions. Each runs against the stack that is up."""
