"""Finds words that speak against their image, by patch evidence, and hides them."""
