"""What users call: load or attach a model, generate under a budget, batch."""
