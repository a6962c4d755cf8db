"""Metrics: pure functions over response rows, without model, tokenizer or database."""
