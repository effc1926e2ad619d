"""Readers of the field's benchmarks and pre-training corpora."""
