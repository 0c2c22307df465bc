"""Who runs a model: the session protocol, and two backends that keep it."""
