"""Use of trained models: loading, prediction, export."""
