"""Generator and discriminator, their blocks, losses, augmentation and average."""
