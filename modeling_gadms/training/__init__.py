"""Pre-training: arguments, Trainer, and how rows become batches."""
