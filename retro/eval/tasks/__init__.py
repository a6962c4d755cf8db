"""Tasks: what is asked of a language model, as blocks of response rows."""
