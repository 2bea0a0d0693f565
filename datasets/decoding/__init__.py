"""What decoding an image file takes: options, memory, the header of a JPEG, orientation, 16 bits, PIL."""
