"""What must hold whatever happens: kills, bad input, versions, forms of images; and which lines the tests run."""
