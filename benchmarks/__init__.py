"""The runner, the claims, the tables, the stand-in data sets and the speed measurements."""
