"""Serving: a completions endpoint that names its evidence, and a page to try it (`retro serve`)."""
