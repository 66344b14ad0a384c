"""Language models: local ones, their fetching, prompts."""
