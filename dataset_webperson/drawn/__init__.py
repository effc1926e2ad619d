"""Drawings of pedestrians whose captions know which of their words are false."""
