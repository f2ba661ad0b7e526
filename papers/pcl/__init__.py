"""PCL: positional contrastive learning for volumetric medical image segmentation."""
