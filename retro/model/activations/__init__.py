"""Memory that a forward pass of RetroModel keeps for the backward pass, by calculation."""
