"""Template: replace this line by the paper's name and what it does."""
