"""Inputs as people have them, small and made up: what is run on each, and how what came out is judged."""
