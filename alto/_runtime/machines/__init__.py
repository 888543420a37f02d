"""Decisions of the runtime: synchronous, without clock, randomness or I/O."""
