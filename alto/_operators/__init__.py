"""Parts of the operators: checks at the declaration, folds, and the bodies of stages."""
