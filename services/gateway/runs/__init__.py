"""Runs at the front door: accepted once, streamed without gaps."""
