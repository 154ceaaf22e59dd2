"""Where do the two models part? Both run side by side, and every tensor is compared."""
