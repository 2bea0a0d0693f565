"""Files of weights as other people write them: what they are, what is in them, and whose network that is."""
