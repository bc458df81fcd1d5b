"""Bringing up, looking at and taking down everything the product is made of, with one command each."""
