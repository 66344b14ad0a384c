"""From LLM output to a ranking of real catalogue items."""
