"""Implementation of `alto.text`: cut text into pieces while it grows."""
