"""Retrieval measured: embeddings, intervals, tests, tables and report pages."""
