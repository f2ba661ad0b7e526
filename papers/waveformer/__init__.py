"""WaveFormer (FET): a U-shaped transformer whose attention sees wavelet bands and boundaries (MLMI 2023)."""
