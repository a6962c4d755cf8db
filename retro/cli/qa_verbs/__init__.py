"""Verbs of `retro qa`: each module has add_arguments(parser) and run(arguments) -> exit code."""
