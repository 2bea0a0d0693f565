"""Labels as lists write them, and the classes that they are."""
