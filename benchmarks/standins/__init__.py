"""Generators of stand-in data sets, one per paper, and the simulators that they share."""
