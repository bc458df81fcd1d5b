"""The playground: a small page on which a newcomer meets the product in a browser."""
