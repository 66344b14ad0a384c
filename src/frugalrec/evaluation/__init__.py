"""Every arm and every control, per user, with intervals."""
