"""Pre-training: arguments, Trainer, and the way from rows to batches."""
