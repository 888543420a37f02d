"""What ``bench.scale`` runs."""
