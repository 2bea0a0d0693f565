"""Small trees of image files that several test files read."""
