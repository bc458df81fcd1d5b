"""Template customisations: a user's own instructions, with their history, shipped presets to begin from, and links."""
