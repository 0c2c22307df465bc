"""A standard API over a controlled model: continuous batching with a budget per request."""
