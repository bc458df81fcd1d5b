"""A long while of steady light load on a stack of its own, with a fault every twenty seconds."""
