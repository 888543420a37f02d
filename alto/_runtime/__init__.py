"""The runtime: what an open pipeline does."""
