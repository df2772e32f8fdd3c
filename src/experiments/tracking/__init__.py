"""Tracking in MLflow: what a run directory holds is mirrored there; the only package that imports mlflow.

Whatever reads or writes a tracking store raises ConfigError if the store cannot be used, see `connection.client`.
"""
