"""Move the weights: which Keras weight becomes which PyTorch tensor, and how."""
