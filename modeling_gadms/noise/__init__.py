"""Words that speak against their image: found by patch evidence, and hidden."""
