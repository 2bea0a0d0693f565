"""How sure a number is: intervals by the bootstrap, and paired tests of methods on the same test images."""
