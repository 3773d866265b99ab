"""What is computed once and found again: encoded contexts, features, and the reference's numbers."""
