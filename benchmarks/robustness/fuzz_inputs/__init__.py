"""Generators of bad input, and what has to hold whatever comes out of them: for property tests and for long runs.

`cases` has what all kinds share, `damage` what is done to bytes and nested content, `material` the right files that are
damaged; a file a kind follows, and `kinds` lists them.
"""
