"""Pairs to and from the formats of other tools: one format per file, with a shared view of what all of them see."""
