"""Captions by a server: prompts, templates, rules, answers that are kept."""
