"""SR4ZCT: through-plane resolution enhancement of a CT volume, learnt from its own in-plane images."""
