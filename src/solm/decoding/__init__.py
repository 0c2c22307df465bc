"""The one decode loop that training, evaluation and generation share."""
