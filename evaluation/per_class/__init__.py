"""What is known of each class and of what is taken for what: tables by name, and a page of a run."""
