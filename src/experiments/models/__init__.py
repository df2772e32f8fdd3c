"""Networks: backbones, heads, and how they are cut and joined."""
