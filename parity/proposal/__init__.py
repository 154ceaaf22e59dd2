"""Which module belongs to which layer? A mapping is found by the inputs of the modules."""
