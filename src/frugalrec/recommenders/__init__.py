"""Cheap models: baselines, surrogates and the first-stage ranking."""
