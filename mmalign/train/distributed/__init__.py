"""Several processes: who does what, and weights as if one held them all."""
