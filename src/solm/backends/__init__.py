"""What runs a model: the session protocol, and the two backends that implement it."""
