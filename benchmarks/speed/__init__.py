"""Speed measurements, each side by side with what a user would otherwise call."""
