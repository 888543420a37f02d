"""Adapters to real engines. Nothing below this floor imports them."""

__all__ = ()
