"""Persons in images: detectors, pose models, and the rule of who is kept."""
