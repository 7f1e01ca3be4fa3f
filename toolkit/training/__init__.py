"""One training step: the phases of D and G, what both minimise, and the loop round them."""
