"""What a training image undergoes: random crops, colour jitter, the AutoAugment policy and Cutout."""
