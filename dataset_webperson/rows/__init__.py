"""Rows of a WebPerson: found, checked, cleaned and streamed."""
