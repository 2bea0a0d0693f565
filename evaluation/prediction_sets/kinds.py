"""How the thresholds of prediction sets are taken (`evaluation.prediction_sets.thresholds`)."""

MARGINAL, CLASSWISE, INTERPOLATED = "marginal", "classwise", "interpolated"
KINDS = (MARGINAL, CLASSWISE, INTERPOLATED)
