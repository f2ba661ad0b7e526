"""Independent reproductions, one folder per paper."""
