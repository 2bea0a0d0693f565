"""Prediction sets: for each image the classes among which the true one is, with a coverage asked for."""
