"""NIO: registration whose network weights are optimised for each pair, coarse to fine."""
