"""Decisions: sync, pure, no clock, no luck, no I/O."""
