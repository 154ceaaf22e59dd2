"""The notebooks as pages: how they are run, recorded and checked."""
