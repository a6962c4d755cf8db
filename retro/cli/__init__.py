"""Command line: the composition roots, the only place where preparation, training and evaluation meet."""
