"""Students and successors: finding the block stack, cutting it, and replacing it block by block."""
