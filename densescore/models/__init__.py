"""Named networks with preprocessing, labels, license and origin; and heads on them."""
