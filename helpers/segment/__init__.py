"""q2's: prompts, models, masks, tracks, files."""
