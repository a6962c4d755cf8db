"""Documents, tokens, chunks, neighbor tables, and the data set that training reads."""
