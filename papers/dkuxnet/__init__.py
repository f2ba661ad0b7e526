"""DKUXNet: semi-supervised segmentation by consistency of the distribution over k-means queries."""
