"""What `--test_prior` can be, in words."""

BALANCED, TRAIN = "balanced", "train"
CONTENT = "a JSON object of shares by class name, a CSV 'name,share', or one number a line in the order of the classes"
FORMS = f"a file: {CONTENT}"
