"""Which module belongs to which layer? A mapping is found by what the modules take."""
