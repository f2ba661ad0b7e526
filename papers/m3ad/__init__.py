"""M3AD: multi-modal adapters for medical vision-and-language learning (Yu et al., MLMI 2023)."""
