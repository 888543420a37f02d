"""Implementation of `alto.engines.pool`."""
