"""Cross-entropy against a target (y_true, y_other): plain, label-smoothed and over-smoothed alike."""
