"""CUTS: unsupervised, multigranular segmentation of medical images."""
