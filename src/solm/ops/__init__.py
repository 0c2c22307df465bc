"""The maths of an action in plain torch. Nothing here knows about transformers."""
