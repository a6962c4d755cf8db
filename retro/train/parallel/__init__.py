"""How a model and its training are spread over processes."""
