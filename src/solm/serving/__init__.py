"""OpenAI's API over a controlled model: continuous batching with a compute budget per request."""
