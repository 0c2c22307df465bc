"""All contact with transformers: loading, families, cache, attention and MLP control."""
