"""unORANIC: unsupervised orthogonalization of anatomy and image-characteristic features."""
