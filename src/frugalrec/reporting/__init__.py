"""Quality against cost: tables, plots, one HTML page."""
