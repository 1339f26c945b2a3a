"""Dense patch scoring."""
