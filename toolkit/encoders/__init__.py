"""Text encoders and their identity."""
