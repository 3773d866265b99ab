"""Media: pictures opened safely, upright and within limits. Knows no model."""
