"""Images: where they come from, validation, decoding, splits, augmentation, batches."""
