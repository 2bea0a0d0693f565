"""How fast it is: beside a baseline loop, beside the machine, and over the size of the data."""
