"""Synthetic images: animal faces, drawn from random numbers."""
