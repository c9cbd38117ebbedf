"""The main job: a dense teacher, a dense student, and a student pruned, quantized and distilled in one step."""
