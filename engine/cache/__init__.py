"""Features that are kept in files: what names them, how they are written and read."""
