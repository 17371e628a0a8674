"""Tasks: what a run learns.

`class_to_image` is class-conditional image generation.
"""
