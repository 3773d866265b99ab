"""Log-probs, divergences and terms of whole distributions, streamed from hidden states."""
