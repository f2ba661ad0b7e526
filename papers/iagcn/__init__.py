"""IA-GCN: feature attention and a learned population graph for disease prediction from tables."""
