"""Small real models and what can be removed from them: `CASES`, collected from one file by family."""
