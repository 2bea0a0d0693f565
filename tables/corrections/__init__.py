"""Tables of what is done with predictions after training: test priors and prediction sets."""
