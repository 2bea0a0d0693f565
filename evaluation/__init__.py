"""What is measured of a model, and how it is shown: reports, tables of text, rows of runs, pictures."""
