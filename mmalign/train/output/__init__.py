"""What training writes: checkpoints, and the adapter or the model at the end."""
