"""What prompts are made of: atoms, vibe, profile, template customisations; and how they become one prompt."""
