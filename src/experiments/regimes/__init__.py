"""Training regimes (scratch, bottleneck, finetune): functions (components, dataset, context) -> TrainingResult."""
