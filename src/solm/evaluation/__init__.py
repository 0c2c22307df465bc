"""Fair comparison: every arm on the same tokens, cache and code, matched in realised budget, with paired intervals."""
