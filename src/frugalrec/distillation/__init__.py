"""A worded prompt becomes a few learned vectors, and ranking becomes one pass: training, teachers, export."""
