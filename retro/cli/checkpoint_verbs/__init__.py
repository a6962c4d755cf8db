"""Verbs of `retro checkpoint`: each module has add_arguments(parser) and run(arguments) -> exit code."""
