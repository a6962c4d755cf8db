"""Open-domain question answering as data: questions, passages, prompts, sequences. No torch."""
