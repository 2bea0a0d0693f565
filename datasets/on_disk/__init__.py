"""Images on disk: who they are, read from lists, JSON and folders."""
