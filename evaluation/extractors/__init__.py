"""Networks that turn pictures into features: Inception, CLIP's image tower, DINOv2."""
