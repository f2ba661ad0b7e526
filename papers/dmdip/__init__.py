"""dmDIP: super-resolution of one pair of T1w and T2w sections by networks that are fitted to it alone."""
