"""A question is answered, and every claim of the answer is checked while the answer is written."""
