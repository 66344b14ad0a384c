"""One function a stage: each reads finished artefacts, computes once, and writes its own."""
