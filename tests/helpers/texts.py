"""Texts to score and to train on."""

FISH = "One fish, two fish, red fish, blue fish; some are old and some are new. " * 60
FOX = "The quick brown fox jumps over the lazy dog, and then it rests for a while. " * 120
