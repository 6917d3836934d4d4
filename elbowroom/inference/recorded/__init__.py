"""Functions of tensors recorded once, and replayed without the Python around them."""
