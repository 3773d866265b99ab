"""Backends: each gives exactly the frames it is asked for, by number, as upright arrays (height, width, 3) of uint8.

A backend is a function `(source, numbers) -> iterator of arrays` in ascending order of `numbers`. It runs in a child
process (`mmalign.media.child`), opens its own reader there, and raises `CannotGiveError` where it cannot give them.
"""
