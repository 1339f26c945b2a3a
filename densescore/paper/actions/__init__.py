"""Action recognition (Section 4 of the paper): actions of persons in labeled boxes."""
