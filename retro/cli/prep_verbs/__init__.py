"""One module per verb of `retro prep`: add_arguments(parser) and run(arguments) -> exit code."""
