"""CGC: cross-grained contrast for unsupervised lesion segmentation from a noisy proposal."""
