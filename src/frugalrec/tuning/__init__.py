"""LoRA on the kept samples."""
