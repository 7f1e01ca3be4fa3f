"""Train and sample text-conditional GANs with Accelerate."""

__version__ = "0.1.0"
