"""Simulated pools under seeded loads: what ``python -m bench.scheduling`` runs."""
