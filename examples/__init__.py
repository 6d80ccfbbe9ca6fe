"""Small apps to read and to run; README.md in this folder lists them."""
