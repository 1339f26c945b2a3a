"""Many images: find them, stream their scores, keep the results so that a killed run goes on, spread over machines."""
