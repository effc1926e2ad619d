"""Fine-tuning on a benchmark by IRRA's recipe, with adapters if wanted."""
