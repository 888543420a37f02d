"""Benchmarks, run as ``python -m bench.<name>``. Neither alto nor its tests import them."""
