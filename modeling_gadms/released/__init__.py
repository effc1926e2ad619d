"""Checkpoints of the released code: reading and writing."""
