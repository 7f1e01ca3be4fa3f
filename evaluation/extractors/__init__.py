"""Networks that turn images into features: Inception, CLIP's image tower, DINOv2."""
