"""Files on disk, below everything else.

`atomic` replaces a file so that readers see the old content or the new one.
"""
