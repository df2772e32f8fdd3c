"""Regimes: functions (components, dataset, context) -> TrainingResult."""
