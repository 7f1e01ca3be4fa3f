"""A reader taught from scratch on the dataset itself: it shares nothing with ImageNet, CLIP or a discriminator."""
