"""`solm fit`: from a model and text to a policy with a budget dial, by timing, allocation, samples and regression."""
