"""Text from files, folders, the hub, Python's own documentation or the model itself, cut into token windows."""
