"""Cards of a run's pairs and model, written from its record alone, and their upload to a hub on request."""
