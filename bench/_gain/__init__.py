"""The parts of ``bench/streaming_gain.py``."""
