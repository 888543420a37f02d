"""Implementation of `alto.engines.simulated`."""
