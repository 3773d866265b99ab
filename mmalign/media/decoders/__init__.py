"""Backends: each gives exactly the frames it is asked for, by number, as upright arrays of uint8.

They are (height, width, 3) in RGB, or (height, width, 4) with a fourth byte that says nothing. A backend is a function
`(source, numbers) -> iterator of arrays` in ascending order of `numbers`. It runs in a child process
(`mmalign.media.child`), opens its own reader there, and raises `CannotGiveError` where it cannot give them.
"""
