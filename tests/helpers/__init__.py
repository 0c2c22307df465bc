"""What several test modules share: tiny models, policies, commands and servers."""
