"""Fine-tuning on a benchmark by IRRA's recipe, optionally with adapters."""
