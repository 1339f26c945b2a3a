"""Tests of the search by example."""
