"""From pair rows to the tensors of a batch, and what is checked before."""
