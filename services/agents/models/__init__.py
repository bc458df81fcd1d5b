"""Which model answers a run, and when a provider is left alone: pure; the calls are made by the adapters above."""
