"""Action recognition (Section 4 of the paper): what a person in a given box does."""
