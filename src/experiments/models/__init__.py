"""Networks: backbones, their stages, heads, and the split between the frozen and the trainable part."""
