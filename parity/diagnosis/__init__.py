"""Why do they part? The known causes are tried on the layer that diverges."""
