"""What the operators are made of: checks at the declaration, folds, and the bodies of stages."""
