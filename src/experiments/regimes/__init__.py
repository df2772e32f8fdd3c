"""Ways to train: functions (parts, splits, watch) -> Fitted."""
