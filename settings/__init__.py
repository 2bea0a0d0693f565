"""The flags of the scripts: declared, checked, resolved from the command line."""
