"""Who a data set is: sha256 over what its images hold, not over what they are called."""
