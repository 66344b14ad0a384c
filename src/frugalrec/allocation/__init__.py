"""Which users get the LLM, under a budget."""
