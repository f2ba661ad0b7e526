"""CDI-Net: cross-domain iterative network for low-dose, limited-angle, CT-free cardiac SPECT."""
