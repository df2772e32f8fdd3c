"""Training: `fit`, learning rate schedules, losses, checkpoints, pruning of trials, TensorFlow's runtime settings."""
