"""Doubles with memory, each run through the same contract suite as what it stands in for."""
