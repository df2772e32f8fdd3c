"""Tracking in MLflow: what a run directory holds is mirrored there; the only package that imports mlflow."""
