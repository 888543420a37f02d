"""Implementation of `alto.engines.vllm`. Only this package imports vllm, torch and transformers."""
