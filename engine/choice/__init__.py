"""What is compared on held-out images, and how they are folded where none are held out."""
