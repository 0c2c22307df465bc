"""Studies and baselines that no product path needs; one file each, run by `solm study`."""
