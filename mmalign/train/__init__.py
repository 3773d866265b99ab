"""Preference training: pairs in, an adapter or a model out. Importing this package loads no torch; its modules do."""
