"""What a training will cost, without computing it."""
