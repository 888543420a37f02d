"""Implementation of `alto.llm`: generations, typed output, vectors."""
