"""Training: the loop, its checkpoints, its observers. Knows nothing of retrieval programs, generation, evaluation."""
