"""mDDPM: unsupervised anomaly detection with masked diffusion (MLMI 2023)."""
