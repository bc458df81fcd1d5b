"""Usage that other programs report: CloudEvents in, each accepted, known already, or refused with its reason."""
