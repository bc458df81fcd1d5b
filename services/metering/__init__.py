"""Metering owns what was used and what may still be used: holds, the ledger, counters, entitlements."""
