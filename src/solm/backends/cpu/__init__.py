"""The compiled engine: steps that read and compute only what an action keeps."""
