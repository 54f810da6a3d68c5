"""What every room may use: clocks, tensors as bytes, random streams, paths, words for wrong input."""
