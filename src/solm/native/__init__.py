"""The compiled CPU engine: a decode step that reads and computes only what an action keeps."""
